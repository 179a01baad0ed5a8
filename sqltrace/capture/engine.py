"""
The hot path: every statement passes here, on every engine, sync or async.

The listeners of ``do_execute`` and its two sisters run the call themselves and
return `True`. One ``try`` so sees success, failure and cancellation
alike, which ``before/after_cursor_execute`` do not, at a tenth of their cost.
A fault of ours is reported and swallowed: raised here it would fail the
application's statement and lose its transaction.
"""

from __future__ import annotations

from itertools import dropwhile
from typing import Any, Final

from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext

from sqltrace.capture import wanted
from sqltrace.capture.statements import describe, note
from sqltrace.capture.transactions import abandon
from sqltrace.collector import current
from sqltrace.missed import missed

_collector: Final = current.get


def do_execute(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool | None:
    if not wanted.everyone and id(context.dialect) not in wanted.dialects:
        return None
    collector = _collector()
    if collector is None:
        missed.unattributed += 1
        return None
    dialect: Any = context.dialect
    listeners = dialect.dispatch.do_execute
    clock = collector.clock
    started = clock()
    try:
        if len(listeners) == 1 or not _call_others(listeners, do_execute, cursor, statement, parameters, context):
            comment = collector.comment
            sent = statement if comment is None else comment(statement, dialect, "do_execute")
            dialect.do_execute(cursor, sent, parameters, context)
    except BaseException as error:
        note(collector, context, statement, parameters, started, clock(), describe(error))
        if not isinstance(error, Exception):
            abandon(context)
        raise
    note(collector, context, statement, parameters, started, clock(), None)
    return True


def do_executemany(cursor: DBAPICursor, statement: str, parameters: Any, context: ExecutionContext) -> bool | None:
    return _observe(do_executemany, cursor, statement, parameters, (parameters, context))


def do_execute_no_params(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> bool | None:
    return _observe(do_execute_no_params, cursor, statement, None, (context,))


LISTENERS: Final = (do_execute, do_executemany, do_execute_no_params)


def _observe(
    listener: Any, cursor: DBAPICursor, statement: str, parameters: Any, arguments: tuple[Any, ...]
) -> bool | None:
    """The same as `do_execute`, for its rarer sisters. `arguments` follow the statement, and end with the context."""
    context = arguments[-1]
    if not wanted.everyone and id(context.dialect) not in wanted.dialects:
        return None
    collector = _collector()
    if collector is None:
        missed.unattributed += 1
        return None
    name = listener.__name__
    listeners = getattr(context.dialect.dispatch, name)
    started = collector.clock()
    try:
        if not _call_others(listeners, listener, cursor, statement, *arguments):
            comment = collector.comment
            sent = statement if comment is None else comment(statement, context.dialect, name)
            getattr(context.dialect, name)(cursor, sent, *arguments)
    except BaseException as error:
        note(collector, context, statement, parameters, started, collector.clock(), describe(error), many=True)
        if not isinstance(error, Exception):
            abandon(context)
        raise
    note(collector, context, statement, parameters, started, collector.clock(), None, many=True)
    return True


def _call_others(listeners: Any, ours: Any, *arguments: Any) -> bool:
    """Run the application's own listeners that stand after ours, which our `True` would hide. Whether one executed."""
    later = dropwhile(lambda listener: listener is not ours, listeners)
    return any(listener(*arguments) for listener in later if listener is not ours)
