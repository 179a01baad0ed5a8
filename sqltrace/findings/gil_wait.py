"""`gil_wait`: replies of the database lay ready, and the threads that had asked could not go on."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.costs import waited_for_gil
from sqltrace.findings.wording import place, time
from sqltrace.recording import Recording


def gil_wait(recording: Recording, *, wait: float = 0.25, share: float = 0.2) -> Iterator[Finding]:
    """
    Waits of threads for the interpreter's lock, or for a processor, after replies of the database.

    Args:
        wait: Seconds that they took together, as far as they are in no other part of the time account.
        share: Least part of the duration.
    """
    waited = waited_for_gil(recording)
    if waited < wait or waited < share * recording.duration:
        return
    of_response = [group for group in recording.groups if group.phase == "response"]
    worst = max(of_response, key=lambda group: group.gil_wait)
    yield Finding(
        "gil_wait",
        f"replies of the database lay ready for {time(waited)}: meanwhile the threads that had asked waited for the"
        " interpreter's lock, or for a processor.",
        waited,
        place(worst),
        fix="nothing here: threads that compute, one at a time; fewer of them at once, or more processes",
    )
