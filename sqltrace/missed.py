"""Statements that are in no recording, counted for the whole process."""

from __future__ import annotations

from dataclasses import dataclass


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


def missed_statements() -> MissedStatements:
    """A copy of the counts of statements that are in no recording, since the process began."""
    return MissedStatements(missed.unattributed, missed.late)
