"""`idle_in_transaction`: a transaction was kept open while something else was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqltrace.finding import Finding
from sqltrace.findings.wording import line, time
from sqltrace.idle import IdleStretch
from sqltrace.intervals import Coverage
from sqltrace.recording import Recording

_SECOND = 1_000_000_000


def idle_in_transaction(recording: Recording, *, idle: float = 0.5, pause: float = 0.01) -> Iterator[Finding]:
    """
    Making objects and waiting do not count: other findings tell what a pool, the event loop or a statement of
    another connection took meanwhile.

    Args:
        idle: Seconds between the first statement and the end of transactions in which no statement ran.
        pause: Seconds of that for each statement, on average: many short pauses are a busy transaction.
    """
    connections = recording.connections
    total = connections.idle_in_transaction
    if total is None or total < idle:
        return
    elsewhere = _told_elsewhere(recording, idle)
    own = total - recording.spent_in_all("objects", "loop_wait")
    own -= sum(_within(elsewhere, stretch) for stretch in connections.idle_stretches) / _SECOND
    if own >= idle and own >= pause * (recording.statement_count + 1):
        worst = max(
            connections.idle_stretches,
            key=lambda stretch: stretch.end - stretch.start - _within(elsewhere, stretch),
            default=None,
        )
        is_async = worst.is_async if worst is not None else all(group.is_async for group in recording.groups)
        commit = "await session.commit()" if is_async else "session.commit()"
        yield Finding(
            "idle_in_transaction",
            f"a transaction was open for {time(own)} in which no statement of it ran, and kept its connection"
            f" ({time(connections.held or 0.0)} in all) and its locks.",
            own,
            line(worst.call_site) if worst is not None else None,
            fix=f"{commit} before the slow work, or session.close() for reads: it begins anew when needed",
        )


def _told_elsewhere(recording: Recording, idle: float) -> Coverage:
    """When the recording waited for a pool, or for a statement that took as long by itself."""
    covered = Coverage()
    for wait in recording.connections.waits:
        covered.add(wait.ended - round(wait.waited * _SECOND), wait.ended)
    for _, executions in recording.executions():
        for execution in executions:
            if execution.elapsed >= idle * _SECOND:
                covered.add(execution.started, execution.ended + execution.fetch)
    return covered


def _within(covered: Coverage, stretch: IdleStretch) -> int:
    return covered.until(stretch.end) - covered.until(stretch.start)


def is_idle_of_hold(finding: Finding, others: Sequence[Finding], recording: Recording) -> bool:
    """
    Whether it tells again what `blocked_loop` tells: the loop was held nearly all the time, so that no more than a
    fifth of the idling can have been outside of that.
    """
    if finding.kind != "idle_in_transaction":
        return False
    all_of_it = recording.duration + recording.after_response
    return any(other.kind == "blocked_loop" and all_of_it - other.cost <= finding.cost / 5 for other in others)
