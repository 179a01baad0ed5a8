"""Which line of the application led to a statement."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE
from itertools import chain
from types import FrameType, TracebackType
from typing import Any

from sqltrace.code_files import APPLICATION, END, FLUSHING, HELPER, LIBRARY, ROUTER, SKIP, kinds, package_of, shorten

# What a resolver raises for GraphQL is a part of the response, whose status stays 200.
_RESOLVERS = frozenset({"graphql", "strawberry"})
_RESOLVING = _RESOLVERS | {"aiodataloader"}

_MAX_CALLERS = 2  # from a repository past the service to the endpoint
_DEPTH = range(3)  # frames above these, up to that of GraphQL: each takes a while
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})
_INSIDE = frozenset({("__call__", 4), ("call_next", 1)})  # an ASGI application is called; with how many arguments
_AWAITS = CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR
_FRAMES = range(200)

_Line = tuple[str, int, str]  # as the fields of a CallSite


@dataclass(frozen=True, slots=True)
class CallSite:
    """
    A line of the application, or of the framework where that is at work. Compares equal whatever called it.

    Attributes:
        file: Absolute path, as Python knows it; of frozen code the name that it was compiled under.
        line: 1 is the first.
        function: Qualified name (``Class.method``).
        callers: Lines of the application that it was called from, without a library in between: at most two.
        in_resolver: Whether GraphQL has called it, without another library in between, to resolve a field.
        in_flush: Whether a flush of the ORM has called it, or what called it: a listener, of a library or its own.
    """

    file: str
    line: int
    function: str
    callers: tuple[CallSite, ...] = field(default=(), compare=False)
    in_resolver: bool = field(default=False, compare=False)
    in_flush: bool = field(default=False, compare=False)

    @property
    def in_framework(self) -> bool:
        return kinds[self.file] in (SKIP, ROUTER)

    @property
    def in_helper(self) -> bool:
        """Whether it is that of a library which is known, as nobody of the application has called it."""
        return kinds[self.file] == HELPER

    @property
    def in_library(self) -> bool:
        """Whether it is that of a library, which a line of the application has led to."""
        led = [kinds[site.file] for site in (self, *self.callers)]
        return led[0] in (HELPER, LIBRARY) and APPLICATION in led

    def __str__(self) -> str:
        return f"{shorten(self.file)}:{self.line} in {self.function}"


def find_call_site(skip: int = 0) -> CallSite | None:
    """
    The innermost application frame above the caller, or `None`.

    An installed library's frame is second best, for applications that are
    themselves installed; that of a library which is known to stand between an
    application and SQLAlchemy is third best. Crosses SQLAlchemy's greenlet: the coroutine that
    awaits stands in the parent of the greenlet which runs the statement.

    Args:
        skip: Frames above the caller that are known to be none of the application's.
    """
    best: FrameType | None = None
    best_kind = SKIP
    frame = sys._getframe(1 + skip)
    greenlet: Any = None
    for _ in _FRAMES:  # some thirty under an AsyncSession: what is done for each adds up
        if kind := kinds[frame.f_code.co_filename]:
            if kind == APPLICATION:
                return _site(frame)
            if kind >= END:
                break
            if kind > best_kind:
                best, best_kind = frame, kind
        caller = frame.f_back
        if caller is None:
            greenlet = getattr(greenlet or _current_greenlet(), "parent", None)
            caller = getattr(greenlet, "gr_frame", None)
            if caller is None:
                break
        frame = caller
    return _site(best) if best is not None else None


def site_in_flush(site: CallSite | None) -> CallSite | None:
    """What a flush has called that led to the caller, a library's line if need be; else what `find_call_site` found."""
    listener, best_kind = None, SKIP
    for frame in frames_above(sys._getframe(1)):
        filename = frame.f_code.co_filename
        if filename == FLUSHING:
            break
        if best_kind < (kind := kinds[filename]) <= APPLICATION:
            listener, best_kind = frame, kind
    else:
        return site  # of a task that a listener has begun: its context is a copy
    if listener is None or site is None:
        return site
    lines = [(one.file, one.line, one.function) for one in (site, *site.callers)]
    own = _line_of(listener)
    return _call_site(own, *[line for line in lines if line != own][:_MAX_CALLERS], in_flush=True)


def in_resolver() -> bool:
    """Whether GraphQL has called the caller, also across SQLAlchemy's greenlet; not in tasks and threads of its own."""
    awaiting = getattr(getattr(_current_greenlet(), "parent", None), "gr_frame", None)
    frames = chain(frames_above(sys._getframe(1)), frames_above(awaiting))
    return any(package_of(frame.f_code.co_filename) in _RESOLVING for frame in frames)


def call_site_of(frame: FrameType) -> CallSite | None:
    """The line that a frame is at, if it is the application's."""
    return _site(frame) if kinds[frame.f_code.co_filename] == APPLICATION else None


def site_of_step(frame: FrameType) -> CallSite | None:
    """
    What a step of a task is at, by the innermost frame of its thread, which may be another one than the caller's.

    As `find_call_site`; but middleware of the application that waits for the framework inside is not at work:
    there it is the framework's line, as where a response is made of what an endpoint returned.
    """
    return _site_among(frames_above(frame))


def site_of_task(frame: FrameType) -> CallSite | None:
    """
    As `site_of_step`, of a thread that may run any task or callback, or none.

    `None` where it is not clear what the event loop has called: it may be implemented in C, and have no frame.
    """
    inside: list[FrameType] = []
    awaits = 0
    for caller in frames_above(frame):
        flags = caller.f_code.co_flags
        if kinds[caller.f_code.co_filename] == END or (awaits and not flags & _AWAITS):
            return _site_among(inside)
        awaits |= flags & CO_COROUTINE
        inside.append(caller)
    return None


def site_awaited(frames: Sequence[FrameType]) -> CallSite | None:
    """As `site_of_step`, of a suspended task, by its frames from the outermost inwards; `None` for the framework's."""
    site = _site_among(reversed(frames))
    return None if site is None or site.in_framework else site


def call_site_at(file: str, line: int, function: str, *, installed: bool = False) -> CallSite | None:
    """A line that is known by these, if it is the application's; if need be, that of an installed one."""
    return _call_site((file, line, function)) if kinds[file] == (LIBRARY if installed else APPLICATION) else None


def frames_above(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, and those that have called it, from there outwards; at most 200."""
    for _ in _FRAMES:
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _site_among(frames: Iterable[FrameType]) -> CallSite | None:
    best: dict[int, FrameType] = {}
    for frame in frames:
        code = frame.f_code
        kind = kinds[code.co_filename]
        if kind == APPLICATION:
            return _site(frame)
        awaits = kind in (SKIP, ROUTER) and code.co_flags & CO_COROUTINE
        if kind == END or (awaits and (code.co_name, code.co_argcount) in _INSIDE):
            break
        if awaits:
            best.setdefault(SKIP, frame)
            if kind == ROUTER:
                break
        elif kind in (HELPER, LIBRARY):
            best.setdefault(kind, frame)
    return _call_site(_line_of(best[max(best)])) if best else None


def call_site_in(traceback: TracebackType) -> CallSite | None:
    """The innermost application frame of a traceback, or `None`; an installed library's is second best."""
    best: dict[int, CallSite] = {}
    entry: TracebackType | None = traceback
    while entry is not None:
        code = entry.tb_frame.f_code
        kind = kinds[code.co_filename]
        if kind == ROUTER:
            best.clear()
        best[kind] = _call_site((code.co_filename, entry.tb_lineno, code.co_qualname))
        entry = entry.tb_next
    return best.get(APPLICATION) or best.get(LIBRARY) or best.get(HELPER)


def _site(frame: FrameType) -> CallSite:
    lines, kind = [_line_of(frame)], kinds[frame.f_code.co_filename]
    caller, outside = frame.f_back, SKIP
    while caller is not None and (outside := kinds[caller.f_code.co_filename]) == kind:
        if frame.f_code.co_name not in _COMPREHENSIONS:  # the function around it has no more to tell
            lines.append(_line_of(caller))
        if len(lines) > _MAX_CALLERS:
            break
        frame, caller = caller, caller.f_back
    if outside in (HELPER, kind) and "graphql" in sys.modules and _resolves(caller, kind):
        return _call_site(*lines, in_resolver=True)
    return _call_site(*lines)


def _resolves(caller: FrameType | None, kind: int) -> bool:
    """Whether GraphQL calls what the application does here. A DataLoader that it calls asks for many."""
    for _ in _DEPTH:
        if caller is None:
            break
        filename = caller.f_code.co_filename
        outside = kinds[filename]
        if outside != kind:
            return outside == HELPER and package_of(filename) in _RESOLVERS and not filename.endswith("dataloader.py")
        caller = caller.f_back
    return False


def _line_of(frame: FrameType) -> _Line:
    line, template = frame.f_lineno, frame.f_globals.get("__jinja_template__")
    if template is not None:  # the frame counts lines of the Python that the template was compiled to
        line = template.get_corresponding_lineno(line)
    return frame.f_code.co_filename, line, frame.f_code.co_qualname


@lru_cache(maxsize=10_000)
def _call_site(*lines: _Line, in_resolver: bool = False, in_flush: bool = False) -> CallSite:
    """One object for the same lines, as a rule: making it takes longer than finding it, and identity tells it apart."""
    innermost, *callers = lines
    return CallSite(*innermost, tuple(CallSite(*line) for line in callers), in_resolver, in_flush)


def _current_greenlet() -> Any:
    # SQLAlchemy 2.1 no longer installs greenlet; without its module nothing runs in one.
    module = sys.modules.get("greenlet")
    return module.getcurrent() if module is not None else None
