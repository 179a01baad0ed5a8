"""
The time that rows take to become ORM objects, and how many objects they become.

Every ORM query makes its objects in one function of SQLAlchemy, ``orm.loading.instances``,
in chunks: all rows at once, or as many as `yield_per` says, when the application reads
on. It is replaced while engines are instrumented, and `sqlalchemy.orm` is not imported for it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from sqltrace.capture import orm_internals
from sqltrace.capture.building import Block, building
from sqltrace.capture.rows import execution_of
from sqltrace.collector import Collector, Execution, unmeasurable
from sqltrace.faults import logger, report_fault

_MAX_LOADS = 1_000  # of a recording, of which it is known that objects came from them
_lock = threading.RLock()
_wanted = False
_works: bool | None = None
_original: Callable[[Any, Any], Any] | None = None


def install() -> None:
    """Measure the making of objects, from now or from when the application imports `sqlalchemy.orm`."""
    global _wanted
    with _lock:
        _wanted = True
        install_when_imported()


def install_when_imported() -> None:
    """For the first statements of each kind: an ORM query comes here before it makes an object."""
    global _original
    # The name comes late in the import: the modules that make objects are complete then.
    if _original is None and _wanted and hasattr(sys.modules.get("sqlalchemy.orm"), "Session"):
        with _lock:
            if _original is None and _wanted and work():
                loading = orm_internals.orm_loading()
                _original, loading.instances = loading.instances, instances


def uninstall() -> None:
    global _wanted, _original
    with _lock:
        _wanted = False
        # Under somebody else's wrapper ours stays: it passes everything on, as no statement is noted.
        if _original is not None and (loading := orm_internals.orm_loading()).instances is instances:
            loading.instances, _original = _original, None


def instances(cursor: Any, context: Any) -> Any:
    """In the place of `sqlalchemy.orm.loading.instances`."""
    original = _original
    if original is None:  # taken out a moment ago, while this call was on its way
        return orm_internals.orm_loading().instances(cursor, context)
    execution = execution_of(getattr(cursor, "context", None))
    if execution is None:
        return original(cursor, context)
    build = _Build(execution.collector, execution, context)
    if orm_internals.is_prebuffered(context):
        return build.make_at_once(original, cursor)
    build.execution.open = True
    started = build.collector.clock()
    try:
        result = original(cursor, context)
    except BaseException:
        build.execution.open = False
        raise
    build.follow(result, started)
    return result


class _Build:
    """The making of objects of one statement's rows. None of its methods raises what is a fault of ours."""

    __slots__ = ("block", "collector", "context", "execution", "newest", "prepared")

    def __init__(self, collector: Collector, execution: Execution, context: Any) -> None:
        self.collector = collector
        self.execution = execution
        self.context = context  # no longer than SQLAlchemy's own generator of the chunks keeps it
        self.block: Block | None = None
        self.newest: Any = None
        self.prepared: tuple[int, int] | None = None

    def make_at_once(self, original: Callable[[Any, Any], Any], cursor: Any) -> Any:
        """As for an `AsyncSession`: the objects are there when SQLAlchemy's function answers."""
        self.execution.open = True
        self.begin()
        result = None
        try:
            result = original(cursor, self.context)
        finally:
            self.end(last=result is None)
            self.remember()
        try:
            self.count_roots(next(result.chunks(None), []))
            self.execution.open = False
        except Exception as fault:
            report_fault("timing objects", fault)
        return result

    def follow(self, result: Any, started: int) -> None:
        """SQLAlchemy has prepared to make objects since `started`: time the chunks that the application will read."""
        try:
            ended = self.collector.clock()
            outer = building.get()
            if outer is not None:
                outer.leave_out(started, ended)
            self.prepared = started, ended
            self.remember()
            timed = partial(_timed, self, result.chunks)
            iterator = chain.from_iterable(timed(orm_internals.yield_per(result)))
            result.chunks, result.iterator = timed, iterator
        except Exception as fault:
            report_fault("timing objects", fault)

    def begin(self) -> None:
        try:
            self.execution.open = True
            self.newest = orm_internals.newest_object(self.context)
            prepared, self.prepared = self.prepared, None
            self.block = Block(self.collector, self.execution, self.context, prepared)
        except Exception as fault:
            report_fault("timing objects", fault)

    def end(self, *, last: bool) -> None:
        try:
            block, self.block = self.block, None
            if block is not None:
                block.end()
            made = orm_internals.objects_since(self.context, self.newest)
            self.newest = None
            if made is not None:
                self.count_entities(made)
            if last:
                self.execution.open = False
        except Exception as fault:
            report_fault("timing objects", fault)

    def count_entities(self, made: dict[str, int]) -> None:
        before = self.execution.entities
        if before:
            made = {name: before.get(name, 0) + made.get(name, 0) for name in {**before, **made}}
        self.execution.entities = made
        self.execution.more = True

    def count_roots(self, rows: list[Any]) -> None:
        try:
            roots = orm_internals.distinct_roots(self.context, rows)
            if roots is not None:
                self.execution.roots = (self.execution.roots or 0) + roots
                self.execution.more = True
        except Exception as fault:
            report_fault("counting objects", fault)

    def remember(self) -> None:
        """For loads that these objects will lead to: the state of each has the number of the query that filled it."""
        try:
            loads, number = self.collector.loads, orm_internals.load_number(self.context)
            if number is not None:
                if len(loads) >= _MAX_LOADS:
                    del loads[next(iter(loads))]
                loads[number] = self.execution
        except Exception as fault:
            report_fault("noting which objects a statement made", fault)


def _timed(build: _Build, chunks: Callable[[int | None], Iterator[list[Any]]], size: int | None) -> Iterator[list[Any]]:
    remaining = iter(chunks(size))
    last = False
    while not last:
        last = True
        build.begin()
        try:
            rows = next(remaining)
            last = not size  # then one chunk has all rows
        except StopIteration:
            return
        finally:
            build.end(last=last)
        build.count_roots(rows)
        yield rows


def work() -> bool:
    """Self-test: whether `instances` of the installed SQLAlchemy makes objects in chunks that can be timed."""
    global _works
    if _works is None:
        _works = orm_internals.instances_come_in_chunks()
        if not _works:
            unmeasurable.add("objects")
            logger.warning(
                "this SQLAlchemy makes its objects in a way that is not known here: their time is not measured"
            )
    return _works
