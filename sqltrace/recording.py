"""
A recording: what one unit of work (a request, a job, a test) did while it ran.

Two objects, because the context of a task can outlive the work it was started
for. The `Recording` is what the owner keeps. The `Collector` is what travels in
the `ContextVar`: statements are dropped into it, and when the recording ends
it is emptied, so that a task that runs on keeps no more than an empty shell alive.

    ContextVar ──> Collector ──> (pending executions)
                       │ parent       │ fold(): every 512, and when somebody reads
                       ▼              ▼
                   Collector      Recording: statements, groups, counts

Statements come from any thread and any task at any moment. They are appended
(one atomic operation) and read by one folder at a time under a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from sqltrace.collector import Clock, Collector, Execution, MissedStatements, Part, current, missed, unmeasurable
from sqltrace.connection import Checkout, ConnectionTotals, ConnectionUse, Label
from sqltrace.counting import Unsettled, add
from sqltrace.event_loop import LoopShare
from sqltrace.intervals import Coverage
from sqltrace.sql_text import fingerprint, summarize
from sqltrace.statement import Group, Phase, Statement, system_name
from sqltrace.time_account import PRIORITY, TimeAccount, settle

_MAX_KNOWN = 2_048
_MAX_UNSETTLED = 256  # results that may be read on after they were counted
_SECOND = 1_000_000_000
OTHER_STATEMENTS = "(other statements)"


def current_recording() -> Recording | None:
    """The innermost recording that is open in this context, or `None`."""
    collector = current.get()
    while collector is not None and collector.recording is None:
        collector = collector.parent
    recording = collector.recording if collector is not None else None
    return recording if isinstance(recording, Recording) else None


def missed_statements() -> MissedStatements:
    """A copy of the counts of statements that are in no recording, since the process began."""
    return MissedStatements(missed.unattributed, missed.late)


class Recording:
    """
    What one unit of work did while it ran. Safe to read from any thread, also while open.

    Memory is bounded: at most `max_statements` statements and as many groups
    are kept; what comes beyond is in the counts, and in the group
    ``(other statements)`` where it belongs to none of the kept ones.

    Attributes:
        name: Given by the opener.
        started_at: Wall-clock time of the start, UTC.
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
        self.started_at = datetime.now(UTC)
        self._clock = clock
        self._max_statements = max_statements
        self._lock = RLock()  # a finalizer run by the garbage collector may come back in
        self._kept: list[Execution] = []
        self._groups: dict[tuple[str, str, Phase], Group] = {}
        self._known: dict[Phase, dict[tuple[str, Any], Group]] = {"response": {}, "after_response": {}}
        self._counts: dict[Phase, int] = {"response": 0, "after_response": 0}
        self._failed = 0
        self._rows = 0
        self._unsettled: list[Unsettled] = []
        self.measured: frozenset[Part] = frozenset(PRIORITY)
        self._covered: dict[Part, Coverage] = {part: Coverage() for part in PRIORITY}
        self._connections = ConnectionTotals()
        self._loop: LoopShare | None = None
        self._response_ended: int | None = None
        self._ended: int | None = None
        self._collector = Collector(
            self,
            clock=clock,
            dialects=dialects,
            capture_parameters=capture_parameters,
            max_statements=max_statements,
            max_sql_length=max_sql_length,
            label=self._label,
        )
        self._started = clock()

    # Life: open -> (end of the response) -> end

    def open(self) -> Collector | None:
        """
        Let statements of this context, and of what it starts, count here.

        Returns what was in force before, for `leave`.
        """
        outer = current.get()
        self._collector.parent = outer
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
            if self._loop is not None:
                self._loop.responded = True

    def end(self) -> None:
        """Take no more: later statements are counted as late. Called again, nothing changes."""
        if self._ended is None:
            self._ended = self._clock()
            if self._response_ended is None:
                self._response_ended = self._ended
            self._collector.settle()
            self.fold()
            self._collector.close()
            self._unsettled = []
            self._known = {"response": {}, "after_response": {}}

    def observe_loop(self, name_route: Callable[[], None] | None = None) -> LoopShare:
        """
        What `event_loop.stepped` is to write into.

        Args:
            name_route: Sets `name`, if the route is known; must not raise.
        """
        self._loop = self._collector.loop = LoopShare(self._collector, name_route)
        return self._loop

    # What was recorded

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
        return self.since_start(self._response_end())

    @property
    def after_response(self) -> float:
        """Seconds from the end of the response to the end of the recording; 0.0 before."""
        if self._response_ended is None:
            return 0.0
        return ((self._ended or self._clock()) - self._response_ended) / _SECOND

    @property
    def time_account(self) -> TimeAccount:
        """Where `duration` went."""
        with self._lock:
            self._collector.settle()
            self.fold()
            end = self._response_end()
            unobserved: set[Part] = {"loop_wait"} if self._loop is not None and not self._loop.observed else set()
            return settle(self._covered, end, end - self._started, self.measured - unmeasurable - unobserved)

    @property
    def loop_wait_estimated(self) -> bool:
        """Whether some of ``time_account.loop_wait`` is an estimate: see `sqltrace.event_loop`."""
        self._collector.settle()
        return self._collector.loop_wait_estimated

    @property
    def waited_for(self) -> list[tuple[str, float]]:
        """
        Names of the recordings that held the event loop while this one waited for it, and seconds, the longest first.

        At most 5. What is no request is ``(another task or thread)``. Together
        they may be less than ``time_account.loop_wait``: steps under 1 ms have no name.
        """
        self._collector.settle()
        return self._loop.waited_for() if self._loop is not None else []

    @property
    def held_loop(self) -> float | None:
        """
        Seconds in which this request's task held the event loop, also after the response.

        Of tasks that it started, only making objects and synchronous SQL count.
        `None` for what is no request.
        """
        return self._loop.held_until(self._clock())[0] / _SECOND if self._loop is not None else None

    @property
    def longest_hold(self) -> float | None:
        """Seconds, the longest of these stretches without a break."""
        return self._loop.held_until(self._clock())[1] / _SECOND if self._loop is not None else None

    @property
    def connections(self) -> ConnectionUse:
        """What it did with connections until now, or until it ended."""
        with self._lock:
            self.fold()
            now = self._clock() if self._ended is None else self._ended
            return self._connections.use(self._collector.checkouts, now)

    @property
    def row_count(self) -> int:
        """Rows that reached Python, as far as they could be counted; those after the response included."""
        with self._lock:
            self.fold()
            return self._rows

    @property
    def statements(self) -> list[Statement]:
        """The first `max_statements` statements, in the order in which they ended."""
        with self._lock:
            self.fold()
            return [self._statement(execution) for execution in self._kept]

    @property
    def groups(self) -> list[Group]:
        """All groups, most time first."""
        with self._lock:
            self.fold()
            return sorted(self._groups.values(), key=lambda group: -group.total)

    @property
    def statement_count(self) -> int:
        """All statements, those after the response included; exact beyond `max_statements`."""
        with self._lock:
            self.fold()
            return sum(self._counts.values())

    @property
    def after_response_count(self) -> int:
        """Statements that began after the end of the response."""
        with self._lock:
            self.fold()
            return self._counts["after_response"]

    @property
    def distinct_count(self) -> int:
        """Different statements during the response; at most `max_statements` are told apart."""
        with self._lock:
            self.fold()
            return sum(group.phase == "response" for group in self._groups.values())

    @property
    def on_loop_count(self) -> int:
        """Synchronous statements during the response that ran on an event loop, which stood still meanwhile."""
        with self._lock:
            self.fold()
            return sum(group.on_loop for group in self._groups.values() if group.phase == "response")

    @property
    def failed_count(self) -> int:
        with self._lock:
            self.fold()
            return self._failed

    @property
    def late_count(self) -> int:
        """Statements that came after the end, from a task that outlived it. In no other count."""
        return self._collector.late

    def since_start(self, reading: int) -> float:
        """Seconds from the start to a reading of this recording's clock."""
        return (reading - self._started) / _SECOND

    # Folding: executions become statements, groups and counts

    def _response_end(self) -> int:
        return self._clock() if self._response_ended is None else self._response_ended

    def fold(self) -> None:
        """Turn pending executions into groups and counts."""
        with self._lock:
            pending = self._collector.pending or []
            count = len(pending)  # what is appended meanwhile stays for the next time
            executions = pending[:count]
            del pending[:count]
            self._fold_marks(executions)
            self._fold_checkouts()
            room = self._max_statements - len(self._kept)
            if room > 0:
                self._kept += executions[:room]
            boundary = self._response_ended
            if boundary is not None:
                self._count([execution for execution in executions if execution.started >= boundary], "after_response")
                executions = [execution for execution in executions if execution.started < boundary]
            self._count(executions, "response")
            self._catch_up()

    def _fold_checkouts(self) -> None:
        checkouts, ended = self._collector.checkouts, self._ended
        count = len(checkouts)
        taken = checkouts[:count]
        del checkouts[:count]
        still_open: list[Checkout] = []
        for checkout in taken:
            if checkout.ended is None and ended is None:
                still_open.append(checkout)
            else:
                self._connections.add(checkout, ended or 0)
        checkouts += still_open

    def _fold_marks(self, executions: list[Execution]) -> None:
        marks = self._collector.marks
        count = len(marks)
        taken = marks[:count]
        del marks[:count]
        stretches: dict[Part, list[tuple[int, int]]] = {part: [] for part in PRIORITY}
        # Together, and so in their order: one that comes before others is added at a higher price.
        stretches["database"] = [(execution.started, execution.ended) for execution in executions]
        for part, start, end in taken:
            stretches[part].append((start, end))
        for part in PRIORITY:
            if stretches[part]:
                self._covered[part].add_all(stretches[part])

    def _count(self, executions: list[Execution], phase: Phase) -> None:
        self._counts[phase] += len(executions)
        known = self._known[phase]
        for execution in executions:
            group = known.get((execution.key, execution.dialect))
            if group is None:
                group = self._group(execution.sql, execution.key, execution.dialect, phase)
                group.parameters = group.parameters or execution.parameters
            group.count += 1
            group.total += (execution.ended - execution.started) / _SECOND
            if execution.loop_wait:
                group.total -= execution.loop_wait / _SECOND
                group.loop_wait += execution.loop_wait / _SECOND
            if execution.on_loop:
                group.on_loop += 1
            if execution.open:
                self._unsettled.append(Unsettled(execution, group))
            else:
                self._gain(add(group, execution))
            if execution.call_site is not None and group.call_site is None and group.fingerprint:
                group.call_site = execution.call_site

    def _catch_up(self) -> None:
        """Count what executions have measured since they were counted."""
        for unsettled in self._unsettled:
            self._gain(unsettled.catch_up())
        if self._unsettled:
            waiting = [unsettled for unsettled in self._unsettled if not unsettled.settled]
            self._unsettled = waiting[-_MAX_UNSETTLED:]

    def _gain(self, gained: tuple[int, bool]) -> None:
        rows, failed = gained
        self._rows += rows
        self._failed += failed

    def _group(self, sql: str, key: str, dialect: Any, phase: Phase) -> Group:
        system = system_name(dialect)
        mark = fingerprint(key, system)
        group = self._groups.get((mark, system, phase))
        if group is None and len(self._groups) < self._max_statements:
            group = Group(sql, mark, summarize(key, system), system, phase)
            self._groups[mark, system, phase] = group
        elif group is None:
            other = Group(OTHER_STATEMENTS, "", OTHER_STATEMENTS, "other_sql", phase)
            group = self._groups.setdefault(("", "other_sql", phase), other)
        known = self._known[phase]
        if len(known) >= _MAX_KNOWN:
            known.clear()  # only SQL with its values in the text gets here
        known[key, dialect] = group
        return group

    def _statement(self, execution: Execution) -> Statement:
        system = system_name(execution.dialect)
        started, boundary, loop_wait = execution.started, self._response_ended, execution.loop_wait
        return Statement(
            sql=execution.sql,
            fingerprint=fingerprint(execution.key, system),
            summary=summarize(execution.key, system),
            start=self.since_start(started),
            execute=(execution.ended - started - (loop_wait or 0)) / _SECOND,
            fetch=execution.fetch / _SECOND,
            objects=None if "objects" in unmeasurable else execution.objects / _SECOND,
            entities=execution.entities,
            roots=execution.roots,
            loop_wait=None if loop_wait is None else loop_wait / _SECOND,
            rows=execution.rows,
            system=system,
            on_loop=execution.on_loop,
            phase="response" if boundary is None or started < boundary else "after_response",
            failure=execution.failure,
            executemany=execution.executemany,
            batch_size=execution.batch_size,
            call_site=execution.call_site,
            parameters=execution.parameters,
        )
