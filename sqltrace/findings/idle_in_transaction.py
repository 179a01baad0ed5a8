"""`idle_in_transaction`: a transaction was kept open while something else was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise

from sqltrace.clock import SECOND
from sqltrace.finding import Finding
from sqltrace.findings.wording import line, time
from sqltrace.idle import LEAST, IdleStretch
from sqltrace.intervals import Coverage
from sqltrace.recording import Recording

_FIX = "session.commit() before the slow work, or session.close() for reads: it begins anew when needed"
_ASYNC_FIX = (
    "await session.commit() before the slow work, of a session with expire_on_commit=False,"
    " or await session.close() for reads: it begins anew when needed"
)


def idle_in_transaction(recording: Recording, *, idle: float = 0.5, pause: float = 0.01) -> Iterator[Finding]:
    """
    Transactions that were open while nothing ran in them.

    Those of several connections at the same time count once. Making objects and waiting do not count: other findings
    tell what a pool, the event loop or a statement of another connection took meanwhile.

    Args:
        idle: Seconds between the first statement and the end of transactions in which no statement ran.
        pause: Seconds of that for each statement, on average: many short pauses are a busy transaction.
    """
    connections = recording.connections
    total = connections.idle_in_transaction
    if total is None or total < idle:
        return
    stretches = connections.idle_stretches
    busy = recording.stretches("objects", "loop_wait")
    _add_making_of_batches(busy, recording)
    pauses = total - _pauses_told(recording, stretches, busy) / SECOND
    _add_what_others_tell(busy, recording, idle)
    pieces = [_own(stretch, busy) for stretch in stretches]
    together = Coverage()
    for start, end in chain.from_iterable(pieces):
        together.add(start, end)
    own = max(0.0, pauses) + together.total() / SECOND
    if own >= idle and own >= pause * (recording.statement_count + 1):
        lengths = list(map(_length, pieces))
        worst = stretches[lengths.index(max(lengths))] if stretches else None
        rest = total - own - (sum(lengths) - together.total()) / SECOND
        told = f", not counting {time(rest)} of waiting, reading rows or making objects" if rest >= own / 10 else ""
        is_async = worst.is_async if worst is not None else all(group.is_async for group in recording.groups)
        yield Finding(
            "idle_in_transaction",
            f"a transaction was open for {time(own)} in which no statement of it ran{told}, and kept its connection"
            f" ({time(connections.held or 0.0)} in all) and its locks{_awaited(recording, worst, busy)}.",
            own,
            line(worst.call_site) if worst is not None else None,
            fix=_ASYNC_FIX if is_async else _FIX,
        )


def _awaited(recording: Recording, worst: IdleStretch | None, busy: Coverage) -> str:
    """The line that most of the worst stretch was spent at, if it awaited something."""
    if worst is None or recording.awaits is None:
        return ""
    lines = recording.awaits.within(worst.start, worst.end, busy)
    return f", awaiting at {lines[0][0]}" if lines and lines[0][1] >= _length(_own(worst, busy)) / 2 else ""


def _own(stretch: IdleStretch, busy: Coverage) -> list[tuple[int, int]]:
    """The pieces of a stretch that are the request's own doing. That it reads from a server-side cursor is not."""
    if stretch.reading:
        return []
    excused = Coverage()
    excused.merge(busy)
    for start, end in stretch.loop_held:
        excused.add(start, end)
    return excused.gaps(stretch.start, stretch.end)


def _length(pieces: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in pieces)


def _pauses_told(recording: Recording, stretches: Sequence[IdleStretch], busy: Coverage) -> int:
    """What else is in the idle time than short pauses: long ones, waits for the loop, and making of objects."""
    long = Coverage()
    for stretch in stretches:
        long.add(stretch.start, stretch.end)
    both = long.total() + busy.total()
    long.merge(busy)
    within = both - long.total()
    waits = sum(group.loop_wait for group in recording.groups)
    lengths = sum(stretch.end - stretch.start for stretch in stretches)
    return lengths + busy.total() - within + round(waits * SECOND)


def _add_making_of_batches(busy: Coverage, recording: Recording) -> None:
    """When SQLAlchemy put the next batch of an INSERT of many rows together."""
    for _, executions in recording.executions():
        batches = [execution for execution in executions if execution.batch_size and not execution.executemany]
        for one, following in pairwise(batches):
            since = one.ended + one.gil_wait + one.fetch
            if following.started - since < LEAST:
                busy.add(since, following.started)


def _add_what_others_tell(busy: Coverage, recording: Recording, idle: float) -> None:
    """When the recording waited for a pool, or for a statement that took as long by itself."""
    for wait in recording.connections.waits:
        busy.add(wait.started, wait.ended)
    for _, executions in recording.executions():
        for execution in executions:
            if execution.elapsed >= idle * SECOND:
                busy.add(execution.started, execution.ended + execution.fetch)


def is_idle_of_hold(finding: Finding, others: Sequence[Finding], recording: Recording) -> bool:
    """
    Whether it repeats what `blocked_loop` reports: the loop was held nearly all the time, so that no more than a
    fifth of the idling can have been outside of that.
    """
    if finding.kind != "idle_in_transaction":
        return False
    all_of_it = recording.duration + recording.after_response
    return any(other.kind == "blocked_loop" and all_of_it - other.cost <= finding.cost / 5 for other in others)
