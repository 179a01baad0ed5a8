"""
Begin, commit and rollback, and how long a transaction was open while nothing ran in it; isolation levels, and closing.

The `Connection` events of the same names would make every statement of every
engine slower. The methods of `~sqlalchemy.engine.Dialect` that they stand for
are public: they are replaced on the dialect object when a recording first uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.engine.default import DefaultDialect

from sqltrace.callsite import find_call_site
from sqltrace.capture import internals, replies
from sqltrace.capture.autocommit import commits_itself
from sqltrace.capture.failure import describe_failure
from sqltrace.collector import Collector, Execution, Part, current, mark
from sqltrace.connection import NEGLIGIBLE, Checkout
from sqltrace.failed_commit import FailedCommit
from sqltrace.faults import report_fault
from sqltrace.locks import process_lock
from sqltrace.shares import held_by_others
from sqltrace.suspended import UNANSWERED

KEY: Final = "sqltrace"  # in the record_info of a pool's entry

asking: ContextVar[Checkout | None] = ContextVar("sqltrace_asking", default=None)

_BEGIN: Final = ("do_begin", "do_begin_twophase")
_END: Final = {
    "do_commit": "commit",
    "do_prepare_twophase": "commit",
    "do_commit_twophase": "commit",
    "do_rollback": "rollback",
    "do_rollback_twophase": "rollback",
}
_CALLS: Final[dict[str, Part]] = {
    "get_isolation_level": "database",
    "set_isolation_level": "database",
    "do_close": "connection",
    "do_terminate": "connection",
}
_METHODS: Final = (*_BEGIN, *_END, *_CALLS, "do_ping")
_MARKER: Final = "_sqltrace_replaces"
_collector: Final = current.get
_lock: Final = process_lock()
_watched: WeakSet[Dialect] = WeakSet()


def opening() -> Checkout | None:
    """
    The checkout for which the caller asks the pool.

    `None` once the pool has answered: a task that was begun meanwhile, as one that listens on the new connection, has
    a copy of that context.
    """
    checkout = asking.get()
    return checkout if checkout is not None and checkout.opening is not None else None


def watch(dialect: Dialect) -> None:
    """Measure the transactions of this dialect, and make room in its executions. Called again, nothing changes."""
    with _lock:
        if dialect in _watched:
            return
        _watched.add(dialect)
        for name in _BEGIN:
            _replace(dialect, name, _measure_begin(dialect, getattr(dialect, name)))
        for name, kind in _END.items():
            _replace(dialect, name, _measure_end(dialect, getattr(dialect, name), kind))
        for name, part in _CALLS.items():
            _replace(dialect, name, _measure_call(dialect, getattr(dialect, name), part))
        _replace(dialect, "do_ping", _measure_ping(dialect.do_ping))
        internals.make_room(dialect)


def release(dialect: Dialect) -> None:
    """Undo `watch`. Where somebody has wrapped our wrapper it stays, and passes calls on."""
    with _lock:
        _watched.discard(dialect)
        internals.take_room_back(dialect)
        for name in _METHODS:
            found = vars(dialect).get(name)
            ours, original = getattr(found, _MARKER, (None, None))
            if found is None or found is not ours:  # functools.wraps() copies the marker
                continue
            if original is not None:
                setattr(dialect, name, original)
            else:
                delattr(dialect, name)


def release_all() -> None:
    with _lock:  # a set that grows meanwhile cannot be gone through
        for dialect in list(_watched):
            release(dialect)


def attach(context: Any, execution: Execution) -> None:
    """Tell the checkout of its connection, which the pool knows, of a statement that ran. Never raises."""
    try:
        info = internals.pooled_connection(context).record_info
        checkout: Checkout | None = info.get(KEY) if info else None
        if checkout is not None and checkout.transaction:
            checkout.note(execution)
    except Exception as fault:
        report_fault("measuring a transaction", fault)


def abandon(context: Any) -> None:
    """SQLAlchemy gives up a connection as a statement of it is cancelled: its transaction is over. Never raises."""
    try:
        checkout = checkout_of(internals.pooled_connection(context))
        if checkout is not None and checkout.transaction:
            checkout.end_transaction(checkout.clock())
    except Exception as fault:
        report_fault("measuring a transaction", fault)


def _replace(dialect: Dialect, name: str, ours: Callable[..., Any]) -> None:
    setattr(ours, _MARKER, (ours, vars(dialect).get(name)))
    setattr(dialect, name, ours)


def _measure_ping(do_ping: Callable[[Any], bool]) -> Callable[[Any], bool]:
    @wraps(do_ping)
    def measured(connection: Any) -> bool:
        checkout = opening()
        if checkout is None:
            return do_ping(connection)
        started = checkout.clock()
        try:
            return do_ping(connection)
        finally:
            checkout.ping += checkout.clock() - started

    return measured


def _measure_begin(dialect: Dialect, begin: Callable[..., None]) -> Callable[..., None]:
    # Most drivers begin with the first statement: there is nothing to be measured.
    takes_time = getattr(begin, "__func__", None) is not DefaultDialect.do_begin

    @wraps(begin)
    def measured(connection: Any, *arguments: Any) -> None:
        collector = _collector()
        if collector is None:
            begin(connection, *arguments)
            return
        checkout, started = checkout_of(connection), collector.clock()
        begin(connection, *arguments)
        counts = None if checkout is None or checkout.calling else checkout
        if takes_time:
            _note(collector, dialect, connection, counts, "begin", started)
        if counts is not None:
            counts.transaction = isinstance(connection, Connection) or not commits_itself(dialect, connection)
            if counts.rolled_back:  # not by closing: the connection goes on
                counts.rollbacks += 1
                counts.rolled_back = False

    return measured


def _measure_end(dialect: Dialect, end: Callable[..., None], kind: str) -> Callable[..., None]:
    @wraps(end)
    def measured(connection: Any, *arguments: Any, **options: Any) -> None:
        collector = _collector()
        if collector is None:
            end(connection, *arguments, **options)
            return
        checkout, started = checkout_of(connection), collector.clock()
        if checkout is not None:
            if checkout.calling:  # two-phase methods call one another
                end(connection, *arguments, **options)
                return
            checkout.calling = True
            if checkout.transaction:
                _end_transaction(checkout, started, collector, kind)
        answered = True
        try:
            end(connection, *arguments, **options)
        except BaseException as error:
            answered = not isinstance(error, UNANSWERED)
            if checkout is not None and kind == "commit":
                _note_failed_commit(checkout, error)
            raise
        finally:
            if checkout is not None:
                checkout.calling = False
            _note(collector, dialect, connection, checkout, kind, started, answered)

    return measured


def _end_transaction(checkout: Checkout, now: int, collector: Collector, kind: str) -> None:
    """Never raises."""
    try:
        checkout.end_transaction(now, partial(held_by_others, collector))
        checkout.rolled_back = kind == "rollback"
    except Exception as fault:
        report_fault("measuring a transaction", fault)


def _note_failed_commit(checkout: Checkout, error: BaseException) -> None:
    try:
        found = FailedCommit(describe_failure(error), find_call_site(), ended=checkout.clock())
        checkout.failed_commits = [*(checkout.failed_commits or ()), found]
    except Exception as fault:
        report_fault("describing a failed commit", fault)


def _measure_call(dialect: Dialect, call: Callable[..., Any], part: Part) -> Callable[..., Any]:
    """Of what no checkout has to know, and what may take a round trip as any statement does."""

    @wraps(call)
    def measured(*arguments: Any, **options: Any) -> Any:
        collector = _collector()
        if collector is None:
            return call(*arguments, **options)
        started = collector.clock()
        try:
            return call(*arguments, **options)
        finally:
            _mark(collector, dialect, arguments[0] if arguments else None, part, started)

    return measured


def checkout_of(connection: Any) -> Checkout | None:
    """The checkout of a `Connection`, which two-phase methods take, or of the pool's proxy of one. Never raises."""
    try:
        if isinstance(connection, Connection):
            if connection.closed or connection.invalidated:
                return None
            connection = connection.connection
        info = connection.record_info
        return info.get(KEY) if info else None
    except Exception as fault:
        report_fault("measuring a transaction", fault)
        return None


def _note(
    collector: Collector,
    dialect: Dialect,
    connection: Any,
    checkout: Checkout | None,
    kind: str,
    started: int,
    answered: bool = True,
) -> None:
    spent = _mark(collector, dialect, connection, "database", started, answered)
    if checkout is not None:
        setattr(checkout, kind, getattr(checkout, kind) + spent)


def _mark(
    collector: Collector, dialect: Dialect, connection: Any, part: Part, started: int, answered: bool = True
) -> int:
    """
    Mark what ends now. Returns how long it took, without waiting for loop or interpreter. Never raises.

    Args:
        answered: Whether the database has: the latest reply is that to another question where it has not.
    """
    spent = 0
    try:
        ended = collector.clock()
        spent = ended - started
        if spent > NEGLIGIBLE and not _meets(dialect):
            slow = answered and spent >= replies.SLOW
            if slow and not dialect.is_async:
                ended = replies.came_at(collector, connection, started, ended)
                spent = ended - started
            mark(collector, dialect, part, started, ended)
            if slow and dialect.is_async:
                spent -= replies.loop_wait(collector, connection, dialect, started, ended, 0) or 0
    except Exception as fault:
        report_fault("measuring a transaction", fault)
    return spent


def _meets(dialect: Dialect) -> bool:
    """Whether SQLAlchemy gets to know the database for the caller, which is part of connecting."""
    checkout = asking.get()
    return checkout is not None and checkout.opening is dialect
