"""
Waits for one of the threads that all `def` endpoints and dependencies share: those of anyio's default limiter.

What a task waited for is read from its frames when it goes on, and so is who used the threads meanwhile. A use of less
than 20 ms is not noted: then the numbers of threads add up to less than there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

from sqltrace.label import Label, longest_by_name
from sqltrace.suspended import suspended_frames

SHORT: Final = 20_000_000  # nanoseconds of a suspension; to read its frames takes some 10 microseconds
_LOOK: Final = 50_000_000  # from one look at all requests to the next: of thousands a look takes a millisecond
_MAX_USES: Final = 512
_MAX_USERS: Final = 64
_NAMED: Final = 5
_LEAST: Final = 0.05  # of a thread, on average: less would be told as 0.0
_SECOND: Final = 1_000_000_000
_WORKS: Final = 0  # instead of a number of threads
RUN_IN_THREAD: Final = "run_sync_in_worker_thread"


class Suspended(Protocol):
    """The share that a request has of its event loop."""

    label: Label
    began: int
    left: int
    late: list[tuple[int, int]]
    responded: bool
    suspended: Any
    thread_waits: ThreadWaits | None

    def name(self) -> None:
        """Sees to it that the label has the name of the route, if that is known by now."""


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """
    What a request has waited for a thread, during the response.

    Attributes:
        waited: Seconds.
        threads: How many there are: ``total_tokens`` of anyio's default limiter.
        users: Names of the requests that used them meanwhile, its own others included, and how many threads on average,
            the most 5 first, without those of next to none. Uses outside of requests and below 20 ms are in none.
    """

    waited: float
    threads: int
    users: tuple[tuple[str, float], ...]


class ThreadWaits:
    """
    Of one request. Written by the thread of its loop only.

    Attributes:
        waited: Nanoseconds of all waits.
        threads: How many there were, by the latest wait.
        used: By whom, in nanoseconds of threads.
    """

    __slots__ = ("threads", "used", "waited")

    def __init__(self) -> None:
        self.waited = self.threads = 0
        self.used: dict[Label, int] = {}

    def add(self, waited: int, threads: int, users: dict[Label, float]) -> None:
        self.waited += waited
        self.threads = threads
        for label, number in users.items():
            if label in self.used or len(self.used) < _MAX_USERS:
                self.used[label] = self.used.get(label, 0) + int(number * waited)

    def in_all(self) -> ThreadWait:
        longest, waited = longest_by_name(self.used.copy())[:_NAMED], max(1, self.waited)
        users = [(label.name, time / waited) for label, time in longest if time >= _LEAST * waited]
        return ThreadWait(self.waited / _SECOND, self.threads, tuple(users))


class ThreadUses:
    """Who uses the threads of one event loop, and has used them lately."""

    __slots__ = ("_ended", "_looked", "_seen", "_users")

    def __init__(self) -> None:
        self._ended: deque[tuple[int, int, Label]] = deque(maxlen=_MAX_USES)
        self._looked: tuple[int, int] | None = None  # the stretch of `_users`
        self._seen: dict[int, tuple[int, int | None]] = {}  # by id: what each has waited for since when
        self._users: dict[Label, float] = {}

    def note(
        self,
        share: Suspended,
        frames: Sequence[FrameType],
        left: int,
        now: int,
        others: Callable[[], Iterable[Suspended]],
    ) -> None:
        """
        A request goes on now that was suspended since `left`: perhaps for a thread, or while one worked for it.

        Args:
            frames: Of its task, from the outermost inwards.
            others: All that are active on the loop.
        """
        threads = awaited_threads(frames)
        if threads == _WORKS:
            share.name()
            self._ended.append((left, now, share.label))
        elif threads and not share.responded:
            if share.thread_waits is None:
                share.thread_waits = ThreadWaits()
            for_loop = sum([until - since for since, until in share.late])
            share.thread_waits.add(now - left - for_loop, threads, self._users_since(left, now, others))

    def _users_since(self, since: int, now: int, others: Callable[[], Iterable[Suspended]]) -> dict[Label, float]:
        """
        How many threads each request has used in a stretch that ends now, on average.

        Looks 20 times a second: else it is the answer to who was asking before, and has waited at nearly the same time.
        """
        looked = self._looked
        if looked is not None and now - looked[1] < _LOOK and abs(since - looked[0]) <= (now - since) // 4:
            return self._users
        self._looked = since, now
        used: dict[Label, int] = {}
        for start, end, label in reversed(self._ended):
            if end <= since:
                break
            used[label] = used.get(label, 0) + end - max(start, since)
        seen: dict[int, tuple[int, int | None]] = {}
        for other in others():
            left = other.left
            if other.began or now - left < SHORT:
                continue
            before = self._seen.get(id(other))
            awaited = (
                before[1]
                if before is not None and before[0] == left
                else awaited_threads([*suspended_frames(other.suspended)])
            )
            seen[id(other)] = left, awaited
            if awaited == _WORKS:
                other.name()
                used[other.label] = used.get(other.label, 0) + now - max(left, since)
        self._seen = seen
        self._users = {label: time / (now - since) for label, time in longest_by_name(used)[:_MAX_USERS]}
        return self._users


def awaited_threads(frames: Sequence[FrameType]) -> int | None:
    """
    How many threads there are, where a task is suspended until one of them is free.

    0 where one works for it; `None` where it waits for anything else, also for threads of another limiter.
    """
    names = [frame.f_code.co_name for frame in frames]
    if RUN_IN_THREAD not in names or frames[names.index(RUN_IN_THREAD)].f_locals.get("limiter") is not None:
        return None
    if names[-1] == RUN_IN_THREAD:
        return _WORKS
    if names[-2:] != ["acquire_on_behalf_of", "wait"]:
        return None  # it lets others go first, and waits for the event loop
    return int(getattr(frames[-2].f_locals.get("self"), "total_tokens", 0)) or None
