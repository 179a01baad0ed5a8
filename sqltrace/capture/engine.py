"""
The hot path: every statement passes here, on every engine, sync or async.

The listeners of ``do_execute`` and its two sisters run the call themselves and
return `True`. One ``try/finally`` so sees success, failure and cancellation
alike, which ``before/after_cursor_execute`` do not, at a tenth of their cost.
A fault of ours is reported and swallowed: raised here it would fail the
application's statement and lose its transaction.
"""

from __future__ import annotations

import threading
from reprlib import Repr
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.engine.interfaces import DBAPICursor, ExecuteStyle, ExecutionContext

from sqltrace.callsite import CallSite, find_call_site
from sqltrace.capture import internals
from sqltrace.capture.failure import describe_failure
from sqltrace.faults import report_fault
from sqltrace.recording import FOLD_AT, Collector, current, missed
from sqltrace.statement import Failure

SLOW_STATEMENT: Final = 100_000_000  # nanoseconds; from there on the call site is always taken

_EXECUTE: Final = ExecuteStyle.EXECUTE
_EXECUTEMANY: Final = ExecuteStyle.EXECUTEMANY
_INSERTMANYVALUES: Final = ExecuteStyle.INSERTMANYVALUES
_collector: Final = current.get
_lock = threading.RLock()
_instrumented: WeakSet[Dialect] = WeakSet()
_all_engines = False
_repr = Repr()
_repr.maxother = _repr.maxstring = 120
_repr.maxlist = _repr.maxtuple = _repr.maxdict = 12


def instrument(*engines: Any) -> None:
    """
    Record the statements of these engines; with no argument, of every engine of the process.

    Engines made before and after count, `~sqlalchemy.engine.Engine` and
    `~sqlalchemy.ext.asyncio.AsyncEngine`. Called twice nothing changes, and a
    statement is recorded once, however many ways lead to its engine.
    Safe from any thread. Engines are not kept alive.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    global _all_engines
    dialects = [dialect_of(engine) for engine in engines]
    with _lock:
        if not engines and not _all_engines:
            _listen(Engine)
            _all_engines = True
        for dialect in dialects:
            if dialect not in _instrumented:
                _listen(dialect)
                _instrumented.add(dialect)


def uninstrument(*engines: Any) -> None:
    """
    Undo `instrument` for these engines; with no argument, for all of them.

    An engine named here is still recorded while all engines are instrumented.
    Safe from any thread.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    global _all_engines
    dialects = [dialect_of(engine) for engine in engines] or list(_instrumented)
    with _lock:
        if not engines and _all_engines:
            _unlisten(Engine)
            _all_engines = False
        for dialect in dialects:
            if dialect in _instrumented:
                _unlisten(dialect)
                _instrumented.discard(dialect)


def is_instrumented() -> bool:
    """Whether any engine is instrumented."""
    return _all_engines or bool(_instrumented)


def dialect_of(engine: Any) -> Dialect:
    """
    The dialect, which an engine shares with its variants made by ``execution_options()``.

    Raises:
        TypeError: for anything that is not an engine.
    """
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise TypeError(f"expected a SQLAlchemy Engine or AsyncEngine, got {type(engine).__name__}: {engine!r:.100}")
    return sync_engine.dialect


def _listen(target: Any) -> None:
    for listener in _LISTENERS:
        event.listen(target, listener.__name__, listener)


def _unlisten(target: Any) -> None:
    for listener in _LISTENERS:
        event.remove(target, listener.__name__, listener)


def do_execute(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool | None:
    collector = _collector()
    if collector is None:
        missed.unattributed += 1
        return None
    dialect: Any = context.dialect
    listeners = dialect.dispatch.do_execute
    failure = None
    clock = collector.clock
    started = clock()
    try:
        if len(listeners) == 1 or not _call_others(listeners, do_execute, cursor, statement, parameters, context):
            dialect.do_execute(cursor, statement, parameters, context)
    except BaseException as error:
        failure = _describe(error)
        raise
    finally:
        _record(collector, context, statement, parameters, started, clock(), failure)
    return True


def do_executemany(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool | None:
    return _observe(do_executemany, context, statement, parameters, (cursor, statement, parameters, context))


def do_execute_no_params(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> bool | None:
    return _observe(do_execute_no_params, context, statement, None, (cursor, statement, context))


_LISTENERS: Final = (do_execute, do_executemany, do_execute_no_params)


def _observe(listener: Any, context: Any, statement: str, parameters: Any, arguments: tuple[Any, ...]) -> bool | None:
    """The same as `do_execute`, for its rarer sisters."""
    collector = _collector()
    if collector is None:
        missed.unattributed += 1
        return None
    name = listener.__name__
    listeners = getattr(context.dialect.dispatch, name)
    failure = None
    started = collector.clock()
    try:
        if not _call_others(listeners, listener, *arguments):
            getattr(context.dialect, name)(*arguments)
    except BaseException as error:
        failure = _describe(error)
        raise
    finally:
        _record(collector, context, statement, parameters, started, collector.clock(), failure)
    return True


def _call_others(listeners: Any, ours: Any, *arguments: Any) -> bool:
    """Run the application's own listeners that stand after ours, which our `True` would hide. Whether one executed."""
    remaining = iter(listeners)
    for listener in remaining:
        if listener is ours:
            break
    return any(listener(*arguments) for listener in remaining if listener is not ours)


def _describe(error: BaseException) -> Failure:
    try:
        return describe_failure(error)
    except Exception as fault:
        report_fault("describing a failed statement", fault)
        return Failure(type(error).__name__)


def _record(
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
        dialect = context.dialect
        while collector is not None and collector.dialects is not None and dialect not in collector.dialects:
            collector = collector.parent
        if collector is None:
            return
        style = context.execute_style
        key = _key(context, statement, style) if style is not _EXECUTE or context.compiled is None else (
            # A sequence or a default is run in the context of the INSERT that it is for.
            context.compiled.string if statement is context.statement else statement
        )
        taken = collector.sites_taken.get(key, 0)
        slow = ended - started > SLOW_STATEMENT
        call_site = _call_site(collector, key, taken, slow) if slow or taken < 2 else None
        if len(statement) > collector.max_sql_length:
            statement, key = statement[: collector.max_sql_length], key[: collector.max_sql_length]
        execution = (
            started,
            ended,
            statement,
            key,
            dialect,
            failure,
            style is _EXECUTEMANY,
            None if style is _EXECUTE else internals.batch_size(context, parameters),
            call_site,
            _repr.repr(parameters) if collector.capture_parameters else None,
        )
        while collector is not None:
            if collector.dialects is None or dialect in collector.dialects:
                pending = collector.pending
                if pending is None:
                    collector.late += 1
                    missed.late += 1
                else:
                    pending.append(execution)
                    if len(pending) >= FOLD_AT:
                        collector.fold()
            collector = collector.parent
    except Exception as fault:
        report_fault("recording a statement", fault)


def _key(context: Any, statement: str, style: ExecuteStyle) -> str:
    compiled = context.compiled
    if compiled is None:
        return statement
    string: str = compiled.string
    ours = statement[:12] == string[:12] if style is _INSERTMANYVALUES else statement is context.statement
    return string if ours else statement


def _call_site(collector: Collector, key: str, taken: int, slow: bool) -> CallSite | None:
    """The call site, if it is worth its cost: for the first two of a group and for slow statements."""
    sites_taken = collector.sites_taken
    if taken < 2 and (taken or len(sites_taken) < collector.max_statements):
        sites_taken[key] = taken + 1
    elif not slow:
        return None
    return find_call_site()
