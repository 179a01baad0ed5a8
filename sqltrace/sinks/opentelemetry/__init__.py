"""
OpenTelemetry: spans, logs and metrics, through its API only.

Read in this order: `sink` (the moments of a request), `server_span` (made only
where nobody else does), `attributes` (what a span says), `telling` (which
statements become spans), `statement_spans`, `logs`.
"""

from sqltrace.sinks.opentelemetry.sink import OpenTelemetrySink

__all__ = ["OpenTelemetrySink"]
