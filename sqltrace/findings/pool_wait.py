"""`pool_wait`: all connections of the pool were in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqltrace.clock import SECOND
from sqltrace.connection import WORST, PoolWait
from sqltrace.finding import Finding
from sqltrace.findings.wording import by_name, line, listed, time
from sqltrace.intervals import Coverage
from sqltrace.recording import Recording

_NAMED = 3
_NESTED = 2  # connections held by sessions one within the other; where it holds more, its tasks have one each
_ROOM = 5  # connections that a larger pool has beyond those that were in use


def pool_wait(recording: Recording, *, wait: float = 0.1) -> Iterator[Finding]:
    """
    Waits for a connection, as all of the pool were in use.

    Args:
        wait:
            Seconds that the waits of a recording took, those at once together. One that timed out is reported anyway.
    """
    waits = recording.connections.waits
    if not waits:
        return
    together, busy = Coverage(), recording.stretches("loop_wait")
    together.add_all([one.started for one in waits], [one.ended for one in waits])
    for_loop = busy.total()
    busy.merge(together)
    # While the loop was busy, the connection was there, or could have been.
    waited = (busy.total() - for_loop) / SECOND
    if waited < wait and not any(one.timed_out for one in waits):
        return
    worst = next((one for one in waits if one.self_deadlock), waits[0])
    at_once = sum(one.waited for one in waits) > 1.01 * together.total() / SECOND
    yield Finding(
        "pool_wait",
        _message(waits, worst, waited, at_once),
        waited,
        line(worst.call_site),
        fix=_fix(worst),
    )


def _message(waits: Sequence[PoolWait], worst: PoolWait, waited: float, at_once: bool) -> str:
    in_vain = sum(one.timed_out for one in waits)
    if at_once:
        vain = f", {in_vain} in vain" if in_vain else ""
        count = f"the {WORST} longest" if len(waits) == WORST else len(waits)
        text = f"{count} waits for a connection, some at once{vain}, took {time(waited)}"
    else:
        text = f"{time(waited)} spent waiting{' in vain' if worst.timed_out else ''} for a connection"
    text += f", {worst.in_use} in use of a pool of {worst.pool_size}"
    if worst.overflow:
        text += f" and {worst.overflow} beyond it"
    if worst.self_deadlock:
        return f"{text}, while the request held {'several' if _own(worst) > 1 else 'one'} itself."
    named = by_name(((holder.name, holder.held) for holder in worst.holders), time)
    named[_NAMED:] = ["others"] if len(named) > _NAMED else []
    return f"{text}, held by {listed(named)}." if named else f"{text}."


def _fix(worst: PoolWait) -> str:
    if worst.self_deadlock and _own(worst) <= _NESTED:
        return "one session for the whole request, passed on: it waits for a connection that it holds itself"
    if worst.holders and _own(worst) == len(worst.holders):
        return _fewer_at_once(worst)
    make = "create_async_engine" if worst.is_async else "create_engine"
    overflow = worst.max_overflow
    if overflow is None:
        larger = f"{make}(…, pool_size={max(worst.in_use, worst.pool_size) + _ROOM})"
    else:
        most = worst.pool_size + overflow
        size = most if overflow >= _ROOM else most + _ROOM
        larger = f"{make}(…, pool_size={size}, max_overflow={overflow})"
        larger += f" for {size + overflow} connections at most instead of {most}"
    where = f" in {worst.holders[0].name}" if worst.holders else ""
    return f"{larger}, or give connections back sooner{where}: commit or close"


def _own(worst: PoolWait) -> int:
    """How many of the connections the recording itself held."""
    return sum(holder.own for holder in worst.holders)


def _fewer_at_once(worst: PoolWait) -> str:
    """For a gather or threads of the recording itself: of a larger pool they would take more."""
    why = "each of which waits for the others; or one query for all of them"
    if not worst.is_async:
        return f"fewer threads at once, {why}"
    half = max(1, (worst.pool_size + (worst.max_overflow or 0)) // 2)
    return f"limit = asyncio.Semaphore({half})  # and async with limit: in the tasks, {why}"
