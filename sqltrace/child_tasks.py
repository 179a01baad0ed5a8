"""What a suspended task waits for: above all, whether for work that it has started itself."""

from __future__ import annotations

import sys
from asyncio import Task, all_tasks
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from sqltrace.callsite import CallSite, call_site_of
from sqltrace.collector import Collector, current, outwards
from sqltrace.loop_log import LoopLog
from sqltrace.suspended import Suspension, local_of, suspended_frames

# Functions of libraries, by qualified name, which wait for tasks or threads of their caller.
_WAITS_FOR_OWN: Final = frozenset(
    "TaskGroup.__aexit__ TaskGroup._aexit StreamingResponse.listen_for_disconnect _wait"
    " to_thread run_in_threadpool run_sync AsyncIOBackend.run_sync_in_worker_thread run_sync_in_worker_thread"
    " _AsyncSessionContextManager.__aexit__ _run_to_completion".split()  # of `async with Session.begin()`
    + (["wait_for", "_cancel_and_wait"] if sys.version_info < (3, 12) else [])
)
_RUNS_APART: Final = "BaseHTTPMiddleware.__call__"  # all of the application, but for a websocket, which passes through
_TASKS_TELL_THEIR_CONTEXT: Final = sys.version_info >= (3, 12)
SLOW: Final = 10_000_000  # nanoseconds of a suspension; asking the kernel costs some 5 microseconds
_POLL: Final = 100_000_000  # nanoseconds after which psycopg wakes up to look around, without a reply
TICK: Final = 5_000_000  # nanoseconds by which the kernel may be wrong about when data came in

# Given a connection, says how many nanoseconds ago data came in on it, if the kernel knows; given `True` as well, only
# where some of it has not been read yet. Set by `capture.replies`, which is on a floor above.
reply_age: Callable[[Any, bool], int | None] | None = None


def ready_since(suspension: Suspension, collector: Collector, log: LoopLog, left: int, now: int) -> int | None:
    """
    When the reply of the database came in that the task was suspended for since `left`.

    `None` where that is not known, as of a task that awaits something else or is cancelled. `now` where none
    has come: psycopg wakes up to look around.
    """
    if not suspension.answered:
        return None  # the latest was that to the statement before
    if now - left < SLOW or not log.holds or log.holds[-1][1] <= left:
        return None  # nothing to be waited for
    functions = suspension.functions
    polls = "wait_async" in functions
    nothing = now if polls and now - left >= _POLL else None
    checkouts = collector.checkouts
    if reply_age is None or not checkouts or "greenlet_spawn" not in functions:
        return nothing
    if [checkout for checkout in checkouts if checkout.ended is None] != checkouts[-1:]:
        return nothing  # of several connections it is not known which
    connection = checkouts[-1].connection
    age = None if connection is None else reply_age(connection(), polls)
    if age is None or now - age < left - TICK:
        return nothing
    return max(left, now - max(age, 1))


def waits_for_own(suspension: Suspension, collector: Collector, log: LoopLog, left: int) -> bool:
    """
    Whether a request may be waiting for tasks or threads of its own.

    Told from what its task awaits, and on Python 3.12 and later also from the
    contexts of all tasks. On 3.11 a task that the request has started, and is
    not awaiting now, stays unknown.

    Args:
        suspension: Of its task.
        collector: That of the request.
        log: That of its loop.
        left: When the task was suspended.
    """
    if isinstance(suspension.awaited, Task) or hasattr(suspension.awaited, "_children"):  # asyncio.gather()
        return True
    if not suspension.functions.isdisjoint(_WAITS_FOR_OWN):
        return True
    if _RUNS_APART in suspension.functions and any(map(_runs_apart, suspension.frames)):
        return True
    return _has_tasks(collector, log, left)


def site_awaiting(suspended: Any) -> CallSite | None:
    """
    The application's line at which a task waits for what it has started itself: a statement comes from there if it runs
    in a task without any line of the application, as in ``asyncio.gather(session.scalar(…), …)``.
    """
    site, waits = None, False
    for frame in suspended_frames(suspended):
        name = frame.f_code.co_qualname
        if _runs_apart(frame):
            return None
        own = call_site_of(frame)
        site, waits = own or site, waits or own is not None
        # From Python 3.12 on wait_for() awaits in its caller's task, whether that started the work or not.
        if own is None and name != "wait_for" and name not in _WAITS_FOR_OWN:
            waits = False
    return site if waits else None


def _runs_apart(frame: FrameType) -> bool:
    """Whether a frame waits for a task in which all of the application is that lies further in."""
    if frame.f_code.co_qualname != _RUNS_APART:
        return False
    scope = local_of(frame, "scope")
    return scope is None or scope["type"] != "websocket"


def _has_tasks(collector: Collector, log: LoopLog, left: int) -> bool:
    if not _TASKS_TELL_THEIR_CONTEXT:
        return False
    own = collector in outwards(current.get())  # pragma: no cover - from Python 3.12 on
    return _count_tasks(collector, log, left) > own  # pragma: no cover - likewise


def _count_tasks(collector: Collector, log: LoopLog, left: int) -> int:  # pragma: no cover - from Python 3.12 on
    """
    How many tasks of the loop belong to a request, its own included.

    All are counted at once, and anew only for one that has run since: else each of
    a thousand requests that are resumed would look at a thousand tasks.
    """
    if log.counted_at <= left:
        counts: dict[int, int] = {}
        for task in all_tasks(log.loop):
            get_context = getattr(task, "get_context", None)  # a library's own kind of task may lack it
            for theirs in outwards(get_context().get(current) if get_context is not None else None):
                counts[id(theirs)] = counts.get(id(theirs), 0) + 1
        log.task_counts = counts
        log.counted_at = log.clock()
    return log.task_counts.get(id(collector), 0)
