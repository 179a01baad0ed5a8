"""What is being built of rows at this moment, so that work inside it is not counted twice."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from sqltrace.collector import Collector, Execution, mark

_AT_ONCE: Final = 100_000  # nanoseconds from the preparation of a query to its reading
_LEAST_MARK: Final = 2_000  # nanoseconds; between two clock readings next to each other there is less


class Block:
    """
    A stretch in which ORM objects are built, without the fetches, statements and blocks inside it.

    Opened by its constructor, in the context that `end` is called in. Times are readings of the collector's clock.

    Attributes:
        context: SQLAlchemy's of the query, while it lasts.
        loads: Statements that load relationships meanwhile, by their path.
        early: Stretches before the first break that are not marked yet.
        fetched: The fetch that was the first break, which is not marked yet either.
    """

    __slots__ = (
        "breaks", "collector", "context", "early", "ended", "execution", "fetched", "loads", "outer", "since",
        "started",
    )  # fmt: skip

    def __init__(
        self, collector: Collector, execution: Execution, context: Any, prepared: tuple[int, int] | None = None
    ) -> None:
        """
        Args:
            prepared: When the building was prepared, if that is to be counted with it.
        """
        self.collector = collector
        self.context = context
        self.execution = execution
        self.early = [] if prepared is None else [prepared]
        self.outer = building.get()
        self.ended = False
        self.breaks = 0
        self.fetched: tuple[int, int] | None = None
        self.loads: dict[tuple[Any, ...], Execution] | None = None
        building.set(self)
        self.started = self.since = collector.clock()

    def leave_out(self, start: int, end: int) -> None:
        """What happens from `start` to `end` is something else."""
        if self.ended:
            return  # a task that was begun inside carries this block in its context
        if start > self.since:
            if self.breaks:
                self.add(self.since, start)
            else:
                self.early.append((self.since, start))
        self.since = max(self.since, end)
        self.breaks += 1

    def leave_out_fetch(self, start: int, end: int) -> None:
        """As `leave_out`, of a short fetch of the very rows, whose time counts for the database."""
        if self.breaks or self.ended:
            self.mark_fetch(start, end)
        else:
            self.fetched = start, end
        self.leave_out(start, end)

    def end(self) -> None:
        now = self.collector.clock()
        building.set(self.outer)
        self.ended = True
        self.context = self.loads = None
        since = self.since
        if self.fetched is not None:
            since = self.place_fetch(*self.fetched)
        for started, ended in self.early:
            self.add(started, ended)
        self.add(since, now)
        if self.outer is not None:
            self.outer.leave_out(self.started, now)

    def place_fetch(self, start: int, end: int) -> int:
        """
        Of a query that was read at once, the fetch counts as if it had come first, and all making of objects
        as if it followed in one stretch: one mark instead of four. Returns where the last stretch begins then.
        """
        execution = self.execution
        late = self.early and self.started - self.early[0][1] > _AT_ONCE
        if late or self.breaks > 1 or execution.folded:
            self.mark_fetch(start, end)
            return self.since
        early, self.early = self.early, []
        return self.since - sum([ended - started for started, ended in early])

    def mark_fetch(self, start: int, end: int) -> None:
        """In its place, after all."""
        self.execution.marked += end - start
        mark(self.collector, self.execution.dialect, "database", start, end)

    def add(self, start: int, end: int) -> None:
        """Building took place from `start` to `end`."""
        execution = self.execution
        execution.objects += end - start
        execution.more = True
        if end - start > _LEAST_MARK:
            mark(self.collector, execution.dialect, "objects", start, end)


# A context variable, since other tasks run on this thread while an async driver loads a relationship.
building: ContextVar[Block | None] = ContextVar("sqltrace.building", default=None)
