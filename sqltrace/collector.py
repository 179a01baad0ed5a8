"""
What travels with the context: takes the statements of one open recording.

Apart from the recording, because the context of a task can outlive the work it
was started for. When the recording ends its collector is emptied, so that a
task that runs on keeps no more than an empty shell alive, and is counted late.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from sqltrace.callsite import CallSite
from sqltrace.clock import Clock
from sqltrace.connection import Checkout
from sqltrace.failed_load import FailedLoad
from sqltrace.label import Label
from sqltrace.loop_log import HOLD
from sqltrace.missed import missed
from sqltrace.origin import QUERY, ExpiredBy, Origin
from sqltrace.statement import Failure
from sqltrace.widening import Widening

FOLD_AT = 512  # statements that may wait before the recording counts them
LEAST_MARK = 200_000  # nanoseconds of reading row by row that are marked at once


class Folder(Protocol):
    """A recording, seen from its collector."""

    def fold(self) -> None:
        """Take over what is pending."""


class LoopObserver(Protocol):
    """The share that a request has of its event loop, seen from its collector."""

    thread: int
    observed: bool
    responded: bool

    def note_hold(self, start: int, end: int) -> None:
        """Something measured kept a thread busy."""

    def settle(self) -> None:
        """Mark what was noticed of the running step, before somebody reads it."""


class Execution:
    """
    What the hot path notes of one statement, and what later stages add to it. Times in nanoseconds.

    Attributes:
        collector: That of the innermost recording that it belongs to.
        started, ended: Readings of the collector's clock around the driver's call, without `gil_wait`. Of a server-side
            cursor the first row lengthens it, but where that wait lies between them.
        key: The compiled text before IN lists are expanded: equal for equals, and SQLAlchemy's own string.
        rows, fetch: Rows that reached Python, and the time spent on fetching them after `ended`.
        longest_fetch: The longest of those by which a stream asked for more of its rows.
        marked: The part of `fetch` that the time account has where it took place. The rest counts right after `ended`.
        folded: Whether a recording has counted it while rows may still be fetched: from then on all fetching is marked.
        tail: The part of `fetch` that was not marked at that time.
        mark_at: Once `fetch` is more than this, the part that is not marked yet has to be.
        objects: Time spent on making ORM objects of the rows, without fetch and nested statements.
        entities: ORM objects made of the rows, by class name; those that the session had before are not in it.
        roots: Distinct root objects of a statement whose eager joins can repeat them in many rows.
        loop_wait: The part of `ended - started` in which the reply was there and the event loop busy elsewhere.
        gil_wait: After `ended`, for how long a thread waited for the interpreter's lock, or a processor, to go on.
        on_loop: Whether synchronous SQL ran on the thread of the request's event loop; outside of requests on any.
        origin: Why the statement ran.
        parents: Key, dialect, call site and origin of the statement that loaded the objects this one is a load for.
        widening: What eager joins made of it.
        digest: Hash of statement and parameters, of the first executions of a statement. Only good in this process.
        later_digest: The same, of some of the later executions.
        open: Whether rows may still be fetched: such a statement is counted later.
        reading: Whether all rows are being fetched at this moment.
        more: Whether there is more to count than time, rows and objects.
        span: What `Collector.probe` has said of it; `None` where there is none.
        streamed: Whether its rows stay with the server until they are read.
    """

    # Slots, all set: reading a default of the class takes ten times as long, and setting another name later longer.
    __slots__ = (
        "batch_size", "call_site", "collector", "dialect", "digest", "ended", "entities", "executemany", "failure",
        "fetch", "folded", "gil_wait", "key", "later_digest", "longest_fetch", "loop_wait", "mark_at", "marked", "more",
        "objects", "on_loop", "open", "origin", "parameters", "parents", "reading", "roots", "rows", "span", "sql",
        "started", "streamed", "tail", "widening",
    )  # fmt: skip

    def __init__(self, collector: Collector, started: int, ended: int, sql: str, key: str, dialect: Any) -> None:
        self.collector = collector
        self.started = started
        self.ended = ended
        self.sql = sql
        self.key = key
        self.dialect = dialect
        self.origin = QUERY
        self.executemany = self.folded = self.more = self.on_loop = self.open = self.reading = self.streamed = False
        self.fetch = self.gil_wait = self.longest_fetch = self.marked = self.objects = self.tail = 0
        self.mark_at = LEAST_MARK
        self.batch_size: int | None = None
        self.call_site: CallSite | None = None
        self.digest: int | None = None
        self.later_digest: int | None = None
        self.entities: dict[str, int] | None = None
        self.failure: Failure | None = None
        self.loop_wait: int | None = None
        self.parameters: str | None = None
        self.parents: ParentKey | None = None
        self.roots: int | None = None
        self.rows: int | None = None
        self.widening: Widening | None = None
        self.span: Any = None

    @property
    def elapsed(self) -> int:
        """Time of the database, as `Statement.duration`."""
        return self.ended - self.started + self.fetch - (self.loop_wait or 0)

    def as_parents(self) -> ParentKey:
        return self.key, self.dialect, self.call_site, self.origin


ParentKey = tuple[str, Any, CallSite | None, Origin]


# The parts of a time account that are marked as stretches of time; `database` also by the executions themselves.
# Work that overlaps is counted once, for the first of these that it belongs to. Making objects holds
# the processor, whatever a sibling task is waiting for; a reply that lies ready is not the database's.
Part = Literal["objects", "loop_wait", "python", "database", "connection"]
PARTS: tuple[Part, ...] = ("objects", "loop_wait", "python", "database", "connection")  # what overlaps is the first's
Marks = dict[Part, list[int]]  # start and end by turns
unmeasurable: set[Part] = set()  # with the installed SQLAlchemy


class Collector:
    """
    Takes executions for one open recording, and passes them on to those around it.

    Attributes:
        capture_parameters, max_sql_length: The most that this one or one around it asks for. Each shows its own share.
        loop_observed: Whether it was opened within a request that has its event loop observed.
        outer: That of the recording around; `None` of the outermost.
        plain: Whether it takes the statements of every engine, without their parameters.
        expired_by: By what objects of sessions have expired.
    """

    __slots__ = (
        "capture_parameters", "checkouts", "clock", "comment", "dialects", "expired_by", "failed_loads", "label",
        "late", "loads", "loop", "loop_observed", "loop_wait_estimated", "marks", "max_sql_length",
        "max_statements", "outer", "pending", "plain", "probe", "recording", "sites_taken", "unkept",
    )  # fmt: skip

    def __init__(
        self,
        recording: Folder | None,
        *,
        clock: Clock,
        dialects: frozenset[Any] | None,
        capture_parameters: bool,
        max_statements: int,
        max_sql_length: int,
        label: Label | None = None,
    ) -> None:
        self.recording = recording
        self.clock = clock
        self.dialects = dialects
        self.capture_parameters = capture_parameters
        self.max_statements = max_statements
        self.max_sql_length = max_sql_length
        self.outer: Collector | None = None
        self.plain = dialects is None and not capture_parameters
        self.loop: LoopObserver | None = None
        self.loop_observed = self.loop_wait_estimated = False
        self.probe: Callable[[Any], Any] | None = None  # is asked for the span of each statement and checkout
        self.comment: Callable[[str, Any, str], str] | None = None  # makes the text that is sent; must not raise
        self.unkept: Callable[[list[Execution]], None] | None = None  # is told of those that are let go; must not raise
        self.pending: list[Execution] | None = []
        self.marks = _no_marks()
        self.label = label or Label("")
        self.checkouts: list[Checkout] = []
        self.loads: dict[int, Execution] = {}
        self.failed_loads: list[FailedLoad] = []
        self.expired_by: set[ExpiredBy] = set()
        self.sites_taken: dict[Hashable, int] = {}  # of a text, or of one and an origin
        self.late = 0

    def fold(self) -> None:
        recording = self.recording  # read once, as `loop` below: another thread may end the recording just now
        if recording is not None:  # pragma: no branch - likewise
            recording.fold()

    def find_open(self, dialect: Any) -> Collector | None:
        """
        The innermost that is open and takes the statements of a dialect: this, or one around it.

        Those on the way that have ended count a statement that came late; if nobody is left to take it, it is missed.
        """
        collector: Collector | None = self
        late = False
        while collector is not None:
            if collector.dialects is None or dialect in collector.dialects:
                if collector.pending is not None:
                    return collector
                collector.late += 1
                late = True
            collector = collector.outer
        missed.late += late
        return None

    def settle(self) -> None:
        collector: Collector | None = self
        while collector is not None:
            if (loop := collector.loop) is not None:
                loop.settle()
            collector = collector.outer

    def nest_in(self, outer: Collector | None) -> None:
        if self.loop is not None:
            outer = _unanswered(outer)
        self.outer = outer
        if outer is not None:
            self.capture_parameters = self.capture_parameters or outer.capture_parameters
            self.max_sql_length = max(self.max_sql_length, outer.max_sql_length)
            self.plain = self.plain and not self.capture_parameters
            self.probe = outer.probe
            self.comment = outer.comment
            self.loop_observed = outer.loop_observed or ((loop := outer.loop) is not None and loop.observed)

    def forget_ended(self) -> None:
        """Take out those around it that have ended: left in another context they stay in this, and would pile up."""
        for collector in outwards(self):
            while collector.outer is not None and collector.outer.pending is None:
                collector.outer = collector.outer.outer

    def note_spans(self, probe: Callable[[Any], Any]) -> bool:
        """
        Keep with each statement from now on what `probe` says of its `ExecutionContext`, and with each checkout
        of a connection what it says of `None`. It must not raise.

        `False`, and nothing done, where a collector around this one does so already.
        """
        if self.probe is not None:
            return False
        self.probe = probe
        return True

    def close(self) -> None:
        self.recording = self.label.name_route = None
        self.probe = self.comment = self.unkept = None
        self.pending = None
        self.marks = _no_marks()
        self.checkouts = []
        self.loads = {}
        self.failed_loads = []
        self.sites_taken = {}


def _unanswered(collector: Collector | None) -> Collector | None:
    """
    Without the requests whose response has ended: no other request is part of one.

    Servers may start one in the context of another that goes on after its response: uvicorn does once it has paused
    reading from a connection.
    """
    while collector is not None and (loop := collector.loop) is not None and loop.responded:
        collector = collector.outer
    return collector


@contextmanager
def beside_answered_requests() -> Iterator[None]:
    """For a request that has no recording of its own: its statements do not count in one that has had its response."""
    outer = current.get()
    beside = _unanswered(outer)
    if beside is outer:
        yield
        return
    current.set(beside)
    try:
        yield
    finally:
        if current.get() is beside:  # not where it ends in another context, as an abandoned request may
            current.set(outer)


def outwards(collector: Collector | None) -> Iterator[Collector]:
    """A collector and those around it. What is asked very often goes the same way by hand, without a generator."""
    while collector is not None:
        yield collector
        collector = collector.outer


def _no_marks() -> Marks:
    return {"objects": [], "loop_wait": [], "python": [], "database": [], "connection": []}


def mark(collector: Collector | None, dialect: Any, part: Part, start: int, end: int) -> None:
    """
    Note in the recording and in those around it what a stretch of time was spent on. For any thread.

    Args:
        dialect: Where only some engines are recorded, others do not count; `None` always does.
    """
    while collector is not None:
        if collector.pending is not None and (
            dialect is None or collector.dialects is None or dialect in collector.dialects
        ):
            marks = collector.marks[part]
            marks += start, end
            if part == "objects" and end - start >= HOLD and (loop := collector.loop) is not None:
                loop.note_hold(start, end)
            if len(marks) >= FOLD_AT:
                collector.fold()
        collector = collector.outer


def mark_estimate(collector: Collector | None, start: int, end: int) -> None:
    """As `mark`, for time that was presumably spent on waiting for the event loop."""
    mark(collector, None, "loop_wait", start, end)
    for each in outwards(collector):
        each.loop_wait_estimated = True


current: ContextVar[Collector | None] = ContextVar("sqltrace", default=None)
