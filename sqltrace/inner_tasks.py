"""
What Starlette runs in a task of its own within a request.

Applications inside of `BaseHTTPMiddleware` (``@app.middleware("http")``), and the body of a `StreamingResponse`
under servers that speak ASGI before 2.4, as uvicorn does. There the request's own task only waits: who holds the
event loop, and waits for it, is the task inside. Its steps count as the request's.

Not undone by `uninstrument()`, which ends the recording of statements: the middleware goes on to tell of the loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from sqltrace.collector import current
from sqltrace.event_loop import LoopShare, stepped
from sqltrace.faults import report_fault
from sqltrace.shares import share_of

_MARKER: Final = "_sqltrace_observed"


def observe_inner_tasks() -> None:
    """
    Observe the inner tasks of all of the process's applications, also of those that are mounted.

    Asked before each request, as Starlette imports what starts them when that is needed. Once all is there it is done.
    """
    for module, place in _missing.copy().items():
        if module in sys.modules and _replace(module, *place):
            _missing.pop(module, None)


def _replace(module: str, name: str, method: str, observing: Callable[[Any], Any]) -> bool:
    """Whether it is there, and replaced by now."""
    cls: Any = getattr(sys.modules[module], name, None)
    original = vars(cls).get(method) if cls is not None else None
    if original is None:
        return False
    if not hasattr(original, _MARKER):
        replacement = wraps(original)(observing(original))
        setattr(replacement, _MARKER, True)
        setattr(cls, method, replacement)
    return True


def _observing_body(original: Any) -> Any:
    async def stream_response(self: Any, send: Any) -> None:
        share = _share_of_request()
        streaming = original(self, send)
        await (streaming if share is None else stepped(streaming, share, within=True))

    return stream_response


def _observing_inside(original: Any) -> Any:
    async def observed(self: Any, scope: Any, receive: Any, send: Any) -> None:
        try:
            if not isinstance(self.app, _Observed):
                self.app = _Observed(self.app)
        except Exception as fault:
            report_fault("observing the event loop", fault)
        await original(self, scope, receive, send)

    return observed


# Of modules that are not imported yet; and not by us, for an ASGI application may do without Starlette.
_missing: Final[dict[str, tuple[str, str, Callable[[Any], Any]]]] = {
    "starlette.responses": ("StreamingResponse", "stream_response", _observing_body),
    "starlette.middleware.base": ("BaseHTTPMiddleware", "__call__", _observing_inside),
}


class _Observed:
    """An ASGI application of which the steps are observed, where it runs in another task than its request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("app"), name)

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        running = self.app(scope, receive, send)
        share = _share_of_request()
        return running if share is None else stepped(running, share, within=True)


def _share_of_request() -> LoopShare | None:
    """The share of this context's request; `None` while its own task runs, which sees this step itself."""
    try:
        share = share_of(current.get())
        if share is not None and not share.began and share.on_its_loop():
            return share
    except Exception as fault:
        report_fault("observing the event loop", fault)
    return None
