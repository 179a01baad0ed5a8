"""
What a recording has counted: statements, groups, totals.

Not thread-safe by itself: its recording holds a lock around each use.
"""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from operator import add, attrgetter, sub
from typing import Any, NamedTuple

from sqltrace.clock import SECOND
from sqltrace.collector import Collector, Execution, Marks, ParentKey, unmeasurable
from sqltrace.connection import Checkout, ConnectionTotals
from sqltrace.counting import Unsettled, add_measured, add_objects, add_waits
from sqltrace.database import database_of
from sqltrace.origin import Origin, Parents
from sqltrace.samples import Samples
from sqltrace.sql_text import fingerprint, summarize
from sqltrace.statement import Group, Phase, Statement, system_name
from sqltrace.time_account import Spent

_MAX_KNOWN = 2_048
_MAX_ENGINES = 64  # that are told apart in a group
_STARTED, _ENDED, _FETCH, _MARKED, _FOLDED = map(attrgetter, ("started", "ended", "fetch", "marked", "folded"))
_IS_READ = attrgetter("is_read")
_KIND = attrgetter("key", "dialect", "origin")  # of equals, within a phase
_MAX_UNSETTLED = 2_048  # results that may be read on after they were counted
OTHER_STATEMENTS = "(other statements)"

Place = tuple[str, str, Phase, str]  # of a group: fingerprint, system, phase, and its origin as text
Kind = tuple[str, Any, Origin]  # of executions: key, dialect and origin


class Counts(NamedTuple):
    """
    How many statements and rows a recording has counted; exact beyond `max_statements`, but for `distinct`.

    Attributes:
        statements, after_response, failed, rows: Of all.
        on_loop: Of those during the response.
        distinct: Likewise; beyond `max_statements` of them all others count as one.
    """

    statements: int
    after_response: int
    failed: int
    distinct: int
    on_loop: int
    rows: int


class Tally:
    """
    Takes what a collector holds, and counts it. Memory is bounded by `max_statements`.

    Shows no more of an execution than its recording has asked for: others around it may have asked for more.

    Attributes:
        kept: The first `max_statements` executions.
        groups: By fingerprint, system, phase and origin.
        counts: Statements, by phase.
        spent: The stretches of time of each part of the time account.
    """

    def __init__(self, max_statements: int, max_sql_length: int, *, parameters: bool) -> None:
        self._max_statements = max_statements
        self._max_sql_length = max_sql_length
        self._parameters = parameters
        self.kept: list[Execution] = []
        self.groups: dict[Place, Group] = {}
        self.counts: dict[Phase, int] = {"response": 0, "after_response": 0}
        self.failed = 0
        self.rows = 0
        self.spent = Spent()
        self.connections = ConnectionTotals()
        self._known: dict[Phase, dict[Kind, Group]] = {"response": {}, "after_response": {}}
        self._sorted = 0  # of those that were kept, how many are in what follows
        self._alike: dict[Phase, dict[Kind, list[Execution]]] = {}
        self._unsettled: list[Unsettled] = []

    def close(self) -> None:
        """Nothing more comes, also of what rows are still read of."""
        if self._unsettled:
            self.kept = [copy(execution) if execution.open else execution for execution in self.kept]
            self._sorted, self._alike, self._unsettled = 0, {}, []
        for known in self._known.values():
            if len(known) > self._max_statements:
                known.clear()  # texts of statements that were not kept

    def fold(self, collector: Collector, boundary: int | None, ended: int | None) -> None:
        """
        Take over what the collector holds by now.

        Args:
            boundary: End of the response, if it has ended.
            ended: End of the recording, if it has ended.
        """
        pending = collector.pending or []
        if not (pending or any(collector.marks.values()) or collector.checkouts or self._unsettled):
            return
        count = len(pending)  # what is appended meanwhile stays for the next time
        executions = pending[:count]
        del pending[:count]
        self._fold_marks(collector.marks, executions, boundary)
        self._fold_checkouts(collector.checkouts, ended)
        room = self._max_statements - len(self.kept)
        self.kept += executions[:room]
        unkept = executions[room:]
        for phase, begun in self._by_phase(executions, boundary):
            self._count(begun, phase)
        for execution in unkept:
            self._note_end(execution)
        self._catch_up()
        if unkept and collector.unkept is not None:
            collector.unkept(unkept)

    def counted(self) -> Counts:
        after = self.counts["after_response"]
        of_response = [group for group in self.groups.values() if group.phase == "response"]
        distinct = len({(group.fingerprint, group.system) for group in of_response})
        on_loop = sum([group.on_loop for group in of_response])
        return Counts(self.counts["response"] + after, after, self.failed, distinct, on_loop, self.rows)

    def kept_by_group(self, boundary: int | None) -> list[tuple[Group, list[Execution]]]:
        """
        All groups, each with those of its executions that were kept.

        Args:
            boundary: End of the response, if it has ended.
        """
        found = {id(group): (group, list[Execution]()) for group in self.groups.values()}
        unsorted, self._sorted = self.kept[self._sorted :], len(self.kept)
        for phase, executions in self._by_phase(unsorted, boundary):
            alike = self._alike.setdefault(phase, defaultdict(list))
            for kind, execution in zip(map(_KIND, executions), executions, strict=True):
                alike[kind].append(execution)
        for phase, alike in self._alike.items():
            known = self._known[phase]
            for kind, equals in alike.items():
                group = known.get(kind) or self._group(equals[0], phase)
                # As the response ends, a group of the other phase may be found here first.
                found.setdefault(id(group), (group, []))[1].extend(equals)
        return list(found.values())

    def statements(self, began: int, boundary: int | None) -> list[Statement]:
        """
        What was kept, as plain data.

        Args:
            began: Start of the recording.
            boundary: End of the response, if it has ended.
        """
        return [self._statement(execution, began, boundary) for execution in self.kept]

    def _statement(self, execution: Execution, began: int, boundary: int | None) -> Statement:
        system = system_name(execution.dialect)
        started, loop_wait = execution.started, execution.loop_wait
        return Statement(
            sql=execution.sql[: self._max_sql_length],
            fingerprint=fingerprint(execution.key, system),
            summary=summarize(execution.key, system),
            start=(started - began) / SECOND,
            execute=(execution.ended - started - (loop_wait or 0)) / SECOND,
            fetch=execution.fetch / SECOND,
            objects=None if "objects" in unmeasurable else execution.objects / SECOND,
            entities=execution.entities,
            roots=execution.roots,
            loop_wait=None if loop_wait is None else loop_wait / SECOND,
            gil_wait=execution.gil_wait / SECOND,
            rows=execution.rows,
            system=system,
            on_loop=execution.on_loop,
            phase="response" if boundary is None or started <= boundary else "after_response",
            failure=execution.failure,
            executemany=execution.executemany,
            batch_size=execution.batch_size,
            call_site=execution.call_site,
            parameters=execution.parameters if self._parameters else None,
            origin=execution.origin,
            parents=parents_of(execution.parents),
            widening=execution.widening,
            database=database_of(execution.dialect),
            span=execution.span,
        )

    @staticmethod
    def _by_phase(executions: list[Execution], boundary: int | None) -> list[tuple[Phase, list[Execution]]]:
        if boundary is None or max(map(_STARTED, executions), default=0) <= boundary:
            return [("response", executions)]
        return [
            ("after_response", [execution for execution in executions if execution.started > boundary]),
            ("response", [execution for execution in executions if execution.started <= boundary]),
        ]

    def _note_end(self, execution: Execution) -> None:
        for known in self._known.values():
            group = known.get((execution.key, execution.dialect, execution.origin))
            if group is not None:
                group.ended = max(group.ended or 0, execution.ended + execution.fetch)

    def _fold_checkouts(self, checkouts: list[Checkout], ended: int | None) -> None:
        count = len(checkouts)
        taken = checkouts[:count]
        del checkouts[:count]
        for checkout in taken:
            if checkout.ended is None and ended is None:
                checkouts.append(checkout)  # again: it is still open
            else:
                self.connections.add(checkout, ended or 0)

    def _fold_marks(self, marks: Marks, executions: list[Execution], boundary: int | None) -> None:
        if executions:
            # A fetch that has no mark of its own counts right after its statement.
            ends = [*map(sub, map(add, map(_ENDED, executions), map(_FETCH, executions)), map(_MARKED, executions))]
            if any(map(_FOLDED, executions)):  # by another recording: what was fetched since then will be marked
                for place, execution in enumerate(executions):
                    if execution.folded:
                        ends[place] = execution.ended + execution.tail
            self.spent.add_all("database", [*map(_STARTED, executions)], ends, boundary)
        for part, marked in marks.items():
            if marked:
                count = len(marked)
                taken = marked[:count]
                del marked[:count]
                self.spent.add_all(part, taken[::2], taken[1::2], boundary)

    def _count(self, executions: list[Execution], phase: Phase) -> None:
        self.counts[phase] += len(executions)
        known = self._known[phase]
        rows = 0
        for execution in executions:
            group = known.get((execution.key, execution.dialect, execution.origin))
            if group is None:
                group = self._group(execution, phase)
            group.count += 1
            started = group.samples.last = execution.started
            if execution.on_loop:
                group.on_loop += 1
            if execution.more or execution.open:
                rows += self._count_more(execution, group)
                continue
            if execution.digest is not None and group.fingerprint:
                group.samples.compare(execution.digest)
            elapsed = execution.ended - started + execution.fetch
            group.total += elapsed / SECOND
            if elapsed > group._longest:
                group._longest, group.longest_at = elapsed, None  # one with a call site has more to count
            if execution.rows is not None:
                rows += execution.rows
                group.rows = (group.rows or 0) + execution.rows
            if execution.objects or execution.entities:
                add_objects(group, execution)
        self.rows += rows

    def _count_more(self, execution: Execution, group: Group) -> int:
        """Count an execution that has more to count. Returns the rows."""
        rows: int | None = 0
        if execution.open:
            if not execution.folded:
                execution.folded, execution.tail = True, execution.fetch - execution.marked
            group.total += (execution.ended - execution.started) / SECOND
            self._unsettled.append(Unsettled(execution, group))
        else:
            rows = add_measured(group, execution)
            if execution.failure is not None:
                self.failed += 1
        add_waits(group, execution)
        if group.fingerprint:
            group.samples.add(group.count, execution.call_site, execution.digest, execution.later_digest)
            group.call_site = group.call_site or execution.call_site
        return rows or 0

    def _catch_up(self) -> None:
        """Count what executions have measured since they were counted."""
        for unsettled in self._unsettled:
            rows, failed = unsettled.catch_up()
            self.rows += rows
            self.failed += failed
        if self._unsettled:
            waiting = [unsettled for unsettled in self._unsettled if not unsettled.settled]
            if len(waiting) > _MAX_UNSETTLED:
                # Those being read stay, and of the others the first, inside of which the rest may run, and the latest.
                waiting.sort(key=_IS_READ)
                waiting = waiting[: _MAX_UNSETTLED // 4] + waiting[-_MAX_UNSETTLED * 3 // 4 :]
            self._unsettled = waiting

    def _group(self, execution: Execution, phase: Phase) -> Group:
        key, dialect, origin = execution.key, execution.dialect, execution.origin
        system = system_name(dialect)
        mark = fingerprint(key, system)
        place = mark, system, phase, str(origin)
        group = self.groups.get(place)
        if group is None and len(self.groups) < self._max_statements:
            group = self.groups[place] = Group(
                execution.sql[: self._max_sql_length],
                mark,
                summarize(key, system),
                system,
                phase,
                parameters=execution.parameters if self._parameters else None,
                origin=origin,
                parents=parents_of(execution.parents),
                widening=execution.widening,
                is_async=bool(dialect.is_async),
                samples=Samples(execution.started),
            )
        elif group is None:
            other = Group(OTHER_STATEMENTS, "", OTHER_STATEMENTS, "other_sql", phase)
            group = self.groups.setdefault(("", "other_sql", phase, ""), other)
        if len(group.samples.engines) < _MAX_ENGINES:
            group.samples.engines.add(id(dialect))
        known = self._known[phase]
        if len(known) >= _MAX_KNOWN:
            known.clear()  # only SQL with its values in the text gets here
        known[key, dialect, origin] = group
        return group


def parents_of(key: ParentKey | None) -> Parents | None:
    """What an execution has noted of its parents, as plain data."""
    if key is None:
        return None
    text, dialect, call_site, origin = key
    system = system_name(dialect)
    return Parents(fingerprint(text, system), summarize(text, system), call_site, origin)
