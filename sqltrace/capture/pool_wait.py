"""The wait for a connection of a `QueuePool`: how long, how full the pool was, and who held its connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import itemgetter
from typing import Any, Final

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool

from sqltrace.callsite import find_call_site
from sqltrace.capture import internals
from sqltrace.capture.transactions import opening
from sqltrace.clock import SECOND
from sqltrace.connection import Checkout, Holder, PoolWait
from sqltrace.faults import report_fault
from sqltrace.label import Label

_NOTABLE: Final = 1_000_000  # nanoseconds; a thread may lose less to others in the pool's own work
_LONG: Final = 10_000_000  # nanoseconds; from there on it is worth looking for the call site
_MAX_HOLDERS: Final = 10
_BRIEF: Final = 20  # who held a connection for less than this part of the wait is not named
_OWN_AND_HELD: Final = itemgetter(0, 1)
_HELD: Final = itemgetter(1)


def measure_wait(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(original)
    def _do_get(pool: QueuePool) -> ConnectionPoolEntry:
        checkout = opening()
        if checkout is None or checkout.wait_started is not None:  # it calls itself when another was faster
            return original(pool)  # type: ignore[no-any-return]  # what SQLAlchemy itself returns
        # Asked now, as those who free the pool are gone when the wait is over; in one C call, as threads change it.
        before = checkout.neighbours.copy() if checkout.neighbours else None
        waiting, in_use = checkout.neighbours.waiting, pool.checkedout()
        waiting.add(checkout)
        checkout.wait_started = checkout.clock()
        timed_out = False
        try:
            entry = original(pool)
        except PoolTimeoutError:
            timed_out = True
            raise
        finally:
            waiting.discard(checkout)
            ended = checkout.wait_ended
            if ended is None:
                ended = checkout.wait_ended = checkout.clock()
            checkout.wait = ended - checkout.wait_started
            if timed_out or checkout.wait >= _NOTABLE:
                _add_wait(checkout, pool, before, timed_out, in_use)
        checkout.neighbours.add(checkout)
        return entry  # type: ignore[no-any-return]  # what SQLAlchemy itself returns

    return _do_get


def _add_wait(checkout: Checkout, pool: QueuePool, before: set[Checkout] | None, timed_out: bool, in_use: int) -> None:
    """Add to a checkout how its wait ended, and who held connections before or at the end. Never raises."""
    try:
        holders = checkout.neighbours | (before or set())
        holders.discard(checkout)
        in_use = max(in_use, pool.checkedout())  # at the end others may have given theirs back, too
        limited = pool.size() > 0 and internals.max_overflow(pool) != -1
        if timed_out or (limited and in_use >= pool.size()):  # else it lost that time to other threads
            checkout.pool_wait = _describe(checkout, pool, holders, timed_out, in_use)
    except Exception as fault:
        report_fault("describing the wait for a connection", fault)


def _describe(checkout: Checkout, pool: QueuePool, holders: set[Checkout], timed_out: bool, in_use: int) -> PoolWait:
    """Written to be fast, in one pass without calls: where every request waits, each looks at the whole pool."""
    began, ended, labels = checkout.wait_started or 0, checkout.wait_ended or 0, checkout.labels
    least, label = checkout.wait / _BRIEF, labels[0]
    during: list[tuple[bool, int, Label]] = []
    briefly: list[tuple[bool, int, Label]] = []
    for holder in holders:
        since = holder.wait_ended or holder.taken or ended  # when it got its place
        until = holder.ended or ended
        if until > ended:  # noqa: PLR1730 - max() and min() take four times as long
            until = ended
        meanwhile = until - (since if since > began else began)  # noqa: FURB136 - likewise
        # Siblings inside a common recording are strangers; a recording and the one around it are not.
        own = label in holder.labels or holder.labels[0] in labels
        (during if meanwhile >= least else briefly).append((own, until - since, holder.labels[0]))
    named = sorted(during or briefly, key=_OWN_AND_HELD, reverse=True)[:_MAX_HOLDERS]
    longest = [Holder(label, max(0, held) / SECOND, own) for own, held, label in sorted(named, key=_HELD, reverse=True)]
    for _, _, named_by in named:
        named_by.find_route()
    overflow = max(0, pool.overflow(), in_use - pool.size())
    return PoolWait(
        checkout.wait / SECOND,
        timed_out,
        pool_size=pool.size(),
        in_use=in_use,
        overflow=overflow,
        holders=tuple(longest),
        is_async=isinstance(pool, AsyncAdaptedQueuePool),
        call_site=find_call_site() if timed_out or checkout.wait >= _LONG else None,
        ended=ended,
        max_overflow=internals.max_overflow(pool),
    )
