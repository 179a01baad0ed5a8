"""
`SQLTraceMiddleware`: opens a recording for each request, times the response, tells the sinks.

The only file that knows ASGI messages. The middleware object holds options;
what belongs to one request is in its `_Exchange`.
"""

from __future__ import annotations

import sys
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from sqltrace.capture.instrument import dialect_of, instrument
from sqltrace.collector import Clock
from sqltrace.event_loop import stepped
from sqltrace.faults import report_fault
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord
from sqltrace.route import route_template
from sqltrace.sinks import Sink, StructlogSink

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SCOPE_KEY = "sqltrace"
_NORMAL_CLOSE = frozenset({1000, 1001, 1005})  # RFC 6455, 7.4.1: done, going away, no code given


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
        sinks: Who is told. By default ``[StructlogSink()]``.
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
        sinks: Sequence[Sink] | None = None,
        exclude: Iterable[str] | Callable[[Scope], bool] = (),
        capture_parameters: bool = False,
        max_statements: int = 500,
        max_sql_length: int = 10_000,
    ) -> None:
        self.app = app
        self.sinks = _checked_sinks(sinks)
        self._exclude = _checked_exclude(exclude)
        self._dialects = _checked_dialects(engines)
        self._capture_parameters = _checked_flag("capture_parameters", capture_parameters)
        self._max_statements = _checked_size("max_statements", max_statements)
        self._max_sql_length = _checked_size("max_sql_length", max_sql_length)
        instrument(*(engines or ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("type") not in ("http", "websocket") or _SCOPE_KEY in scope or self._excludes(scope):
            await self.app(scope, receive, send)
            return
        try:
            exchange = _Exchange(self, scope, receive, send)
        except Exception as fault:
            report_fault("opening a recording", fault)
            await self.app(scope, receive, send)
            return
        outer = exchange.recording.open()
        error: BaseException | None = None
        try:
            await stepped(self.app(scope, exchange.receive, exchange.send), exchange.loop_share)
        except BaseException as raised:
            error = raised
            raise
        finally:
            try:
                exchange.finish(error)
            except Exception as fault:
                report_fault("finishing a request", fault)
            error = None  # the exception's traceback holds this frame
            exchange.recording.leave(outer)

    def _excludes(self, scope: Scope) -> bool:
        exclude = self._exclude
        if not exclude:
            return False
        try:
            if callable(exclude):
                return bool(exclude(scope))
            path = scope["path"].removeprefix((scope.get("root_path") or "").rstrip("/"))
            return any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in exclude)
        except Exception as fault:
            report_fault("the `exclude` option", fault)
            return False

    def _new_recording(self, name: str) -> Recording:
        return Recording(
            name,
            clock=self._clock,
            dialects=self._dialects,
            capture_parameters=self._capture_parameters,
            max_statements=self._max_statements,
            max_sql_length=self._max_sql_length,
        )


class _Exchange:
    """One request: watches the messages that go by, and knows when it is over."""

    __slots__ = (
        "_disconnected",
        "_ready",
        "_receive",
        "_root_path",
        "_scope",
        "_send",
        "_sinks",
        "_trailers",
        "loop_share",
        "record",
    )

    def __init__(self, middleware: SQLTraceMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        protocol, path = scope["type"], scope.get("path", "")
        method = scope.get("method") if protocol == "http" else None
        client = scope.get("client")
        self._scope, self._receive, self._send = scope, receive, send
        self._root_path = scope.get("root_path") or ""
        self._sinks = middleware.sinks
        self._trailers = self._ready = self._disconnected = False
        self.record = RequestRecord(
            recording=middleware._new_recording(f"{method or 'WEBSOCKET'} {path}"),
            protocol=protocol,
            path=path,
            method=method,
            client_address=client[0] if client else None,
        )
        self.loop_share = self.recording.observe_loop(self._name_route)
        scope[_SCOPE_KEY] = self.record

    @property
    def recording(self) -> Recording:
        return self.record.recording

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message["type"]
        if kind == "http.disconnect" and not self._ready:
            self._disconnected = True
        elif kind == "websocket.disconnect":
            if not self._ready and message.get("code", 1005) not in _NORMAL_CLOSE:
                self._disconnected = True
            self._response_ready()
            self.recording.end_response()
        return message

    async def send(self, message: Message) -> None:
        last = self._watch(message)
        if last:
            self._response_ready()
        await self._send(message)
        if last:
            self.recording.end_response()

    def _watch(self, message: Message) -> bool:
        """Note what the message tells. Whether the response ends with it."""
        kind = message["type"]
        if kind == "http.response.body" or kind == "http.response.zerocopysend":
            return not message.get("more_body", False) and not self._trailers
        if kind in ("http.response.start", "websocket.http.response.start"):
            self._begin(message["status"])
            self._trailers = message.get("trailers", False)
        elif kind == "websocket.accept":
            self._begin(101)
        elif kind == "websocket.close":
            if self.record.status is None:
                self._begin(403)
            return True
        elif kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        elif kind == "websocket.http.response.body":
            return not message.get("more_body", False)
        return kind == "http.response.pathsend"

    def _begin(self, status: int) -> None:
        self.record.status = status
        self.record.time_to_first_byte = self.recording.duration

    def _response_ready(self) -> None:
        if self._ready:
            return
        self._ready = True
        try:
            self._describe_trace()
            self._describe_route()
        except Exception as fault:
            report_fault("describing a request", fault)
        self._tell("response_ready")

    def finish(self, error: BaseException | None) -> None:
        record, complete = self.record, self._ready
        self.recording.end()
        if not complete:
            self._ready = True
            self._describe_trace()
            self._describe_route()
        if error is not None:
            self._describe_error(error)
        elif self._disconnected:
            record.outcome = "disconnected"
        elif record.protocol == "http" and not complete:
            record.outcome, record.error_type = "error", "incomplete_response"
        if record.outcome == "ok" and record.status is not None and record.status >= 500:
            record.outcome, record.error_type = "error", str(record.status)
        self._tell("request_finished")

    def _describe_error(self, error: BaseException) -> None:
        record = self.record
        record.error_type = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        if isinstance(error, CancelledError):
            record.outcome = "disconnected" if self._disconnected else "cancelled"
        elif type(error).__name__ in ("WebSocketDisconnect", "ClientDisconnect", "ClientDisconnected"):
            normal = getattr(error, "code", None) in _NORMAL_CLOSE
            record.outcome = "ok" if normal else "disconnected"
            if normal:
                record.error_type = None
        elif self._disconnected and isinstance(error, OSError):
            record.outcome = "disconnected"  # the server's send() raises OSError once the client is gone
        else:
            record.outcome = "error"
            if record.status is None:
                record.status = 500

    def _describe_route(self) -> None:
        record = self.record
        record.route = route_template(self._scope, self._root_path)
        if record.route is not None:
            self.recording.name = f"{record.method or 'WEBSOCKET'} {record.route}"

    def _name_route(self) -> None:
        """While it lasts, for others who wait for this request."""
        try:
            if self.record.route is None:
                self._describe_route()
        except Exception as fault:
            report_fault("naming a route", fault)

    def _describe_trace(self) -> None:
        # Within send(), while the span is current, also one begun further in.
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            return
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            self.record.trace_id = format(context.trace_id, "032x")
            self.record.span_id = format(context.span_id, "016x")

    def _tell(self, moment: str) -> None:
        for sink in self._sinks:
            try:
                getattr(sink, moment)(self.record)
            except Exception as fault:
                report_fault(f"{type(sink).__name__}.{moment}()", fault)


def _checked_sinks(sinks: Sequence[Sink] | None) -> tuple[Sink, ...]:
    if sinks is None:
        return (StructlogSink(),)
    if isinstance(sinks, (str, bytes)) or not isinstance(sinks, Iterable):
        raise TypeError(f"sinks must be a sequence of sinks, got {sinks!r:.100}")
    for sink in sinks:
        for moment in ("response_ready", "request_finished"):
            if not callable(getattr(sink, moment, None)):
                raise TypeError(f"a sink needs a method {moment}(record), got {sink!r:.100}")
        if isinstance(sink, type):
            raise TypeError(f"sinks must be objects, got the class {sink.__name__}: write {sink.__name__}()")
    return tuple(sinks)


def _checked_exclude(
    exclude: Iterable[str] | Callable[[Scope], bool],
) -> tuple[str, ...] | Callable[[Scope], bool]:
    if callable(exclude):
        return exclude
    if isinstance(exclude, (str, bytes)):
        raise TypeError(
            f"exclude must be a sequence of path prefixes or a callable, got {exclude!r}: write [{exclude!r}]"
        )
    if not isinstance(exclude, Iterable):
        raise TypeError(f"exclude must be a sequence of path prefixes or a callable, got {exclude!r:.100}")
    prefixes = tuple(exclude)
    for prefix in prefixes:
        if not isinstance(prefix, str):
            raise TypeError(f"exclude must hold path prefixes as str, got {prefix!r:.100}")
        if not prefix.startswith("/"):
            raise ValueError(f"exclude must hold paths that begin with '/', got {prefix!r}")
    return prefixes


def _checked_dialects(engines: Iterable[Any] | None) -> frozenset[Any] | None:
    if engines is None:
        return None
    if not isinstance(engines, Iterable):
        raise TypeError(f"engines must be a sequence of engines, got {engines!r:.100}: write [engine]")
    dialects = frozenset(dialect_of(engine) for engine in engines)
    if not dialects:
        raise ValueError("engines is empty: leave it out to record every engine")
    return dialects


def _checked_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r:.100}")
    return value


def _checked_size(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r:.100}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
