"""
The fallback for a SQLAlchemy whose ``do_execute`` events do not fire.

The public cursor events, at ten times the cost. `after_cursor_execute` comes
for success only; `handle_error` for errors, cancellation and disconnects.
"""

from __future__ import annotations

from typing import Any, Final

from sqltrace.capture.statements import describe, note
from sqltrace.capture.wanted import is_wanted
from sqltrace.collector import current
from sqltrace.faults import report_fault
from sqltrace.missed import missed


def before_cursor_execute(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, _executemany: bool
) -> None:
    try:
        collector = current.get()
        if not is_wanted(context.dialect):
            return
        if collector is None:
            missed.unattributed += 1
        else:
            context._sqltrace_started = collector, statement, parameters, collector.clock()
    except Exception as fault:
        report_fault("recording a statement", fault)


def after_cursor_execute(
    _connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _executemany: bool
) -> None:
    _finish(context, None)


def handle_error(exception_context: Any) -> None:
    _finish(exception_context.execution_context, exception_context.original_exception)


LISTENERS: Final = (before_cursor_execute, after_cursor_execute, handle_error)


def _finish(context: Any, error: BaseException | None) -> None:
    try:
        # An error can come without a statement having begun, and without a context.
        begun = vars(context).pop("_sqltrace_started", None) if context is not None else None
        if begun is not None:
            collector, statement, parameters, started = begun
            failure = describe(error) if error is not None else None
            note(collector, context, statement, parameters, started, collector.clock(), failure, many=True)
    except Exception as fault:
        report_fault("recording a statement", fault)
