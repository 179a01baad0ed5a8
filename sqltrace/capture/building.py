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
        prepared: When the building was prepared, if that is to be counted with it.
    """

    __slots__ = (
        "breaks", "collector", "context", "ended", "execution", "loads", "outer", "prepared", "since", "started",
    )  # fmt: skip

    def __init__(
        self, collector: Collector, execution: Execution, context: Any, prepared: tuple[int, int] | None = None
    ) -> None:
        self.collector = collector
        self.context = context
        self.execution = execution
        self.prepared = prepared
        self.outer = building.get()
        self.ended = False
        self.breaks = 0
        self.loads: dict[tuple[Any, ...], Execution] | None = None
        building.set(self)
        self.started = self.since = collector.clock()

    def leave_out(self, start: int, end: int) -> None:
        """What happens from `start` to `end` is something else."""
        if self.ended:
            return  # a task that was begun inside carries this block in its context
        if start > self.since:
            self.add(self.since, start)
        self.since = max(self.since, end)
        self.breaks += 1

    def end(self) -> None:
        now = self.collector.clock()
        building.set(self.outer)
        self.ended = True
        self.context = self.loads = None
        since = self.since
        if self.prepared is not None:
            started, ended = self.prepared
            execution = self.execution
            if self.breaks == 1 and execution.fetch == execution.tail:
                # The fetch between them counts as if it had come before: so both are one stretch, and one mark.
                since -= ended - started
            else:
                self.add(started, ended)
        self.add(since, now)
        if self.outer is not None:
            self.outer.leave_out(self.started, now)

    def add(self, start: int, end: int) -> None:
        """Building took place from `start` to `end`."""
        execution = self.execution
        execution.objects += end - start
        if end - start > _LEAST_MARK:
            mark(self.collector, execution.dialect, "objects", start, end)


# A context variable, since other tasks run on this thread while an async driver loads a relationship.
building: ContextVar[Block | None] = ContextVar("sqltrace.building", default=None)
