"""
A recording: what one unit of work (a request, a job, a test) did while it ran.

The `Recording` is what the owner keeps. The `Collector` is what travels in the
`ContextVar`: statements are dropped into it.

    ContextVar ──> Collector ──> (pending executions)
                       │ outer        │ fold(): every 512, and when somebody reads
                       ▼              ▼
                   Collector      Tally: statements, groups, counts

They come from any thread and any task at any moment: to append one is a single
atomic operation. A lock sees to it that one thread at a time folds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from sqltrace.awaits import Awaits
from sqltrace.clock import SECOND, Clock
from sqltrace.collector import Collector, Execution, Part, current, unmeasurable
from sqltrace.connection import Acquisition, ConnectionUse
from sqltrace.event_loop import LoopShare
from sqltrace.failed_load import FailedLoad
from sqltrace.faults import report_fault
from sqltrace.intervals import Coverage
from sqltrace.label import Label
from sqltrace.statement import Group, Statement
from sqltrace.tally import Counts, Tally
from sqltrace.thread_waits import ThreadWait
from sqltrace.time_account import TimeAccount
from sqltrace.watchdog import Sightings


class Recording:
    """
    What one unit of work did while it ran. Safe to read from any thread, also while open.

    Memory is bounded: at most `max_statements` statements and as many groups are kept; what comes beyond is in the
    counts, and in the group ``(other statements)`` where it belongs to none of the kept ones.

    Attributes:
        name: Given by the opener.
        started_at, started: Wall-clock time of the start, UTC, and the reading of the clock at that moment.
        failed_loads: Attributes that could not be loaded and raised, each once, at most 20.
        messages: That a websocket has received, or an event stream has sent: each may have a loop of its own.
    """

    def __init__(
        self,
        name: str = "",
        *,
        clock: Clock = time.perf_counter_ns,
        dialects: frozenset[Any] | None = None,
        capture_parameters: bool = False,
        max_statements: int = 500,
        max_sql_length: int = 10_000,
    ) -> None:
        self._label = Label(name)
        self._clock = clock
        self._lock = RLock()  # a finalizer run by the garbage collector may come back in
        self._tally = Tally(max_statements, max_sql_length, parameters=capture_parameters)
        self.messages: int = 0
        self._loop: LoopShare | None = None
        self._response_ended: int | None = None
        self._ended: int | None = None
        self._moment: int | None = None
        self._answers: dict[str, Any] = {}
        self._collector = Collector(
            self,
            clock=clock,
            dialects=dialects,
            capture_parameters=capture_parameters,
            max_statements=max_statements,
            max_sql_length=max_sql_length,
            label=self._label,
        )
        self.failed_loads: list[FailedLoad] = self._collector.failed_loads
        self.started_at: datetime = datetime.now(UTC)
        self.started: int = clock()  # the same moment: spans are placed by both

    def open(self) -> Collector | None:
        """Let statements of this context, and of what it starts, count here. Returns what was in force, for `leave`."""
        outer = current.get()
        self._collector.nest_in(outer)
        self._collector.forget_ended()
        current.set(self._collector)
        return outer

    def leave(self, outer: Collector | None) -> None:
        # Not ContextVar.reset(): the exit of a sync generator dependency runs in
        # another copy of the context than its entry, where a token is refused.
        if current.get() is self._collector:
            current.set(outer)

    def end_response(self) -> None:
        """From now on statements are `after_response`. Called again, nothing changes."""
        if self._response_ended is None:
            self._response_ended = self._clock()
            self._collector.settle()
            with self._lock:
                self._tally.connections.end_response(self._collector.checkouts, self._response_ended)
            if self._loop is not None:
                self._loop.responded = True

    def end(self) -> None:
        """Take no more: later statements are counted as late. Called again, nothing changes. Never raises."""
        if self._ended is None:
            self._ended = self._clock()
            self._response_ended = self._response_ended or self._ended
            try:
                self._collector.settle()
                self.fold()
            except Exception as fault:
                report_fault("counting statements", fault)
            with self._lock:  # another thread may be reading, and would keep half an answer
                self._collector.close()
                self._tally.close()

    def freeze(self) -> None:
        """Answer as of now, and each question once, until `thaw`: for those who ask much while it is open."""
        self._moment = self._clock()

    def thaw(self) -> None:
        self._moment = None
        if self._ended is None:
            self._answers = {}

    def observe_loop(self, name_route: Callable[[], None] | None = None) -> LoopShare:
        """What `event_loop.stepped` is to write into. `name_route` sets `name` once that is known; must not raise."""
        self._label.name_route = name_route
        self._loop = self._collector.loop = LoopShare(self._collector)
        return self._loop

    @property
    def collector(self) -> Collector:
        return self._collector

    @property
    def name(self) -> str:
        return self._label.name

    @name.setter
    def name(self, name: str) -> None:
        self._label.name = name

    @property
    def ended(self) -> bool:
        return self._ended is not None

    @property
    def duration(self) -> float:
        """Seconds from the start to the end of the response; until now, while it lasts."""
        return (self._response_end() - self.started) / SECOND

    @property
    def after_response(self) -> float:
        """Seconds from the end of the response to the end of the recording; 0.0 before."""
        since = self._response_ended
        return 0.0 if since is None else ((self._ended or self._clock()) - since) / SECOND

    @property
    def time_account(self) -> TimeAccount:
        """Where `duration` went."""
        account: TimeAccount = self._answer("time_account", self._settle_account)
        return account

    def _settle_account(self) -> TimeAccount:
        self._collector.settle()
        self.fold()
        end, unknown = self._response_end(), unmeasurable
        if not (self._collector.loop_observed if self._loop is None else self._loop.observed):
            unknown = {"loop_wait", *unmeasurable}
        return self._tally.spent.account(end, end - self.started, unknown)

    def stretches(self, *parts: Part, settled: bool = False) -> Coverage:
        """When these parts of the account took place, also after the response; `settled`: and the time before."""
        self._collector.settle()
        with self._lock:
            self.fold()
            return self._tally.spent.stretches(parts, settled=settled)

    def _answer(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` answers. While frozen, and after the end, it is asked once, for all rules and sinks."""
        answer = self._answers.get(name)
        if answer is None:
            with self._lock:
                self.fold()
                answer = make()
                if self._ended is not None or self._moment is not None:
                    self._answers[name] = answer
        return answer

    @property
    def loop_wait_estimated(self) -> bool:
        """Whether some of ``time_account.loop_wait`` is an estimate: see `sqltrace.event_loop`."""
        self._collector.settle()
        return self._collector.loop_wait_estimated

    @property
    def waited_for(self) -> list[tuple[str, float]]:
        """
        Names of the recordings that held the event loop while this one waited for it, and seconds, the longest 5 first.

        What is not a request is called ``(another task: …)``, with the line at which it was seen. That takes 50 to
        100 ms; below, it is ``(another task or thread)``. Steps under 1 ms are left out.
        """
        return [(label.name, waited) for label, waited in self.loop_holders()]

    def loop_holders(self) -> list[tuple[Label, float]]:
        """As `waited_for`, by their labels."""
        self._collector.settle()
        return self._loop.holders() if self._loop is not None else []

    @property
    def held_loop(self) -> float | None:
        """
        Seconds in which this request's task held the event loop, also after the response; `None` for other recordings.

        Of the tasks that it started only the making of objects and synchronous SQL are in it.
        """
        return self._loop.held_until(self._clock())[0] / SECOND if self._loop is not None else None

    @property
    def longest_hold(self) -> float | None:
        """Seconds of the longest of these stretches."""
        return self._loop.held_until(self._clock())[1] / SECOND if self._loop is not None else None

    @property
    def sightings(self) -> Sightings | None:
        """Where it was in one of the longest of these stretches; `None` if that was not seen, as under 50 ms."""
        return self._loop.sightings if self._loop is not None else None

    @property
    def awaits(self) -> Awaits | None:
        """Where its own tasks have waited; `None` for nowhere."""
        return self._loop.awaits if self._loop is not None else None

    @property
    def thread_wait(self) -> ThreadWait | None:
        """What it has waited for one of the threads that all `def` endpoints share; `None` where nothing is known."""
        waits = self._loop.thread_waits if self._loop is not None else None
        return waits.in_all() if waits is not None else None

    @property
    def connections(self) -> ConnectionUse:
        """What it did with connections until now, or until it ended."""
        now = self._clock() if self._ended is None else self._ended
        totals, still_open = self._tally.connections, self._collector.checkouts
        use: ConnectionUse = self._answer("connections", lambda: totals.use(still_open, now))
        return use

    @property
    def row_count(self) -> int:
        """Rows that reached Python, as far as they could be counted; those after the response included."""
        return self.counts.rows

    @property
    def statements(self) -> list[Statement]:
        """The first `max_statements` statements, in the order in which they ended."""
        tally, boundary = self._tally, self._response_ended
        statements: list[Statement] = self._answer("statements", lambda: tally.statements(self.started, boundary))
        return statements.copy()

    def executions(self) -> list[tuple[Group, list[Execution]]]:
        """All groups, each with the executions that `statements` are made of: for rules and sinks, to be fast."""
        tally, boundary = self._tally, self._response_ended
        kept: list[tuple[Group, list[Execution]]] = self._answer("executions", lambda: tally.kept_by_group(boundary))
        return kept.copy()

    @property
    def groups(self) -> list[Group]:
        """All groups, most time first."""
        known = self._tally.groups
        groups: list[Group] = self._answer("groups", lambda: sorted(known.values(), key=lambda group: -group.total))
        return groups.copy()

    @property
    def counts(self) -> Counts:
        """All of the counts below at once."""
        counts: Counts = self._answer("counts", self._tally.counted)
        return counts

    @property
    def statement_count(self) -> int:
        """All statements, those after the response included; exact beyond `max_statements`."""
        return self.counts.statements

    @property
    def after_response_count(self) -> int:
        """Statements that began after the end of the response."""
        return self.counts.after_response

    @property
    def failed_count(self) -> int:
        return self.counts.failed

    @property
    def late_count(self) -> int:
        """Statements that came after the end, from a task that outlived it. In no other count."""
        return self._collector.late

    def acquisitions(self) -> list[Acquisition]:
        """The longest acquisitions of connections, and those that failed."""
        with self._lock:
            self.fold()
            return list(self._tally.connections.acquired)

    def _response_end(self) -> int:
        known = self._moment if self._response_ended is None else self._response_ended
        return self._clock() if known is None else known

    def fold(self) -> None:
        """Turn what the collector has taken into groups and counts."""
        if self._collector.pending is not None:  # it has not ended yet
            with self._lock:
                self._tally.fold(self._collector, self._response_ended, self._ended)

    def unlock(self) -> None:
        """In a forked process: another thread that was counting at that moment is not there."""
        self._lock = RLock()
