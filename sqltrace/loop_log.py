"""
What held an event loop lately: by whom, from when to when. All times are readings of one clock, in nanoseconds.

One log per thread, for the loop that runs there, while requests are active on it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import islice
from operator import itemgetter
from typing import Final

from sqltrace.callsite import CallSite
from sqltrace.clock import SECOND, Clock
from sqltrace.faults import report_fault
from sqltrace.label import Label
from sqltrace.thread_waits import ThreadUses

HOLD: Final = 1_000_000  # a shorter step of a request is not worth an entry
_BEAT: Final = 20_000_000
_SOON: Final = 2_000_000  # after a late beat, as one hold often follows upon another
_LATE: Final = 10_000_000  # a beat later than this was held up; threads that compete for the GIL delay it by 5 ms
_GAP: Final = 1_000_000  # between two holds: the loop's own work
_TURNS: Final = 2
_ENTRIES: Final = 512
_SUMMED: Final = 32  # holds that become one `Sum`; as many to twice as many are looked at one by one
_SUMS: Final = 64
_MAX_NAMES: Final = 256
_UNTIL_THE_BEAT: Final = 1 << 63

_START: Final = itemgetter(0)
_END: Final = itemgetter(1)

Hold = tuple[int, int, Label]
Sum = tuple[int, int, list[tuple[Label, int, int, int]]]
UNKNOWN: Final = Label("(another task or thread)", known=False)
SINKS: Final = "(sinks of sqltrace)"


class LoopLog:
    """
    The latest holds of one event loop.

    Steps of requests are told by those who run them. What else holds the
    loop (background tasks, child tasks, callbacks) is seen by a heartbeat, which
    only runs while requests are active and have been suspended. A beat is late, or
    overdue when a request goes on, since something has held the loop from when it
    was due: what else, if no request did. That may have begun up to 20 ms earlier.

    Attributes:
        loop: `None` while no request is active. Not kept alive longer.
        beat: The next one; `None` until a request is suspended.
        held_until: End of the latest step or hold that was told, however short.
        beat_due: The loop is not known to be late before this.
        busy_since, busy_until: The latest stretch in which a due beat did not get its turn.
        seen: Since then, by the watchdog: readings of the clock, and lines at which something that is no request was.
        holds: The latest, one by one.
        recent: How many of the latest are in none of the `sums`.
        sums:
            What came before: start and end of many, and by name who held the
            loop for how long in all, first and last. A name is what it was then.
        run_since: Start of the latest hold in `sums`, or right behind them, before which the loop had rested.
        third_turn: The latest end of a hold that is the third, counted from the last, of one and the same.
        unknown_turns: As `Label.turns`, of all that is not known on this loop.
        task_counts, counted_at: Of `child_tasks`.
        thread_uses: `None` until a request was suspended for a while.
    """

    __slots__ = (
        "_context", "_names", "active", "beat", "beat_due", "busy_since", "busy_until", "clock", "counted_at",
        "held_until", "holds", "loop", "recent", "run_since", "seen", "sums", "task_counts", "third_turn",
        "thread_uses", "unknown_turns",
    )  # fmt: skip

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.loop: asyncio.AbstractEventLoop | None = None
        self.active = 0
        self.holds: deque[Hold] = deque(maxlen=_ENTRIES)
        self.sums: deque[Sum] = deque(maxlen=_SUMS)
        self.recent = self.run_since = self.third_turn = 0
        self.unknown_turns = (0, 0)
        self._names: dict[str, Label] = {}
        self.held_until = self.beat_due = self.busy_since = self.busy_until = 0
        self.beat: asyncio.TimerHandle | None = None
        self.seen: list[tuple[int, CallSite]] = []
        self.task_counts: dict[int, int] = {}  # by id: requests are not kept alive
        self.counted_at = 0
        self.thread_uses: ThreadUses | None = None
        self._context = Context()  # empty: the beat would keep alive what the context of the first request refers to

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        self.active += 1
        if self.active == 1:
            self.loop = loop
        else:
            self.notice(self.clock())

    def watch(self) -> None:
        """A request is suspended from now on: before that, none can wait for the loop. Never raises."""
        try:
            self._arm(self.clock(), _BEAT)
        except Exception as fault:
            report_fault("observing the event loop", fault)

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.loop = self.thread_uses = None
            if self.beat is not None:
                self.beat.cancel()
                self.beat = None
                self.task_counts, self.seen = {}, []
                self.busy_until = self.counted_at = 0
            if self.holds:
                self.holds.clear()
                self.sums.clear()
                self._names.clear()
                self.recent = self.run_since = self.third_turn = 0
                self.unknown_turns = (0, 0)

    def add(self, start: int, end: int, label: Label) -> None:
        if not label.known:
            last, before = self.unknown_turns
            self.unknown_turns = end, last
        else:
            last, before = label.turns
            label.turns = end, last
        self.third_turn = max(self.third_turn, before)
        self.holds.append((start, end, label))
        self.held_until = end
        self.recent += 1
        if self.recent >= 2 * _SUMMED:
            self._sum_up()

    def _sum_up(self) -> None:
        """Make one `Sum` of the older half of the recent holds."""
        recent = [*islice(self.holds, len(self.holds) - self.recent, None)]
        older, newer = recent[:_SUMMED], recent[_SUMMED:]
        self.recent = len(newer)
        reach = min(map(_START, newer))
        for start, end, _ in reversed(older):
            if self._rested(start, end, reach):
                self.run_since = reach
                break
            reach = min(reach, start)
        held: dict[Label, tuple[int, int, int]] = {}
        for start, end, label in older:
            name = self._name(label.name) if label.known else label
            length, first, last = held.get(name, (0, start, end))
            held[name] = length + end - start, min(first, start), max(last, end)
        sums = [(name, *lengths) for name, lengths in held.items()]
        self.sums.append((min(map(_START, older)), max(map(_END, older)), sums))

    def _name(self, name: str, call_site: CallSite | None = None) -> Label:
        """One label for all requests of a name: there are as many as routes. What has a line is no request."""
        label = self._names.get(name)
        if label is None:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()  # only requests without a route get here
            label = self._names[name] = Label(name, known=call_site is None, call_site=call_site)
        return label

    def notice(self, now: int) -> None:
        """The loop is alive now. Note what held it, if the beat is overdue."""
        if self.beat is not None and now - self.beat_due > _LATE:
            if self.busy_until <= self.beat_due:
                if self.beat_due - self.busy_until > _SOON:  # else it has gone round once, as for one that is ready
                    self.busy_since = self.beat_due
                self.busy_until = _UNTIL_THE_BEAT
            since = max(self.beat_due, self.held_until)
            if now - since > _LATE:
                self.add(since, now, self._unknown(since))
            self.seen = []
            self.beat_due = now

    def is_overdue(self) -> bool:
        """Whether the beat is: something holds the loop. For any thread."""
        return self.beat is not None and self.clock() - self.beat_due > _LATE

    def _unknown(self, since: int) -> Label:
        """What holds the loop and is no request: by the line at which it was seen most often."""
        sites = Counter(site for at, site in self.seen if at > since)
        if not sites:
            return UNKNOWN
        [(site, _)] = sites.most_common(1)
        return self._name(f"(another task: {site})", site)

    def tail(self, since: int, until: int, own: Label, unknown_counts: Callable[[], bool]) -> list[tuple[int, int]]:
        """
        The stretches before `until` in which others held the loop, one right after the other.

        Goes back no further than to `since`, to a hold of one's own, or to the last two steps of any other: a task
        that is ready is resumed within two turns of the loop, and nobody steps twice in a turn. In a pause between
        two holds something ran that is too short to be noted. Up to a tenth of the hold before, it does not end the
        stretches, nor is it a part of them, but between holds that are only known in sum.

        Args:
            unknown_counts: Whether what is not known to be another's counts; asked when it comes to that.
        """
        turns: dict[Label, int] = {}
        waits: list[tuple[int, int]] = []
        reach = until
        for start, end, label in islice(reversed(self.holds), self.recent):
            one = label if label.known else UNKNOWN
            turns[one] = turns.get(one, 0) + 1
            if end <= since or label is own or turns[one] > _TURNS:
                break
            if reach - end > _GAP and self._rested(start, end, reach):
                break
            if not label.known and not unknown_counts():
                break
            if start < reach:
                _extend(waits, max(start, since), reach if reach - end <= _GAP else end)
                reach = start
        else:
            if self.sums:
                far = max(since, self.run_since, self.third_turn, own.turns[0])
                unknown = self.unknown_turns[0]
                if unknown > far and not unknown_counts():
                    far = unknown
                if far < reach:
                    _extend(waits, far, reach)
        return waits

    def _rested(self, start: int, end: int, next_start: int) -> bool:
        """Whether the loop had nothing to do between a hold and the next."""
        return next_start - end > _tolerance(end - start) and not self._was_busy(end, next_start)

    def _was_busy(self, since: int, until: int) -> bool:
        return self.busy_since <= since and until <= self.busy_until + _tolerance(self.busy_until - self.busy_since)

    def within(self, since: int, until: int, count: int | None = None) -> Iterator[Hold]:
        """The parts of holds, or of the `count` latest, that lie in a stretch, the latest first."""
        for start, end, label in islice(reversed(self.holds), count):
            if end <= since:
                return
            if start < until:
                yield max(start, since), min(end, until), label

    def holders(self, since: int, until: int) -> Iterator[tuple[Label, int]]:
        """
        Who held the loop in a stretch, and for how long; some come several times.

        Those in `sums` are known by their name only. Where the holds of a name lie partly outside of the stretch,
        they have a share of their time that is as large as that of the stretch in it.
        """
        for start, end, label in self.within(since, until, self.recent):
            yield label, end - start
        for start, end, held in reversed(self.sums):
            if end <= since:
                return
            if start < until:
                for label, length, first, last in held:
                    inside = min(last, until) - max(first, since)
                    if inside > 0:
                        yield label, length * inside // (last - first)

    def _arm(self, now: int, delay: int) -> None:
        loop = self.loop
        if loop is not None:
            self.beat_due = now + delay
            self.beat = loop.call_later(delay / SECOND, self._beat, context=self._context)

    def _beat(self) -> None:
        now = self.clock()
        late = now - self.beat_due > _LATE or self.busy_until == _UNTIL_THE_BEAT
        self.notice(now)
        self.busy_until = min(self.busy_until, now)
        self._arm(now, _SOON if late else _BEAT)


def _extend(waits: list[tuple[int, int]], start: int, end: int) -> None:
    """Add a stretch right before the last, or as one with it: on a busy loop every wait is behind many."""
    if waits and waits[-1][0] == end:
        waits[-1] = start, waits[-1][1]
    else:
        waits.append((start, end))


def _tolerance(held: int) -> int:
    return max(_GAP, held // 10)


class _Thread(threading.local):
    log: LoopLog | None = None


_thread = _Thread()


def log_of(loop: asyncio.AbstractEventLoop, clock: Clock) -> LoopLog:
    """The log of the loop that is running on this thread."""
    log = _thread.log
    if log is None or log.clock is not clock or (log.active and log.loop is not loop):
        # It is of another loop: one that left its requests unfinished, or one inside of which this one runs.
        log = _thread.log = LoopLog(clock)
    return log


def note_sinks(clock: Clock, since: int) -> None:
    """What a request's sinks have held the running loop with, since it ended: others may have waited for it."""
    log = _thread.log
    if since and log is not None and log.active and log.clock is clock:
        now = clock()
        if now - since >= HOLD:
            log.add(since, now, Label(SINKS))
