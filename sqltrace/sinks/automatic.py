"""OpenTelemetry by default: as soon as the application has configured it, and not a moment before."""

from __future__ import annotations

import sys
from typing import Any

from sqltrace.faults import report_fault
from sqltrace.request import RequestRecord
from sqltrace.route import Scope
from sqltrace.sinks.protocol import StartingSink

# The API cannot be asked whether somebody has configured it: these stand in until then.
_DEFERRED = frozenset(("ProxyTracerProvider", "_ProxyMeterProvider", "ProxyLoggerProvider"))


def is_configured(provider: Any) -> bool:
    cls = type(provider)
    return not (cls.__name__ in _DEFERRED and cls.__module__.startswith("opentelemetry."))


class OpenTelemetryWhenConfigured:
    """
    An `OpenTelemetrySink` from the first request on that finds a provider configured.

    Imports nothing before: who configures OpenTelemetry has imported it.
    """

    def __init__(self) -> None:
        self._sink: StartingSink | None = None
        self._broken = False

    def request_started(self, record: RequestRecord, scope: Scope, app: Any) -> None:
        if self._sink is None and not self._broken and _is_any_configured():
            self._sink = self._make()
        if self._sink is not None:
            self._sink.request_started(record, scope, app)

    def response_ready(self, record: RequestRecord) -> None:
        if self._sink is not None:
            self._sink.response_ready(record)

    def request_finished(self, record: RequestRecord) -> None:
        if self._sink is not None:
            self._sink.request_finished(record)

    def _make(self) -> StartingSink | None:
        try:
            from sqltrace.sinks.opentelemetry import OpenTelemetrySink

            return OpenTelemetrySink()
        except Exception as fault:
            self._broken = True
            report_fault("using the installed opentelemetry-api", fault)
            return None


def _is_any_configured() -> bool:
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    if trace is not None and is_configured(trace.get_tracer_provider()):
        return True
    return metrics is not None and is_configured(metrics.get_meter_provider())
