"""
`SQLTraceMiddleware`: opens a recording for each request, times the response, tells the sinks.

The only file that knows ASGI messages. The middleware object holds options;
what belongs to one request is in its `_Exchange`.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, TypeVar

from sqltrace.capture.failed_loads import note_exception
from sqltrace.capture.instrument import dialect_of, instrument
from sqltrace.checks import checked_engines, checked_flag, checked_size
from sqltrace.clock import Clock
from sqltrace.collector import beside_answered_requests
from sqltrace.event_loop import stepped
from sqltrace.faults import report_fault
from sqltrace.findings import Rule
from sqltrace.inner_tasks import observe_inner_tasks
from sqltrace.loop_log import note_sinks
from sqltrace.options import checked_exclude, checked_rules, checked_sinks
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord, describe_span, is_orderly_close, outcome_of
from sqltrace.route import Scope, path_below_root, route_template
from sqltrace.sinks import Sink, StartingSink

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
_T = TypeVar("_T")

_SCOPE_KEY = "sqltrace"


class SQLTraceMiddleware:
    """
    Tells for every request where its time went, with the SQL behind it.

        app.add_middleware(sqltrace.SQLTraceMiddleware)

    Pure ASGI, for ``http`` and ``websocket``. Installed twice, or again in a
    mounted application, the outermost one tells and the others step aside.
    A fault of its own is logged once on the logger ``sqltrace`` and never
    reaches the response.

    Args:
        app: The ASGI application.
        engines:
            Record the statements of these `Engine` or `AsyncEngine` objects only.
            By default of every engine, made before or after.
        sinks: Who is told. By default ``[StructlogSink()]``, and `OpenTelemetrySink` where OpenTelemetry is configured.
        rules: What makes the findings. By default `sqltrace.findings.default_rules()`; ``[]`` for none.
        exclude:
            Path prefixes that are passed through untouched (``/health`` matches
            ``/health`` and ``/health/db``, not ``/healthy``; below the server's
            ``root_path``), or a callable that takes the scope.
        capture_parameters: Keep a shortened `repr` of statement parameters. They may be personal data.
        max_statements: Statements, and groups, kept in detail per request. Counts and times stay exact beyond.
        max_sql_length: Characters of SQL kept of each statement.

    Raises:
        TypeError: an option is of the wrong type, or unknown.
        ValueError: a number is too small, or an excluded path has no leading slash.

    .. versionadded:: 0.1.0
    """

    _clock: Clock = staticmethod(time.perf_counter_ns)

    def __init__(
        self,
        app: ASGIApp,
        *,
        engines: Iterable[Any] | None = None,
        sinks: Iterable[Sink] | None = None,
        rules: Iterable[Rule] | None = None,
        exclude: Iterable[str] | Callable[[Scope], bool] | None = (),
        capture_parameters: bool = False,
        max_statements: int = 500,
        max_sql_length: int = 10_000,
    ) -> None:
        self.app = app
        self._sinks = checked_sinks(sinks)
        self._starters = [sink for sink in self._sinks if isinstance(sink, StartingSink)]
        self._rules = checked_rules(rules)
        self._exclude = checked_exclude(exclude)
        recorded = checked_engines(engines)
        self._recording_options: dict[str, Any] = {
            "dialects": frozenset(map(dialect_of, recorded)) or None,
            "capture_parameters": checked_flag("capture_parameters", capture_parameters),
            "max_statements": checked_size("max_statements", max_statements),
            "max_sql_length": checked_size("max_sql_length", max_sql_length),
        }
        instrument(*recorded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._begin(scope, receive, send)
        if exchange is None:
            with beside_answered_requests():
                await self.app(scope, receive, send)
            return
        error: BaseException | None = None
        try:
            await stepped(self.app(scope, exchange.receive, exchange.send), exchange.loop_share)
        except BaseException as raised:
            error = raised
            raise
        finally:
            exchange.finish(error)
            error = None  # the exception's traceback holds this frame

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> _Exchange | None:
        """`None` for what is none of our business, is excluded, or is recorded further out already."""
        if scope.get("type") not in ("http", "websocket") or _SCOPE_KEY in scope or self._excludes(scope):
            return None
        _guarded("observing the event loop", observe_inner_tasks)
        try:
            record = self._new_record(scope)
            exchange = _Exchange(record, self._sinks, scope, receive, send)
            exchange.start(self._starters, self.app)
            return exchange
        except Exception as fault:
            report_fault("opening a recording", fault)
            return None

    def _excludes(self, scope: Scope) -> bool:
        exclude = self._exclude
        if not exclude:
            return False
        try:
            if callable(exclude):
                return bool(exclude(scope))
            path = path_below_root(scope) or "/"
            return any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in exclude)
        except Exception as fault:
            report_fault("the `exclude` option", fault)
            return False

    def _new_record(self, scope: Scope) -> RequestRecord:
        protocol, path = scope["type"], scope.get("path") or ""
        method = scope.get("method") if protocol == "http" else None
        client = scope.get("client")
        name = f"{method or protocol.upper()} {path}"
        return RequestRecord(
            recording=Recording(name, clock=self._clock, **self._recording_options),
            protocol=protocol,
            path=path,
            method=method,
            rules=self._rules,
            client_address=(client[0] or None) if client else None,
        )


class _Exchange:
    """One request: watches the messages that go by, and knows when it is over."""

    __slots__ = (
        "_disconnected", "_outer", "_ready", "_receive", "_record", "_scope", "_send", "_sinks", "_trailers",
        "loop_share",
    )  # fmt: skip

    def __init__(
        self, record: RequestRecord, sinks: Sequence[Sink], scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._record: RequestRecord | None = record  # None when over: the application may keep its Request, and so us
        self._sinks, self._scope, self._receive, self._send = sinks, scope, receive, send
        self._ready = self._trailers = self._disconnected = False
        scope[_SCOPE_KEY] = True
        self.loop_share = record.recording.observe_loop(self._name_route)
        self._outer = record.recording.open()

    def start(self, starters: Iterable[Sink], app: ASGIApp) -> None:
        self._tell("request_started", self._record, self._scope, app, sinks=starters)
        _guarded("reading the current span", describe_span, self._record)

    async def receive(self) -> Message:
        message = await self._receive()
        if self._record is not None:
            _guarded("watching a request", self._note_received, message, self._record)
        return message

    async def send(self, message: Message) -> None:
        record, last = self._record, None
        if record is not None:
            last = _guarded("watching a response", self._note_sent, message, record)
        try:
            await self._send(message)
        except OSError:
            self._disconnected = True  # what a server raises once the client is gone, says the ASGI specification
            raise
        finally:
            if last and record is not None:
                _guarded("watching a response", record.recording.end_response)

    def _note_received(self, message: Message, record: RequestRecord) -> None:
        if self._ready:
            return  # to a complete response servers say http.disconnect, too
        kind = message["type"]
        if kind == "http.disconnect":
            self._disconnected = True
        elif kind == "websocket.receive":
            record.recording.messages += 1
        elif kind == "websocket.disconnect":
            self._disconnected = not is_orderly_close(message.get("code"))
            self._response_ready(record)
            record.recording.end_response()

    def _note_sent(self, message: Message, record: RequestRecord) -> bool:
        """Whether the response ends with this message, which is about to go out."""
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._trailers = bool(message.get("trailers"))
            _begin_response(record, int(message["status"]), message.get("headers") or ())  # often an http.HTTPStatus
        elif kind == "websocket.accept":
            _begin_response(record, 101)
        elif kind == "websocket.close":
            _begin_response(record, 403)
        if record.event_stream:
            record.recording.messages += 1
        last = self._is_last(kind, message)
        if last:
            self._response_ready(record)
        return last

    def _is_last(self, kind: str, message: Message) -> bool:
        if kind in ("http.response.body", "http.response.zerocopysend", "websocket.http.response.body"):
            return not message.get("more_body") and not self._trailers
        if kind == "http.response.pathsend":
            return not self._trailers
        if kind == "http.response.trailers":
            return not message.get("more_trailers")
        return kind == "websocket.close"

    def _response_ready(self, record: RequestRecord) -> None:
        if not self._ready:
            self._ready = True
            if record.status is not None and record.status < 400:
                # The application has coped with them, but for those that GraphQL has made errors of in the response.
                loads = record.recording.failed_loads
                loads[:] = [failed for failed in loads if failed.in_resolver]
            self._describe(record)
            record.recording.freeze()
            try:
                self._tell("response_ready", record)
            finally:
                record.recording.thaw()

    def finish(self, error: BaseException | None) -> None:
        record, self._record = self._record, None
        if record is not None:  # pragma: no branch - for the type checker: a request finishes once
            _guarded("finishing a request", self._finish, record, error)

    def _finish(self, record: RequestRecord, error: BaseException | None) -> None:
        if error is not None:
            note_exception(error)
        record.recording.leave(self._outer)
        record.recording.end()
        self._scope.pop(_SCOPE_KEY, None)
        if not self._ready:
            self._describe(record)
        self._conclude(record, error)
        self._tell("request_finished", record)
        note_sinks(self.loop_share.collector.clock, self.loop_share.left)

    def _conclude(self, record: RequestRecord, error: BaseException | None) -> None:
        if error is not None:
            record.outcome = outcome_of(error, disconnected=self._disconnected)
            if record.outcome != "ok":
                record.error_type = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        elif self._disconnected:
            record.outcome = "disconnected"
        elif not self._ready and (record.protocol == "http" or record.status is None):
            record.outcome, record.error_type = "error", "incomplete_response"
        elif record.status is not None and record.status >= 500:
            record.outcome, record.error_type = "error", str(record.status)
        if record.outcome == "error" and record.status is None:
            record.status = 500  # the server's answer, which does not pass here

    def _describe(self, record: RequestRecord) -> None:
        if record.trace_id is None:
            # Here, within send(), a span is current that was begun further in.
            _guarded("reading the current span", describe_span, record)
        self._describe_route(record)

    def _describe_route(self, record: RequestRecord) -> None:
        answered = self._ready or self._record is None
        record.route = _guarded("finding the route", route_template, self._scope, answered)
        if record.route is not None:
            record.recording.name = f"{record.method or record.protocol.upper()} {record.route}"

    def _name_route(self) -> None:
        """While it lasts, for others who wait for this request."""
        record = self._record
        if record is not None and record.route is None:
            self._describe_route(record)

    def _tell(self, moment: str, *arguments: Any, sinks: Iterable[Sink] | None = None) -> None:
        for sink in self._sinks if sinks is None else sinks:
            try:
                getattr(sink, moment)(*arguments)
            except (Exception, CancelledError) as fault:  # the latter of a task that it has asked for its result
                report_fault(f"{type(sink).__name__}.{moment}()", fault)


def _begin_response(record: RequestRecord, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    if record.status is None:
        record.status = status
        readable = () if iter(headers) is headers else headers  # an iterator can be read once, which the server does
        types = [value for name, value in readable if name.lower() == b"content-type"]
        record.event_stream = any(value.startswith(b"text/event-stream") for value in types)
        record.time_to_first_byte = record.recording.duration


def _guarded(step: str, function: Callable[..., _T], *arguments: Any) -> _T | None:
    """What the function returns; `None` when it raises, which is reported."""
    try:
        return function(*arguments)
    except (Exception, CancelledError) as fault:  # nothing is awaited here
        report_fault(step, fault)
        return None
