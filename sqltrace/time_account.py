"""Where the time of a recording went: parts that add up to its duration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from sqltrace.clock import SECOND
from sqltrace.collector import PARTS, Part
from sqltrace.intervals import Coverage


class TimeAccount(NamedTuple):
    """
    A recording's duration, split into parts that add up to it. Wall-clock seconds; overlapping work counts once.

    Attributes:
        connection: Waiting for the pool, connecting, pinging, closing.
        database: Execute and fetch, transactions and their isolation levels: server, network, driver.
        objects: Turning rows into ORM objects.
        loop_wait:
            The reply was there, or the task was ready, and the event loop busy with something else. `None` where there
            is no event loop to observe. Of what is no request, and runs in none, only waits of statements are known.
        python: The rest: the application's own code, and what else it waited for.
    """

    connection: float | None
    database: float
    objects: float | None
    loop_wait: float | None
    python: float


class Spent:
    """
    The stretches of time of each part, and the account of them. In bounded memory, and not thread-safe.

    When a part has more than `limit` stretches, the older half of the time is
    settled, for all parts together. What arrives for it later counts from its end on.
    """

    def __init__(self, limit: int = 4_096) -> None:
        self._limit = limit
        self._covered: defaultdict[Part, Coverage] = defaultdict(Coverage)
        self._settled: dict[Part, int] = {}
        self._settled_until = 0

    def add_all(self, part: Part, starts: list[int], ends: list[int], boundary: int | None = None) -> None:
        """
        Args:
            boundary: End of the time that is accounted for, as far as it is known.
        """
        past = self._settled_until
        if past and min(starts) < past:
            starts, ends = [max(past, start) for start in starts], [max(past, end) for end in ends]
        covered = self._covered[part]
        covered.add_all(starts, ends)
        if len(covered) > self._limit:
            self._settle(covered.middle(), boundary)

    def _settle(self, until: int, boundary: int | None) -> None:
        end = until if boundary is None else min(until, boundary)
        for part, spent in self._spent_until(end).items():
            self._settled[part] = self._settled.get(part, 0) + spent
        for covered in self._covered.values():
            covered.forget(until)
        self._settled_until = until

    def _spent_until(self, end: int) -> dict[Part, int]:
        """The time of each part that is not settled, without what belongs to a part before it."""
        union = Coverage()
        spent: dict[Part, int] = {}
        before = total = 0
        for part in PARTS:
            if part in self._covered:
                union.merge(self._covered[part])
                total = union.until(end)
            spent[part] = total - before
            before = total
        return spent

    def stretches(self, parts: Iterable[Part], *, settled: bool = False) -> Coverage:
        """The stretches of some parts together that are not settled; on demand with all the time before those."""
        union = Coverage()
        if settled:
            union.add(0, self._settled_until)
        for part in parts:
            if part in self._covered:
                union.merge(self._covered[part])
        return union

    def account(self, end: int, duration: int, unknown: AbstractSet[Part] = frozenset()) -> TimeAccount:
        """
        The account of the stretches before the reading `end`.

        Args:
            duration: Nanoseconds, of which the parts are parts.
            unknown: The parts that could not be measured, which are `None`.
        """
        spent = self._spent_until(end) if self._covered else dict.fromkeys(PARTS, 0)
        for part, settled in self._settled.items():
            spent[part] += settled
        return TimeAccount(
            connection=None if "connection" in unknown else spent["connection"] / SECOND,
            database=spent["database"] / SECOND,
            objects=None if "objects" in unknown else spent["objects"] / SECOND,
            loop_wait=None if "loop_wait" in unknown and not spent["loop_wait"] else spent["loop_wait"] / SECOND,
            python=max(0, duration - sum(spent.values()) + spent["python"]) / SECOND,
        )
