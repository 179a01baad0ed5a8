"""The log line as an OpenTelemetry log record."""

from __future__ import annotations

from time import time_ns

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.context import Context

from sqltrace.request import RequestRecord
from sqltrace.sinks.log_line import log_line

_SEVERITIES = {
    "error": (SeverityNumber.ERROR, "ERROR"),
    "warning": (SeverityNumber.WARN, "WARN"),
    "info": (SeverityNumber.INFO, "INFO"),
}
_TOLD_BY_THE_RECORD = ("trace_id", "span_id")


def log_request(logger: Logger, record: RequestRecord, context: Context | None, level: str) -> None:
    """Send the line, in the span of the request."""
    number, text = _SEVERITIES[level]
    line = log_line(record)
    for name in _TOLD_BY_THE_RECORD:
        line.pop(name, None)
    logger.emit(
        timestamp=time_ns(),
        context=context,
        severity_number=number,
        severity_text=text,
        event_name="sqltrace.request",
        body="request",
        attributes=line,
    )
