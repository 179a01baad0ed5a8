"""What a group gains by one execution, also while its rows are still being read."""

from __future__ import annotations

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.statement import Group


def add_measured(group: Group, execution: Execution) -> int | None:
    """Add all that an execution has measured to its group, but for what `add_waits` does. Returns the rows."""
    elapsed, rows = execution.ended - execution.started + execution.fetch, execution.rows
    group.total += elapsed / SECOND
    elapsed -= execution.loop_wait or 0
    if elapsed > group._longest:
        group._longest, group.longest_at = elapsed, execution.call_site
    if rows is not None:
        group.rows = (group.rows or 0) + rows
    if execution.objects or execution.entities:
        add_objects(group, execution)
    if execution.roots is not None:
        group.roots = (group.roots or 0) + execution.roots
    if execution.failure is not None:
        _add_failure(group, execution)
    return rows


def add_waits(group: Group, execution: Execution) -> None:
    """Add the time in which the reply was there, which is not the database's."""
    if execution.loop_wait:
        group.total -= execution.loop_wait / SECOND
        group.loop_wait += execution.loop_wait / SECOND
    group.gil_wait += execution.gil_wait / SECOND


def add_objects(group: Group, execution: Execution) -> None:
    """Add the objects that an execution has made, and the time for that."""
    group.objects += execution.objects / SECOND
    if execution.entities:
        if group.entities is None:
            group.entities = {}
        for name, count in execution.entities.items():
            group.entities[name] = group.entities.get(name, 0) + count


def _add_failure(group: Group, execution: Execution) -> None:
    group.failed += 1
    group.failure = group.failure or execution.failure
    group.failed_at = group.failed_at or execution.call_site


class Unsettled:
    """
    An execution that is counted while its rows may still be read, and how much of it was counted before.

    Attributes:
        is_read: Whether rows came since it was looked at before.
        settled: There is nothing to come. Found closed once is not enough: the last fetch is noted after it closes.
    """

    __slots__ = (
        "_closed", "_entities", "_execution", "_failed", "_fetch", "_group", "_looked_at", "_objects", "_roots",
        "_rows", "is_read", "settled",
    )  # fmt: skip

    def __init__(self, execution: Execution, group: Group) -> None:
        self._execution = execution
        self._group = group
        self._closed = self._failed = self._looked_at = self.is_read = self.settled = False
        self._fetch = self._objects = self._roots = self._rows = 0
        self._entities: dict[str, int] = {}

    def catch_up(self) -> tuple[int, bool]:
        """Add to the group what has come since. Returns the rows, and whether it has failed since."""
        self.settled, self._closed = self._closed, not self._execution.open
        rows, failed = self._add_times_and_rows(), self._execution.failure is not None and not self._failed
        self._add_entities()
        if failed:
            _add_failure(self._group, self._execution)
            self._failed = True
        self.is_read, self._looked_at = rows > 0 and self._looked_at, True
        return rows, failed

    def _add_times_and_rows(self) -> int:
        """Each number is read once: another thread may be reading rows."""
        execution, group = self._execution, self._group
        fetch, objects, rows, roots = execution.fetch, execution.objects, execution.rows, execution.roots
        elapsed = execution.ended - execution.started + fetch - (execution.loop_wait or 0)
        if elapsed > group._longest:
            group._longest, group.longest_at = elapsed, execution.call_site
        group.total += (fetch - self._fetch) / SECOND
        group.objects += (objects - self._objects) / SECOND
        self._fetch, self._objects = fetch, objects
        if roots is not None:
            group.roots = (group.roots or 0) + roots - self._roots
            self._roots = roots
        if rows is None:
            return 0
        more_rows, self._rows = rows - self._rows, rows
        group.rows = (group.rows or 0) + more_rows
        return more_rows

    def _add_entities(self) -> None:
        entities, group, counted = self._execution.entities, self._group, self._entities
        if not entities:
            return
        if group.entities is None:
            group.entities = {}
        for name, count in entities.items():
            group.entities[name] = group.entities.get(name, 0) + count - counted.get(name, 0)
            counted[name] = count
