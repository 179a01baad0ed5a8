"""What a recording did with connections. Plain data; times inside `Checkout` are readings of a clock in nanoseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqltrace.callsite import CallSite
from sqltrace.clock import SECOND, Clock
from sqltrace.failed_commit import FailedCommit
from sqltrace.idle import LEAST, IdleStretch, Transactions
from sqltrace.label import Label
from sqltrace.statement import Failure

NEGLIGIBLE = 10_000  # nanoseconds: below that a stretch of the time account costs more than it is worth
WORST = 10  # waits, and idle stretches, that are kept
_NOTABLE = 1_000_000  # nanoseconds from asking for a connection to having it
_LONGEST = 20  # that are kept of those that took so long

TIMES = ("wait", "connect", "ping", "begin", "commit", "rollback", "held", "idle_in_transaction")
unmeasurable_times: set[str] = set()  # those of them that the installed SQLAlchemy does not let us measure


@dataclass(frozen=True, slots=True)
class Holder:
    """
    Who held a connection while somebody waited for one.

    Attributes:
        held: Seconds, until the wait ended or the connection was given back; with the time of opening it.
        own: Whether the one that waited held it itself.
    """

    label: Label = field(repr=False)
    held: float
    own: bool = False

    @property
    def name(self) -> str:
        """Name of the recording: the route of a request."""
        return self.label.name


@dataclass(frozen=True, slots=True)
class PoolWait:
    """
    A wait of a millisecond or more for a connection of an exhausted pool, or one that timed out.

    Attributes:
        waited: Seconds.
        timed_out: Whether it ended in a pool timeout.
        pool_size: Connections that the pool keeps.
        overflow: Connections open beyond those, at the start or the end of the wait, whichever is more.
        in_use: Connections checked out, likewise.
        holders:
            Those recordings that held one meanwhile, the longest first, at
            most 10. Connections taken outside of any recording are not named.
        is_async: Whether the pool is one of an asynchronous engine.
        call_site: The application's line that asked for the connection; `None` under 10 ms, and where none is known.
        ended: Reading of the clock at the end of the wait, in nanoseconds.
        max_overflow: Connections that the pool opens beyond its size at most; `None` where that cannot be known.
    """

    waited: float
    timed_out: bool
    pool_size: int
    in_use: int
    overflow: int
    holders: tuple[Holder, ...]
    is_async: bool = False
    call_site: CallSite | None = None
    ended: int = field(default=0, repr=False, compare=False)
    max_overflow: int | None = None

    @property
    def started(self) -> int:
        """Reading of the clock at the start of the wait, in nanoseconds."""
        return self.ended - round(self.waited * SECOND)

    @property
    def self_deadlock(self) -> bool:
        """Whether it timed out while the one that waited held a connection itself."""
        return self.timed_out and any(holder.own for holder in self.holders)


class Acquisition(NamedTuple):
    """How a recording got a connection, or failed to. Readings of the clock, nanoseconds, the rest of `Checkout`."""

    started: int
    ended: int
    span: Any
    pool_name: str
    wait: int
    connect: int
    failure: Failure | None


@dataclass(slots=True)
class ConnectionUse:
    """
    What a recording did with connections, also after the response. Seconds; uses that overlap count each.

    `None` where the installed SQLAlchemy does not let it be measured.

    Attributes:
        checkouts: Connections taken from pools.
        failed: Attempts to take one that failed or were cancelled.
        timeouts: Pool timeouts among these.
        wait: Waiting for pools.
        connect: Opening connections, their initialisation included.
        ping: Testing pooled connections before they are handed out (``pool_pre_ping``).
        begin: Of transactions. Most drivers send BEGIN with the first statement, where its time is.
        commit: Of transactions; preparing of two-phase ones included.
        commit_after_response: Of `commit`, what ended after the response: nobody waited for it.
        rollback: Of transactions, that of the reset on return to the pool included.
        held: From getting connections to giving them back.
        idle_in_transaction:
            Of `held`, between the first statement and the end of a transaction,
            while no statement ran, no rows were fetched and the ORM flushed nothing.
        waits: The 10 longest waits, the longest first.
        rollbacks: Transactions rolled back by the application, as opposed to those that ended with their connection.
        idle_stretches: The 10 longest of `idle_in_transaction` from 50 ms on, the longest first.
        failed_commits: The first 10.
    """

    checkouts: int = 0
    failed: int = 0
    timeouts: int = 0
    wait: float | None = 0.0
    connect: float | None = 0.0
    ping: float | None = 0.0
    begin: float | None = 0.0
    commit: float | None = 0.0
    commit_after_response: float | None = 0.0
    rollback: float | None = 0.0
    held: float | None = 0.0
    idle_in_transaction: float | None = 0.0
    waits: list[PoolWait] = field(default_factory=list)
    rollbacks: int = 0
    idle_stretches: list[IdleStretch] = field(default_factory=list)
    failed_commits: list[FailedCommit] = field(default_factory=list)

    @property
    def was_asked_for(self) -> bool:
        """Whether a connection was, in vain or not."""
        return self.checkouts > 0 or self.failed > 0


class ConnectionTotals:
    """
    Adds checkouts up. In nanoseconds.

    Attributes:
        acquired: The longest, of a millisecond or more, or that failed.
        committed: Of `commit`, what was over at the end of the response; `None` before.
        responded: Reading of the clock at that end.
    """

    # Attributes of the class: most requests without SQL set none.
    checkouts = failed = timeouts = 0
    wait = connect = ping = begin = commit = rollback = 0
    held = idle_in_transaction = rollbacks = 0
    waits: Sequence[PoolWait] = ()
    idle_stretches: Sequence[IdleStretch] = ()
    acquired: Sequence[Acquisition] = ()
    failed_commits: Sequence[FailedCommit] = ()
    committed: int | None = None
    responded: int | None = None

    def end_response(self, still_open: Sequence[Checkout], now: int) -> None:
        """What is committed from now on is after the response."""
        self.responded = now
        self.committed = self.commit + sum(checkout.commit for checkout in still_open)

    def add(self, checkout: Checkout, now: int) -> None:
        """Count a checkout, up to the reading `now` if it is still open."""
        if checkout.repeated:
            return
        if checkout.taken is not None:
            self.checkouts += 1
        elif checkout.ended is not None:
            self.failed += 1
        self.wait += checkout.wait
        self.connect += checkout.connect
        self.ping += checkout.ping
        self.begin += checkout.begin
        self.commit += checkout.commit
        self.rollback += checkout.rollback
        self.held += checkout.held(now)
        idle = checkout.idle(now)
        self.idle_in_transaction += idle
        self.rollbacks += checkout.rollbacks
        if checkout.failed_commits is not None:
            self.failed_commits = [*self.failed_commits, *checkout.failed_commits][:WORST]
        if idle >= LEAST:
            longest = [*self.idle_stretches, *checkout.idle_stretches(now)]
            self.idle_stretches = sorted(longest, key=lambda one: one.start - one.end)[:WORST]
        got = checkout.taken or checkout.ended or now
        if got - checkout.asked >= _NOTABLE or checkout.failure is not None:
            acquired = [*self.acquired, checkout.acquisition(got)]
            self.acquired = sorted(acquired, key=lambda one: one.started - one.ended)[:_LONGEST]
        if checkout.pool_wait is not None:
            self.timeouts += checkout.pool_wait.timed_out
            self.waits = sorted([*self.waits, checkout.pool_wait], key=lambda wait: -wait.waited)[:WORST]

    def use(self, still_open: Sequence[Checkout], now: int) -> ConnectionUse:
        """All of it, with those that are still open, and `None` for what cannot be measured."""
        totals = self
        if still_open:
            totals = copy(self)
            for checkout in still_open:
                totals.add(checkout, now)
        if not (totals.checkouts or totals.failed or unmeasurable_times):
            return ConnectionUse()  # as of most requests without SQL
        seconds = {name: None if name in unmeasurable_times else getattr(totals, name) / SECOND for name in TIMES}
        committed = totals.commit if totals.committed is None else totals.committed
        later = None if seconds["commit"] is None else (totals.commit - committed) / SECOND
        return ConnectionUse(
            totals.checkouts,
            totals.failed,
            totals.timeouts,
            waits=list(totals.waits),
            commit_after_response=later,
            rollbacks=totals.rollbacks,
            idle_stretches=list(totals.idle_stretches),
            failed_commits=[
                replace(one, after_response=totals.responded is not None and one.ended > totals.responded)
                for one in totals.failed_commits
            ],
            **seconds,
        )


class Occupants(set["Checkout"]):
    """
    The checkouts that occupy a place of one pool now.

    Attributes:
        pool_name: Its ``pool_logging_name``, or where its engine connects to, ``(async)`` if it is one.
        waiting: Those that wait for a place.
    """

    def __init__(self, pool_name: str = "") -> None:
        super().__init__()
        self.pool_name = pool_name
        self.waiting: set[Checkout] = set()


# Are told of each checkout that has ended, in its thread. Must be cheap, and must not raise.
watchers: list[Callable[[Checkout], object]] = []


class Checkout(Transactions):
    """
    One use of a connection, from asking the pool for it to giving it back.

    Keeps no connection, no pool and no recording alive, so that it may be kept with them.

    Attributes:
        labels: Of the recording that asked and of those around it, the innermost first.
        neighbours: Those that occupy a place of the same pool now: with a connection, or opening it.
        asked, taken, ended: Readings of the clock; `None` where it has not come to that.
        wait_started, wait_ended: Around the wait for the pool.
        failure: Why there is no connection.
        span: What `Collector.probe` has said of it; `None` where there is none.
        repeated: Whether it is a connection that was handed out before, and is counted there.
        proxy: Identity of the proxy that SQLAlchemy handed out.
        calling: Whether a commit or rollback is running: those in two phases call others, and begin anew.
        opening: The dialect, until the pool has answered.
        rolled_back: Whether its latest transaction was rolled back, and no other has begun since.
        rollbacks: How often the application has rolled back, which closing does not count for.
    """

    __slots__ = (
        "asked", "begin", "calling", "clock", "commit", "connect", "ended", "failed_commits", "failure", "labels",
        "neighbours", "opening", "ping", "pool_wait", "proxy", "repeated", "rollback", "rollbacks", "rolled_back",
        "span", "taken", "wait", "wait_ended", "wait_started",
    )  # fmt: skip

    def __init__(self, clock: Clock, labels: tuple[Label, ...], neighbours: Occupants) -> None:
        self.clock = clock
        self.labels = labels
        self.neighbours = neighbours
        super().__init__()
        self.repeated = self.calling = self.rolled_back = False
        self.proxy = self.wait = self.connect = self.ping = self.begin = self.commit = self.rollback = 0
        self.rollbacks = 0
        self.taken: int | None = None
        self.ended: int | None = None
        self.wait_started: int | None = None
        self.wait_ended: int | None = None
        self.pool_wait: PoolWait | None = None
        self.failed_commits: list[FailedCommit] | None = None
        self.failure: Failure | None = None
        self.span: Any = None
        self.opening: Any = None
        self.asked = clock()

    def held(self, now: int) -> int:
        return 0 if self.taken is None else max(0, (self.ended or now) - self.taken)

    def acquisition(self, got: int) -> Acquisition:
        pool = self.neighbours.pool_name
        return Acquisition(self.asked, got, self.span, pool, self.wait, self.connect, self.failure)

    def end(self) -> None:
        """It was given back, or has failed. Called again, nothing changes."""
        if self.ended is None:
            now = self.clock()
            if self._first is not None:
                self.end_transaction(now)
            self.ended = now
            self.neighbours.discard(self)
            for watch in watchers:
                watch(self)
