"""OpenTelemetry by default: as soon as the application has configured it, and not a moment before."""

from __future__ import annotations

from typing import Any

from sqltrace.faults import report_fault
from sqltrace.request import RequestRecord
from sqltrace.route import Scope
from sqltrace.sinks.configured import is_any_configured
from sqltrace.sinks.protocol import StartingSink


class OpenTelemetryWhenConfigured:
    """
    An `OpenTelemetrySink` from the first request on that finds a provider configured.

    Imports nothing before: who configures OpenTelemetry has imported it.
    """

    def __init__(self) -> None:
        self._sink: StartingSink | None = None
        self._broken = False

    def request_started(self, record: RequestRecord, scope: Scope, app: Any) -> None:
        if self._sink is None and not self._broken and is_any_configured():
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
