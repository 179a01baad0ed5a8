"""
Which statements of a request become spans of their own, and which are told together.

Pure: plain data in and out. An N+1 of a thousand is three spans and one that
stands for the rest, with its exact count and sum.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import starmap
from operator import add, attrgetter

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.recording import Recording
from sqltrace.statement import Group, Phase
from sqltrace.tally import OTHER_STATEMENTS

TOLD_ELSEWHERE = object()  # stands for the span of a statement to which another instrumentation has made one
_ENDED, _FAILURE, _FETCH, _SPAN = map(attrgetter, ("ended", "failure", "fetch", "span"))


@dataclass(slots=True)
class Rest:
    """
    What is told together, of one group or of several. Seconds.

    Attributes:
        count, total: Exact.
        least, most: As far as they are known.
        rows: All that reached Python; `None` where no statement returned any.
        failed: Those that have no span of their own, as too many statements ran to keep or to tell them.
    """

    count: int
    total: float
    least: float | None = None
    most: float | None = None
    rows: int | None = None
    failed: int = 0

    @property
    def has_failed(self) -> bool:
        return self.failed == self.count


@dataclass(slots=True)
class Told:
    """
    One span.

    Attributes:
        execution: The one that it is, or the first of the rest. `None` where none was kept.
        start, end: Nanoseconds from the start of the recording.
        rest: Where it stands for several.
    """

    group: Group
    execution: Execution | None
    start: int
    end: int
    rest: Rest | None = None

    @property
    def cost(self) -> float:
        """Seconds."""
        return (self.end - self.start) / SECOND if self.rest is None else self.rest.total


def choose(recording: Recording, *, repeats: int, most: int) -> list[Told]:
    """
    In the order in which they began.

    Args:
        repeats: Statements of one group that get a span each. Failed ones always do.
        most: Spans in all: the failed and the costliest, and one of each phase with the totals of the others;
            of both phases if there may be no more than one.
    """
    told: list[Told] = []
    for group, kept in starmap(_left_over, recording.executions()):
        singles, rest = _split(group, kept, repeats)
        began = recording.started
        told += [Told(group, one, one.started - began, _end_of(one) - began) for one in singles]
        if group.count > len(singles):
            told.append(_rest_of(recording, group, singles, rest))
    if len(told) > most:
        told = _capped(told, most)
    told.sort(key=attrgetter("start"))
    return told


def _left_over(group: Group, kept: list[Execution]) -> tuple[Group, list[Execution]]:
    """A group without what another instrumentation tells. If that tells all that were kept, it tells the rest, too."""
    if TOLD_ELSEWHERE not in map(_SPAN, kept):
        return group, kept
    ours = [execution for execution in kept if execution.span is not TOLD_ELSEWHERE]
    if not ours:
        return replace(group, count=0), []
    theirs = [execution for execution in kept if execution.span is TOLD_ELSEWHERE]
    left = replace(
        group,
        count=group.count - len(theirs),
        failed=group.failed - sum(execution.failure is not None for execution in theirs),
        total=group.total - sum(_elapsed(theirs)) / SECOND,
        rows=None if group.rows is None else group.rows - sum(execution.rows or 0 for execution in theirs),
        _longest=0,  # it may be one of theirs
    )
    return left, ours


def _split(group: Group, kept: list[Execution], repeats: int) -> tuple[list[Execution], list[Execution]]:
    """Those that are told one by one, and the others."""
    if any(map(_FAILURE, kept)):
        singles, rest, ordinary = list[Execution](), list[Execution](), 0
        for execution in kept:
            ordinary += execution.failure is None
            (singles if execution.failure is not None or ordinary <= repeats else rest).append(execution)
    else:
        singles, rest = kept[:repeats], kept[repeats:]
    if len(rest) == 1 and group.count == len(kept):
        return kept, []
    return singles, rest


def _rest_of(recording: Recording, group: Group, singles: list[Execution], kept: list[Execution]) -> Told:
    """
    Args:
        singles: Those that are told one by one.
        kept: Of the others, those that are known one by one.
    """
    count, began = group.count - len(singles), recording.started
    told, known = _elapsed(singles), _elapsed(kept)
    end = max(map(add, map(_ENDED, kept), map(_FETCH, kept))) - began if kept else 0
    if count > len(kept):  # some were not kept
        last_end = round(recording.duration * SECOND) if group.ended is None else group.ended - began
        end = max(end, last_end)
        longest = round(group.max * SECOND)
        if longest > max(told, default=0):
            known.append(longest)
    total = max(0.0, group.total - sum(told) / SECOND)
    rows = None if group.rows is None else group.rows - sum(execution.rows or 0 for execution in singles)
    failed = group.failed - sum(execution.failure is not None for execution in singles)
    least = min(known) / SECOND if count == len(kept) else None
    most = max(known) / SECOND if known else None
    if count == 1:
        least = most = total
    rest = Rest(count, total, least, most, rows, failed)
    if kept:
        return Told(group, kept[0], kept[0].started - began, end, rest)
    start = max(0, end - round(total * SECOND))
    if singles and (count > 1 or group.ended is None):  # when they began is not known
        start = _end_of(singles[-1]) - began
    return Told(group, singles[0] if singles else None, start, end, rest)


def _end_of(execution: Execution) -> int:
    """When its rows had been fetched, without the pauses that the application made in between."""
    return execution.ended + execution.fetch


def _elapsed(executions: list[Execution]) -> list[int]:
    """Nanoseconds, as `Execution.elapsed`, but all at once."""
    return [one.ended - one.started + one.fetch - (one.loop_wait or 0) for one in executions]


def _capped(told: list[Told], most: int) -> list[Told]:
    told.sort(key=lambda span: (_is_failed(span), span.cost), reverse=True)
    room = most - len({span.group.phase for span in told[most - 1 :]})
    if room < 0:
        return [_together(told, "response")]  # one in all
    by_phase: dict[Phase, list[Told]] = defaultdict(list)
    for span in told[room:]:
        by_phase[span.group.phase].append(span)
    return told[:room] + [_together(spans, phase) if len(spans) > 1 else spans[0] for phase, spans in by_phase.items()]


def _together(spans: list[Told], phase: Phase) -> Told:
    rests = [_rest_in(span) for span in spans]
    least = [rest.least for rest in rests if rest.least is not None]
    most = [rest.most for rest in rests if rest.most is not None]
    rows = [rest.rows for rest in rests if rest.rows is not None]
    rest = Rest(
        count=sum(rest.count for rest in rests),
        total=sum(rest.total for rest in rests),
        least=min(least) if len(least) == len(rests) else None,
        most=max(most, default=None),
        rows=sum(rows) if rows else None,
        failed=sum(rest.failed for rest in rests),
    )
    group = Group(OTHER_STATEMENTS, "", OTHER_STATEMENTS, "other_sql", phase)
    return Told(group, None, min(span.start for span in spans), max(span.end for span in spans), rest)


def _rest_in(span: Told) -> Rest:
    """The statements that a span stands for."""
    one = span.execution
    if span.rest is not None or one is None:
        return span.rest or Rest(0, 0.0)  # the latter for the type checker: one of both is there
    seconds = one.elapsed / SECOND
    return Rest(1, seconds, seconds, seconds, one.rows, int(one.failure is not None))


def _is_failed(span: Told) -> bool:
    if span.rest is not None:
        return span.rest.has_failed
    return span.execution is not None and span.execution.failure is not None
