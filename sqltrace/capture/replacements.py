"""What is replaced in SQLAlchemy, or listened to, while engines are instrumented, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import event

from sqltrace.capture.orm_internals import imported_session
from sqltrace.locks import process_lock

_INHERITED: Final = object()


def listen_for_good(target: type, name: str, listener: Callable[..., object]) -> None:
    """
    Listen to an event of a class. Called again, nothing changes.

    The listener stays when all else is undone, and must do nothing then: removing it while another thread is within
    the event would make that raise.
    """
    if not event.contains(target, name, listener):
        event.listen(target, name, listener)


class Replacements:
    """True while there are any. Not thread-safe: its owner holds a lock around each use."""

    def __init__(self) -> None:
        self._replaced: dict[tuple[Any, str], tuple[Any, Any]] = {}
        self._made = False

    def __bool__(self) -> bool:
        return self._made

    def replace(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Put what `wrapper` makes of a method, or a module's function, in its place: once, as long as it is there."""
        self._made = True
        found = vars(owner).get(name, _INHERITED)
        known = self._replaced.get((owner, name))
        if known is None or found is known[0]:
            ours = wrapper(getattr(owner, name))
            self._replaced[owner, name] = found, ours
            setattr(owner, name, ours)

    def undo(self) -> None:
        """Under somebody else's wrapper ours stays: it passes everything on, and serves again when we come again."""
        self._made = False
        for (owner, name), (original, ours) in list(self._replaced.items()):
            if vars(owner).get(name) is not ours:
                continue
            del self._replaced[owner, name]
            if original is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


class ORMReplacements:
    """
    Replacements in `sqlalchemy.orm`: made once the application has imported it, which is not done for them.

    For any thread.

    Args:
        make: Makes them, unless SQLAlchemy is not as it is known here.
    """

    def __init__(self, make: Callable[[Replacements], None]) -> None:
        self._make = make
        self._lock = process_lock()
        self._wanted = False
        self._replacements = Replacements()

    def install(self) -> None:
        """Now, or when it is imported. Called again, nothing changes."""
        with self._lock:
            self._wanted = True
            self.install_when_imported()

    def install_when_imported(self) -> None:
        if self._wanted and not self._replacements and imported_session() is not None:
            with self._lock:
                if self._wanted and not self._replacements:
                    self._make(self._replacements)

    def uninstall(self) -> None:
        with self._lock:
            self._wanted = False
            self._replacements.undo()
