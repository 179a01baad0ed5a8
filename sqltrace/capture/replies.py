"""
When the reply to a slow statement reached this machine, as the kernel knows it: what came later, came late.

For asynchronous drivers over TCP, on Linux. An async driver gets control back
when the event loop gets round to it, which can be long after the reply.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any, Final

from sqltrace.capture import internals
from sqltrace.collector import Collector, Execution, mark
from sqltrace.event_loop import LoopShare

SLOW: Final = 10_000_000  # nanoseconds; asking the kernel costs some 5 microseconds
_RESOLUTION: Final = 4_000_000  # of the kernel's answer: a tick of its clock, at 250 Hz
_LARGE: Final = 1_000  # values in a reply that a driver needs milliseconds to read
_LAST_DATA_RECEIVED: Final = struct.Struct("=52xI")  # struct tcp_info of linux/tcp.h: milliseconds ago
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None


def work() -> bool:
    """Self-test: whether this kernel tells when data were last received."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unconnected:
            return received_before(unconnected.fileno()) is not None
    except OSError:
        return False


def received_before(descriptor: int) -> int | None:
    """Nanoseconds since data came in on a TCP socket; `None` for other sockets and where it cannot be known."""
    if _TCP_INFO is None:
        return None
    # Family and type are given: they would be asked of the kernel otherwise. The descriptor stays its owner's.
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor)
    try:
        answer = borrowed.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA_RECEIVED.size)
        return int(_LAST_DATA_RECEIVED.unpack(answer)[0]) * 1_000_000
    except (OSError, struct.error):
        return None
    finally:
        borrowed.detach()


def loop_wait(collector: Collector, context: Any, execution: Execution) -> int | None:
    """
    How long the reply of a slow statement that has just ended lay ready; marks it in the recordings.

    The driver itself needs the loop to read a large reply: of one, only what
    other requests are known to have held counts. Estimates for earlier round
    trips of the same statement are included. Nanoseconds; `None` where it
    cannot be known.
    """
    descriptor = internals.driver_descriptor(context)
    ago = None if descriptor is None else received_before(descriptor)
    if ago is None:
        return None
    arrived = collector.clock() - ago
    if arrived < execution.started:
        return None  # nothing came in since: this is not the connection that was waited for
    share = _share(collector)
    since, until, before = arrived, execution.ended, 0
    if share is not None and share.began and share.on_its_loop():  # in the request's own task, not in a child's
        share.late = []
        since, until = max(since, share.left), share.began
        before = share.estimated_since(execution.started)
    if until - since <= _RESOLUTION:
        return before
    wait = before
    large = _value_count(context) > _LARGE
    for start, end in [(since, until)] if share is None else share.without_own_holds(since, until):
        others = share.blame(start, end, unknown=not large) if share is not None else 0
        waited = others if large else end - start
        if waited <= SLOW and not others:
            continue  # as long as it may take until the operating system lets the process run
        mark(collector, execution.dialect, "loop_wait", start, start + waited)
        wait += waited
    return wait


def note_hold(collector: Collector, start: int, end: int) -> None:
    """A synchronous statement held the loop, perhaps in a child task of a request."""
    share = _share(collector)
    if share is not None:
        share.note_hold(start, end)


def _value_count(context: Any) -> int:
    rows: int = context.cursor.rowcount
    return max(0, rows) * len(context.cursor.description or ())


def _share(collector: Collector | None) -> LoopShare | None:
    while collector is not None:
        if isinstance(collector.loop, LoopShare):
            return collector.loop
        collector = collector.parent
    return None
