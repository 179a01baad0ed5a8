"""
What Starlette runs in a task of its own within a request.

Applications inside of `BaseHTTPMiddleware` (``@app.middleware("http")``), and the body of a `StreamingResponse`
under servers that speak ASGI before 2.4, as uvicorn does. There the request's own task only waits: who holds the
event loop, and waits for it, is the task inside. Its steps count as the request's.

Not undone by `uninstrument()`, which ends the recording of statements: the middleware goes on to tell of the loop.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from sqltrace.collector import current
from sqltrace.event_loop import LoopShare, stepped
from sqltrace.faults import report_fault
from sqltrace.route import layers
from sqltrace.shares import share_of

_MARKER = "_sqltrace_observed"


def observe_inner_tasks(app: Any) -> bool:
    """
    Observe the inner tasks of an ASGI application and of what it wraps, but not of what a router mounts.

    `False` where that is not known yet: Starlette builds its stack of middleware when it is first called.
    """
    _observe_streaming()
    for layer in layers(app):
        if getattr(layer, "middleware_stack", layer) is None:
            return False
        if _starts_a_task(layer) and not isinstance(layer.app, _Observed):
            layer.app = _Observed(layer.app)
    return True


def _starts_a_task(app: Any) -> bool:
    return any(
        (cls.__module__, cls.__name__) == ("starlette.middleware.base", "BaseHTTPMiddleware")
        for cls in type(app).__mro__
    )


def _observe_streaming() -> None:
    """For the whole process, if Starlette is there: responses are made by the endpoints."""
    response: Any = getattr(sys.modules.get("starlette.responses"), "StreamingResponse", None)
    original = vars(response).get("stream_response") if response is not None else None
    if original is None or hasattr(original, _MARKER):
        return

    @wraps(original)
    async def stream_response(self: Any, send: Any) -> None:
        share = _share_of_request()
        streaming = original(self, send)
        await (streaming if share is None else stepped(streaming, share, within=True))

    setattr(stream_response, _MARKER, True)
    response.stream_response = stream_response


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
