"""What is being built of rows at this moment, so that work inside it is not counted twice."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from sqltrace.collector import Collector, Execution, mark

_LEAST_MARK: Final = 2_000  # nanoseconds; between two clock readings next to each other there is less


class Block:
    """
    A stretch in which ORM objects are built, without the fetches, statements and blocks inside it.

    Opened by its constructor, in the context that `end` is called in. Times are readings of the collector's clock.

    Attributes:
        context: SQLAlchemy's of the query, while it lasts.
        loads: Statements that load relationships meanwhile, by their path.
    """

    __slots__ = ("collector", "context", "ended", "execution", "loads", "outer", "since", "started", "stretches")

    def __init__(self, collector: Collector, execution: Execution, context: Any = None) -> None:
        self.collector = collector
        self.context = context
        self.execution = execution
        self.outer = building.get()
        self.ended = False
        self.loads: dict[tuple[Any, ...], Execution] | None = None
        self.stretches: list[tuple[int, int]] = []
        building.set(self)
        self.started = self.since = collector.clock()

    def leave_out(self, start: int, end: int) -> None:
        """What happens from `start` to `end` is something else."""
        if self.ended:
            return  # a task that was begun inside carries this block in its context
        if start > self.since:
            self.stretches.append((self.since, start))
        self.since = max(self.since, end)

    def end(self) -> None:
        now = self.collector.clock()
        building.set(self.outer)
        self.leave_out(now, now)
        self.ended = True
        self.context = self.loads = None
        execution = self.execution
        for start, end in self.stretches:
            execution.objects += end - start
            if end - start > _LEAST_MARK:
                mark(self.collector, execution.dialect, "objects", start, end)
        if self.outer is not None:
            self.outer.leave_out(self.started, now)


# A context variable, since other tasks run on this thread while an async driver loads a relationship.
building: ContextVar[Block | None] = ContextVar("sqltrace.building", default=None)
