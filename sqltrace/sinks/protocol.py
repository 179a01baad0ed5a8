"""What a sink is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from sqltrace.request import RequestRecord
from sqltrace.route import Scope


@runtime_checkable
class Sink(Protocol):
    """
    Is told of each request, at two moments; at a third one if it is a `StartingSink`.

    Both run on the event loop and get the same object, which is more complete
    the second time. A sink that raises is reported once on the logger
    ``sqltrace`` and never touches the response. One sink serves concurrent
    requests: keep what belongs to one in ``record.notes``.

    .. versionadded:: 0.1.0
    """

    def response_ready(self, record: RequestRecord) -> None:
        """
        Called just before the last body chunk goes out, while a server span still lives.

        Not called when the response never gets that far. Time spent here is
        latency that the client feels.
        """

    def request_finished(self, record: RequestRecord) -> None:
        """Called once, when background work is over too, however the request ended."""


@runtime_checkable
class StartingSink(Sink, Protocol):
    """
    A sink that is told of the start, too.

    .. versionadded:: 0.1.0
    """

    def request_started(self, record: RequestRecord, scope: Scope, app: Any) -> None:
        """
        Called before the application, in its context: what is set in a context variable, the application sees.

        Args:
            app: The ASGI application inside the middleware.
        """
