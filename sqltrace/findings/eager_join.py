"""`eager_join`: a SELECT that the mapping widens by tables nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.widened import asked_and_sent, finding, times
from sqltrace.recording import Recording


def eager_join(recording: Recording, *, tables: int = 3, values: int = 10_000) -> Iterator[Finding]:
    """
    SELECTs that the mapping widens by tables. Joins that the query's own options want do not count.

    Args:
        tables: Least number of tables that the mapping's ``lazy="joined"`` adds.
        values: Least number of values that came with them: rows × columns.
    """
    for group in recording.groups:
        widening = group.widening
        if widening is None:
            continue
        joins = [join for join in widening.joins if not join.by_option]
        added = (group.rows or 0) * sum(join.columns for join in joins)
        if sum(join.tables for join in joins) >= tables and added >= values:
            yield finding(
                "eager_join",
                recording,
                group,
                f"{asked_and_sent(group, widening)}; {added:,} values came with them, {times(group)}.",
                joins,
            )
