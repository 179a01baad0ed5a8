"""Who is told of a request. One file per sink; OpenTelemetry is imported when its sink is asked for."""

from typing import TYPE_CHECKING, Any

from sqltrace.sinks.protocol import Sink, StartingSink
from sqltrace.sinks.readable import ReadableRenderer
from sqltrace.sinks.structlog import StructlogSink

if TYPE_CHECKING:
    from sqltrace.sinks.opentelemetry import OpenTelemetrySink

__all__ = ["OpenTelemetrySink", "ReadableRenderer", "Sink", "StartingSink", "StructlogSink"]


def __getattr__(name: str) -> Any:
    if name == "OpenTelemetrySink":  # its library is an extra
        try:
            from sqltrace.sinks.opentelemetry import OpenTelemetrySink
        except ModuleNotFoundError as error:
            remedy = f"OpenTelemetrySink needs {error.name}: the extra `otel` has it."
            raise ModuleNotFoundError(remedy, name=error.name) from error
        return OpenTelemetrySink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
