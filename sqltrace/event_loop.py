"""
How long a request held the event loop, and how long it waited for others to let go of it.

The request's task is observed from inside: `stepped` stands between it and the
application, and sees each step begin and end. Tasks that it starts itself are
not; of them is known what `capture` measures (making objects, SQL on the loop).

The time of a step is exact. A wait often is an estimate: it is known who held
the loop right before a step, and not since when the task was ready for it. If
it was waiting for the reply to a statement, the kernel knows (`capture.replies`).
Else it is taken to have been ready all the time, as far back as `LoopLog.tail`
goes. So if its own event (a timer, a reply of another service) came in the
middle of a hold, it waited less than is reported: by the last two steps of each
of the others at most. While SQL of its own runs in a thread it is not waiting.
Where it may have held the loop itself, by tasks or threads that it waits for,
only those holds count that are known to be of others.
"""

from __future__ import annotations

from asyncio import _get_running_loop, current_task
from collections.abc import Awaitable, Generator
from threading import get_ident
from types import coroutine
from typing import Any, Final

from sqltrace.awaits import SHORT, Awaits, note_wait
from sqltrace.child_tasks import TICK, ready_since, waits_for_own
from sqltrace.clock import SECOND
from sqltrace.collector import Collector, current, mark_estimate
from sqltrace.faults import report_fault
from sqltrace.intervals import Coverage
from sqltrace.label import Label, longest_by_name
from sqltrace.loop_log import HOLD, LoopLog, log_of
from sqltrace.suspended import Suspension
from sqltrace.thread_waits import ThreadWaits
from sqltrace.watchdog import Sightings, guard, release

_NAMED: Final = 5
_MAX_WAITED_FOR: Final = 64
_MAX_SUSPENSIONS: Final = 64
_MAX_ESTIMATES: Final = 8
_MAX_BLAMED: Final = 64


class LoopShare:
    """
    One request's share of its event loop. Written by the thread of the loop only. Nanoseconds.

    Attributes:
        awaits: Where it has waited for a while; `None` for nowhere.
        observed: Whether an asyncio loop ran the request: elsewhere waiting is not known.
        held: All steps that have ended, and what is known of child tasks.
        longest: The longest of these.
        began: Of the step that is running; 0 while the task is suspended.
        left: End of the step before that.
        suspended: The coroutine that the task runs, whose frames tell what it waits for.
        suspensions: The latest stretches of a millisecond or more in which the task was suspended: start and end.
        late: Stretches for which the task may have waited before the running step. Not marked yet.
        ready: When the reply came in that the task was suspended for; `None` where that is not known.
        task: Identity of the task in which the application runs, where that is known.
        thread: Identity of the loop's thread; 0 before and after.
        thread_waits: For threads that it shares with others; `None` for none.
        responded: Whether the response has ended: who holds the loop after that is not noted.
        sightings: Where the watchdog has seen it hold the loop.
    """

    __slots__ = (
        "__weakref__", "_blamed", "_estimates", "_waited_for", "awaits", "began", "collector", "held", "label", "late",
        "left", "log", "longest", "observed", "ready", "responded", "sightings", "suspended",
        "suspensions", "task", "thread", "thread_waits",
    )  # fmt: skip

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.label = collector.label
        self.log: LoopLog | None = None
        self.observed = self.responded = False
        self.held = self.longest = self.began = self.left = self.thread = self.task = 0
        self.late: list[tuple[int, int]] = []
        self.ready: int | None = None
        self.suspended: Any = None
        self.sightings: Sightings | None = None
        self.awaits: Awaits | None = None
        self.thread_waits: ThreadWaits | None = None
        self.suspensions: list[tuple[int, int]] = []
        self._waited_for: dict[Label, int] = {}
        self._blamed = Coverage()
        self._estimates: list[tuple[int, int]] = []

    def held_until(self, now: int) -> tuple[int, int]:
        """Time held in all, and at most at a stretch, with the running step."""
        began = self.began
        running = now - began if began else 0
        return self.held + running, max(self.longest, running)

    def holders(self) -> list[tuple[Label, float]]:
        """Who held the loop while this request waited for it, and seconds; those waited for longest first."""
        worst = longest_by_name(self._waited_for.copy())[:_NAMED]
        return [(label, waited / SECOND) for label, waited in worst]

    def enter(self) -> LoopLog | None:
        """Never raises; `None` where the loop is not observed."""
        try:
            loop = _get_running_loop()
            if loop is not None:
                log = log_of(loop, self.collector.clock)
                log.enter(loop)
                self.observed, self.thread, self.log, self.task = True, get_ident(), log, id(current_task(loop))
                guard(self)
        except Exception as fault:
            report_fault("observing the event loop", fault)
        return self.log

    def leave(self) -> None:
        """Never raises."""
        release(self)
        log, self.log, self.label.name_route, self.collector.loop = self.log, None, None, None
        self.thread = 0
        try:
            if log is not None:
                log.leave()
        except Exception as fault:
            report_fault("observing the event loop", fault)

    def on_its_loop(self) -> bool:
        """Whether the caller runs on the loop: in the task itself, in a child task or in somebody else's."""
        log = self.log  # read once: the loop's own thread may leave it just now
        return log is not None and _get_running_loop() is log.loop

    def resume(self, log: LoopLog, suspension: Suspension, paused: int, now: int) -> None:
        """A task goes on now that was suspended since `paused`, for a while."""
        if now - self.left > HOLD:
            self._look_back(log, suspension, self.left, now)
        if now - paused >= SHORT:
            note_wait(self, log, suspension, paused, now)

    def _look_back(self, log: LoopLog, suspension: Suspension, left: int, now: int) -> None:
        """No task of the request has run since `left`: who held the loop meanwhile."""
        try:
            self.suspensions = [*self.suspensions[1 - _MAX_SUSPENSIONS :], (left, now)]
            log.notice(now)
            waits = log.tail(left, now, self.label, lambda: not waits_for_own(suspension, self.collector, log, left))
            self.ready = ready_since(suspension, self.collector, log, left, now)
            if self.ready == now:
                return
            worked = self._latest_work()
            self.late = [(max(since, worked), until) for since, until in waits if until - max(since, worked) >= HOLD]
            if self.ready is not None and now - self.ready > TICK and not self.late:
                self.late = [(self.ready, now)]
        except Exception as fault:
            report_fault("observing the event loop", fault)

    def suspend(self, log: LoopLog | None, began: int, now: int) -> None:
        """The step is over."""
        step = now - began
        self.held += step
        if step > self.longest:  # noqa: PLR1730 - max() takes four times as long, for every step
            self.longest = step
        if log is not None:
            log.held_until = now
            if step >= HOLD or self.late:
                self._tell(log, began, now)
        self.began, self.left = 0, now

    def settle(self) -> None:
        """Mark the wait before the running step, as nothing better is known of it. In other tasks, do nothing."""
        if not self.late or not self.in_own_task():
            return
        late, self.late = self.late, []
        ready = self.ready or 0
        if ready and self.began - ready > TICK:  # that is known better
            late = self.without_own_holds(ready, self.began)
        for since, until in late:
            if max(since, ready) < until:
                self.estimate(max(since, ready), until)

    def in_own_task(self) -> bool:
        """Whether the caller runs in a step of the request's own task, not in a child's or in somebody else's."""
        return bool(self.began) and self.on_its_loop()

    def suspended_within(self, start: int, end: int) -> list[tuple[int, int]]:
        """When the request's own task was suspended in a stretch. The oldest of very many suspensions are forgotten."""
        within = [(max(since, start), min(until, end)) for since, until in self.suspensions]
        return [(since, until) for since, until in within if since < until]

    def estimated_within(self, start: int, end: int) -> int:
        """How much of a stretch was waited, by the estimates before the running step."""
        within = [min(until, end) - max(since, start) for since, until in self._estimates]
        return sum(length for length in within if length > 0)

    def estimate(self, since: int, until: int) -> None:
        """Mark a wait of which nothing better is known."""
        mark_estimate(current.get() or self.collector, since, until)
        self.blame(since, until)
        self._estimates = [*self._estimates[1 - _MAX_ESTIMATES :], (since, until)]

    def blame(self, since: int, until: int, *, unknown: bool = True) -> int:
        """
        Remember who held the loop in a stretch that was waited. Where several waits overlap, it counts once.

        Returns for how long other requests held it.
        """
        log = self.log
        if log is None:
            return 0
        own, waited_for = self.label, self._waited_for
        holders = [*log.holders(since, until)]
        if not self.responded:
            gaps = self._blamed.gaps(since, until)
            new = holders if gaps == [(since, until)] else [holder for gap in gaps for holder in log.holders(*gap)]
            for label, held in new:
                if label is not own and (unknown or label.known):
                    waited_for[label] = waited_for.get(label, 0) + held
            for gap in gaps:
                self._blamed.add(*gap)
            if len(self._blamed) > _MAX_BLAMED:
                self._blamed.forget(self._blamed.middle())
        if len(self._waited_for) > _MAX_WAITED_FOR:  # there are many others, or it lasts, as a websocket does
            self._waited_for = dict(longest_by_name(self._waited_for)[: _MAX_WAITED_FOR // 2])
        return sum([held for label, held in holders if label is not own and label.known])

    def held_by_others(self, since: int, until: int) -> list[tuple[int, int]]:
        """The parts of a stretch in which other requests are known to have held the loop."""
        if self.log is None:  # pragma: no cover - for the type checker: it is asked on the loop
            return []
        held = self.log.within(since, until)
        return [(start, end) for start, end, label in held if label is not self.label and label.known]

    def is_alone(self, since: int, until: int) -> bool:
        """Whether no other request runs on the loop, or is known to have held it in a stretch."""
        return self.log is not None and self.log.active == 1 and not self.held_by_others(since, until)

    def without_own_holds(self, since: int, until: int) -> list[tuple[int, int]]:
        """A stretch without the parts in which child tasks are known to have held the loop; the latest piece first."""
        pieces: list[tuple[int, int]] = []
        if self.log is not None:
            for start, end, label in self.log.within(since, until):
                if label is self.label and start < until:
                    pieces.append((min(end, until), until))
                    until = start
        return [*[piece for piece in pieces if piece[0] < piece[1]], (since, until)]

    def note_hold(self, start: int, end: int) -> None:
        """Something measured kept a thread busy: if this was a child task on the loop, the request held it."""
        log = self.log
        if end - start >= HOLD and log is not None and not self.began and self.on_its_loop():
            self.held, self.longest = self.held + end - start, max(self.longest, end - start)
            self._tell(log, start, end)

    def _tell(self, log: LoopLog, start: int, end: int) -> None:
        try:
            self.settle()
            if end - start >= HOLD:
                log.notice(start)  # what a child task did before, in the same step, would be hidden behind it
                self.label.find_route()
                log.add(start, end, self.label)
        except Exception as fault:
            report_fault("observing the event loop", fault)

    def _latest_work(self) -> int:
        """When the latest piece of work of this request ended that was measured: until then it was not ready."""
        collector = current.get() or self.collector
        pending, marks = collector.pending, collector.marks.values()
        return max([pending[-1].ended if pending else 0, *[ends[-1] for ends in marks if ends]])


async def _wait_for(something: Any) -> Any:
    """Raises Python's own error for what cannot be awaited."""
    return await something


@coroutine
def stepped(awaitable: Awaitable[Any], share: LoopShare, *, within: bool = False) -> Generator[Any, Any, Any]:
    """
    Await, and note each step in the share. All else passes unchanged: values, exceptions, closing, the current task.

    On any event loop, asyncio's or not.

    Args:
        within: It runs in another task, which the request's own waits for.
    """
    inner: Any = awaitable
    if not hasattr(inner, "send"):
        if not hasattr(inner, "__await__"):
            return (yield from _wait_for(inner).__await__())
        inner = inner.__await__()
        if not hasattr(inner, "send"):
            return (yield from inner)
    clock = share.collector.clock
    log = share.log if within else share.enter()
    outer, share.suspended = share.suspended, inner
    value = error = awaited = None
    paused, task = clock(), share.task
    if not within:
        share.left = paused
    elif log is not None:
        share.task = id(current_task())
    try:
        while True:
            began = share.began = clock()
            if log is not None and (began - share.left > HOLD or began - paused >= SHORT):
                share.resume(log, Suspension(awaited, inner, error), paused, began)
            awaited = None  # a future may hold its result, which the application wants to let go of
            try:
                if error is None:
                    awaited = inner.send(value)
                else:
                    value, error = error, None
                    awaited = inner.throw(value)
            except StopIteration as stop:
                return stop.value
            finally:
                value = None  # a traceback holds this frame
                paused = clock()
                share.suspend(log, began, paused)
            if log is not None and log.beat is None:
                log.watch()
            try:
                value = yield awaited
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as raised:
                error = raised
    finally:
        share.suspended = outer if share.log is not None else None  # a task inside may outlive the request
        share.task = task
        if not within:
            share.leave()
