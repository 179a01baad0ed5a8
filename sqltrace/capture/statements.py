"""From a statement that ran to what a recording keeps of it."""

from __future__ import annotations

import re
import sys
from asyncio import _get_running_loop  # the public one raises where none runs, at ten times the cost
from collections.abc import Hashable
from reprlib import Repr
from threading import get_ident
from typing import Any, Final

from sqlalchemy.engine.interfaces import ExecuteStyle

from sqltrace.callsite import CallSite, find_call_site, site_in_flush
from sqltrace.capture import failed_loads, flushes, internals, objects, replies, rows, transactions
from sqltrace.capture.building import building
from sqltrace.capture.failure import describe_failure
from sqltrace.capture.fetching import CountedFetch
from sqltrace.capture.origin import NOTHING, Purpose, explain, purpose_of
from sqltrace.child_tasks import site_awaiting
from sqltrace.collector import FOLD_AT, Collector, Execution
from sqltrace.database import note_database
from sqltrace.faults import report_fault
from sqltrace.loop_log import HOLD
from sqltrace.origin import QUERY
from sqltrace.samples import DIGESTS, SAMPLED
from sqltrace.shares import note_hold, share_of
from sqltrace.statement import Failure

SLOW_STATEMENT: Final = 100_000_000  # nanoseconds; from there on the call site is always taken

_asked: Final = transactions.asking.get
_EXECUTE: Final = ExecuteStyle.EXECUTE
_EXECUTEMANY: Final = ExecuteStyle.EXECUTEMANY
_NOT_SENT: Final = "sqlalchemy.exc.MissingGreenlet"
_INSERTMANYVALUES: Final = ExecuteStyle.INSERTMANYVALUES
_COMPARES_BYTES: Final = not sys.flags.bytes_warning  # with a number: else Python is told to warn of it
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_MAX_HASHED: Final = 8
_OURS: Final = 2  # frames: `_take_sample` and `note`
_repr = Repr()
_repr.maxother = _repr.maxstring = 120
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 12


def describe(error: BaseException) -> Failure:
    try:
        return describe_failure(error)
    except Exception as fault:
        report_fault("describing a failed statement", fault)
        return Failure(type(error).__name__)


def note(
    collector: Collector,
    context: Any,
    statement: str,
    parameters: Any,
    started: int,
    ended: int,
    failure: Failure | None,
    many: bool = False,
) -> None:
    """
    Note one statement in the recording of this context and in those around it. Never raises.

    Args:
        many: Whether it may be anything else than one execution by the driver's ``execute()``.
    """
    try:
        checkout = _asked()
        if checkout is not None and checkout.opening is context.dialect:
            return  # SQLAlchemy gets to know the database: that is part of connecting
        if failure is not None and failure.type == _NOT_SENT:
            return  # with most drivers it is raised before a statement gets here
        block = building.get()
        if block is not None:
            block.leave_out(started, ended)
        try:
            purpose = context.compiled._sqltrace_purpose
        except AttributeError:
            purpose = _first_of(context)
        if collector.pending is None or collector.dialects is not None:
            taker = collector.find_open(context.dialect)
            if taker is None:
                return
            collector = taker
        execution: Execution
        if (  # what most statements are
            purpose.reads
            and collector.plain
            and failure is None
            and not many
            and internals.is_read_directly(context)
            and len(statement) <= collector.max_sql_length
        ):
            execution = CountedFetch(collector, started, ended, statement, purpose.key, context.dialect)
            context.cursor_fetch_strategy = execution
            execution.rows = 0
            execution.open = True
        else:
            execution = _special(collector, context, statement, purpose, parameters, started, ended, failure)
        if purpose.through_orm:
            explain(execution, purpose, context)

        elapsed, origin = ended - started, execution.origin
        kind = execution.key if origin is QUERY else (execution.key, origin)
        taken = collector.sites_taken.get(kind, 0)
        if taken in SAMPLED or elapsed > SLOW_STATEMENT or failure is not None:
            _take_sample(execution, context, kind, taken, statement, parameters)
        else:
            collector.sites_taken[kind] = taken + 1
        if taken < DIGESTS and context.execute_style is _EXECUTE:
            execution.digest = _digest(statement, parameters, context.dialect)
        is_async = execution.dialect.is_async if purpose is NOTHING else purpose.is_async
        # On a loop that the request runs in a thread nobody else waits. Asking for the running one is costly where one
        # runs: before Python 3.12 asyncio asks for the process, too.
        if not is_async and (
            loop.thread == get_ident() if (loop := collector.loop) and loop.thread else _get_running_loop() is not None
        ):
            execution.on_loop = True
            if elapsed >= HOLD:
                note_hold(collector, started, ended)
        # What failed without a code, as by a timeout, has no reply: the latest was that of its preparation.
        if elapsed >= replies.SLOW and (failure is None or failure.code is not None):
            _note_reply(execution, context, is_async=is_async)
        if collector.probe is not None:
            execution.span = collector.probe(context)
        pending = collector.pending
        if pending is not None:  # pragma: no branch - another thread may end the recording just now
            if len(pending) >= FOLD_AT:
                collector.fold()  # without this one, of which rows may still be read
            pending.append(execution)
        if collector.outer is not None:
            _pass_on(collector.outer, execution)
        checkouts = collector.checkouts
        if (
            checkouts
            and (latest := checkouts[-1]).proxy == id(internals.pooled_connection(context))
            and latest.ended is None
        ):
            if latest.transaction:
                latest.note(execution)
        else:
            transactions.attach(context, execution)
    except Exception as fault:
        report_fault("recording a statement", fault)


def _first_of(context: Any) -> Purpose:
    """The purpose of a compiled statement that was not met before, and of each that was not compiled."""
    if context.compiled is None:
        return NOTHING
    # Before an ORM query has made an object.
    objects.install_when_imported()
    failed_loads.install_when_imported()
    note_database(context.dialect, context.engine.url)
    return purpose_of(context)


def _special(
    collector: Collector,
    context: Any,
    statement: str,
    purpose: Purpose,
    parameters: Any,
    started: int,
    ended: int,
    failure: Failure | None,
) -> Execution:
    """Make an execution of any kind."""
    style, sql = context.execute_style, statement
    key = _key_of(context, statement, purpose, style)
    if len(statement) > collector.max_sql_length:
        sql = statement[: collector.max_sql_length]
        if key is not purpose.key or context.compiled.cache_key is None:  # else SQLAlchemy keeps it anyway
            key = key[: collector.max_sql_length]
    counted = failure is None and rows.work()
    execution = (rows.kind_of(context) if counted else Execution)(collector, started, ended, sql, key, context.dialect)
    if counted:
        rows.follow(execution, context)
    if failure is not None:
        execution.failure = failure
        execution.more = True
    if style is not _EXECUTE:
        execution.executemany = style is _EXECUTEMANY
        execution.batch_size = internals.batch_size(context, parameters)
    if collector.capture_parameters:
        execution.parameters = _repr.repr(parameters)
    context._sqltrace = execution
    return execution


def _pass_on(collector: Collector | None, execution: Execution) -> None:
    """Note it in the recordings around, too."""
    while collector is not None:
        if collector.dialects is None or execution.dialect in collector.dialects:
            pending = collector.pending  # read once: another thread may end the recording just now
            if pending is None:
                collector.late += 1
            else:
                if len(pending) >= FOLD_AT:
                    collector.fold()
                pending.append(execution)
        collector = collector.outer


def _key_of(context: Any, statement: str, purpose: Purpose, style: ExecuteStyle) -> str:
    if purpose is NOTHING:
        return statement
    key = purpose.key
    if style is _INSERTMANYVALUES:
        return key if key[:12] in statement else statement
    # A sequence or a default runs in the context of the INSERT that it is for, before that has a statement.
    return key if statement is getattr(context, "statement", None) else statement


def _note_reply(execution: Execution, context: Any, *, is_async: bool) -> None:
    """Note for how long the reply to a slow statement lay ready. Never raises: what has been measured stays."""
    try:
        (_note_loop_wait if is_async else _note_gil_wait)(execution, context)
    except Exception as fault:
        report_fault("telling when a reply came", fault)


def _note_loop_wait(execution: Execution, context: Any) -> None:
    connection = internals.pooled_connection(context)
    values = replies.value_count(context) if execution.failure is None else 0
    started, ended = execution.started, execution.ended
    execution.loop_wait = replies.loop_wait(execution.collector, connection, execution.dialect, started, ended, values)
    execution.more = True


def _note_gil_wait(execution: Execution, context: Any) -> None:
    """A synchronous statement ends when its reply came, however long its thread waited to go on."""
    connection, ended = internals.pooled_connection(context), execution.ended
    came = replies.came_at(execution.collector, connection, execution.started, ended)
    if came == ended or not replies.is_run_by_driver_alone(context):
        return
    if execution.failure is not None or not replies.is_large(context):
        execution.ended, execution.gil_wait = came, ended - came
        execution.more = True


def _take_sample(
    execution: Execution, context: Any, kind: Hashable, taken: int, statement: str, parameters: Any
) -> None:
    """Note what is costly to know: of some executions of a kind (`SAMPLED`), and of slow and failed ones."""
    execution.more = True
    if taken >= DIGESTS and context.execute_style is _EXECUTE:
        execution.later_digest = _digest(statement, parameters, context.dialect)
    collector = execution.collector
    if not taken and context.compiled is None:
        note_database(execution.dialect, context.engine.url)
    sites_taken = collector.sites_taken
    if taken or len(sites_taken) < collector.max_statements:
        sites_taken[kind] = taken + 1
    elif execution.ended - execution.started <= SLOW_STATEMENT and execution.failure is None:
        return
    site = find_call_site(skip=_OURS) or _awaiting(collector)
    execution.call_site = site_in_flush(site) if flushes.going_on.get() else site


def _awaiting(collector: Collector) -> CallSite | None:
    share = share_of(collector)
    return site_awaiting(share.suspended) if share is not None and not share.began else None


def _digest(statement: str, parameters: Any, dialect: Any) -> int | None:
    """
    A hash that tells whether parameters repeat themselves, without keeping them. `None` where it would be costly.

    It is of the engine, too: on another one the same statement asks for something else.
    """
    try:
        if len(parameters) > _MAX_HASHED:
            return None
        if statement[-1:] == "/" or statement[:1] == "/":
            statement = _COMMENT.sub("", statement)  # a tracer's, with another span each time
        if type(parameters) is not tuple:
            parameters = tuple(parameters.values() if isinstance(parameters, dict) else parameters)
        minus = _COMPARES_BYTES and -1 in parameters  # the hash of -1 is that of -2
        return hash((statement, parameters, minus, id(dialect)))
    except Exception:  # a value that has no hash: a list for an array
        return None
