"""Where the time of a recording went: parts that add up to its duration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqltrace.collector import Part
from sqltrace.intervals import Coverage

_SECOND = 1_000_000_000

# Work that overlaps is counted once, for the first of these that it belongs to. Making objects holds
# the processor, whatever a sibling task is waiting for; a reply that lies ready is not the database's.
PRIORITY: tuple[Part, ...] = ("objects", "loop_wait", "database", "connection")
MEASURED: frozenset[Part] = frozenset(PRIORITY)


@dataclass(frozen=True, slots=True)
class TimeAccount:
    """
    A recording's duration, split into parts that add up to it. Wall-clock seconds; overlapping work counts once.

    Attributes:
        connection: Waiting for the pool, connecting, pinging.
        database: Execute and fetch: server, network, driver.
        objects: Turning rows into ORM objects.
        loop_wait:
            The reply was there, or the task was ready, and the event loop busy
            with something else. `None` where there is no event loop to observe.
        python: The rest: the application's own code, and what else it waited for.
    """

    connection: float | None
    database: float
    objects: float | None
    loop_wait: float | None
    python: float


def settle(covered: Mapping[Part, Coverage], end: int, duration: int, measured: frozenset[Part]) -> TimeAccount:
    """
    The account of the stretches before the reading `end`.

    Args:
        duration: Nanoseconds, of which the parts are parts.
        measured: The parts that could be measured; the others are `None`.
    """
    union = Coverage()
    parts: dict[Part, float | None] = {}
    before = total = 0
    for part in PRIORITY:
        stretches = covered.get(part)
        if stretches:
            union.merge(stretches)
            total = union.until(end)
        parts[part] = (total - before) / _SECOND if part in measured else None
        before = total
    return TimeAccount(
        connection=parts["connection"],
        database=parts["database"] or 0.0,
        objects=parts["objects"],
        loop_wait=parts["loop_wait"],
        python=max(0, duration - before) / _SECOND,
    )
