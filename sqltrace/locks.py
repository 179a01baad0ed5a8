"""What a process that is forked begins anew: the lock of what it has once, and more."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import RLock
from typing import Any, Final

_FORKS: Final = hasattr(os, "register_at_fork")


def call_in_forked_child(function: Callable[[], None]) -> None:
    """Each time, for good; never on systems that do not fork."""
    if _FORKS:
        os.register_at_fork(after_in_child=function)


def process_lock() -> Any:
    """
    A lock that is free in a forked process, even if another thread held it at that moment, which is not there.

    What it guards must be in order between any two bytecodes, as far as the child needs it. Re-entrant, for a
    finalizer that is run by the garbage collector may come back in. Make it once, at import: it is never let go.
    """
    lock: Any = RLock()
    if _FORKS:  # on Windows no lock can be made anew
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # as `threading` and `logging` do with theirs
    return lock
