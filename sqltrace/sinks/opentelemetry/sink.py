"""`OpenTelemetrySink`: what happens at each moment of a request."""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.context import Context, get_current
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TracerProvider

from sqltrace.checks import checked_flag, checked_number, checked_size
from sqltrace.faults import report_fault
from sqltrace.request import RequestRecord
from sqltrace.route import Scope
from sqltrace.sinks.log_line import is_slow, level_of
from sqltrace.sinks.opentelemetry.attributes import of_request
from sqltrace.sinks.opentelemetry.comments import Commenter
from sqltrace.sinks.opentelemetry.finding_events import log_findings, mark_findings
from sqltrace.sinks.opentelemetry.logs import log_request
from sqltrace.sinks.opentelemetry.others import Insides
from sqltrace.sinks.opentelemetry.providers import Loggers, Meters, Tracers
from sqltrace.sinks.opentelemetry.server_span import begin_server_span, conclude_server_span, span_name
from sqltrace.sinks.opentelemetry.statement_spans import StatementSpans, epoch_time
from sqltrace.sinks.opentelemetry.telling import TOLD_ELSEWHERE, choose

_CONTRIB = "opentelemetry.instrumentation.sqlalchemy"
_TRACE_ID_LIMIT = 1 << 64


class _Request:
    """What the sink keeps of a request that is traced."""

    __slots__ = ("attached", "enriched", "found", "made", "outer", "span", "span_context", "traced")

    def __init__(self, span: Span | None) -> None:
        self.span = span
        self.span_context: SpanContext | None = span.get_span_context() if span is not None else None
        self.traced = span is None or span.is_recording()
        self.made = False
        self.enriched = self.found = False
        self.outer: Context | None = None
        self.attached: Context | None = None

    def find(self) -> None:
        """Take the span that is current within `send()`, where it was begun further in."""
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            self.span, self.span_context = span, span.get_span_context()

    def enter(self, span: Span, parent: Context) -> None:
        """Make the span current for the application."""
        self.outer = get_current()
        self.attached = trace.set_span_in_context(span, parent)
        otel_context.attach(self.attached)

    def leave(self) -> None:
        # Not detach(token): a request may end in another copy of the context than it began in, where that is refused.
        if self.outer is not None and get_current() is self.attached:
            otel_context.attach(self.outer)
        self.outer = self.attached = None


class OpenTelemetrySink:
    """
    Tells each request to OpenTelemetry, as the application has configured it.

    The server span that FastAPI, an instrumentation or the application itself
    has begun gets the time account and the counts. Where nobody begins one it
    is made here. Statements become spans below it, when the request is over
    and only if it is sampled. Where a meter provider is configured, requests and
    statements are measured, each of them; many of one request arrive soon after it, from a
    thread of the event loop's executor. Nothing happens where no provider is configured.

    Of several in one middleware, the first that finds a server span, or can make one, tells
    the spans of a request. Each meter provider measures all requests, and each of them once.

    Args:
        keep:
            Share of the sampled requests whose statements become spans, 0.0 to
            1.0. Slow ones, failed ones and those with a finding always do.
        slow: Seconds from which a request is slow; of a websocket or an event stream those until it begins.
        repeats: Statements of one group that get a span each; one more stands for the rest of them.
        max_spans: Spans of statements for one request. Totals of what is beyond are kept.
        literals: Leave literals in the text of raw SQL. By default each is replaced by ``?``.
        url_query:
            Leave the values in ``url.query`` of a server span that is made here, but for the signatures of
            clouds. By default each is replaced by ``REDACTED``: the names of parameters remain.
        log_line: Send the log line as a log record, too.
        sql_comments:
            Append ``/*call_site='…',route='…',traceparent='…'*/`` to statements, for the database's
            own log. A text that is new in every request is never a prepared statement that
            psycopg would reuse; asyncpg, psqlpy, Oracle and SQL Server, whose caches it would fill, get
            no ``traceparent``. Left as they are: statements that have a comment; an INSERT or REPLACE of
            many parameter sets, but for SQLite, PostgreSQL, Oracle and SQL Server: drivers of others would
            send row by row; what is no SELECT, INSERT, UPDATE, DELETE, WITH, MERGE, REPLACE, VALUES or CALL;
            those that end in more than one semicolon; and all where `sqltrace.capabilities` has no
            ``do_execute``, or a ``do_execute`` listener of the application runs the statement itself.
        tracer_provider, logger_provider, meter_provider: By default the global ones.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: a number is out of range, or not a number.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        *,
        keep: float = 1.0,
        slow: float = 1.0,
        repeats: int = 3,
        max_spans: int = 100,
        literals: bool = False,
        url_query: bool = False,
        log_line: bool = False,
        sql_comments: bool = False,
        tracer_provider: TracerProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._keep = checked_number("keep", keep, 0, 1)
        self._slow = checked_number("slow", slow, 0)
        self._repeats = checked_size("repeats", repeats)
        self._max_spans = checked_size("max_spans", max_spans)
        self._literals = checked_flag("literals", literals)
        self._url_query = checked_flag("url_query", url_query)
        self._log_line = checked_flag("log_line", log_line)
        self._comments = checked_flag("sql_comments", sql_comments)
        self._tracers = Tracers(_checked_provider("tracer", tracer_provider))
        self._loggers = Loggers(_checked_provider("logger", logger_provider))
        self._meters = Meters(_checked_provider("meter", meter_provider))
        self._insides = Insides()
        self._note = f"opentelemetry.{id(self)}"

    def request_started(self, record: RequestRecord, scope: Scope, app: Any) -> None:
        """Called in the context of the request, before the application."""
        if self._comments:
            record.recording.collector.comment = Commenter(record, scope)
        span, metrics = trace.get_current_span(), self._meters.get()
        if metrics is not None:
            metrics.begin(record, scope, measured_elsewhere=self._insides.measures_http(app, scope, span))
        context = span.get_span_context()
        if context.is_valid and not context.is_remote:
            if span.is_recording():
                self._follow(record, _Request(span))
            return
        tracer = self._tracers.get()
        if self._insides.makes_server_span(app, scope):
            self._follow(record, _Request(None))
        elif tracer is not None:
            start = epoch_time(record.recording)
            made, parent = begin_server_span(tracer, record, scope, start, url_query=self._url_query)
            if made.get_span_context().is_valid:
                request = _Request(made)
                request.made = True
                request.enter(made, parent)
                self._follow(record, request)

    def response_ready(self, record: RequestRecord) -> None:
        request = record.notes.get(self._note)
        if request is None or request.made:
            return  # a span of our own can wait: all is known at the end, and the client does not
        if request.span is None:
            request.find()
        self._enrich(request, record)

    def request_finished(self, record: RequestRecord) -> None:
        request = record.notes.pop(self._note, None)
        try:
            if request is not None and request.traced:
                self._finish(request, record)
            if request is not None or self._log_line:
                self._log(record, request)
            metrics = self._meters.get()
            if metrics is not None:
                metrics.finish(record, _context_of(request))
        finally:
            if request is not None:
                request.leave()

    def _follow(self, record: RequestRecord, request: _Request) -> None:
        if not request.traced:
            record.notes[self._note] = request  # to leave it
            return
        sampled = request.span_context is None or request.span_context.trace_flags.sampled
        probe = _CurrentSpanBesideContrib() if _CONTRIB in sys.modules else _CurrentSpan()
        tells = sampled and self._tracers.get() is not None
        if tells and not record.recording.collector.note_spans(probe) and not request.made:
            return  # called from within another request, that tells all of it
        record.notes[self._note] = request

    def _enrich(self, request: _Request, record: RequestRecord) -> None:
        span = request.span
        if span is not None and span.is_recording():
            request.enriched = True
            span.set_attributes(of_request(record))
            request.found = mark_findings(span, record, events=self._loggers.get() is None)

    def _finish(self, request: _Request, record: RequestRecord) -> None:
        try:
            if not request.enriched:
                self._enrich(request, record)
            server, tracer = request.span_context, self._tracers.get()
            if tracer is not None and (server is None or server.trace_flags.sampled) and self._keeps(record, request):
                recording = record.recording
                told = choose(recording, repeats=self._repeats, most=self._max_spans)
                name = span_name(record)
                StatementSpans(tracer, recording, server, name=name, literals=self._literals).make(told)
        finally:
            if request.made and request.span is not None:
                conclude_server_span(request.span, record, epoch_time(record.recording, record.duration))

    def _log(self, record: RequestRecord, request: _Request | None) -> None:
        logger = self._loggers.get()
        if logger is not None:
            context = _context_of(request)
            if request is not None and request.traced:
                log_findings(logger, record, context)
            if self._log_line:
                log_request(logger, record, context, level_of(record, self._slow))

    def _keeps(self, record: RequestRecord, request: _Request) -> bool:
        if self._keep >= 1 or record.outcome == "error" or record.recording.failed_count or is_slow(record, self._slow):
            return True
        # They are costly to look for: what was found for the span stands, unless more has happened since.
        sure = request.enriched and not record.recording.after_response_count
        if request.found or (not sure and record.findings):
            return True
        server = request.span_context
        # As OpenTelemetry's own ratio sampler decides, so that services agree.
        trace_id = server.trace_id if server is not None else int(record.trace_id or "0", 16)
        return trace_id % _TRACE_ID_LIMIT < self._keep * _TRACE_ID_LIMIT


class _CurrentSpan:
    """What the statements of a request are noted with: the context of the span that is current, found once for each."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[Context | None, SpanContext | None] = (None, None)

    def __call__(self, execution_context: Any) -> Any:  # noqa: ARG002 - a contrib package leaves its span in it
        """Never raises."""
        try:
            current = get_current()
            known, span_context = self._known
            if current is known:
                return span_context
            span_context = trace.get_current_span(current).get_span_context()
            self._known = current, span_context
            return span_context
        except Exception as fault:
            report_fault("reading the current span", fault)
            return None


class _CurrentSpanBesideContrib(_CurrentSpan):
    """Where opentelemetry-instrumentation-sqlalchemy is loaded."""

    __slots__ = ()

    def __call__(self, execution_context: Any) -> Any:
        if getattr(execution_context, "_otel_span", None) is not None:
            return TOLD_ELSEWHERE
        return super().__call__(execution_context)


def _context_of(request: _Request | None) -> Context | None:
    span_context = request.span_context if request is not None else None
    if span_context is None:
        return None
    return trace.set_span_in_context(NonRecordingSpan(span_context))


def _checked_provider(kind: str, provider: Any) -> Any:
    name = f"{kind}_provider"
    if isinstance(provider, type):
        raise TypeError(f"{name} must be an object, got the class {provider.__name__}: write {provider.__name__}()")
    if provider is not None and not callable(getattr(provider, f"get_{kind}", None)):
        raise TypeError(f"{name} must have a method get_{kind}(), got {provider!r:.100}")
    return provider
