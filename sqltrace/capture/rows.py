"""
Rows that were taken from the driver's cursor, and the time that took.

SQLAlchemy reads every cursor through a fetch strategy, which dialects may
choose for each execution. After the driver's ``execute()`` we choose one that
counts. A dialect's own choice is left alone: it is not known then how many rows
the statement has.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Final

from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.sql.expression import ReturnsRows

from sqltrace.capture import internals
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.fetching import CountedFetch, CountedReturning, CountedStream, add_fetch, begin
from sqltrace.collector import Collector, Execution
from sqltrace.faults import report_fault

_INSERTMANYVALUES: Final = ExecuteStyle.INSERTMANYVALUES


def kind_of(context: Any) -> Callable[..., Execution]:
    """What to make of an execution that has succeeded: its fetch strategy, if it has rows."""
    try:
        if _is_ours_to_choose(context) and not internals.is_streamed(context):
            if context.is_crud:
                return CountedReturning if context.compiled.effective_returning else Execution
            if is_made_to_return_rows(context) or _has_returned_rows(context):
                return CountedFetch
    except Exception as fault:
        report_fault("counting rows", fault)
    return Execution


def follow(execution: Execution, context: Any) -> None:
    """Have the rows of an execution counted in the way that `kind_of` has chosen. Never raises."""
    try:
        if isinstance(execution, CountedFetch):
            context.cursor_fetch_strategy = execution
            if context.is_crud:
                execution.open = True  # whether rows come, it is told later
            else:
                begin(execution)
        elif context.execute_style is _INSERTMANYVALUES:
            if context.compiled.effective_returning:
                _follow_batch(execution, context)
        elif _is_ours_to_choose(context) and internals.is_streamed(context):
            context.cursor_fetch_strategy = CountedStream(execution, context.execution_options, context=context)
            execution.open = execution.streamed = True
    except Exception as fault:
        report_fault("counting rows", fault)


def execution_of(context: Any) -> Execution | None:
    """What was noted of the latest statement of an `ExecutionContext`."""
    strategy = getattr(context, "cursor_fetch_strategy", None)
    # Most executions are their own strategies: an attribute of ours on the context would cost as much as all the rest.
    return strategy if isinstance(strategy, Execution) else getattr(context, "_sqltrace", None)


def is_made_to_return_rows(context: Any) -> bool:
    """Whether SQLAlchemy knows that of a statement: not of text, and never of DDL and savepoints."""
    return isinstance(getattr(context.compiled, "statement", None), ReturnsRows)


def _has_returned_rows(context: Any) -> bool:
    # A sequence that is asked for by itself is neither: SQLAlchemy fetches its value past any strategy.
    return (context.is_text or context.compiled is not None) and context.cursor.description is not None


def _is_ours_to_choose(context: Any) -> bool:
    strategy = internals.fetch_strategy(context)
    # A strategy of ours was meant for the sequence or default of an INSERT, which was run before it.
    ours = strategy is internals.DEFAULT_FETCH or isinstance(strategy, CountedFetch | CountedStream)
    return ours and context.execute_style is not _INSERTMANYVALUES


def _follow_batch(execution: Execution, context: Any) -> None:
    """Count the rows that SQLAlchemy fetches right after each batch of an INSERT, to put them in order."""

    def fetchall_for_returning(cursor: Any) -> Any:
        del context.fetchall_for_returning  # back to the dialect's own; and no cycle is left that holds the Session
        started = execution.collector.clock()
        rows: Any = ()
        try:
            rows = context.fetchall_for_returning(cursor)
        finally:
            add_fetch(execution, None, started, len(rows))
            execution.open = False
        return rows

    execution.open = True
    context.fetchall_for_returning = fetchall_for_returning


@self_test("reads its cursors in a way that is not known here: rows and fetch time are not measured")
def work() -> bool:
    """Self-test: whether SQLAlchemy reads a cursor through our strategies, and they count what it reads."""
    try:
        return all(_counts(server_side, read) for server_side in (False, True) for read in _READERS)
    except Exception:
        return False


_READERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda result: result.all(),
    list,
    lambda result: list(result.partitions(2)),
    lambda result: list(result.yield_per(2)),
    lambda result: [result.fetchone() for _ in range(4)],
)


def _counts(server_side: bool, read: Callable[[Any], Any]) -> bool:
    collector = Collector(
        None, clock=count().__next__, dialects=None, capture_parameters=False, max_statements=0, max_sql_length=0
    )
    context = internals.stand_in_context([(1,), (2,), (3,)], server_side=server_side)
    internals.fetch_strategy(context)  # where it is missing, `follow` would report a fault
    execution = kind_of(context)(collector, 0, 0, "", "", context.dialect)
    follow(execution, context)
    read(internals.result_of(context))
    return (execution.rows, execution.open, execution.fetch > 0) == (3, False, True)
