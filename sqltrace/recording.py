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
from operator import itemgetter
from threading import RLock
from typing import Any

from sqltrace.collector import Clock, Collector, Execution, MissedStatements, current, missed
from sqltrace.intervals import Coverage
from sqltrace.sql_text import fingerprint, summarize
from sqltrace.statement import Group, Phase, Statement, system_name

_MAX_KNOWN = 2_048
_STARTED = itemgetter(0)
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
        self._busy = Coverage()
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
    def database(self) -> float:
        """Seconds of `duration` in which at least one statement ran; overlapping ones count once."""
        with self._lock:
            self.fold()
            return self._busy.until(self._response_end()) / _SECOND

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
            if not pending:
                return
            count = len(pending)  # what is appended meanwhile stays for the next time
            executions = pending[:count]
            del pending[:count]
            room = self._max_statements - len(self._kept)
            if room > 0:
                self._kept += executions[:room]
            boundary = self._response_ended
            if boundary is not None and max(map(_STARTED, executions)) > boundary:
                self._count([execution for execution in executions if execution[0] > boundary], "after_response")
                executions = [execution for execution in executions if execution[0] <= boundary]
            self._count(executions, "response")
            self._busy.add_all(executions)

    def _count(self, executions: list[Execution], phase: Phase) -> None:
        self._counts[phase] += len(executions)
        known = self._known[phase]
        for started, ended, sql, key, dialect, failure, _many, _size, call_site, parameters in executions:
            group = known.get((key, dialect))
            if group is None:
                group = self._group(sql, key, dialect, phase)
                group.parameters = group.parameters or parameters
            elapsed = ended - started
            group.count += 1
            group.total += elapsed / _SECOND
            if elapsed > group._longest:  # noqa: PLR1730 - max() is a call, once per statement
                group._longest = elapsed
            if failure is not None:
                group.failed += 1
                self._failed += 1
            if call_site is not None and group.call_site is None and group.fingerprint:
                group.call_site = call_site

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
        started, ended, sql, key, dialect, failure, executemany, batch_size, call_site, parameters = execution
        system = system_name(dialect)
        return Statement(
            sql=sql,
            fingerprint=fingerprint(key, system),
            summary=summarize(key, system),
            start=self.since_start(started),
            duration=(ended - started) / _SECOND,
            system=system,
            phase="response" if self._response_ended is None or started <= self._response_ended else "after_response",
            failure=failure,
            executemany=executemany,
            batch_size=batch_size,
            call_site=call_site,
            parameters=parameters,
        )
