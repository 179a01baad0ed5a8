"""
When the reply to a slow statement reached this machine.

An asynchronous driver gets control back when the event loop gets round to it, a
synchronous one when its thread has the interpreter's lock again. Both can be
long after the reply. On Linux and over TCP, the kernel knows.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any, Final

from sqltrace import child_tasks
from sqltrace.capture import internals
from sqltrace.collector import Collector, mark
from sqltrace.event_loop import LoopShare
from sqltrace.shares import Stretches, share_of

SLOW: Final = child_tasks.SLOW
_RESOLUTION: Final = 4_000_000  # of the kernel's answer: a tick of its clock, at 250 Hz
_LARGE: Final = 1_000  # values in a reply that a driver needs milliseconds to read
_LAST_DATA_RECEIVED: Final = struct.Struct("=52xI")  # struct tcp_info of linux/tcp.h: milliseconds ago
_DOCUMENTS: Final = (dict, list)  # a union would be made anew for every value
_COUNT: Final = struct.Struct("=i")
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
    # Family and type are given: they would be asked of the kernel otherwise. The driver's descriptor stays open and as
    # it is. A socket object closes its own if it is interrupted before it has let go of it, so it gets a copy. And
    # without the flag `socket.setdefaulttimeout` of the application would have the driver's not block any more.
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    try:
        copy = os.dup(descriptor)
        try:
            asked = socket.socket(socket.AF_INET, kind, socket.IPPROTO_TCP, fileno=copy)
        except OSError:  # no socket any more
            os.close(copy)
            raise
        with asked:
            answer = asked.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA_RECEIVED.size)
        return int(_LAST_DATA_RECEIVED.unpack(answer)[0]) * 1_000_000
    except (OSError, struct.error):
        return None


def has_unread(descriptor: int) -> bool:
    """Whether data have come in on a socket that nobody has read yet. Only asked where `received_before` answers."""
    from fcntl import ioctl  # not there on every system
    from termios import FIONREAD

    return bool(_COUNT.unpack(ioctl(descriptor, FIONREAD, bytes(_COUNT.size)))[0])


def _age(connection: Any, unread: bool = False) -> int | None:
    """As `child_tasks.reply_age`."""
    descriptor = internals.driver_descriptor(connection)
    age = None if descriptor is None else received_before(descriptor)
    if age is None or descriptor is None or (unread and not has_unread(descriptor)):
        return None
    return age


child_tasks.reply_age = _age


def loop_wait(collector: Collector, connection: Any, dialect: Any, started: int, ended: int, values: int) -> int | None:
    """
    How long a reply lay ready while the event loop was busy, after a slow wait for the database that has just ended.
    Marks it in the recordings.

    Where the kernel does not tell when the reply came in, it is an estimate: for drivers without a socket, and for all
    but the last round trip of a call. So it is for what held the loop before the last part of a large reply came in,
    which the database sends only when the parts before it have been read.

    Args:
        connection: SQLAlchemy's adapted one, or the pool's proxy of it.
        values: About how many values the reply has.

    Returns:
        Nanoseconds; `None` where it cannot be known.
    """
    share = share_of(collector)
    elsewhere = share is not None and share.observed and not share.on_its_loop()
    if elsewhere:
        share = None  # on a loop of its own, as by asyncio.run() in a thread: who holds that is not noted
    own = share is not None and share.in_own_task()
    ago = _age(connection)
    if ago is None:
        if share is None or not own:
            return None
        share.settle()
        return share.estimated_within(started, ended)
    arrived = collector.clock() - ago
    if arrived < started - _RESOLUTION:
        return None  # nothing came in since: this is not the connection that was waited for
    arrived, large = max(arrived, started), values > _LARGE
    before, waits = 0, [(arrived, ended)]
    if share is not None and own:
        late, share.late = share.late, []
        for since, until in late if large else ():
            for start, end in share.held_by_others(since, min(until, arrived)):
                share.estimate(start, end)
        before = share.estimated_within(started, arrived)
        waits = share.suspended_within(arrived, share.began)
    if sum(until - since for since, until in waits) <= _RESOLUTION:
        return before
    alone = elsewhere or (share is not None and not own and share.is_alone(arrived, ended))
    return before + _mark_waits(collector, dialect, share, waits, large=large, alone=alone)


def _mark_waits(
    collector: Collector, dialect: Any, share: LoopShare | None, waits: Stretches, *, large: bool, alone: bool
) -> int:
    """
    Mark the stretches in which a reply lay ready, and return how long they were together.

    Args:
        large: The driver itself needs the loop to read the reply: only what other requests held counts.
        alone: No other request runs on the loop: what held it was this one itself, in tasks that it has started.
    """
    if share is not None:
        waits = [piece for since, until in waits for piece in share.without_own_holds(since, until)]
    total = 0
    for start, end in waits:
        others = share.blame(start, end, unknown=not (large or alone)) if share is not None else 0
        waited = others if large else end - start
        if waited <= SLOW and not others:
            continue  # as long as it may take until the operating system lets the process run
        mark(collector, dialect, "python" if alone else "loop_wait", start, start + waited)
        total += waited
    return total


def came_at(collector: Collector, connection: Any, started: int, ended: int) -> int:
    """
    When the reply came in to a synchronous call that has just ended and was slow; `ended` where that is not known.

    What comes after it is the driver's own work, which is little unless the reply is large, and waiting: for the
    interpreter's lock while other threads compute, or for a processor.

    Args:
        connection: The pool's proxy of it.
    """
    ago = _age(connection)
    if ago is None:
        return ended
    came = collector.clock() - ago
    return max(came, started) if started - _RESOLUTION <= came < ended - SLOW else ended


def is_run_by_driver_alone(context: Any) -> bool:
    """
    Whether nobody else's code ran between the driver's reply and us, as that of instrumentations and listeners does.

    `False` where that is not known.
    """
    try:
        dialect = context.dialect
        listeners = dialect.dispatch.do_execute, dialect.dispatch.do_executemany, dialect.dispatch.do_execute_no_params
        drivers_own = _package(type(context.cursor).__module__) == _package(dialect.loaded_dbapi.__name__)
        return drivers_own and all(len(each) <= 1 for each in listeners)
    except Exception:
        return False


def _package(module: str) -> str:
    return module.partition(".")[0]


def is_large(context: Any) -> bool:
    """Whether a driver may need milliseconds to read the reply to a statement."""
    return _value_count(context) > _LARGE


def _value_count(context: Any) -> int:
    rows: int | None = context.cursor.rowcount
    return max(0, rows or 0) * len(context.cursor.description or ())


def value_count(context: Any) -> int:
    """About how many values the reply to a statement has, with those inside of documents, which asyncpg decodes."""
    count = _value_count(context)
    return count if count > _LARGE else max(count, _count_nested(internals.rows_at_hand(context)))


def _count_nested(rows: Iterable[Iterable[Any]]) -> int:
    """As far as it takes to know that they are many."""
    count, inner = 0, [*rows]
    while inner and count <= _LARGE:
        for value in inner.pop():
            count += 1
            if isinstance(value, _DOCUMENTS):
                inner.append(value.values() if isinstance(value, dict) else value)
            if count > _LARGE:
                break
    return count
