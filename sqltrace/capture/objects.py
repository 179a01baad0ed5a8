"""
The time that rows take to become ORM objects, and how many objects they become.

Every ORM query makes its objects in one function of SQLAlchemy, ``orm.loading.instances``,
in chunks: all rows at once, or as many as `yield_per` says, when the application reads
on. It is replaced while engines are instrumented, and `sqlalchemy.orm` is not imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import chain
from typing import Any

from sqltrace.capture import orm_internals
from sqltrace.capture.building import Block, building
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.replacements import ORMReplacements, Replacements
from sqltrace.capture.rows import execution_of
from sqltrace.collector import Execution, unmeasurable
from sqltrace.faults import report_fault

_MAX_LOADS = 1_000  # statements of a recording that are remembered for the loads that their objects lead to


def _replace(replacements: Replacements) -> None:
    if work():
        replacements.replace(orm_internals.orm_loading(), "instances", _measured)


_replaced = ORMReplacements(_replace)
install, install_when_imported, uninstall = _replaced.install, _replaced.install_when_imported, _replaced.uninstall


def _measured(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @wraps(original)
    def instances(cursor: Any, context: Any) -> Any:
        execution = execution_of(getattr(cursor, "context", None))
        if execution is None:
            return original(cursor, context)
        execution.open = True
        if orm_internals.is_prebuffered(context):
            return _make_at_once(original, cursor, context, execution)
        started = execution.collector.clock()
        try:
            result = original(cursor, context)
        except BaseException:
            execution.open = False
            raise
        _follow(result, execution, context, started)
        return result

    return instances


def _make_at_once(original: Callable[[Any, Any], Any], cursor: Any, context: Any, execution: Execution) -> Any:
    """Where all objects are there when SQLAlchemy's function answers, as for an `AsyncSession`."""
    block = Block(execution, context)
    _begin(block)
    result = None
    try:
        result = original(cursor, context)
    finally:
        _end(block, context, last=result is None)
        _remember(execution, context)
    try:
        _count_roots(execution, context, next(result.chunks(None), []))
        execution.open = False
    except Exception as fault:
        report_fault("timing objects", fault)
    return result


def _follow(result: Any, execution: Execution, context: Any, started: int) -> None:
    """
    SQLAlchemy has prepared to make objects since `started`: time the chunks that will be read. Never raises.

    The context is kept no longer than SQLAlchemy's own generator of the chunks keeps it.
    """
    try:
        ended = execution.collector.clock()
        outer = building.get()
        if outer is not None:
            outer.leave_out(started, ended)
        _remember(execution, context)
        timed = partial(_timed, Block(execution, context, started, ended), context, result.chunks)
        result.iterator = chain.from_iterable(timed(orm_internals.yield_per(result)))
        result.chunks = timed
    except Exception as fault:
        report_fault("timing objects", fault)


def _timed(
    first: Block, context: Any, chunks: Callable[[int | None], Iterator[list[Any]]], size: int | None
) -> Iterator[list[Any]]:
    remaining = iter(chunks(size))
    # The reading may begin anew, with chunks of another size.
    block = Block(first.execution, context) if first.started else first
    last = False
    while not last:
        last = True
        _begin(block)
        try:
            rows = next(remaining)
            last = not size  # then one chunk has all rows
        except StopIteration:
            return
        finally:
            _end(block, context, last=last)
        _count_roots(block.execution, context, rows)
        yield rows
        if not last:
            block = Block(block.execution, context)


def _begin(block: Block) -> None:
    try:
        block.execution.open = True
        block.newest = orm_internals.newest_object(block.context)
        block.begin()
    except Exception as fault:
        report_fault("timing objects", fault)


def _end(block: Block, context: Any, *, last: bool) -> None:
    try:
        block.end()
        execution = block.execution
        made = orm_internals.objects_since(context, block.newest)
        block.newest = None
        if made is not None:
            before = execution.entities
            if before:
                made = {name: before.get(name, 0) + made.get(name, 0) for name in {**before, **made}}
            execution.entities = made
        if last and (block.outer is None or block.outer.load is not execution):
            execution.open = False
    except Exception as fault:
        report_fault("timing objects", fault)


def _count_roots(execution: Execution, context: Any, rows: list[Any]) -> None:
    try:
        roots = orm_internals.distinct_roots(context, rows)
        if roots is not None:
            execution.roots = (execution.roots or 0) + roots
            execution.more = True
    except Exception as fault:
        report_fault("counting objects", fault)


def _remember(execution: Execution, context: Any) -> None:
    """Note which statement made objects, for the loads that they lead to: their states have the query's number."""
    try:
        loads, number = execution.collector.loads, orm_internals.load_number(context)
        if number is not None and execution.collector.pending is not None:
            if len(loads) >= _MAX_LOADS:
                _forget_oldest(loads)
            loads[number] = execution
    except Exception as fault:
        report_fault("noting which objects a statement made", fault)


def _forget_oldest(loads: dict[int, Execution]) -> None:
    try:
        del loads[next(iter(loads))]
    except (KeyError, RuntimeError):  # another thread of the recording has taken it out, or has put one in
        pass


@self_test("makes its objects in a way that is not known here: their time is not measured")
def work() -> bool:
    """Self-test: whether `instances` of the installed SQLAlchemy makes objects in chunks that can be timed."""
    works = orm_internals.instances_come_in_chunks()
    if not works:
        unmeasurable.add("objects")
    return works
