"""A transaction that could not be committed. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqltrace.callsite import CallSite
from sqltrace.statement import Failure


@dataclass(frozen=True, slots=True)
class FailedCommit:
    """
    A commit, or the preparing of one in two phases, that failed: what was written is not in the database.

    Attributes:
        call_site: The application's line that led to it; `None` where none is known.
        after_response: Whether the client had been told by then that all was well.
        ended: Reading of the clock, in nanoseconds.
    """

    failure: Failure
    call_site: CallSite | None = None
    after_response: bool = False
    ended: int = field(default=0, repr=False, compare=False)
