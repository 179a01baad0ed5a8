"""How much wall-clock time overlapping intervals cover together."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter, lt

_START = itemgetter(0)


class Coverage:
    """
    The union of intervals, in any order of arrival, in bounded memory.

    Times are positive integers of any one unit. Exact, until more than `limit`
    separate stretches are known: then the older half is closed, and what
    arrives later for that past counts from its end on. Not thread-safe.
    """

    __slots__ = ("_closed", "_closed_until", "_ends", "_limit", "_starts")

    def __init__(self, limit: int = 4_096) -> None:
        self._limit = limit
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._closed = 0
        self._closed_until = 0

    def __bool__(self) -> bool:
        return bool(self._starts or self._closed)

    def add(self, start: int, end: int) -> None:
        start = max(start, self._closed_until)
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        first = last = bisect_left(ends, start)
        while last < len(starts) and starts[last] <= end:
            last += 1
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last] = [start]
        ends[first:last] = [end]
        if len(starts) > self._limit:
            self._close_older_half()

    def add_all(self, starts: list[int], ends: list[int]) -> None:
        """Add intervals by their starts and ends. Faster than one by one, most of all where none overlap."""
        if not all(map(lt, ends, starts[1:])):
            starts, ends = _united(starts, ends)
        if starts and starts[0] > self._reach():
            self._starts += starts
            self._ends += ends
            if len(self._starts) > self._limit:
                self._close_older_half()
        else:
            for start, end in zip(starts, ends, strict=True):
                self.add(start, end)

    def merge(self, other: Coverage) -> None:
        """Add the stretches of another; what it has closed counts as one stretch from the first closing on."""
        if not self:
            self._closed, self._closed_until = other._closed, other._closed_until
            self._starts, self._ends = other._starts.copy(), other._ends.copy()
            return
        self._closed = max(self._closed, other._closed)
        self._closed_until = max(self._closed_until, other._closed_until)
        self.add_all(other._starts, other._ends)

    def stretches(self) -> list[tuple[int, int]]:
        """Starts and ends of what is not closed yet."""
        return list(zip(self._starts, self._ends, strict=True))

    def until(self, end: int) -> int:
        """Time before `end` that some interval covers."""
        begun = bisect_left(self._starts, end)
        covered = sum(self._ends[:begun]) - sum(self._starts[:begun])
        return self._closed + covered - (max(0, self._ends[begun - 1] - end) if begun else 0)

    def _reach(self) -> int:
        return self._ends[-1] if self._ends else self._closed_until

    def _close_older_half(self) -> None:
        half = len(self._starts) // 2
        self._closed += sum(self._ends[:half]) - sum(self._starts[:half])
        self._closed_until = self._ends[half - 1]
        del self._starts[:half], self._ends[:half]


def _united(starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """In their order, and those that touch as one."""
    united_starts: list[int] = []
    united_ends: list[int] = []
    reach = -1
    for start, end in sorted(zip(starts, ends, strict=True), key=_START):
        if start > reach:
            united_starts.append(start)
            united_ends.append(end)
            reach = end
        elif end > reach:
            united_ends[-1] = reach = end
    return united_starts, united_ends
