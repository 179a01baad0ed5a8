"""What the pools of the process look like at this moment."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.pool import Pool, QueuePool

from sqltrace.capture import internals
from sqltrace.capture.connections import watched_pools
from sqltrace.connection import Occupants


@dataclass(frozen=True, slots=True)
class PoolState:
    """
    Connections of a pool. `None` for what this kind of pool does not have, or does not limit.

    Attributes:
        name: As `Occupants.pool_name`. Not always unique.
        used: Checked out.
        idle: Open, and not checked out.
        most: That it opens at once.
        most_idle: That it keeps.
        waiting: Checkouts that wait for one; of those inside a recording.
    """

    name: str
    used: int
    idle: int | None
    most: int | None
    most_idle: int | None
    waiting: int


def pool_states() -> list[PoolState]:
    """The states of the pools that a recording has asked for a connection. For any thread."""
    return [_state_of(*watched) for watched in watched_pools()]


def _state_of(pool: Pool, occupants: Occupants, replaced: bool) -> PoolState:
    waiting = len(occupants.waiting)
    if replaced or not isinstance(pool, QueuePool):  # one that was disposed of counts wrongly
        return PoolState(occupants.pool_name, len(occupants), None, None, None, waiting)
    size, overflow = pool.size(), internals.max_overflow(pool)
    limited = size > 0 and overflow is not None and overflow >= 0
    return PoolState(
        occupants.pool_name,
        max(0, pool.checkedout()),  # less once its engine was disposed of
        pool.checkedin(),
        size + (overflow or 0) if limited else None,
        size if size > 0 else None,
        waiting,
    )
