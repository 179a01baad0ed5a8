"""
Waits for one of the threads that all `def` endpoints and dependencies share: those of anyio's default limiter.

What a request's own task waited for is read from its frames when it goes on, as is that a thread has worked for it; who
has a thread at the moment, anyio knows. Of 20 ms and more at once: what is shorter is in no number here.
"""

from __future__ import annotations

import math
import sys
from asyncio import current_task
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Protocol

from sqltrace.clock import SECOND
from sqltrace.label import Label
from sqltrace.suspended import local_of, suspended_frames

_RUN: Final = "run_sync_in_worker_thread"
_ACQUIRE: Final = "acquire_on_behalf_of"
_BACKEND: Final = "anyio._backends._asyncio"
_LOOK: Final = 20_000_000  # nanoseconds from one look to the next: of 1,000 open requests it takes some 0.4 ms
_ALIKE: Final = 10  # times the difference of two waits that are taken for one
_MAX_USES: Final = 512  # more than end within a second, of 40 threads at 100 ms each; to add them up takes 0.1 ms
_MAX_USERS: Final = 64
_NAMED: Final = 5
_LEAST: Final = 0.05  # of a thread, on average: less would be told as 0.0


Running = dict[int, tuple[int, str]]  # by identity of a task, since when, and by whom


class User(Protocol):
    """
    The share that a request has of its event loop.

    Attributes:
        task: Identity of the task that runs, or ran last.
        left: When that was suspended.
    """

    label: Label
    late: list[tuple[int, int]]
    left: int
    responded: bool
    suspended: Any
    task: int
    thread_waits: ThreadWaits | None


@dataclass(frozen=True, slots=True)
class ThreadWait:
    """
    What a request's own task has waited for a thread, during the response, without waits below 20 ms.

    Attributes:
        waited: Seconds.
        threads: How many there are: ``total_tokens`` of anyio's default limiter. `None` for any number.
        users:
            Names of the requests that used them meanwhile, its own others included, and how many threads on average,
            the most 5 first, without those of next to none. Tasks that a request has started are in none.
    """

    waited: float
    threads: int | None
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
        self.waited = 0
        self.threads: float = 0
        self.used: dict[str, float] = {}

    def add(self, waited: int, threads: float, users: dict[str, float]) -> None:
        self.waited += waited
        self.threads = threads
        for name, number in users.items():
            self.used[name] = self.used.get(name, 0) + number * waited
        if len(self.used) > _MAX_USERS:
            self.used = dict(_most(self.used)[: _MAX_USERS // 2])

    def in_all(self) -> ThreadWait:
        waited = max(1, self.waited)
        users = [(name, time / waited) for name, time in _most(self.used.copy())[:_NAMED] if time >= _LEAST * waited]
        threads = int(self.threads) if math.isfinite(self.threads) else None
        return ThreadWait(self.waited / SECOND, threads, tuple(users))


class ThreadUses:
    """Who uses the threads of one event loop, and has used them lately. For the thread of that loop."""

    __slots__ = ("_answer", "_ended", "_running")

    def __init__(self) -> None:
        self._ended: deque[tuple[int, int, str]] = deque(maxlen=_MAX_USES)
        self._running: Running = {}
        self._answer: tuple[float, int, dict[str, float]] = (-math.inf, 0, {})  # when, since when, and what it was

    def note(
        self, share: User, frames: Sequence[FrameType], paused: int, now: int, others: Callable[[], Iterable[User]]
    ) -> None:
        """
        A task goes on now that was suspended since `paused`: perhaps for a thread, or while one worked for it.

        Args:
            frames: Of the task, from the outermost inwards.
            others: All requests that are active on the loop.
        """
        if works_in_thread(frames):
            if current_task() in _default_limiter().statistics().borrowers:
                share.label.find_route()
                self._ended.append((paused, now, share.label.name))
                self._running.pop(share.task, None)
        elif len(frames) > 1 and _is(frames[-2], _ACQUIRE) and frames[-1].f_code.co_name == "wait":
            limiter = local_of(frames[-2], "self")
            if limiter is not _default_limiter() or share.responded:
                return
            waits = share.thread_waits = share.thread_waits or ThreadWaits()
            for_loop = sum([max(0, min(until, now) - max(since, paused)) for since, until in share.late])
            waits.add(now - paused - for_loop, limiter.total_tokens, self._users(limiter, paused, now, others))

    def _users(self, limiter: Any, since: int, now: int, others: Callable[[], Iterable[User]]) -> dict[str, float]:
        """
        How many threads the requests of each name have used in a stretch that ends now, on average.

        Those who wait at once go on one after the other, as they came: the answer to one holds for the next.
        """
        at, of, users = self._answer
        if now - at >= _LOOK:
            at, self._running = now, _running(limiter, others(), self._running)
        elif abs(since - of) <= (now - since) // _ALIKE:
            return users
        users = self._add_up(since, now)
        self._answer = at, since, users
        return users

    def _add_up(self, since: int, now: int) -> dict[str, float]:
        if len(self._ended) == _MAX_USES:
            since = max(since, min(self._ended[0][1], now - 1))  # before that not all are known
        used: dict[str, float] = {}
        for start, end, name in reversed(self._ended):
            if end <= since:
                break
            used[name] = used.get(name, 0) + end - max(start, since)
        for start, name in self._running.values():
            used[name] = used.get(name, 0) + max(0, now - max(start, since))
        return {name: time / (now - since) for name, time in used.items()}


def works_in_thread(frames: Sequence[FrameType]) -> bool:
    """Whether a thread works for a suspended task, by the frames of that from the outermost inwards."""
    return bool(frames) and _is(frames[-1], _RUN)


def _is(frame: FrameType, name: str) -> bool:
    """Whether it is of a function of anyio, for an application may have one of that name."""
    return frame.f_code.co_name == name and frame.f_globals.get("__name__") == _BACKEND


def _default_limiter() -> Any:
    return sys.modules["anyio.to_thread"].current_default_thread_limiter()


def _running(limiter: Any, shares: Iterable[User], before: Running) -> Running:
    """
    The requests for which a thread works now.

    Args:
        before: What it was at the look before: most go on, and to read frames takes longest.
    """
    by_task = {share.task: share for share in shares}
    running: Running = {}
    for borrower in limiter.statistics().borrowers:
        share = by_task.get(id(borrower))
        if share is None:
            continue
        use = before.get(share.task)
        if use is None or use[0] != share.left:
            if not works_in_thread([*suspended_frames(share.suspended)]):
                continue  # it runs now, or is about to go on, having been given the thread at this moment
            share.label.find_route()
            use = share.left, share.label.name
        running[share.task] = use
    return running


def _most(used: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(used.items(), key=lambda item: -item[1])
