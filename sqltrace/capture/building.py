"""What is being built of rows at this moment, so that work inside it is not counted twice."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from sqltrace.collector import Execution, mark
from sqltrace.loop_log import HOLD
from sqltrace.shares import awake

_AT_ONCE: Final = 100_000  # nanoseconds from the preparation of a query to its reading
_LEAST_MARK: Final = 2_000  # nanoseconds; between two clock readings next to each other there is less


class Block:
    """
    A stretch in which ORM objects are built of rows, without the fetches, statements and blocks inside it.

    Times are readings of the collector's clock.

    Attributes:
        context: SQLAlchemy's of the query, while it lasts.
        prepared_start, prepared_end: When the building was prepared; 0 if that is part of the stretch itself.
        fetch_start, fetch_end: Of the fetch of the rows, as long as nothing else has happened inside.
        broken: Whether something else has: from then on each piece is marked where it took place.
        since: Where the piece begins that is not marked yet.
        loads: Statements that load relationships meanwhile, by their path.
        load: The one among these that the building is for at the moment; `None` while it is for the query itself.
        newest: Of `orm_internals.newest_object`.
    """

    __slots__ = (
        "broken", "collector", "context", "ended", "execution", "fetch_end", "fetch_start", "load", "loads", "newest",
        "outer", "prepared_end", "prepared_start", "since", "started",
    )  # fmt: skip

    def __init__(self, execution: Execution, context: Any, prepared_start: int = 0, prepared_end: int = 0) -> None:
        self.collector = execution.collector
        self.execution = execution
        self.context = context
        self.prepared_start, self.prepared_end = prepared_start, prepared_end
        self.fetch_start = self.fetch_end = self.since = self.started = 0
        self.broken = self.ended = False
        self.load: Execution | None = None
        self.loads: dict[tuple[Any, ...], Execution] | None = None
        self.newest: tuple[Any, Any] | None = None
        self.outer: Block | None = None

    def begin(self) -> None:
        """Call it in the same context as `end`."""
        self.outer = building.get()
        building.set(self)
        self.started = self.since = self.collector.clock()

    def leave_out(self, start: int, end: int) -> None:
        """What happened from `start` to `end` is something else than building."""
        if self.ended:
            return  # a task that was begun inside carries this block in its context
        if not self.broken:
            self.begin_pieces()
        if start > self.since:
            self.add(self.since, start)
        self.since = max(self.since, end)

    def leave_out_fetch(self, start: int, end: int) -> None:
        """As `leave_out`, for a short fetch of these rows themselves, whose time counts for the database."""
        if self.ended or self.broken or self.fetch_end:
            self.mark_fetch(start, end)
            self.leave_out(start, end)
        else:
            self.fetch_start, self.fetch_end = start, end

    def end(self) -> None:
        now = self.collector.clock()
        building.set(self.outer)
        self.ended = True
        self.context = self.loads = None
        at_once = not self.prepared_end or self.started - self.prepared_end <= _AT_ONCE
        if self.fetch_end and at_once and not self.broken and not self.execution.folded:
            # Of a query that was read at once, the fetch counts as if it had come first, and all making of objects
            # as if it followed in one stretch: one mark instead of four.
            spent = now - self.started - self.fetch_end + self.fetch_start + self.prepared_end - self.prepared_start
            self.add(now - spent, now)
        else:
            if not self.broken:
                self.begin_pieces()
            self.add(self.since, now)
        if self.load is not None:
            self.go_on_for(None)
        outer = self.outer
        if outer is not None:
            outer.leave_out(self.started, now)
            if self.execution.origin.kind == "selectin" and not outer.ended:
                outer.go_on_for(self.execution)

    def begin_pieces(self) -> None:
        """Mark what has happened by now, each where it took place."""
        self.broken = True
        if self.prepared_end:
            self.add(self.prepared_start, self.prepared_end)
        if self.fetch_end:
            self.add(self.since, self.fetch_start)
            self.mark_fetch(self.fetch_start, self.fetch_end)
            self.since = self.fetch_end

    def mark_fetch(self, start: int, end: int) -> None:
        self.execution.marked += end - start
        mark(self.collector, self.execution.dialect, "database", start, end)

    def add(self, start: int, end: int) -> None:
        """Building took place from `start` to `end`."""
        if end - start >= HOLD and self.execution.dialect.is_async:
            # Cursors of some drivers wait in places that nobody else sees.
            for piece in awake(self.collector, start, end):
                self.add_piece(*piece)
        else:
            self.add_piece(start, end)

    def add_piece(self, start: int, end: int) -> None:
        execution = self.load or self.execution
        execution.objects += end - start
        if end - start > _LEAST_MARK:
            mark(self.collector, execution.dialect, "objects", start, end)

    def go_on_for(self, load: Execution | None) -> None:
        """What is built from now on is for a load, which has just read its rows and sorts them to their parents."""
        if self.load is not None:
            self.load.open = False
        self.load = load
        if load is not None:
            load.open = True


# A context variable, since other tasks run on this thread while an async driver loads a relationship.
building: ContextVar[Block | None] = ContextVar("sqltrace.building", default=None)
