"""
Fetch strategies that do what SQLAlchemy's own do, and count the rows and the time.

A row counts when it is taken from the driver's cursor, also if nobody asks for it in the end.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NoReturn

from sqltrace.capture import internals
from sqltrace.capture.building import building
from sqltrace.capture.failure import describe_failure
from sqltrace.capture.internals import BufferedRowCursorFetchStrategy, CursorFetchStrategy
from sqltrace.collector import Collector, Execution, mark
from sqltrace.faults import report_fault

_UNTIMED: Final = 15  # rows after each one that is timed, where all rows are in memory; a power of 2 less 1
_LEAST_MARK: Final = 200_000  # nanoseconds of reading row by row that are marked at once


def begin(execution: Execution) -> None:
    """From now on rows are counted, and more may come."""
    execution.rows = 0
    execution.open = True


def add_fetch(collector: Collector, execution: Execution, started: int, rows: int) -> int:
    """Note a fetch that ends now, and its time in the time account. Returns that time. Never raises."""
    spent = 0
    try:
        ended = collector.clock()
        execution.rows = (execution.rows or 0) + rows
        spent = ended - started
        execution.fetch += spent
        mark(collector, execution.dialect, "database", started, ended)
        block = building.get()
        if block is not None:
            block.leave_out(started, ended)
    except Exception as fault:
        report_fault("counting rows", fault)
    return spent


def _close(execution: Execution) -> None:
    """No more rows come. Never raises."""
    try:
        block = building.get()
        if block is None or block.execution is not execution:
            execution.open = False  # otherwise the objects of these rows are still to come
    except Exception as fault:
        report_fault("counting rows", fault)


# Looked up once, for `super()` would be for every statement. Where SQLAlchemy lacks them, `rows.work` finds out.
_soft_close: Final[Any] = getattr(CursorFetchStrategy, "soft_close", None)
_hard_close: Final[Any] = getattr(CursorFetchStrategy, "hard_close", None)


class _Counted(CursorFetchStrategy):
    """What the two kinds share: failures, and the end."""

    __slots__ = ()

    collector: Collector
    execution: Execution

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().soft_close(result, dbapi_cursor)
        _close(self.execution)

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().hard_close(result, dbapi_cursor)
        _close(self.execution)

    def handle_exception(self, result: Any, dbapi_cursor: Any, err: BaseException) -> NoReturn:
        self.fail(err)
        super().handle_exception(result, dbapi_cursor, err)

    def fail(self, error: BaseException) -> None:
        try:
            self.execution.failure = describe_failure(error)
            self.execution.open = False
        except Exception as fault:
            report_fault("describing a failed fetch", fault)


class CountedFetch(_Counted):
    """
    Reads a cursor directly.

    Attributes:
        marked: What of ``execution.fetch`` is in the time account.
    """

    __slots__ = ("collector", "execution", "marked", "untimed")

    def __init__(self, collector: Collector, execution: Execution) -> None:
        self.collector = collector
        self.execution = execution
        self.marked = 0
        self.untimed = 0

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        _soft_close(self, result, dbapi_cursor)
        self.finish()

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        _hard_close(self, result, dbapi_cursor)
        self.finish()

    # Both are SQLAlchemy's own, written out: a call more would double the cost of a row.

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        execution = self.execution
        rows: Any = execution.rows
        clock = None if rows & self.untimed else self.collector.clock
        started = 0 if clock is None else clock()
        try:
            row = dbapi_cursor.fetchone()
        except BaseException as error:
            if clock is not None:
                execution.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        if clock is not None:
            execution.fetch += clock() - started
        if row is None:
            try:
                internals.soft_close(result, hard_close)
            except BaseException as error:
                self.handle_exception(result, dbapi_cursor, error)
            return None
        execution.rows = rows + 1
        if rows and clock is not None:
            self.look(rows, dbapi_cursor, clock() - started)
        return row

    def look(self, rows: int, dbapi_cursor: Any, spent: int) -> None:
        """After a row that was timed: does each have to be, and is there much to mark? Never raises."""
        try:
            if rows == 1 and (self.execution.dialect.is_async or dbapi_cursor.rowcount >= 0):
                self.untimed = _UNTIMED  # the rows are here: each takes as long as the next
            elif self.untimed:
                self.execution.fetch += spent * _UNTIMED
            if self.execution.fetch - self.marked > _LEAST_MARK:
                self.mark()
        except Exception as fault:
            report_fault("timing rows", fault)

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        execution, clock = self.execution, self.collector.clock
        started = clock()
        try:
            rows = dbapi_cursor.fetchall()
        except BaseException as error:
            execution.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        execution.fetch += clock() - started
        try:
            execution.rows = (execution.rows or 0) + len(rows)
        except Exception as fault:
            report_fault("counting rows", fault)
        try:
            internals.soft_close(result, hard=False)
        except BaseException as error:
            self.handle_exception(result, dbapi_cursor, error)
        return rows

    def mark(self) -> None:
        """Note what is not marked yet as a stretch that ends now: for single rows exact in length, not in place."""
        now, fetch = self.collector.clock(), self.execution.fetch
        spent, self.marked = fetch - self.marked, fetch
        mark(self.collector, self.execution.dialect, "database", now - spent, now)
        block = building.get()
        if block is not None:
            block.leave_out(now - spent, now)

    def fail(self, error: BaseException) -> None:
        self.finish()
        super().fail(error)

    def finish(self) -> None:
        """
        No more rows come. Never raises.

        What is short and was not counted yet is the tail of its statement, unless another's objects are being made.
        """
        try:
            execution, block = self.execution, building.get()
            fetch = execution.fetch
            spent = fetch - self.marked
            if spent > _LEAST_MARK or execution.folded:
                self.mark()
            elif block is None:
                execution.tail += spent
                self.marked = fetch
            elif block.execution is execution and block.outer is None:
                now, self.marked = self.collector.clock(), fetch
                block.leave_out_fetch(now - spent, now)
            elif spent:
                self.mark()
            if block is None or block.execution is not execution:
                execution.open = False  # otherwise the objects of these rows are still to come
        except Exception as fault:
            report_fault("counting rows", fault)

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        started = self.collector.clock()
        rows: Any = ()
        try:
            rows = super().fetchmany(result, dbapi_cursor, size)
        finally:
            self.marked += add_fetch(self.collector, self.execution, started, len(rows))
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        super().yield_per(result, dbapi_cursor, num)
        result.cursor_strategy = CountedStream(
            self.collector, self.execution, dbapi_cursor, {"max_row_buffer": num}, resumed=True
        )


class CountedReturning(CountedFetch):
    """Of an INSERT, UPDATE or DELETE: a dialect may still replace it, before it is asked for a description."""

    __slots__ = ()

    @property
    def alternate_cursor_description(self) -> None:  # type: ignore[override]  # SQLAlchemy only reads it
        begin(self.execution)


class CountedStream(_Counted, BufferedRowCursorFetchStrategy):
    """Reads a server-side cursor, or any with `yield_per`, through a buffer that grows."""

    __slots__ = ("collector", "cursor", "execution", "options")

    def __init__(
        self, collector: Collector, execution: Execution, cursor: Any, options: Any, *, resumed: bool = False
    ) -> None:
        self.collector = collector
        self.execution = execution
        self.cursor = None if resumed else cursor
        self.options = options
        if resumed:
            super().__init__(cursor, options, growth_factor=0, initial_buffer=deque())

    @property
    def alternate_cursor_description(self) -> None:  # type: ignore[override]  # SQLAlchemy only reads it
        """
        `None`, and the first row is fetched, as the constructor of SQLAlchemy's own does.

        Not in ours, which runs earlier: errors have to come from where the
        application expects them, and the description of some cursors comes
        with the first row only.
        """
        cursor, self.cursor = self.cursor, None
        if cursor is None:
            return
        begin(self.execution)
        started = self.collector.clock()
        fetched = 0
        try:
            super().__init__(cursor, self.options)
            fetched = internals.buffered_rows(self)
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            add_fetch(self.collector, self.execution, started, fetched)

    def _buffer_rows(self, result: Any, dbapi_cursor: Any) -> None:
        started = self.collector.clock()
        try:
            internals.buffer_rows(self, result, dbapi_cursor)
        finally:
            add_fetch(self.collector, self.execution, started, internals.buffered_rows(self))

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        if size is None:
            return self.fetchall(result, dbapi_cursor)
        before = internals.buffered_rows(self)
        started = self.collector.clock()
        rows: Any = ()
        try:
            rows = super().fetchmany(result, dbapi_cursor, size)
        finally:
            add_fetch(self.collector, self.execution, started, len(rows) + internals.buffered_rows(self) - before)
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        before = internals.buffered_rows(self)
        started = self.collector.clock()
        rows: Any = ()
        try:
            rows = super().fetchall(result, dbapi_cursor)
        finally:
            add_fetch(self.collector, self.execution, started, max(0, len(rows) - before))
        return rows
