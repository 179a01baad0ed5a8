"""
When a session writes its objects, and when it rolls back.

Between two statements of a flush its transaction is not idle: the ORM makes the next one. And a
rollback of the application cannot be told from one by closing where the driver is asked for it.
Both are public events of `Session`, which is not imported for them.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, Final

from sqltrace.capture import orm_internals
from sqltrace.capture.replacements import Replacements
from sqltrace.capture.transactions import checkout_of
from sqltrace.collector import current
from sqltrace.connection import Checkout
from sqltrace.faults import logger, report_fault

_ATTRIBUTE: Final = "_sqltrace_flush"
_lock: Final = threading.RLock()
_replacements: Final = Replacements()


def install_when_imported() -> None:
    """Listen to the sessions of the process, if there can be any. Called again, nothing changes."""
    session_class = orm_internals.imported_session()
    if not _replacements and session_class is not None:
        with _lock:
            if not _replacements and work():
                for name, listener in _LISTENERS:
                    _replacements.listen(session_class, name, listener)


def uninstall() -> None:
    with _lock:
        _replacements.undo()


@cache
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy tells the connections of a session. Imports `sqlalchemy.orm`."""
    works = orm_internals.sessions_are_told()
    if not works:
        logger.warning("this SQLAlchemy has its sessions in a way not known here: a flush may count as idle")
    return works


def before_flush(session: Any, flush: Any, _: Any) -> None:
    collector = current.get()
    if collector is not None:
        try:
            progress = {checkout: checkout.progress() for checkout in _checkouts_of(session)}
            setattr(flush, _ATTRIBUTE, (collector.clock(), progress))
        except Exception as fault:
            report_fault("measuring a flush", fault)


def after_flush_postexec(session: Any, flush: Any) -> None:
    begun = getattr(flush, _ATTRIBUTE, None)
    if begun is not None:
        try:
            started, progress = begun
            for checkout in _checkouts_of(session):
                checkout.note_flush(started, checkout.clock(), progress.get(checkout, (0, 0)))
        except Exception as fault:
            report_fault("measuring a flush", fault)


def after_rollback(session: Any) -> None:
    if current.get() is not None:
        try:
            for checkout in _checkouts_of(session):
                checkout.rollbacks += 1
                checkout.rolled_back = False
        except Exception as fault:
            report_fault("counting a rollback", fault)


def _checkouts_of(session: Any) -> list[Checkout]:
    connections = [one for one in orm_internals.connections_of(session) if not (one.closed or one.invalidated)]
    return [checkout for one in connections if (checkout := checkout_of(one)) is not None]


_LISTENERS: Final = (
    ("before_flush", before_flush),
    ("after_flush_postexec", after_flush_postexec),
    ("after_rollback", after_rollback),
)
