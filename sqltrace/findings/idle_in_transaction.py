"""`idle_in_transaction`: a transaction was kept open while something else was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqltrace.finding import Finding
from sqltrace.findings.wording import time
from sqltrace.recording import Recording


def idle_in_transaction(recording: Recording, *, idle: float = 0.5, pause: float = 0.01) -> Iterator[Finding]:
    """
    Making objects and waiting for the event loop do not count: other findings tell them.

    Args:
        idle: Seconds between the first statement and the end of transactions in which no statement ran.
        pause: Seconds of that for each statement, on average: many short pauses are a busy transaction.
    """
    connections, account = recording.connections, recording.time_account
    total = connections.idle_in_transaction
    if total is None:
        return
    own = total - (account.objects or 0.0) - (account.loop_wait or 0.0)
    if own >= idle and own >= pause * (recording.statement_count + 1):
        yield Finding(
            "idle_in_transaction",
            f"a transaction was open for {time(own)} in which no statement ran, and kept its connection"
            f" ({time(connections.held or 0.0)} in all) and its locks.",
            own,
            fix="await session.commit() before the slow work, or session.close() for reads: it begins anew when needed"
            if any(group.is_async for group in recording.groups)
            else "session.commit() before the slow work, or session.close() for reads: it begins anew when needed",
        )


def is_idle_of_hold(finding: Finding, others: Sequence[Finding], recording: Recording) -> bool:
    """
    Whether it tells again what `blocked_loop` tells: the loop was held nearly all the time, so that no more than a
    fifth of the idling can have been outside of that.
    """
    if finding.kind != "idle_in_transaction":
        return False
    all_of_it = recording.duration + recording.after_response
    return any(other.kind == "blocked_loop" and all_of_it - other.cost <= finding.cost / 5 for other in others)
