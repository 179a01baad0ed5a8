"""What is measured of the statements beyond `max_statements`, of which a recording keeps only their group."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.database import Database, database_of
from sqltrace.faults import report_fault
from sqltrace.sinks.opentelemetry.attributes import summary_of
from sqltrace.sql_text import summarize
from sqltrace.statement import Failure, system_name
from sqltrace.tally import OTHER_STATEMENTS

Operation = tuple[str, str, Database | None, Failure | None]

_MAX_OPERATIONS = 200
_MAX_OPEN = 16  # whose rows are still being fetched when the recording lets them go


@dataclass(slots=True)
class Bucket:
    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value


@dataclass(slots=True)
class Measured:
    """Buckets by their number in the histogram, so that the mean of each may stand for its values."""

    durations: dict[int, Bucket] = field(default_factory=lambda: defaultdict(Bucket))
    rows: dict[int, Bucket] = field(default_factory=lambda: defaultdict(Bucket))


class Unkept:
    """
    Counts and sums by operation and bucket: all that a histogram needs, in little memory.

    Args:
        durations, rows: Boundaries of the histograms, each the highest value of its bucket.
    """

    def __init__(self, durations: tuple[float, ...], rows: tuple[float, ...]) -> None:
        self._durations, self._rows = durations, rows
        self._by_operation: dict[Operation, Measured] = {}
        self._open: list[Execution] = []

    def __call__(self, executions: list[Execution]) -> None:
        """Take what a recording is about to let go. Never raises."""
        try:
            waiting, self._open = self._open, []
            for execution in waiting + executions:
                if execution.open and len(self._open) < _MAX_OPEN:
                    self._open.append(execution)
                else:
                    self._take(execution)
        except Exception as fault:
            report_fault("measuring statements beyond max_statements", fault)

    def settle(self) -> dict[Operation, Measured]:
        """All of it, when nothing more comes."""
        for execution in self._open:
            self._take(execution)
        return self._by_operation

    def _take(self, execution: Execution) -> None:
        system = system_name(execution.dialect)
        database, summary = database_of(execution.dialect), summary_of(summarize(execution.key, system), execution)
        operation = (system, summary, database, execution.failure)
        measured = self._by_operation.get(operation)
        if measured is None:
            if len(self._by_operation) >= _MAX_OPERATIONS:
                operation = (system, OTHER_STATEMENTS, database, None)
            measured = self._by_operation.setdefault(operation, Measured())
        seconds = execution.elapsed / SECOND
        measured.durations[bisect_left(self._durations, seconds)].add(seconds)
        if execution.rows is not None:
            measured.rows[bisect_left(self._rows, execution.rows)].add(execution.rows)
