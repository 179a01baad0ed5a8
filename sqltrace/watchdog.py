"""
Where an event loop is held: a thread that looks at it from outside.

While a request computes, or calls something that blocks, nothing of ours runs on its thread, and afterwards nobody
knows at which line that was. So one thread of the process looks at all requests 20 times a second, while there are
any, and notes the line at which a step is that has lasted for a while. Neither steps nor statements cost more for it.

What keeps the GIL all the time, as some C extensions do, is seen when it lets go of it: then all the time since the
previous look counts for the line it has reached, as a rule the same one. A garbage collection keeps it, too, and may
begin at any line: it is told by the thread that oversleeps meanwhile.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from threading import Event, Lock, Thread
from threading import enumerate as enumerate_threads
from types import FrameType, MappingProxyType
from typing import Final, NamedTuple, Protocol
from weakref import ref

from sqltrace.callsite import CallSite, site_of_step, site_of_task
from sqltrace.clock import SECOND
from sqltrace.collector import Collector
from sqltrace.faults import report_fault
from sqltrace.locks import call_in_forked_child
from sqltrace.loop_log import LoopLog
from sqltrace.thread_waits import User

_PAUSE: Final = 0.05  # seconds
_PAUSES: Final = 100  # of what a look takes, at least: of thousands of websockets it is a millisecond
_MAX_LINES: Final = 100
_THREAD_CLOCK: Final = 0b110  # include/linux/posix-timers_types.h: of a thread, by what the scheduler gave it
_LITTLE: Final = 0.02  # less of it is CPU time while a call blocks
_OVERSLEPT: Final = 0.02  # seconds: more than threads that want the interpreter's lock delay each other, as a rule
_MOST_PER_BLOCK: Final = 5e-7  # seconds of a collection for each block of memory: 2e-8 to 6e-7, on a slow machine
_has_gil: Final[Callable[[], bool]] = getattr(sys, "_is_gil_enabled", lambda: True)
_COLLECTS_ANYWHERE: Final = sys.version_info < (3, 12)  # later between two instructions of Python only


class _Step:
    """
    A step as it was seen: seconds by line, and those for which it is known what its thread and all threads computed.
    """

    __slots__ = ("began", "computed", "known", "lines", "seconds", "together")

    def __init__(self, began: int) -> None:
        self.began = began
        self.lines: dict[CallSite | None, float] = {}
        self.seconds = self.known = self.computed = self.together = 0.0


class Sightings:
    """
    What was seen of a request while it held the event loop, of the step that was seen to last longest.

    Written by the watchdog, read by any thread.

    Attributes:
        collecting: Seconds of the longest stretch, in any step, in which no thread could go on while Python collected
            garbage of all generations; 0.0 for none. The collection itself may have begun up to 50 ms earlier.
    """

    __slots__ = ("_longest", "_step", "collecting")

    def __init__(self) -> None:
        self._step = self._longest = _Step(0)
        self.collecting = 0.0

    def add(self, began: int, site: CallSite | None, seconds: float, computed: float | None, together: float) -> None:
        """
        Args:
            began: Reading of the clock, which tells the step.
            seconds: Since it was looked at before.
            computed, together: CPU seconds of its thread, where these are known, and of all threads of Python.
        """
        if began != self._step.began:
            self._step = _Step(began)
        step = self._step
        if site in step.lines or len(step.lines) < _MAX_LINES:
            step.lines[site] = step.lines.get(site, 0.0) + seconds
        step.seconds += seconds
        if computed is not None:
            step.known += seconds
            step.computed += computed
            step.together += together
        if step.seconds > self._longest.seconds:
            self._longest = step

    @property
    def site(self) -> CallSite | None:
        """The line at which it was seen for the longest time; `None` where that is not known."""
        return max(self._longest.lines.copy().items(), key=itemgetter(1), default=(None, 0.0))[0]

    @property
    def waited_for_lock(self) -> float:
        """
        The share of that time, from 0 to 1, in which other threads had the interpreter's lock and it could not go on.

        Judged by CPU time: its thread had some, which it has not while a call blocks, and all threads of Python
        together had most of one processor: those that an extension has for itself never want the lock. 0.0 where that
        is not so, or not known.
        """
        step = self._longest
        together = min(step.known, step.together)
        if not step.known or step.known < step.seconds / 2 or together < step.known / 2:
            return 0.0
        return max(0.0, 1 - step.computed / together) if step.computed >= _LITTLE * step.known else 0.0


class Guarded(User, Protocol):
    """The share that a request has of its event loop, seen from the watchdog."""

    began: int
    left: int
    thread: int
    sightings: Sightings | None

    @property
    def collector(self) -> Collector:
        """Of its request."""

    @property
    def log(self) -> LoopLog | None:
        """Of its event loop; `None` while it is on none."""


# By identity, and not kept alive: a loop may abandon its requests.
_guarded: Final[dict[int, ref[Guarded]]] = {}
_awake = Event()
_starting = Lock()
_thread: Thread | None = None


def guard(share: Guarded) -> None:
    """Look at it from now on. Never raises."""
    _guarded[id(share)] = ref(share)
    if not _awake.is_set():
        _wake()


def release(share: Guarded) -> None:
    """Look at it no more."""
    _guarded.pop(id(share), None)


def guarded_on(log: LoopLog) -> list[Guarded]:
    """Those that are active on an event loop. For its own thread."""
    return [share for share in _shares() if share.log is log]


def _shares() -> list[Guarded]:
    return [share for reference in list(_guarded.values()) if (share := reference()) is not None]


def _wake() -> None:
    global _thread
    try:
        with _starting:
            if _thread is None:
                thread = Thread(target=_watch, name="sqltrace-watchdog", daemon=True)
                thread.start()
                _thread = thread
        _awake.set()
    except Exception as fault:  # no more threads for now, none at all here, or the interpreter is about to end
        report_fault("starting the watchdog of the event loop", fault)


def _watch() -> None:
    before, pause = _Look(collections=_collections()), _PAUSE
    while True:
        if not _guarded:
            _awake.clear()
            if not _guarded:  # one that came before the flag was cleared has not set it
                _awake.wait()
            before = _Look(collections=_collections())
        due = time.monotonic() + pause
        time.sleep(pause)
        try:
            began = time.thread_time()
            before = _look(before, time.monotonic() - due)
            pause = _pause_after(time.thread_time() - began)
        except Exception as fault:
            report_fault("looking at the event loop", fault)


def _pause_after(look: float) -> float:
    """Seconds, so that looking takes no more than a hundredth of a processor."""
    return max(_PAUSE, _PAUSES * look)


class _Look(NamedTuple):
    """
    When it was, and what was known then.

    Attributes:
        overslept: Seconds that the thread had to wait for it.
        collections: Of garbage of all generations, in this process.
        computed: CPU seconds of threads: of all of Python's where a step lasted, else of none.
    """

    at: float = 0.0
    overslept: float = 0.0
    collections: int = 0
    computed: Mapping[int | None, float | None] = MappingProxyType({})


def _look(before: _Look, overslept: float) -> _Look:
    """Note where those are that have not let go of the loop for a while."""
    at, collections = time.monotonic(), _collections()
    shares = _shares()
    if collections - before.collections == 1:  # several are of a call that makes so many objects itself
        # It may have been the look before, too: finalizers let others run, and the collection is counted after them.
        # What took longer than a collection can take was something else: an extension, or the process was stopped.
        most = _MOST_PER_BLOCK * sys.getallocatedblocks()
        for seconds, ago in (overslept, 0.0), (before.overslept, at - before.at):
            if _OVERSLEPT <= seconds <= most:
                _note_collection(shares, seconds, ago)
    running = [(share, began, share.thread) for share in shares if (began := share.began)]
    held = [(step, seen) for step in running if (seen := _see(*step)) is not None]
    busy = {thread for _, _, thread in running}
    for log, thread in {share.log: share.thread for share in shares}.items():
        if log is not None and thread not in busy and log.is_overdue():
            _see_another(log, thread)
    computed = {each.ident: _cpu_time(each) for each in enumerate_threads()} if held else {}
    since = _since(before.computed, computed)
    for (share, began, thread), (site, lasted) in held:
        sightings = share.sightings = share.sightings or Sightings()
        own = since.get(thread)
        sightings.add(began, site, min(lasted, at - before.at), own, sum(since.values()))
    return _Look(at, overslept, collections, computed)


def _collections() -> int:
    """Of garbage of all generations, in this process; 0 where Python does not count them so, as PyPy."""
    return gc.get_stats()[-1]["collections"] if sys.implementation.name == "cpython" else 0


def _note_collection(shares: Iterable[Guarded], seconds: float, ago: float) -> None:
    """The interpreter stood still for so long, until so long ago: so did steps that go on, or ended just then."""
    for share in shares:
        began = share.began
        until = share.collector.clock() - int(ago * SECOND)
        since = max(began, until - int(seconds * SECOND))
        stood = ((until if began else min(until, share.left)) - since) / SECOND
        if stood > 0:
            sightings = share.sightings = share.sightings or Sightings()
            sightings.collecting = max(sightings.collecting, stood)


def _since(
    before: Mapping[int | None, float | None], computed: Mapping[int | None, float | None]
) -> dict[int | None, float]:
    """CPU seconds of threads from one look to the next; empty where the first of them told nothing."""
    if not before:
        return {}
    both = ((thread, now, before.get(thread, 0.0)) for thread, now in computed.items())
    return {thread: now - min(now, then) for thread, now, then in both if now is not None and then is not None}


def _see(share: Guarded, began: int, thread: int) -> tuple[CallSite | None, float] | None:
    """The line of a step that has lasted for a while, and its seconds."""
    lasted = (share.collector.clock() - began) / SECOND
    if lasted < _PAUSE:
        return None
    frame = _frame_of(thread)
    return (site_of_step(frame), lasted) if frame is not None and share.began == began else None


def _see_another(log: LoopLog, thread: int) -> None:
    """The line of what holds a loop while none of its requests does."""
    due, frame = log.beat_due, _frame_of(thread)
    site = site_of_task(frame) if frame is not None else None
    if site is not None and log.beat_due == due and log.is_overdue():
        log.seen.append((log.clock(), site))


def _frame_of(thread: int) -> FrameType | None:
    """
    The innermost frame of a thread; `None` once that has ended, and where Python runs without its lock.

    Python 3.11 makes the frames while it holds a lock. A garbage collection that begins meanwhile, and comes upon a
    `threading.local` or lets another thread run, would stop the process for good (python/cpython#106883). Nobody sees
    it disabled: who waits for the interpreter's lock gets it some milliseconds later.
    """
    if not _has_gil():
        return None  # to read the frames of a thread that runs meanwhile may crash (python/cpython#152355)
    collects = _COLLECTS_ANYWHERE and gc.isenabled()
    if collects:
        gc.disable()
    try:
        # Not kept: among the frames of all threads is this one, which would keep them all.
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _cpu_time(thread: Thread) -> float | None:
    """
    Seconds, by the kernel of Linux; `None` elsewhere, and of a thread that has ended.

    By the kernel's number of the thread, as `pthread_getcpuclockid` makes a clock of it: that itself might crash for a
    thread that has ended. Nobody gets the interpreter's lock meanwhile, as where a file of /proc is read: with many
    threads that want it a look would last longer than what it looks at.
    """
    if sys.platform != "linux" or thread.native_id is None:
        return None
    try:
        return time.clock_gettime(~thread.native_id << 3 | _THREAD_CLOCK)
    except OSError:
        return None


def _forget() -> None:
    """Begin anew in a process that was forked: the thread has stayed behind."""
    global _awake, _starting, _thread
    _guarded.clear()
    _awake, _starting, _thread = Event(), Lock(), None


call_in_forked_child(_forget)
