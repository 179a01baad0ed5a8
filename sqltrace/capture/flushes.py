"""
Flushes of a session, and its rollbacks.

Between two statements of a flush its transaction is not idle: the ORM makes the next one. And where the driver is asked
for it, a rollback by the application looks like one by closing.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from sqltrace.capture import orm_internals
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.transactions import checkout_of
from sqltrace.collector import current
from sqltrace.connection import Checkout
from sqltrace.faults import report_fault

going_on: Final[ContextVar[bool]] = ContextVar("sqltrace_flush", default=False)
Begun = tuple[int, dict[Checkout, tuple[int, int]]]


@self_test("has its sessions in a way that is not known here: a flush may count as idle")
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy tells the connections of a session. Imports `sqlalchemy.orm`."""
    return orm_internals.sessions_are_told()


def begin(session: Any) -> Begun | None:
    """Answers what `end` is to be given. Never raises."""
    try:
        collector = current.get()
        if collector is not None:
            return collector.clock(), {checkout: checkout.progress() for checkout in _checkouts_of(session)}
    except Exception as fault:
        report_fault("measuring a flush", fault)
    return None


def end(session: Any, begun: Begun) -> None:
    """The flush went well. Never raises."""
    try:
        started, progress = begun
        for checkout in _checkouts_of(session):
            checkout.note_flush(started, checkout.clock(), progress.get(checkout, (0, 0)))
    except Exception as fault:
        report_fault("measuring a flush", fault)


def checkouts_of(session: Any) -> list[Checkout]:
    """The checkouts on which the session has a transaction. Never raises."""
    try:
        return _checkouts_of(session) if current.get() is not None else []
    except Exception as fault:
        report_fault("counting a rollback", fault)
        return []


def count_rollback(checkouts: list[Checkout]) -> None:
    """The application has rolled back. Never raises."""
    for checkout in checkouts:
        if checkout.rolled_back:
            checkout.rollbacks += 1
            checkout.rolled_back = False


def _checkouts_of(session: Any) -> list[Checkout]:
    if not work():
        return []
    connections = [one for one in orm_internals.connections_of(session) if not (one.closed or one.invalidated)]
    return [checkout for one in connections if (checkout := checkout_of(one)) is not None]
