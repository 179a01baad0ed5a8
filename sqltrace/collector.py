"""
What travels with the context: takes the statements of one open recording.

Apart from the recording, because the context of a task can outlive the work it
was started for. When the recording ends its collector is emptied, so that a
task that runs on keeps no more than an empty shell alive, and is counted late.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from sqltrace.callsite import CallSite
from sqltrace.statement import Failure

Clock = Callable[[], int]
FOLD_AT = 512  # statements that may wait before the recording counts them


class Folder(Protocol):
    """A recording, seen from its collector."""

    def fold(self) -> None:
        """Take over what is pending."""


# What the hot path notes of one statement, a plain tuple for its speed: started and ended (readings of the
# collector's clock), SQL, key, dialect, failure, executemany, batch size, call site, parameters. The key is the
# compiled text before IN lists are expanded: equal for equals, and the very string that SQLAlchemy has cached.
Execution = tuple[int, int, str, str, Any, Failure | None, bool, int | None, CallSite | None, str | None]


class Collector:
    """Takes executions for one open recording, and passes them on to those around it."""

    __slots__ = (
        "capture_parameters", "clock", "dialects", "late", "max_sql_length", "max_statements",
        "parent", "pending", "recording", "sites_taken",
    )  # fmt: skip

    def __init__(
        self,
        recording: Folder,
        *,
        clock: Clock,
        dialects: frozenset[Any] | None,
        capture_parameters: bool,
        max_statements: int,
        max_sql_length: int,
    ) -> None:
        self.recording: Folder | None = recording
        self.clock = clock
        self.dialects = dialects
        self.capture_parameters = capture_parameters
        self.max_statements = max_statements
        self.max_sql_length = max_sql_length
        self.parent: Collector | None = None
        self.pending: list[Execution] | None = []
        self.sites_taken: dict[str, int] = {}
        self.late = 0

    def fold(self) -> None:
        if self.recording is not None:  # pragma: no branch - another thread may end the recording just now
            self.recording.fold()

    def close(self) -> None:
        self.recording = None
        self.pending = None
        self.sites_taken = {}


@dataclass(slots=True)
class MissedStatements:
    """
    Statements of this process that are in no recording.

    Attributes:
        unattributed:
            Ran where no recording was open: at start-up, in a cron thread, or in
            a bare `threading.Thread` or ``loop.run_in_executor()`` call of a
            request, which do not inherit its context. Remedy for the last:
            ``run_in_executor(None, contextvars.copy_context().run, function)``,
            or `asyncio.to_thread`.

        late: Ran in a task that outlived its recording.
    """

    unattributed: int = 0
    late: int = 0


# Counted without a lock: exact where the GIL makes one `+=` atomic, close elsewhere.
missed = MissedStatements()

current: ContextVar[Collector | None] = ContextVar("sqltrace", default=None)
