"""What a sink is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sqltrace.request import RequestRecord


@runtime_checkable
class Sink(Protocol):
    """
    Is told of each request, at two moments.

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
