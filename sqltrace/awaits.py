"""Where a request's own task has waited: for another service, a client, a lock, or a statement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from types import FrameType
from typing import Final, Protocol

from sqltrace.callsite import CallSite, site_awaited, site_of_function
from sqltrace.intervals import Coverage
from sqltrace.suspended import suspended_frames
from sqltrace.thread_waits import RUN_IN_THREAD, Suspended, ThreadUses

_MAX_KEPT: Final = 64
_NOTABLE: Final = 10_000_000  # nanoseconds at one line
_NAMED: Final = 3
_SECOND: Final = 1_000_000_000

Stretch = tuple[int, int, CallSite]  # start and end


class Waiting(Suspended, Protocol):
    """The share that a request has of its event loop."""

    awaits: Awaits | None


def note_wait(share: Waiting, uses: ThreadUses, left: int, now: int, others: Callable[[], Iterable[Suspended]]) -> None:
    """
    A request goes on now that was suspended since `left`, for `SHORT` at least.

    Args:
        others: All that are active on the loop.
    """
    frames = [*suspended_frames(share.suspended)]
    uses.note(share, frames, left, now, others)
    if not share.responded:
        share.awaits = share.awaits or Awaits()
        share.awaits.note(frames, left, now)


class Awaits:
    """
    The longest waits of one request at lines of the application. Written by the thread of its loop only.

    Attributes:
        kept: In no order.
    """

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: list[Stretch] = []

    def note(self, frames: Sequence[FrameType], start: int, end: int) -> None:
        """
        The task has waited.

        Args:
            frames: Of the task, from the outermost inwards.
        """
        site = site_awaited(frames) or _function_in_thread(frames)
        if site is not None:
            self.kept.append((start, end, site))
            if len(self.kept) > 2 * _MAX_KEPT:
                self.kept = sorted(self.kept, key=_length)[_MAX_KEPT:]

    def longest_within(self, start: int, end: int) -> tuple[CallSite | None, int]:
        """The line at which it waited longest in a stretch, and nanoseconds; `None` where it did not."""
        waited: dict[CallSite | None, int] = {None: 0}
        for since, until, site in self.kept:
            waited[site] = waited.get(site, 0) + max(0, min(until, end) - max(since, start))
        return max(waited.items(), key=itemgetter(1))

    def outside_of(self, others: Coverage) -> list[tuple[CallSite, float]]:
        """
        The lines at which it waited longest, and seconds.

        Args:
            others: What is told as something else.
        """
        waited: dict[CallSite, int] = {}
        for start, end, site in self.kept:
            waited[site] = waited.get(site, 0) + sum(until - begun for begun, until in others.gaps(start, end))
        longest = sorted(waited.items(), key=itemgetter(1), reverse=True)[:_NAMED]
        return [(site, time / _SECOND) for site, time in longest if time >= _NOTABLE]


def _function_in_thread(frames: Sequence[FrameType]) -> CallSite | None:
    """An endpoint or a dependency that a thread has worked on: there is no line that awaits it."""
    innermost = frames[-1] if frames else None
    if innermost is None or innermost.f_code.co_name != RUN_IN_THREAD:
        return None
    return site_of_function(innermost.f_locals.get("func"))


def _length(stretch: Stretch) -> int:
    return stretch[1] - stretch[0]
