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

_LEAST_MARK: Final = 200_000  # nanoseconds of reading row by row that are marked at once


def begin(execution: Execution) -> None:
    """From now on rows are counted, and more may come."""
    execution.rows = 0
    execution.open = True


def add_fetch(collector: Collector, execution: Execution, started: int, rows: int) -> None:
    """Note a fetch that ends now, and its time in the time account. Never raises."""
    try:
        ended = collector.clock()
        execution.rows = (execution.rows or 0) + rows
        execution.fetch += ended - started
        execution.marked += ended - started
        mark(collector, execution.dialect, "database", started, ended)
        block = building.get()
        if block is not None:
            block.leave_out(started, ended)
    except Exception as fault:
        report_fault("counting rows", fault)


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
    """Reads a cursor directly."""

    __slots__ = ("collector", "execution")

    def __init__(self, collector: Collector, execution: Execution) -> None:
        self.collector = collector
        self.execution = execution

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        _soft_close(self, result, dbapi_cursor)
        self.finish()

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        _hard_close(self, result, dbapi_cursor)
        self.finish()

    # Both are SQLAlchemy's own, written out: a call more would double the cost of a row.

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        execution, clock = self.execution, self.collector.clock
        started = clock()
        try:
            row = dbapi_cursor.fetchone()
        except BaseException as error:
            execution.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        execution.fetch += clock() - started
        if row is None:
            try:
                internals.soft_close(result, hard_close)
            except BaseException as error:
                self.handle_exception(result, dbapi_cursor, error)
            return None
        execution.rows = (execution.rows or 0) + 1
        if execution.fetch - execution.marked - execution.tail > _LEAST_MARK:
            self.mark()
        return row

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        execution, clock = self.execution, self.collector.clock
        started = clock()
        try:
            rows = dbapi_cursor.fetchall()
            internals.soft_close(result, hard=False)  # async drivers may wait in it
        except BaseException as error:
            execution.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        execution.fetch += clock() - started
        try:
            execution.rows = (execution.rows or 0) + len(rows)
        except Exception as fault:
            report_fault("counting rows", fault)
        self.finish()
        return rows

    def fail(self, error: BaseException) -> None:
        self.finish()
        super().fail(error)

    def mark(self) -> None:
        """
        Note what is not marked yet as a stretch that ends now. Never raises.

        For single rows it is exact in length, not in place.
        """
        try:
            now, execution = self.collector.clock(), self.execution
            spent = execution.fetch - execution.marked - execution.tail
            execution.marked += spent
            mark(self.collector, execution.dialect, "database", now - spent, now)
            block = building.get()
            if block is not None:
                block.leave_out(now - spent, now)
        except Exception as fault:
            report_fault("timing rows", fault)

    def finish(self) -> None:
        """
        No more rows come. Never raises.

        What is short is left for the recording to count right after its statement, where nothing else can be.
        """
        try:
            execution, block = self.execution, building.get()
            spent = execution.fetch - execution.marked - execution.tail
            if spent > _LEAST_MARK or (spent and execution.folded):
                self.mark()
            elif block is not None and spent:
                if block.execution is execution and block.outer is None:
                    now = self.collector.clock()
                    block.leave_out_fetch(now - spent, now)
                else:
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
            add_fetch(self.collector, self.execution, started, len(rows))
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
