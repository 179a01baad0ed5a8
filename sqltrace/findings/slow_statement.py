"""`slow_statement`: one that took the database long by itself."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.widened import multiplied, repeats_parents
from sqltrace.findings.wording import loaded_by, place_of_longest, plural, subject, time
from sqltrace.recording import Recording
from sqltrace.statement import Group


def slow_statement(recording: Recording, *, slow: float = 0.5) -> Iterator[Finding]:
    """
    What `cartesian_product` and `row_fan_out` tell is not told again.

    Args:
        slow: Seconds of one execution and its fetching, without waiting for the event loop.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    for group in recording.groups:
        if multiplied(group, rows=100, ratio=3.0) or repeats_parents(group, rows=500, ratio=10.0):
            continue
        if group.max - _unseen_wait(group, loop_wait) >= slow:
            many = f", the longest of {group.count:,}," if group.count > 1 else ""
            rows = f" for {plural(group.rows, 'row')}" if group.rows else ""
            yield Finding(
                "slow_statement",
                f"{subject(group)} took {time(group.max)}{many}{rows}.",
                group.total,
                place_of_longest(group),
                group.origin.relationship,
                loaded_by(group.parents),
                "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it",
            )


def _unseen_wait(group: Group, loop_wait: float) -> float:
    """Where the driver does not tell when the reply came, waiting for the event loop may be in the database's time."""
    return loop_wait if group.is_async and not group.loop_wait else 0.0
