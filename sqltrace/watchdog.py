"""
Where an event loop is held: a thread that looks at it from outside.

While a request computes, or calls something that blocks, nothing of ours runs on its thread, and afterwards nobody
knows at which line that was. So one thread of the process looks at all requests 20 times a second, while there are
any: a step that was running at the look before as well has lasted since then, and the line that it is at is noted.
Neither steps nor statements cost more for it.

What keeps the GIL all the time, as some C extensions do, is seen when it lets go of it: then all the time since the
look before counts for the line that it has come to, which is the same one as a rule.
"""

from __future__ import annotations

import os
import sys
import time
from operator import itemgetter
from threading import Event, Lock, Thread
from typing import Final, Protocol

from sqltrace.callsite import CallSite, site_of_step
from sqltrace.faults import report_fault

_PAUSE: Final = 0.05  # seconds
_MAX_LINES: Final = 100


class Sightings:
    """
    Lines at which a request was seen to hold the event loop, of the step that was seen to last longest.

    Written by the watchdog, read by any thread.
    """

    __slots__ = ("_began", "_longest", "_seconds")

    def __init__(self) -> None:
        self._began = 0
        self._seconds: dict[CallSite | None, float] = {}
        self._longest = self._seconds

    def add(self, began: int, site: CallSite | None, seconds: float) -> None:
        """Of the step that began at this reading of the clock."""
        if began != self._began:
            self._began, self._seconds = began, {}
        if site in self._seconds or len(self._seconds) < _MAX_LINES:
            self._seconds[site] = self._seconds.get(site, 0.0) + seconds
        if sum(self._seconds.values()) > sum(self._longest.values()):
            self._longest = self._seconds

    @property
    def site(self) -> CallSite | None:
        """The line at which it was seen for the longest time; `None` where that is not known."""
        return max(self._longest.copy().items(), key=itemgetter(1))[0]


class Guarded(Protocol):
    """The share that a request has of its event loop, seen from the watchdog."""

    began: int
    thread: int
    sightings: Sightings | None


_guarded: set[Guarded] = set()
_awake = Event()
_starting = Lock()
_thread: Thread | None = None


def guard(share: Guarded) -> None:
    """Look at it from now on. Never raises."""
    _guarded.add(share)
    if not _awake.is_set():
        _wake()


def release(share: Guarded) -> None:
    """Look at it no more."""
    _guarded.discard(share)


def _wake() -> None:
    global _thread
    try:
        _awake.set()
        with _starting:
            if _thread is None:
                _thread = Thread(target=_watch, name="sqltrace-watchdog", daemon=True)
                _thread.start()
    except Exception as fault:  # no threads here, or the interpreter is about to end
        report_fault("starting the watchdog of the event loop", fault)


def _watch() -> None:
    running: dict[Guarded, int] = {}
    looked = 0.0
    while True:
        if not _guarded:
            running = {}
            _awake.clear()
            if not _guarded:  # one that came before the flag was cleared has not set it
                _awake.wait()
        time.sleep(_PAUSE)
        try:
            before, looked = looked, time.monotonic()
            running = _look(running, looked - before)
        except Exception as fault:
            report_fault("looking at the event loop", fault)


def _look(before: dict[Guarded, int], seconds: float) -> dict[Guarded, int]:
    """Note where those are that have not let go of the loop since. The steps that are running, by their begin."""
    running = {share: share.began for share in list(_guarded) if share.began}
    for share, began in running.items():
        if before.get(share) == began:
            # Not kept: among the frames of all threads is this one, which would keep them all.
            frame = sys._current_frames().get(share.thread)
            if frame is not None and share.began == began:
                site = site_of_step(frame)
                sightings = share.sightings = share.sightings or Sightings()
                sightings.add(began, site, seconds)
    return running


def _forget() -> None:
    """In a process that was forked: the thread has stayed behind."""
    global _awake, _starting, _thread
    _guarded.clear()
    _awake, _starting, _thread = Event(), Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
