"""Findings: log records where a logger provider is configured, as the conventions want; else events of the span."""

from __future__ import annotations

from time import time_ns
from typing import Any

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import Span

from sqltrace.finding import Finding
from sqltrace.request import RequestRecord
from sqltrace.sinks.log_line import known

EVENT = "sqltrace.finding"


def mark_findings(span: Span, record: RequestRecord, *, events: bool) -> bool:
    """
    Say on the server span what was found by now, and return whether anything was.

    Args:
        events: An event for each, too.
    """
    findings = record.findings
    if not findings:
        return False
    span.set_attribute("sqltrace.finding.kinds", list(dict.fromkeys(finding.kind for finding in findings)))
    if events:
        for finding in findings:
            span.add_event(EVENT, _attributes(finding) | {"sqltrace.finding.message": finding.message})
    return True


def log_findings(logger: Logger, record: RequestRecord, context: Context | None) -> None:
    """Send a log record for each, in the span of the request, and with its route: logs are looked for without spans."""
    of_request = known({"http.request.method": record.method, "http.route": record.route})
    for finding in record.findings:
        logger.emit(
            timestamp=time_ns(),
            context=context,
            severity_number=SeverityNumber.WARN,
            severity_text="WARN",
            event_name=EVENT,
            body=finding.message,
            attributes=of_request | _attributes(finding),
        )


def _attributes(finding: Finding) -> dict[str, Any]:
    attributes = {
        "sqltrace.finding.kind": finding.kind,
        "sqltrace.finding.cost": finding.cost,
        "sqltrace.finding.call_site": finding.call_site,
        "sqltrace.finding.loaded_for": finding.parents,
        "sqltrace.finding.fix": finding.fix,
        "sqltrace.finding.fingerprint": finding.fingerprint,
        "sqltrace.relationship": finding.relationship,
    }
    return known(attributes)
