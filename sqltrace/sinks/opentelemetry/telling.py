"""
Which statements of a request become spans of their own, and which are told together.

Pure: plain data in and out. An N+1 of a thousand is three spans and one that
stands for the rest, with its exact count and sum.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    by_group: dict[tuple[str, str, Phase, str], list[Statement]] = {}
    for statement in recording.statements:
        key = statement.fingerprint, statement.system, statement.phase, str(statement.origin)
        by_group.setdefault(key, []).append(statement)
    told: list[Told] = []
    for group in recording.groups:
        kept = by_group.get((group.fingerprint, group.system, group.phase, str(group.origin)), [])
        if all(statement.span is not TOLD_ELSEWHERE for statement in kept):
            ended = recording.duration if group.ended is None else recording.since_start(group.ended)
            told += _of_group(group, kept, repeats, ended)
    told = _capped(told, most)
    told.sort(key=lambda span: span.start)
    return told


def end_of(statement: Statement) -> float:
    """When its rows had been fetched, without the pauses that the application made in between."""
    return statement.start + (statement.loop_wait or 0.0) + statement.duration


def _of_group(group: Group, kept: list[Statement], repeats: int, ended: float) -> list[Told]:
    singles: list[Statement] = []
    rest: list[Statement] = []
    ordinary = 0
    for statement in kept:
        ordinary += not statement.failed
        (singles if statement.failed or ordinary <= repeats else rest).append(statement)
    if len(rest) == 1 and group.count == len(kept):
        singles, rest = kept, []
    told = [Told(group, statement, statement.start, end_of(statement)) for statement in singles]
    if group.count > len(singles):
        told.append(_rest_of(group, singles, rest, ended))
    return told


def _rest_of(group: Group, singles: list[Statement], kept: list[Statement], ended: float) -> Told:
    """
    Args:
        singles: Those that are told one by one.
        kept: Of the others, those that are known one by one.
        ended: When the last of all did, if some were not kept.
    """
    count = group.count - len(singles)
    told = [statement.duration for statement in singles]
    known = [statement.duration for statement in kept]
    end = max(map(end_of, kept), default=0.0)
    if count > len(kept):
        end = max(end, ended)
        if group.max > max(told, default=0.0):
            known.append(group.max)
    total = max(0.0, group.total - sum(told))
    rows = None if group.rows is None else group.rows - sum(statement.rows or 0 for statement in singles)
    failed = group.failed - sum(statement.failed for statement in singles)
    least = min(known) if len(known) >= count else None
    rest = Rest(count, total, least, max(known, default=None), rows, failed)
    if kept:
        return Told(group, kept[0], kept[0].start, end, rest)
    start = end_of(singles[-1]) if singles else max(0.0, end - total)
    return Told(group, singles[0] if singles else None, start, end, rest)


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
