"""`thread_wait`: all threads that `def` endpoints and dependencies share were in use."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.wording import listed, time
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
        f"{time(waited.waited)} spent waiting for one of the {waited.threads} threads that def endpoints and"
        f" dependencies share{used}.",
        waited.waited,
        fix=f"{_first(waited, own)}; or, in the lifespan and with a pool as large, {_MORE}{2 * waited.threads}",
    )


def _first(waited: ThreadWait, own: str) -> str:
    if not waited.users:
        return "async def for what waits long"
    worst = waited.users[0][0]
    return f"see what {'others of this route wait for' if worst == own else f'{worst} waits for in them'}"
