"""Who is told of a request. One file per sink; its library is imported when the sink is made."""

from sqltrace.sinks.protocol import Sink
from sqltrace.sinks.readable import ReadableRenderer
from sqltrace.sinks.structlog import StructlogSink

__all__ = ["ReadableRenderer", "Sink", "StructlogSink"]
