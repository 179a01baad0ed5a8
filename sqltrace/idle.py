"""The transactions of a connection, and the stretches in which nothing ran in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sqltrace.callsite import CallSite

_MAX_FLUSHES = _MAX_STRETCHES = 20  # of one connection that are kept
_MAX_EXECUTIONS = 64  # of one transaction that are kept one by one
LEAST = 50_000_000  # nanoseconds: what is shorter is a busy transaction


@dataclass(frozen=True, slots=True)
class IdleStretch:
    """
    50 ms or more in which a transaction was open and nothing ran in it.

    Attributes:
        start, end: Readings of the clock, in nanoseconds.
        call_site: Of the latest statement before it that has one.
        is_async: Whether the connection is one of an asynchronous driver.
        loop_held: Start and end of the parts of it in which other requests held the event loop.
        reading: Whether rows were read from the server meanwhile, piece by piece.
    """

    start: int
    end: int
    call_site: CallSite | None = None
    is_async: bool = False
    loop_held: tuple[tuple[int, int], ...] = ()
    reading: bool = False


Held = Callable[[int, int], Sequence[tuple[int, int]]]


class TimedExecution(Protocol):
    """The part of an `~sqltrace.collector.Execution` that is read here."""

    started: int
    ended: int
    fetch: int
    gil_wait: int
    loop_wait: int | None
    streamed: bool
    call_site: CallSite | None


class Transactions:
    """
    The transactions of one connection, one after the other, and how long they were idle. In nanoseconds.

    Attributes:
        connection: A weak reference to what SQLAlchemy handed out, for asynchronous drivers only.
        transaction: Whether one is open. Not in autocommit.
    """

    __slots__ = ("_busy", "_executions", "_first", "_flushes", "_idle", "_stretches", "connection", "transaction")

    def __init__(self) -> None:
        self.connection: Callable[[], object] | None = None
        self.transaction = False
        self._executions: list[TimedExecution] = []  # from the first statement of a transaction on
        self._first: int | None = None
        self._idle = self._busy = 0
        self._flushes: list[tuple[int, int]] | None = None
        self._stretches: list[IdleStretch] | None = None

    def idle(self, now: int) -> int:
        """For how long nothing ran in its transactions, up to the reading `now`."""
        first = self._first
        if first is None:
            return self._idle
        busy = self._busy + _elapsed(self._executions.copy())
        return self._idle + max(0, now - first - busy)

    def idle_stretches(self, now: int, held: Held | None = None) -> list[IdleStretch]:
        """
        The long ones; of a transaction of many statements only those between its latest.

        Args:
            held: Says when others held the event loop between two readings of the clock.
        """
        found = self._stretches or []
        if self._first is not None:
            latest = _find_stretches(self._executions.copy(), self._flushes or [], now)
            is_async = self.connection is not None
            found = found + [
                replace(one, is_async=is_async, loop_held=tuple(held(one.start, one.end)) if held is not None else ())
                for one in latest
            ]
        return found

    def progress(self) -> tuple[int, int]:
        """What `note_flush` is to be given later, to know what has come since."""
        return self._busy, len(self._executions)

    def note_flush(self, started: int, ended: int, progress: tuple[int, int]) -> None:
        """The ORM has written objects: the time between the statements for that is not idle."""
        if self._first is None:
            return
        busy, count = progress
        since = max(started, self._first)
        if self._busy == busy:
            busy = _elapsed(self._executions[count:])
        else:  # some that ran before it may be counted in: the transaction was idle a bit longer then
            busy = self._busy - busy + _elapsed(self._executions)
        if ended - since > busy:
            self._busy += ended - since - busy
        if ended - since >= LEAST:
            self._flushes = [*(self._flushes or []), (since, ended)][-_MAX_FLUSHES:]

    def note(self, execution: TimedExecution) -> None:
        """Take over a statement of the open transaction."""
        if self._first is None:
            self._executions = [execution]
            self._first = execution.started
            return
        executions = self._executions
        executions.append(execution)
        if len(executions) > _MAX_EXECUTIONS:
            # Only the oldest, of which no more rows are fetched as a rule.
            self._busy += _elapsed(executions[:_MAX_EXECUTIONS])
            del executions[:_MAX_EXECUTIONS]

    def end_transaction(self, now: int, held: Held | None = None) -> None:
        """`held` is as for `idle_stretches`."""
        self.transaction = False
        if self._first is not None:
            idle = self.idle(now)
            if idle - self._idle >= LEAST:
                longest = sorted(self.idle_stretches(now, held), key=lambda one: one.start - one.end)
                self._stretches = longest[:_MAX_STRETCHES]
            self._idle, self._first, self._busy, self._flushes = idle, None, 0, None
            self._executions = []


def _find_stretches(
    executions: Sequence[TimedExecution], flushes: Sequence[tuple[int, int]], end: int
) -> list[IdleStretch]:
    """
    The long ones of a transaction, between statements and after the last.

    Args:
        executions: In their order.
        flushes: Start and end of when the ORM was writing, which is not idling.
        end: Of the transaction.
    """
    found: list[IdleStretch] = []
    call_site = None
    nexts = [execution.started for execution in executions[1:]]
    for execution, started in zip(executions, [*nexts, end], strict=True):
        call_site = execution.call_site or call_site
        since, until = execution.ended + execution.gil_wait + execution.fetch, started
        for flush_started, flush_ended in flushes if until - since >= LEAST else ():
            if flush_started <= since:
                since = max(since, flush_ended)
            else:
                until = min(until, flush_started)
        if until - since >= LEAST:
            found.append(IdleStretch(since, until, call_site, reading=execution.streamed))
    return found


def _elapsed(executions: list[TimedExecution]) -> int:
    elapsed = 0
    for execution in executions:
        # A thread that waits for the interpreter cannot end its transaction, nor did it choose to.
        elapsed += execution.ended - execution.started + execution.gil_wait + execution.fetch
        if execution.loop_wait is not None:
            elapsed -= execution.loop_wait
    return elapsed
