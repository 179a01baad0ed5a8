"""`waited_for_loop`: this recording is innocent, and waited behind others that held the event loop."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.wording import listed, time
from sqltrace.loop_log import SINKS, UNKNOWN
from sqltrace.recording import Recording

_FIXES = {
    UNKNOWN.name: "nothing here: a background task, a task that a request started, or a thread; asyncio's debug mode"
    " logs what held the loop longer than its slow_callback_duration",
    SINKS: "nothing here: a sink that hands what it is told to a thread",
}
_ELSEWHERE = "await asyncio.to_thread(function) there, for what computes or blocks"


def waited_for_loop(recording: Recording, *, wait: float = 0.25, share: float = 0.2) -> Iterator[Finding]:
    """
    Waits for the event loop that another request or a background task held.

    Args:
        wait: Least seconds for which one and the same other held the loop.
        share: Least part of the duration that was spent waiting.
    """
    waited = recording.time_account.loop_wait or 0.0
    holders = recording.loop_holders()
    if not holders or holders[0][1] < wait or waited < share * recording.duration:
        return
    worst, own = holders[0][0], recording.name
    # A holder of this name is never this request itself.
    named = listed(
        [f"{'another ' if holder.name == own else ''}{holder.name} ({time(seconds)})" for holder, seconds in holders]
    )
    other = "another request of the same route" if worst.name == own else worst.name
    about = "about " if recording.loop_wait_estimated else ""
    yield Finding(
        "waited_for_loop",
        f"{about}{time(waited)} of {time(recording.duration)} spent waiting for the event loop, held by {named}.",
        waited,
        str(worst.call_site) if worst.call_site else None,
        fix=_ELSEWHERE if worst.call_site else _FIXES.get(worst.name, f"nothing here: see the findings of {other}"),
    )
