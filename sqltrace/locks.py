"""The lock of what a whole process has once."""

from __future__ import annotations

import os
from threading import RLock
from typing import Any


def process_lock() -> Any:
    """
    A lock that is free in a forked process, even if another thread held it at that moment, which is not there.

    What it guards must be in order between any two bytecodes, as far as the child needs it. Re-entrant, for a
    finalizer that is run by the garbage collector may come back in. Make it once, at import: it is never let go.
    """
    lock: Any = RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # as `threading` and `logging` do with theirs
    return lock
