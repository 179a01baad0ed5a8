"""
When sessions flush, commit, roll back and expire their objects.

Their methods are replaced, and their events not listened to: to add a listener while another thread, or a listener of
the application, is within the same event makes that event raise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from sqltrace.capture import expiry, flushes, orm_internals
from sqltrace.capture.replacements import ORMReplacements, Replacements
from sqltrace.faults import report_fault


def _replace(replacements: Replacements) -> None:
    from sqlalchemy.orm import Session, SessionTransaction

    replacements.replace(Session, "expire", expiry.noticed)
    replacements.replace(Session, "expire_all", expiry.noticed_all)
    replacements.replace(SessionTransaction, "commit", _commit)
    replacements.replace(SessionTransaction, "rollback", _rollback)
    flushing = orm_internals.flushing() if flushes.work() else None
    if flushing is not None:
        replacements.replace(*flushing, _flush)


_replaced: Final = ORMReplacements(_replace)
install, install_when_imported, uninstall = _replaced.install, _replaced.install_when_imported, _replaced.uninstall


def _flush(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def flush(self: Any, *arguments: Any, **options: Any) -> None:
        begun = flushes.begin(self)
        if begun is None:
            original(self, *arguments, **options)
            return
        token = flushes.going_on.set(True)
        try:
            original(self, *arguments, **options)
        finally:
            flushes.going_on.reset(token)
        flushes.end(self, begun)

    return flush


def _commit(original: Callable[..., None]) -> Callable[..., None]:
    """A commit may be that of a transaction, of a savepoint, or of a part of one, as each flush is."""

    @wraps(original)
    def commit(self: Any, *arguments: Any, **options: Any) -> None:
        session = _committing(self)
        original(self, *arguments, **options)
        if session is not None:
            expiry.committed(session)

    return commit


def _rollback(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def rollback(self: Any, *arguments: Any, **options: Any) -> None:
        session, to_savepoint = _rolling_back(self)
        checkouts = flushes.checkouts_of(session) if session is not None else []
        original(self, *arguments, **options)
        flushes.count_rollback(checkouts)
        if session is not None:
            expiry.rolled_back(session, to_savepoint=to_savepoint)

    return rollback


def _committing(transaction: Any) -> Any:
    """The session, if this is no part of another transaction. Never raises."""
    try:
        return transaction.session if transaction.parent is None else None
    except Exception as fault:
        report_fault("noting a commit", fault)
        return None


def _rolling_back(transaction: Any) -> tuple[Any, bool]:
    """The session, unless it has rolled back already, and whether that is to a savepoint. Never raises."""
    try:
        session = transaction.session if transaction.is_active else None
        return session, session is not None and session.in_nested_transaction()
    except Exception as fault:
        report_fault("noting a rollback", fault)
        return None, False
