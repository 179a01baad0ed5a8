"""The spans of statements and connections, made when the request is over, with their true times."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    set_span_in_context,
)

from sqltrace.clock import SECOND
from sqltrace.recording import Recording
from sqltrace.sinks.opentelemetry.attributes import Attributes, of_acquisition, of_statement
from sqltrace.sinks.opentelemetry.telling import Told
from sqltrace.statement import Phase

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def epoch_time(recording: Recording, seconds: float = 0.0) -> int:
    """Nanoseconds since 1970 of so many seconds after the start of the recording."""
    return (recording.started_at - _EPOCH) // _MICROSECOND * 1_000 + round(seconds * SECOND)


class StatementSpans:
    """
    Makes the spans of one request, below its server span.

    Args:
        server: Context of the server span. `None` where it was not seen: only statements inside a span are told then.
        name: Of the server span.
        literals: Leave literals in the text of raw SQL.
    """

    def __init__(
        self, tracer: Tracer, recording: Recording, server: SpanContext | None, *, name: str, literals: bool
    ) -> None:
        self._tracer = tracer
        self._recording = recording
        self._server = server
        self._name = name
        self._literals = literals
        self._started = epoch_time(recording)
        self._contexts: dict[int, Context] = {}
        self._background: SpanContext | None = None

    def make(self, told: Iterable[Told]) -> None:
        for span in told:
            noted = span.execution.span if span.execution is not None else None
            parent = self._parent_of(noted, span.group.phase)
            if parent is not None and parent.trace_flags.sampled:
                self._make(span, parent)
        self._make_waits()

    def _make(self, told: Told, parent: SpanContext) -> None:
        attributes = of_statement(told.group, told.execution, told.rest, literals=self._literals)
        name = attributes["db.query.summary"]
        if told.rest is not None and told.rest.count != 1:
            name = f"{name} ×{told.rest.count}"
        self._make_span(name, SpanKind.CLIENT, parent, attributes, told.start, told.end)

    def _make_waits(self) -> None:
        began, response_end = self._recording.started, round(self._recording.duration * SECOND)
        for one in self._recording.acquisitions():
            start, end = one.started - began, one.ended - began
            parent = self._parent_of(one.span, "response" if start <= response_end else "after_response")
            if parent is not None and parent.trace_flags.sampled:
                self._make_span("connection", SpanKind.INTERNAL, parent, of_acquisition(one), start, end)

    def _make_span(
        self, name: str, kind: SpanKind, parent: SpanContext, attributes: Attributes, start: int, end: int
    ) -> None:
        """`start` and `end` are nanoseconds from the start of the recording."""
        context = self._context(parent)
        span = self._tracer.start_span(name, context, kind, attributes, start_time=self._started + start)
        if "error.type" in attributes:
            span.set_status(StatusCode.ERROR)
        span.end(self._started + end)

    def _parent_of(self, noted: Any, phase: Phase) -> SpanContext | None:
        """What was current at that moment, or the request itself; after the response, a span beside it."""
        current = noted if isinstance(noted, SpanContext) and noted.is_valid else None
        if self._server is None:
            return current
        if current is not None and current.span_id != self._server.span_id:
            return current
        if phase == "response":
            return self._server
        if self._background is None:
            self._background = self._make_background(self._server)
        return self._background

    def _make_background(self, server: SpanContext) -> SpanContext:
        recording = self._recording
        span = self._tracer.start_span(
            f"{self._name} after response",
            context=self._context(server),
            links=[Link(server)],
            start_time=epoch_time(recording, recording.duration),
        )
        span.end(epoch_time(recording, recording.duration + recording.after_response))
        return span.get_span_context()

    def _context(self, parent: SpanContext) -> Context:
        context = self._contexts.get(parent.span_id)
        if context is None:
            context = self._contexts[parent.span_id] = set_span_in_context(NonRecordingSpan(parent), Context())
        return context
