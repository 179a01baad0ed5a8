"""What is replaced in SQLAlchemy, or listened to, while engines are instrumented, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import event

_INHERITED: Final = object()


def listen_for_good(target: type, name: str, listener: Callable[..., object]) -> None:
    """
    To an event of a class. Called again, nothing changes.

    To remove the listener, while another thread is within the event, would make that raise.
    """
    if not event.contains(target, name, listener):
        event.listen(target, name, listener)


class Replacements:
    """True while there are any. Not thread-safe: its owner holds a lock around each use."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._listening = False

    def __bool__(self) -> bool:
        return bool(self._replaced or self._listening)

    def replace(self, owner: type, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Put what `wrapper` makes of a method in its place."""
        ours = wrapper(getattr(owner, name))
        self._replaced.append((owner, name, vars(owner).get(name, _INHERITED), ours))
        setattr(owner, name, ours)

    def listen(self, target: type, name: str, listener: Callable[..., object]) -> None:
        """For good, as `listen_for_good`: the listener must do nothing afterwards."""
        listen_for_good(target, name, listener)
        self._listening = True

    def undo(self) -> None:
        """Under somebody else's wrapper ours stays: it passes everything on."""
        self._listening = False
        while self._replaced:
            owner, name, original, ours = self._replaced.pop()
            if vars(owner).get(name) is not ours:
                continue
            if original is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
