"""The share that the request of a recording has of its event loop, for those who only know the collector."""

from __future__ import annotations

from sqltrace.collector import Collector, outwards
from sqltrace.event_loop import LoopShare

Stretches = list[tuple[int, int]]  # start and end of each


def share_of(collector: Collector | None) -> LoopShare | None:
    """The share of the request which a recording, or a task inside, belongs to."""
    return next((each.loop for each in outwards(collector) if isinstance(each.loop, LoopShare)), None)


def awake(collector: Collector, start: int, end: int) -> Stretches:
    """A stretch of work of the request's own task, without its suspensions. In other tasks all of it."""
    share = share_of(collector)
    if share is None or not share.in_own_task():
        return [(start, end)]
    pieces: Stretches = []
    for since, until in share.suspended_within(start, end):
        pieces.append((start, since))
        start = until
    return [piece for piece in (*pieces, (start, end)) if piece[0] < piece[1]]


def note_hold(collector: Collector, start: int, end: int) -> None:
    """A synchronous statement held the loop, perhaps in a child task of a request."""
    share = share_of(collector)
    if share is not None:
        share.note_hold(start, end)


def held_by_others(collector: Collector, start: int, end: int) -> Stretches:
    """When other requests are known to have held the event loop that the caller runs on, in a stretch."""
    share = share_of(collector)
    return share.held_by_others(start, end) if share is not None and share.on_its_loop() else []
