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
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from sqltrace.collector import Clock, Collector, Execution, MissedStatements, Part, current, missed
from sqltrace.intervals import Coverage
from sqltrace.sql_text import fingerprint, summarize
from sqltrace.statement import Group, Phase, Statement, system_name
from sqltrace.time_account import PRIORITY, TimeAccount, settle

_MAX_KNOWN = 2_048
_MAX_OPEN = 256  # results that may wait to be read to their end before they are counted as they are
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
        self.name = name
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
        self.measured: frozenset[Part] = frozenset(PRIORITY)
        self._covered: dict[Part, Coverage] = {part: Coverage() for part in PRIORITY}
        self._response_ended: int | None = None
        self._ended: int | None = None
        self._collector = Collector(
            self,
            clock=clock,
            dialects=dialects,
            capture_parameters=capture_parameters,
            max_statements=max_statements,
            max_sql_length=max_sql_length,
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

    def end(self) -> None:
        """Take no more: later statements are counted as late. Called again, nothing changes."""
        if self._ended is None:
            self._ended = self._clock()
            if self._response_ended is None:
                self._response_ended = self._ended
            self.fold()
            self._collector.close()
            self._known = {"response": {}, "after_response": {}}

    # What was recorded

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
            self.fold()
            end = self._response_end()
            return settle(self._covered, end, end - self._started, self.measured)

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
            pending = self._collector.pending
            self._fold_marks()
            if not pending:
                return
            count = len(pending)  # what is appended meanwhile stays for the next time
            executions = pending[:count]
            del pending[:count]
            if self._ended is None:
                still_open = [execution for execution in executions if execution.open]
                if still_open and len(still_open) < _MAX_OPEN:
                    pending.extend(still_open)
                    executions = [execution for execution in executions if not execution.open]
            room = self._max_statements - len(self._kept)
            if room > 0:
                self._kept += executions[:room]
            boundary = self._response_ended
            if boundary is not None:
                self._count([execution for execution in executions if execution.started >= boundary], "after_response")
                executions = [execution for execution in executions if execution.started < boundary]
            self._count(executions, "response")
            self._covered["database"].add_all([(execution.started, execution.ended) for execution in executions])

    def _fold_marks(self) -> None:
        marks = self._collector.marks
        count = len(marks)
        if not count:
            return
        taken = marks[:count]
        del marks[:count]
        for part in PRIORITY:
            self._covered[part].add_all([(start, end) for marked, start, end in taken if marked == part])

    def _count(self, executions: list[Execution], phase: Phase) -> None:
        self._counts[phase] += len(executions)
        known = self._known[phase]
        for execution in executions:
            group = known.get((execution.key, execution.dialect))
            if group is None:
                group = self._group(execution.sql, execution.key, execution.dialect, phase)
                group.parameters = group.parameters or execution.parameters
            elapsed = execution.ended - execution.started + execution.fetch
            if execution.loop_wait:
                elapsed -= execution.loop_wait
                group.loop_wait += execution.loop_wait / _SECOND
            group.count += 1
            group.total += elapsed / _SECOND
            group._longest = max(group._longest, elapsed)
            if execution.rows is not None:
                group.rows = (group.rows or 0) + execution.rows
                self._rows += execution.rows
            if execution.objects:
                group.objects += execution.objects / _SECOND
            if execution.on_loop:
                group.on_loop += 1
            if execution.failure is not None:
                group.failed += 1
                self._failed += 1
            if execution.call_site is not None and group.call_site is None and group.fingerprint:
                group.call_site = execution.call_site

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
            objects=execution.objects / _SECOND,
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
