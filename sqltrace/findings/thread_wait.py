"""`thread_wait`: all threads that `def` endpoints and dependencies share were in use."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.wording import listed, of_threads, time
from sqltrace.recording import Recording
from sqltrace.thread_waits import ThreadWait

_NAMED = 3
_MORE = "anyio.to_thread.current_default_thread_limiter().total_tokens = "


def thread_wait(recording: Recording, *, wait: float = 0.1) -> Iterator[Finding]:
    """
    Waits for a thread, as all of them were in use.

    Args:
        wait: Seconds that the waits of a recording took.
    """
    waited = recording.thread_wait
    if waited is None or waited.waited < wait:
        return
    own = recording.name
    users = [f"{'others of ' if name == own else ''}{name} ({number:.1f})" for name, number in waited.users[:_NAMED]]
    used = f", used by {listed(users)} on average" if users else ""
    yield Finding(
        "thread_wait",
        f"{time(waited.waited)} spent waiting for {of_threads(waited.threads)} that def endpoints and dependencies"
        f" share{used}.",
        waited.waited,
        fix=_fix(waited, own),
    )


def _fix(waited: ThreadWait, own: str) -> str:
    if not waited.users:
        first = "async def for what waits long"
    elif waited.users[0][0] == own:
        first = "see what others of this route wait for"
    else:
        first = f"see what {waited.users[0][0]} waits for in them"
    if waited.threads is None:
        return first
    # Twice as many as an example: what is right depends on what they wait for.
    return f"{first}; or, in the lifespan and with a pool as large, {_MORE}{2 * waited.threads}"
