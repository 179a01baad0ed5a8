"""
Fetch strategies that do what SQLAlchemy's own do, and count the rows and the time.

A row counts when it is taken from the driver's cursor, also if nobody asks for it in the end.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple, NoReturn

from sqltrace.capture import internals, replies
from sqltrace.capture.building import building
from sqltrace.capture.failure import describe_failure
from sqltrace.capture.internals import BufferedRowCursorFetchStrategy, CursorFetchStrategy
from sqltrace.collector import LEAST_MARK, Execution, mark
from sqltrace.faults import report_fault


def begin(execution: Execution) -> None:
    """From now on rows are counted, and more may come."""
    execution.rows = 0
    execution.open = True


def add_fetch(execution: Execution, result: Any, started: int, rows: int, context: Any = None) -> None:
    """
    Note a fetch that ends now, and its time in the time account. Never raises.

    Args:
        result: SQLAlchemy's; `None` where there is none yet.
        context: In place of it, where the reply may have waited for the event loop.
    """
    try:
        ended = execution.collector.clock()
        execution.rows = (execution.rows or 0) + rows
        spent = ended - started - _loop_wait(execution, result, started, ended, rows, context)
        execution.fetch += spent
        execution.marked += spent
        execution.longest_fetch = max(execution.longest_fetch, spent)
        mark(execution.collector, execution.dialect, "database", started, ended)
        if (block := building.get()) is not None:
            block.leave_out(started, ended)
    except Exception as fault:
        report_fault("counting rows", fault)


def _loop_wait(execution: Execution, result: Any, started: int, ended: int, rows: int, context: Any = None) -> int:
    """How much of a fetch an asynchronous driver waited for the event loop with the rows at hand."""
    if result is not None:
        context = result.context
    if ended - started < replies.SLOW or context is None or not execution.dialect.is_async:
        return 0
    if execution.failure is not None and execution.failure.code is None:
        return 0  # as by a timeout: the reply has not come
    proxy = internals.pooled_connection(context)
    values = rows * (1 if result is None else len(result.keys()))
    return replies.loop_wait(execution.collector, proxy, execution.dialect, started, ended, values) or 0


def _close(execution: Execution) -> None:
    """No more rows come. Never raises."""
    try:
        block = building.get()
        if block is None or block.execution is not execution:
            execution.open = False  # otherwise the objects of these rows are still to come
    except Exception as fault:
        report_fault("counting rows", fault)


def _fail(execution: Execution, error: BaseException) -> None:
    """A fetch has failed. Never raises."""
    try:
        execution.failure = describe_failure(error)
        execution.more = True
        execution.open = False
    except Exception as fault:
        report_fault("describing a failed fetch", fault)


# Looked up once, for `super()` would be for every statement. Where SQLAlchemy lacks them, `rows.work` finds out.
_soft_close: Final[Any] = getattr(CursorFetchStrategy, "soft_close", None)
_hard_close: Final[Any] = getattr(CursorFetchStrategy, "hard_close", None)


class CountedFetch(Execution, CursorFetchStrategy):
    """An execution whose cursor is read directly, and the strategy of fetching its rows: one object, not two."""

    __slots__ = ()

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        _soft_close(self, result, dbapi_cursor)
        if not self.reading:
            self.finish()

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        _hard_close(self, result, dbapi_cursor)
        self.finish()

    def handle_exception(self, result: Any, dbapi_cursor: Any, err: BaseException) -> NoReturn:
        self.finish()
        _fail(self, err)
        super().handle_exception(result, dbapi_cursor, err)

    # SQLAlchemy's own, written out: a call more would double the cost of a row, or come after the transaction's end.

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        clock = self.collector.clock
        started = clock()
        try:
            row = dbapi_cursor.fetchone()
        except BaseException as error:
            self.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        self.fetch += clock() - started
        if row is None:
            try:
                internals.soft_close(result, hard=hard_close)
            except BaseException as error:
                self.handle_exception(result, dbapi_cursor, error)
            return None
        self.rows += 1  # type: ignore[operator]  # where rows are read it is a number
        if self.fetch > self.mark_at:
            self.mark()
        return row

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        clock = self.collector.clock
        self.reading = True
        started = clock()
        try:
            rows = dbapi_cursor.fetchall()
            internals.soft_close(result, hard=False)  # async drivers may wait in it
        except BaseException as error:
            self.reading = False
            self.fetch += clock() - started
            self.handle_exception(result, dbapi_cursor, error)
        self.reading = False
        ended = clock()
        self.fetch += ended - started
        try:
            self.rows += len(rows)  # type: ignore[operator]  # likewise
            if ended - started >= replies.SLOW:
                self.fetch -= _loop_wait(self, result, started, ended, len(rows))
        except Exception as fault:
            report_fault("counting rows", fault)
        self.finish()
        return rows

    def mark(self) -> None:
        """
        Note what is not marked yet as a stretch that ends now. Never raises.

        Where rows were fetched one by one the stretch is as long as that took, and does not lie where that was.
        """
        try:
            now = self.collector.clock()
            spent = self.fetch - self.marked - self.tail
            self.marked += spent
            self.mark_at = self.fetch + LEAST_MARK
            mark(self.collector, self.dialect, "database", now - spent, now)
            block = building.get()
            if block is not None:
                block.leave_out(now - spent, now)
        except Exception as fault:
            report_fault("timing rows", fault)

    def finish(self) -> None:
        """
        No more rows come. Never raises.

        A short fetch is not marked: the recording counts it right after its statement, where nothing else can be.
        """
        try:
            block = building.get()
            if block is None and self.fetch <= self.mark_at and not self.folded:
                self.open = False
                return
            spent = self.fetch - self.marked - self.tail
            if spent > LEAST_MARK or (spent and self.folded):
                self.mark()
            elif block is not None and spent:
                if block.execution is self and block.outer is None:
                    now = self.collector.clock()
                    block.leave_out_fetch(now - spent, now)
                else:
                    self.mark()
            if block is None or block.execution is not self:
                self.open = False  # otherwise the objects of these rows are still to come
        except Exception as fault:
            report_fault("counting rows", fault)

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        started = self.collector.clock()
        try:
            rows = dbapi_cursor.fetchmany() if size is None else dbapi_cursor.fetchmany(size)
            if not rows:
                internals.soft_close(result, hard=False)
        except BaseException as error:
            add_fetch(self, result, started, 0)
            self.handle_exception(result, dbapi_cursor, error)
        add_fetch(self, result, started, len(rows))
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        super().yield_per(result, dbapi_cursor, num)
        result.cursor_strategy = CountedStream(self, {"max_row_buffer": num}, resumed=dbapi_cursor)


class CountedReturning(CountedFetch):
    """For an INSERT, UPDATE or DELETE. A dialect may still replace it, before it is asked for a description."""

    __slots__ = ()

    @property
    def alternate_cursor_description(self) -> None:  # type: ignore[override]  # SQLAlchemy only reads it
        begin(self)


class _Closing(NamedTuple):
    """Stands for a cursor that is only to be closed."""

    execution: Execution
    cursor: Any

    def close(self) -> None:
        started = self.execution.collector.clock()
        try:
            self.cursor.close()
        finally:
            add_fetch(self.execution, None, started, 0)
            _close(self.execution)


class CountedStream(BufferedRowCursorFetchStrategy):
    """
    Reads a server-side cursor, or any with `yield_per`, through a buffer that grows.

    `asked` is when the fetch that runs began, `context` what is executed, until its first row is asked for.
    """

    __slots__ = ("asked", "context", "execution", "options")

    def __init__(self, execution: Execution, options: Any, *, context: Any = None, resumed: Any = None) -> None:
        self.asked: int | None = None
        self.execution = execution
        self.context = context
        self.options = options
        if resumed is not None:
            super().__init__(resumed, options, growth_factor=0, initial_buffer=deque())

    def soft_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().soft_close(result, dbapi_cursor)
        self.close(result, dbapi_cursor)

    def hard_close(self, result: Any, dbapi_cursor: Any) -> None:
        super().hard_close(result, dbapi_cursor)
        self.close(result, dbapi_cursor)

    def close(self, result: Any, dbapi_cursor: Any) -> None:
        """Its cursor is closed next, which takes a round trip, or as long as all the rows that nobody has read."""
        if self.asked is None and dbapi_cursor is not None:
            result.cursor = _Closing(self.execution, dbapi_cursor)
        else:  # within a fetch, whose time it is
            _close(self.execution)

    def handle_exception(self, result: Any, dbapi_cursor: Any, err: BaseException) -> NoReturn:
        _fail(self.execution, err)
        self.end_fetch(result, 0)  # before the connection is given up, and its transaction counted
        super().handle_exception(result, dbapi_cursor, err)

    def end_fetch(self, result: Any, rows: int) -> None:
        if (started := self.asked) is not None:
            self.asked = None
            add_fetch(self.execution, result, started, rows)

    @property
    def alternate_cursor_description(self) -> None:  # type: ignore[override]  # SQLAlchemy only reads it
        """
        `None`, and the first row is fetched, as the constructor of SQLAlchemy's own does.

        Not in ours, which runs earlier: errors have to come from where the
        application expects them, and the description of some cursors comes
        with the first row only.
        """
        context, self.context = self.context, None
        if context is None:
            return
        execution = self.execution
        begin(execution)
        started = execution.collector.clock()
        fetched = 0
        try:
            super().__init__(context.cursor, self.options)
            fetched = internals.buffered_rows(self)
        except BaseException as error:
            _fail(execution, error)
            raise
        finally:
            add_fetch(execution, None, started, fetched, context)
            if not (execution.folded or execution.gil_wait):  # only now a server-side cursor has the server work
                execution.ended += execution.fetch
                execution.fetch = execution.longest_fetch = execution.marked = 0

    def _buffer_rows(self, result: Any, dbapi_cursor: Any) -> None:
        self.asked = self.execution.collector.clock()
        try:
            internals.buffer_rows(self, result, dbapi_cursor)
        finally:
            self.end_fetch(result, internals.buffered_rows(self))

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        if size is None:
            return self.fetchall(result, dbapi_cursor)
        before, rows = internals.buffered_rows(self), []
        self.asked = self.execution.collector.clock()
        try:
            rows = super().fetchmany(result, dbapi_cursor, size)
        finally:
            self.end_fetch(result, len(rows) + internals.buffered_rows(self) - before)
        return rows

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        before, rows = internals.buffered_rows(self), []
        self.asked = self.execution.collector.clock()
        try:
            rows = super().fetchall(result, dbapi_cursor)
        finally:
            self.end_fetch(result, max(0, len(rows) - before))
        return rows
