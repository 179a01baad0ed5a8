"""Where a request's own tasks have waited: for another service, a client, a lock, or a thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ContextDecorator
from functools import partial
from inspect import unwrap
from operator import itemgetter
from types import FrameType, FunctionType, GeneratorType, MethodType
from typing import Any, Final, Protocol

from sqltrace.callsite import CallSite, call_site_at, site_awaited
from sqltrace.faults import report_fault
from sqltrace.intervals import Coverage
from sqltrace.loop_log import LoopLog
from sqltrace.suspended import Suspension, local_of
from sqltrace.thread_waits import ThreadUses, User, works_in_thread
from sqltrace.watchdog import guarded_on

SHORT: Final = 20_000_000  # nanoseconds of a suspension; to read its frames takes some microseconds
_MAX_KEPT: Final = 64  # waits one by one, from which other parts of the account can be taken; and lines of the others
_OF_SQLALCHEMY: Final = "greenlet_spawn"  # waits for nothing but the database and its connections

Stretch = tuple[int, int, CallSite]  # start and end


class Waiting(User, Protocol):
    """The share that a request has of its event loop."""

    awaits: Awaits | None


def note_wait(share: Waiting, log: LoopLog, suspension: Suspension, paused: int, now: int) -> None:
    """
    A task of a request goes on now that was suspended since `paused`, for `SHORT` at least. Never raises.

    Args:
        log: Of its event loop.
    """
    try:
        if _OF_SQLALCHEMY in suspension.functions:
            return
        if not share.responded:
            share.awaits = share.awaits or Awaits()
            share.awaits.note(suspension.frames, paused, now)
        log.thread_uses = log.thread_uses or ThreadUses()
        log.thread_uses.note(share, suspension.frames, paused, now, partial(guarded_on, log))
    except Exception as fault:
        report_fault("observing the event loop", fault)


class Awaits:
    """
    The waits of one request at lines of the application. Written by the thread of its loop only.

    Attributes:
        kept: The longest, in no order.
    """

    __slots__ = ("_shorter", "kept")

    def __init__(self) -> None:
        self.kept: list[Stretch] = []
        self._shorter: dict[CallSite, int] = {}

    def note(self, frames: Sequence[FrameType], start: int, end: int) -> None:
        """
        A task has waited.

        Args:
            frames: Of the task, from the outermost inwards.
        """
        site = site_awaited(frames) or _function_in_thread(frames)
        if site is not None:
            self.kept.append((start, end, site))
            if len(self.kept) > 2 * _MAX_KEPT:
                self._keep_longest()

    def _keep_longest(self) -> None:
        by_length = sorted(self.kept, key=_length)
        for start, end, site in by_length[:_MAX_KEPT]:
            if site in self._shorter or len(self._shorter) < _MAX_KEPT:
                self._shorter[site] = self._shorter.get(site, 0) + end - start
        self.kept = by_length[_MAX_KEPT:]

    def by_line(self, others: Coverage) -> list[tuple[CallSite, int]]:
        """
        How long it has waited at each line, the longest first.

        Args:
            others: What is told as something else.
        """
        waited = self._shorter.copy()
        for start, end, site in self.kept.copy():
            waited[site] = waited.get(site, 0) + end - start - others.within(start, end)
        return sorted(waited.items(), key=itemgetter(1), reverse=True)

    def within(self, start: int, end: int, others: Coverage) -> list[tuple[CallSite, int]]:
        """As `by_line`, in a stretch, of the longest waits."""
        inside = Awaits()
        for since, until, site in self.kept.copy():
            if since < end and start < until:
                inside.kept.append((max(since, start), min(until, end), site))
        return inside.by_line(others)


def _function_in_thread(frames: Sequence[FrameType]) -> CallSite | None:
    """An endpoint or a dependency that a thread has worked on: there is no line that awaits it."""
    return site_of_function(local_of(frames[-1], "func")) if works_in_thread(frames) else None


def site_of_function(function: Any) -> CallSite | None:
    """
    The first line of a function of the application: of what is called, or else is given to it by a `partial`.

    That of an installed library is second best, for applications that are themselves installed.
    """
    given: list[Any] = []
    while isinstance(function, partial):
        given = [*function.args, *function.keywords.values(), *given]
        function = function.func
    found = (_first_line_of(one, installed=installed) for installed in (False, True) for one in (function, *given))
    return next(filter(None, found), None)


def _first_line_of(function: Any, *, installed: bool) -> CallSite | None:
    if isinstance(function, MethodType):
        manager = function.__self__
        generator = getattr(manager, "__dict__", {}).get("gen") if isinstance(manager, ContextDecorator) else None
        function = generator if isinstance(generator, GeneratorType) else function.__func__
    if isinstance(function, FunctionType):
        function = unwrap(function)
    if not isinstance(function, FunctionType | GeneratorType):
        return None
    code = function.gi_code if isinstance(function, GeneratorType) else function.__code__
    return call_site_at(code.co_filename, code.co_firstlineno, code.co_qualname, installed=installed)


def _length(stretch: Stretch) -> int:
    return stretch[1] - stretch[0]
