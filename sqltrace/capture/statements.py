"""From a statement that ran to what a recording keeps of it."""

from __future__ import annotations

from asyncio import _get_running_loop  # the public one raises where none runs, at ten times the cost
from reprlib import Repr
from threading import get_ident
from typing import Any, Final

from sqlalchemy.engine.interfaces import ExecuteStyle

from sqltrace.callsite import find_call_site
from sqltrace.capture import failed_loads, internals, objects, replies, rows, transactions
from sqltrace.capture.building import building
from sqltrace.capture.failure import describe_failure
from sqltrace.capture.origin import explain
from sqltrace.collector import FOLD_AT, Collector, Execution, missed
from sqltrace.database import note_database
from sqltrace.faults import report_fault
from sqltrace.loop_log import HOLD
from sqltrace.samples import DIGESTS
from sqltrace.statement import Failure

SLOW_STATEMENT: Final = 100_000_000  # nanoseconds; from there on the call site is always taken

_EXECUTE: Final = ExecuteStyle.EXECUTE
_EXECUTEMANY: Final = ExecuteStyle.EXECUTEMANY
_INSERTMANYVALUES: Final = ExecuteStyle.INSERTMANYVALUES
_MAX_HASHED: Final = 8
_OURS: Final = 2  # frames from `_take_sample` up to the listener
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
    collector: Collector | None,
    context: Any,
    statement: str,
    parameters: Any,
    started: int,
    ended: int,
    failure: Failure | None,
) -> None:
    """Note one statement in the recording of this context and in those around it. Never raises."""
    try:
        block = building.get()
        if block is not None:
            block.leave_out(started, ended)
        dialect = context.dialect
        while collector is not None and collector.dialects is not None and dialect not in collector.dialects:
            collector = collector.parent
        if collector is None:
            return
        style, compiled = context.execute_style, context.compiled
        key = statement
        if style is not _EXECUTE:
            key = _key_of_many(context, statement, style)
        elif compiled is not None:
            # A sequence or a default runs in the context of the INSERT that it is for, before that has a statement.
            try:
                if statement is context.statement:
                    key = compiled.string
            except AttributeError:
                pass
        sql = statement
        if len(statement) > collector.max_sql_length:
            sql, key = statement[: collector.max_sql_length], key[: collector.max_sql_length]
        execution = Execution(started, ended, sql, key, dialect)
        taken = collector.sites_taken.get(key, 0)
        if not (taken + 1) & taken or ended - started > SLOW_STATEMENT:
            _take_sample(collector, execution, context, taken)
        else:
            collector.sites_taken[key] = taken + 1
        if style is not _EXECUTE:
            execution.executemany = style is _EXECUTEMANY
            execution.batch_size = internals.batch_size(context, parameters)
        elif taken < DIGESTS:
            execution.digest = _digest(statement, parameters)
        if collector.capture_parameters:
            execution.parameters = _repr.repr(parameters)
        if failure is not None:
            execution.failure = failure
        if dialect.is_async:
            if ended - started >= replies.SLOW and failure is None:
                execution.loop_wait = replies.loop_wait(collector, context, execution)
        # To be asked for the running loop is dear where one runs: asyncio asks for the process before Python 3.12.
        elif ((loop := collector.loop) and loop.thread == get_ident()) or _get_running_loop() is not None:
            execution.on_loop = True
            if ended - started >= HOLD:
                replies.note_hold(collector, started, ended)
        if compiled is not None:
            explain(collector, execution, context)
        context._sqltrace = collector, execution
        if collector.probe is not None:
            execution.span = collector.probe(context)
        if failure is None and rows.work():
            rows.follow(collector, execution, context)
        transactions.attach(collector, context, execution)
        pending = collector.pending
        if pending is None:
            collector.late += 1
            missed.late += 1
        else:
            if len(pending) >= FOLD_AT:
                collector.fold()  # before this one comes, of which it is not known yet whether rows will be read
            pending.append(execution)
        if collector.parent is not None:
            _pass_on(collector.parent, execution)
    except Exception as fault:
        report_fault("recording a statement", fault)


def _pass_on(collector: Collector | None, execution: Execution) -> None:
    """To the recordings around the one that it was noted in."""
    while collector is not None:
        if collector.dialects is None or execution.dialect in collector.dialects:
            if collector.pending is None:
                collector.late += 1
                missed.late += 1
            else:
                if len(collector.pending) >= FOLD_AT:
                    collector.fold()
                collector.pending.append(execution)
        collector = collector.parent


def _key_of_many(context: Any, statement: str, style: ExecuteStyle) -> str:
    compiled = context.compiled
    if compiled is None:
        return statement
    string: str = compiled.string
    ours = string[:12] in statement if style is _INSERTMANYVALUES else statement is context.statement
    return string if ours else statement


def _take_sample(collector: Collector, execution: Execution, context: Any, taken: int) -> None:
    """What is dear to know: for the 1st, 2nd, 4th, 8th … of a kind, and for slow statements."""
    if not taken:
        objects.install_when_imported()
        failed_loads.install_when_imported()
        note_database(execution.dialect, context.engine.url)
    sites_taken = collector.sites_taken
    if taken or len(sites_taken) < collector.max_statements:
        sites_taken[execution.key] = taken + 1
    elif execution.ended - execution.started <= SLOW_STATEMENT:
        return
    execution.call_site = find_call_site(skip=_OURS)


def _digest(statement: str, parameters: Any) -> int | None:
    """For telling whether parameters repeat themselves, without keeping them. `None` where it would be dear."""
    try:
        if len(parameters) > _MAX_HASHED:
            return None
        return hash((statement, *(parameters.values() if isinstance(parameters, dict) else parameters)))
    except Exception:  # a value that has no hash: a list for an array
        return None
