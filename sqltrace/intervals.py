"""How much wall-clock time overlapping intervals cover together."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import itemgetter, lt

_START = itemgetter(0)
_FEW = 4  # fewer than one in so many are put into their places one by one


class Coverage:
    """The union of intervals, in any order of arrival. Times are positive integers of any one unit. Not thread-safe."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """Separate stretches."""
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
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

    def add_all(self, starts: list[int], ends: list[int]) -> None:
        """Add intervals by their starts and ends. Faster than one by one, most of all where none overlap."""
        if not all(map(lt, ends, starts[1:])):
            starts, ends = _united(starts, ends)
        if starts and (not self._ends or starts[0] > self._ends[-1]):
            self._starts += starts
            self._ends += ends
        elif len(starts) > len(self._starts) // _FEW:
            self._starts, self._ends = _united(self._starts + starts, self._ends + ends)
        else:
            for start, end in zip(starts, ends, strict=True):
                self.add(start, end)

    def merge(self, other: Coverage) -> None:
        """Add the stretches of another."""
        self.add_all(other._starts, other._ends)

    def forget(self, until: int) -> None:
        """Drop all that lies before."""
        over = bisect_right(self._ends, until)
        del self._starts[:over], self._ends[:over]
        if self._starts and self._starts[0] < until:
            self._starts[0] = until

    def middle(self) -> int:
        """End of the older half of the stretches."""
        return self._ends[len(self._ends) // 2 - 1]

    def total(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The pieces of a stretch that no interval covers, in their order."""
        pieces: list[tuple[int, int]] = []
        for place in range(bisect_left(self._ends, start), bisect_left(self._starts, end)):
            if self._starts[place] > start:
                pieces.append((start, self._starts[place]))
            start = max(start, self._ends[place])
        return [*pieces, (start, end)] if start < end else pieces

    def within(self, start: int, end: int) -> int:
        """Time of a stretch that some interval covers."""
        return self.until(end) - self.until(start)

    def until(self, end: int) -> int:
        """Time before `end` that some interval covers."""
        begun = bisect_left(self._starts, end)
        covered = sum(self._ends[:begun]) - sum(self._starts[:begun])
        return covered - (max(0, self._ends[begun - 1] - end) if begun else 0)


def _united(starts: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """The intervals in their order, those that touch as one."""
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
