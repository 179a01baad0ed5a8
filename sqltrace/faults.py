"""What happens when sqltrace itself goes wrong: it says so once, and the application goes on."""

from __future__ import annotations

import logging

from sqltrace.locks import process_lock

logger = logging.getLogger("sqltrace")

_reported: set[tuple[str, type[BaseException]]] = set()
_lock = process_lock()


def report_fault(where: str, error: BaseException) -> None:
    """
    Log a fault of ours, or of a user's sink or rule, once per place and exception class.

    Call it from an ``except`` block. Never raises. Safe from any thread.
    """
    try:
        fault = (where, type(error))
        with _lock:
            if fault in _reported:
                return
            _reported.add(fault)
        logger.error("%s failed and is skipped; the application is not affected", where, exc_info=error)
    except Exception:  # noqa: S110 - a logging handler of the application raised; there is nobody left to tell
        pass


def forget_faults() -> None:
    """Report everything anew: for tests."""
    with _lock:
        _reported.clear()
