"""
Which statements of a request become spans of their own, and which are told together.

Pure: plain data in and out. An N+1 of a thousand is three spans and one that
stands for the rest, with its exact count and sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqltrace.collector import Execution
from sqltrace.recording import Recording
from sqltrace.statement import Group, Phase, Statement
from sqltrace.tally import OTHER_STATEMENTS

TOLD_ELSEWHERE = object()  # stands for the span of a statement to which another instrumentation has made one


@dataclass(slots=True)
class Rest:
    """
    What is told together, of one group or of several. Seconds.

    Attributes:
        count, total: Exact.
        least, most: As far as they are known.
        rows: All that reached Python; `None` where no statement returned any.
        failed: Those that have no span of their own, as too many statements ran to keep them.
    """

    count: int
    total: float
    least: float | None = None
    most: float | None = None
    rows: int | None = None
    failed: int = 0


@dataclass(slots=True)
class Told:
    """
    One span.

    Attributes:
        statement: The one that it is, or the first of the rest. `None` where none was kept.
        start, end: Seconds from the start of the recording.
        rest: Where it stands for several.
    """

    group: Group
    statement: Statement | None
    start: float
    end: float
    rest: Rest | None = None

    @property
    def cost(self) -> float:
        """Seconds."""
        return self.end - self.start if self.rest is None else self.rest.total


def choose(recording: Recording, *, repeats: int, most: int) -> list[Told]:
    """
    In the order in which they began.

    Args:
        repeats: Statements of one group that get a span each. Failed ones always do.
        most: Spans in all: the failed and the costliest, and one of each phase with the totals of the others.
    """
    kept = recording.executions()
    told: list[Told] = []
    for group in recording.groups:
        place = group.fingerprint, group.system, group.phase, str(group.origin)
        told += _of_group(recording, group, kept.get(place, []), repeats)
    told = _capped(told, most)
    told.sort(key=lambda span: span.start)
    return told


def _of_group(recording: Recording, group: Group, kept: list[Execution], repeats: int) -> list[Told]:
    singles: list[Execution] = []
    rest: list[Execution] = []
    ordinary = 0
    for execution in kept:
        if execution.span is TOLD_ELSEWHERE:
            return []
        ordinary += execution.failure is None
        (singles if execution.failure is not None or ordinary <= repeats else rest).append(execution)
    if len(rest) == 1 and group.count == len(kept):
        singles, rest = kept, []
    told: list[Told] = []
    for execution in singles:
        statement = recording.statement(execution)
        told.append(Told(group, statement, statement.start, recording.since_start(_end_of(execution))))
    if group.count > len(singles):
        told.append(_rest_of(recording, group, singles, rest))
    return told


def _rest_of(recording: Recording, group: Group, singles: list[Execution], kept: list[Execution]) -> Told:
    """
    Args:
        singles: Those that are told one by one.
        kept: Of the others, those that are known one by one.
    """
    count = group.count - len(singles)
    told = [_elapsed(execution) for execution in singles]
    known = [_elapsed(execution) for execution in kept]
    end = recording.since_start(max(map(_end_of, kept))) if kept else 0.0
    if count > len(kept):  # some were not kept
        end = max(end, recording.duration if group.ended is None else recording.since_start(group.ended))
        if group.max > max(told, default=0.0):
            known.append(group.max)
    total = max(0.0, group.total - sum(told))
    rows = None if group.rows is None else group.rows - sum(execution.rows or 0 for execution in singles)
    failed = group.failed - sum(execution.failure is not None for execution in singles)
    least = min(known) if len(known) >= count else None
    rest = Rest(count, total, least, max(known, default=None), rows, failed)
    if kept:
        return Told(group, recording.statement(kept[0]), recording.since_start(kept[0].started), end, rest)
    last = singles[-1] if singles else None
    start = max(0.0, end - total) if last is None else recording.since_start(_end_of(last))
    return Told(group, None if last is None else recording.statement(singles[0]), start, end, rest)


def _end_of(execution: Execution) -> int:
    """When its rows had been fetched, without the pauses that the application made in between."""
    return execution.ended + execution.fetch


def _elapsed(execution: Execution) -> float:
    """Seconds, as `Statement.duration`."""
    return (execution.ended - execution.started + execution.fetch - (execution.loop_wait or 0)) / 1_000_000_000


def _capped(told: list[Told], most: int) -> list[Told]:
    if len(told) <= most:
        return told
    told.sort(key=lambda span: (_is_failed(span), span.cost), reverse=True)
    others: dict[Phase, Told] = {}
    for span in told[most - 1 :]:
        phase, count = span.group.phase, 1 if span.rest is None else span.rest.count
        other = others.get(phase)
        if other is None or other.rest is None:
            group = Group(OTHER_STATEMENTS, "", OTHER_STATEMENTS, "other_sql", phase)
            others[phase] = Told(group, None, span.start, span.end, Rest(count, span.cost))
        else:
            other.rest.count += count
            other.rest.total += span.cost
            other.start, other.end = min(other.start, span.start), max(other.end, span.end)
    return told[: most - 1] + list(others.values())


def _is_failed(span: Told) -> bool:
    return span.rest is None and span.statement is not None and span.statement.failed
