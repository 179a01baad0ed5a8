"""The frames of a suspended task, and their variables, which tell what it waits for."""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Iterator
from gc import get_referents
from inspect import isasyncgen
from types import CoroutineType, FrameType
from typing import Any, Final

UNANSWERED: Final = (CancelledError, TimeoutError)  # what is raised in a task, and is no reply that it waited for
_COPIES: Final = sys.version_info < (3, 13)
_KINDS: Final = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))
_STEPS_OF_GENERATORS: Final = frozenset({"async_generator_asend", "async_generator_athrow"})


class Suspension:
    """
    What a task has waited for that is about to go on. Not to be kept: the frames have the application's objects.

    Attributes:
        awaited: What it yielded to the event loop.
        answered: Whether that may have come; `False` for a task that is cancelled.
    """

    __slots__ = ("_frames", "_functions", "_suspended", "answered", "awaited")

    def __init__(self, awaited: Any, suspended: Any, error: BaseException | None = None) -> None:
        self.awaited = awaited
        self.answered = not isinstance(error, UNANSWERED)
        self._suspended = suspended
        self._frames: list[FrameType] | None = None
        self._functions: set[str] | None = None

    @property
    def frames(self) -> list[FrameType]:
        """Of the task, from the outermost inwards. Read once, for on a busy loop several ask of every request."""
        if self._frames is None:
            self._frames = [*suspended_frames(self._suspended)]
        return self._frames

    @property
    def functions(self) -> set[str]:
        """Qualified names of their functions."""
        if self._functions is None:
            self._functions = {frame.f_code.co_qualname for frame in self.frames}
        return self._functions


def suspended_frames(suspended: Any) -> Iterator[FrameType]:
    """
    Of each coroutine or generator that awaits the next, from the outermost inwards.

    Args:
        suspended: The outermost. It must not run meanwhile.
    """
    while suspended is not None:
        if type(suspended) is CoroutineType:  # what most are
            frame, suspended = suspended.cr_frame, suspended.cr_await
            if frame is None:
                return
            yield frame
            continue
        if type(suspended).__name__ in _STEPS_OF_GENERATORS:
            suspended = next(filter(isasyncgen, get_referents(suspended)), None)  # nothing else leads to it
        for own, awaited in _KINDS:
            frame = getattr(suspended, own, None)
            if frame is not None:
                yield frame
                suspended = getattr(suspended, awaited)
                break
        else:
            return


def local_of(frame: FrameType, name: str) -> Any:
    """The value of a local variable; `None` where there is none."""
    variables = frame.f_locals
    value = variables.get(name)
    if _COPIES:
        variables.clear()  # a copy, which the frame keeps: with it, what the application has let go of
    return value
