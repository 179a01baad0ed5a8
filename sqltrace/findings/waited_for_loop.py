"""`waited_for_loop`: this recording is innocent, and waited behind others that held the event loop."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.wording import listed, time
from sqltrace.loop_log import SINKS, UNKNOWN, UNKNOWN_AT
from sqltrace.recording import Recording

_FIXES = {
    UNKNOWN.name: "nothing here: a background task, a task that a request started, or a thread; asyncio's debug mode"
    " logs what held the loop longer than its slow_callback_duration",
    SINKS: "nothing here: a sink that hands what it is told to a thread",
}
_AT, _END = UNKNOWN_AT.split("{}")
_ELSEWHERE = "await asyncio.to_thread(function) there, for what computes or blocks"


def waited_for_loop(recording: Recording, *, wait: float = 0.25, share: float = 0.2) -> Iterator[Finding]:
    """
    Args:
        wait: Least seconds for which one and the same other held the loop.
        share: Least part of the duration that was spent waiting.
    """
    waited = recording.time_account.loop_wait or 0.0
    holders = recording.waited_for
    if not holders or holders[0][1] < wait or waited < share * recording.duration:
        return
    # A holder of this name is never this request itself.
    worst = "another request of the same route" if holders[0][0] == recording.name else holders[0][0]
    site = worst.removeprefix(_AT).removesuffix(_END) if worst.startswith(_AT) else None
    named = listed(
        [f"{'another ' if name == recording.name else ''}{name} ({time(seconds)})" for name, seconds in holders]
    )
    about = "about " if recording.loop_wait_estimated else ""
    yield Finding(
        "waited_for_loop",
        f"{about}{time(waited)} of {time(recording.duration)} spent waiting for the event loop, held by {named}.",
        waited,
        site,
        fix=_ELSEWHERE if site else _FIXES.get(worst, f"nothing here: see the findings of {worst}"),
    )
