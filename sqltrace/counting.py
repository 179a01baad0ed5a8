"""What a group gains by one execution, also while its rows are still being read."""

from __future__ import annotations

from sqltrace.collector import Execution
from sqltrace.statement import Group

_SECOND = 1_000_000_000


class Seen:
    """How much of an execution was counted before. Nanoseconds."""

    __slots__ = ("entities", "failed", "fetch", "objects", "roots", "rows")

    def __init__(self) -> None:
        self.entities: dict[str, int] = {}
        self.failed = False
        self.fetch = 0
        self.objects = 0
        self.roots = 0
        self.rows = 0


def add_measured(group: Group, execution: Execution) -> int | None:
    """Add all that an execution has measured to its group, but for its `loop_wait`. Returns the rows."""
    elapsed, rows = execution.ended - execution.started + execution.fetch, execution.rows
    group.total += elapsed / _SECOND
    elapsed -= execution.loop_wait or 0
    if elapsed > group._longest:
        group._longest, group.longest_at = elapsed, execution.call_site
    if rows is not None:
        group.rows = (group.rows or 0) + rows
    if execution.objects:
        group.objects += execution.objects / _SECOND
    if execution.roots is not None:
        group.roots = (group.roots or 0) + execution.roots
    entities = execution.entities
    if entities:
        if group.entities is None:
            group.entities = {}
        for name, count in entities.items():
            group.entities[name] = group.entities.get(name, 0) + count
    if execution.failure is not None:
        _add_failure(group, execution)
    return rows


def add_unseen(group: Group, execution: Execution, seen: Seen) -> tuple[int, bool]:
    """
    Add what was not seen before; all is seen then. Returns the rows, and whether it has failed since.

    Each number is read once: another thread may be reading rows.
    """
    fetch, objects, rows, roots = execution.fetch, execution.objects, execution.rows, execution.roots
    elapsed = execution.ended - execution.started + fetch - (execution.loop_wait or 0)
    if elapsed > group._longest:
        group._longest, group.longest_at = elapsed, execution.call_site
    group.total += (fetch - seen.fetch) / _SECOND
    group.objects += (objects - seen.objects) / _SECOND
    more_rows = 0
    if rows is not None:
        more_rows, seen.rows = rows - seen.rows, rows
        group.rows = (group.rows or 0) + more_rows
    if roots is not None:
        group.roots = (group.roots or 0) + roots - seen.roots
        seen.roots = roots
    if execution.entities:
        _add_entities(group, execution.entities, seen.entities)
    failed = execution.failure is not None and not seen.failed
    if failed:
        _add_failure(group, execution)
    seen.fetch, seen.objects, seen.failed = fetch, objects, seen.failed or failed
    return more_rows, failed


def _add_failure(group: Group, execution: Execution) -> None:
    group.failed += 1
    group.failure = group.failure or execution.failure
    group.failed_at = group.failed_at or execution.call_site


def _add_entities(group: Group, entities: dict[str, int], seen: dict[str, int]) -> None:
    if group.entities is None:
        group.entities = {}
    for name, count in entities.items():
        group.entities[name] = group.entities.get(name, 0) + count - seen.get(name, 0)
        seen[name] = count


class Unsettled:
    """
    An execution that is counted while its rows may still be read.

    Attributes:
        is_read: Whether rows came since it was looked at before.
        settled: There is nothing to come. Found closed once is not enough: the last fetch is noted after it closes.
    """

    __slots__ = ("closed", "execution", "group", "is_read", "looked_at", "seen", "settled")

    def __init__(self, execution: Execution, group: Group) -> None:
        self.execution = execution
        self.group = group
        self.seen = Seen()
        self.closed = self.is_read = self.looked_at = self.settled = False

    def catch_up(self) -> tuple[int, bool]:
        """As `add_unseen`."""
        self.settled, self.closed = self.closed, not self.execution.open
        rows, failed = add_unseen(self.group, self.execution, self.seen)
        self.is_read, self.looked_at = rows > 0 and self.looked_at, True
        return rows, failed
