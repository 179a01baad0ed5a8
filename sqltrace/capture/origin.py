"""Which relationship and loader a statement comes from, and which statement loaded the objects it is for."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final

from sqltrace.capture import load_internals, rows
from sqltrace.capture.building import building
from sqltrace.capture.joins import find_widening, link_of
from sqltrace.capture.orm_internals import load_number
from sqltrace.collector import Collector, Execution, ParentKey
from sqltrace.declaration import Declaration
from sqltrace.faults import logger, report_fault
from sqltrace.origin import Origin, OriginKind
from sqltrace.sql_text import without_number
from sqltrace.widening import Widening

_FOR_MANY = (None, False, False, False)  # the `load` of a load that SQLAlchemy says nothing about but its path


class Purpose:
    """
    What a compiled statement tells, whoever executes it. Kept on it, and lives as long.

    Attributes:
        key: Its text before IN lists are expanded.
        is_async: Of the dialect that it was compiled for.
        reads: Whether it is a SELECT, whose rows are read as those of most.
        through_orm: Whether there may be something to explain.
        widening: What eager joins made of it.
        loads: Whether it loads through the ORM, and the others are set, which the installed SQLAlchemy may prevent.
        relationship: The property that is loaded; `None` for a query, and for the attributes of an object.
        path: Of `load_internals.current_path`.
        of_subclass: Whether it may load the columns of a subclass.
        entity: Name of the class that is loaded.
        for_many: The kind of load, if it is one for many objects.
        attributes: What is loaded into one object; empty for all.
        for_one: The kind, if it is a load into one object; `None` where the object decides, ``query`` until asked.
        origins: By kind. Each is made once for its words: the recordings tell them apart by identity.
    """

    __slots__ = (
        "attributes",
        "entity",
        "for_many",
        "for_one",
        "is_async",
        "key",
        "loads",
        "of_subclass",
        "origins",
        "path",
        "reads",
        "relationship",
        "through_orm",
        "widening",
    )

    def __init__(self) -> None:
        self.key = ""
        self.is_async = self.reads = self.through_orm = self.loads = False
        self.widening: Widening | None = None

    def study(self, compiled: Any) -> None:
        """Of a statement that goes through the ORM."""
        if work() and not load_internals.loads(compiled):
            return  # an INSERT, UPDATE or DELETE
        self.through_orm = True
        self.widening = find_widening(compiled)
        if not work():
            return
        self.loads = True
        self.path = load_internals.current_path(compiled)
        last = self.path[-1] if self.path else None
        self.relationship = last if hasattr(last, "uselist") else None
        self.of_subclass = not self.path and load_internals.is_subclass_load(compiled)
        self.entity = load_internals.loaded_class(compiled)
        subquery = self.relationship is not None and load_internals.is_subquery_load(compiled)
        self.for_many: OriginKind = "subquery" if subquery else "selectin"
        self.attributes = load_internals.only_attributes(compiled)
        self.for_one: OriginKind | None = "query"
        self.origins: dict[OriginKind, Origin] = {}


NOTHING: Final = Purpose()  # of SQL that was not compiled


def purpose_of(context: Any) -> Purpose:
    """That of the statement of an execution, of which it is not known yet. Never raises."""
    compiled = context.compiled
    if compiled is None:
        return NOTHING
    purpose = Purpose()
    try:
        purpose.key = without_number(compiled.string)
        purpose.is_async = bool(context.dialect.is_async)
        purpose.reads = rows.work() and not (context.is_crud or context.is_text or context.isddl)
        compiled._sqltrace_purpose = purpose
        if load_internals.goes_through_orm(compiled):
            purpose.study(compiled)
    except Exception as fault:
        report_fault("finding the origin of a statement", fault)
    return purpose


def explain(execution: Execution, purpose: Purpose, context: Any) -> None:
    """Tell the execution of a statement that goes through the ORM why it ran, and what became of it. Never raises."""
    try:
        execution.widening = purpose.widening
        if not purpose.loads:
            return
        load = load_internals.load(context)
        if load is not None or purpose.path or (purpose.of_subclass and building.get() is not None):
            _explain_load(execution, purpose, load or _FOR_MANY)
    except Exception as fault:
        report_fault("finding the origin of a statement", fault)


@cache
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy tells why statements run. Imports `sqlalchemy.orm`."""
    works = load_internals.origins_are_told()
    if not works:
        logger.warning(
            "this SQLAlchemy loads relationships in a way that is not known here: the origin of statements is not told"
        )
    return works


def _explain_load(execution: Execution, purpose: Purpose, load: tuple[Any, bool, bool, bool]) -> None:
    state, refreshes, within, asked_for = load
    kind: OriginKind
    if refreshes:
        if purpose.for_one == "query":
            purpose.for_one = _certain_kind(purpose.attributes, state)
        kind = "refresh" if asked_for else purpose.for_one or kind_for_one(purpose.attributes, state)
    elif state is not None:
        kind = "immediate" if within else "lazy"
    else:
        kind = purpose.for_many
    origin = purpose.origins.get(kind)
    if origin is None:
        origin = purpose.origins[kind] = _origin(kind, purpose, state)
    execution.origin = origin
    execution.parents = (
        parents_of_one(execution.collector, state) if state is not None else _parents_of_many(execution, purpose)
    )


def kind_for_one(attributes: frozenset[str], state: Any) -> OriginKind:
    """Whether a load into one object loads again, or for the first time what was left for later."""
    certain = _certain_kind(attributes, state)
    if certain is not None:
        return certain
    return "deferred" if state.expired_attributes.isdisjoint(attributes) else "refresh"


def _certain_kind(attributes: frozenset[str], state: Any) -> OriginKind | None:
    """`None` where it is up to the object."""
    columns = state.mapper.column_attrs
    known = [columns[name] for name in attributes if name in columns]
    if not known or len(known) < len(attributes):
        return "refresh"
    return "deferred" if all(column.deferred for column in known) else None


def parents_of_one(collector: Collector, state: Any) -> ParentKey | None:
    """The statement that loaded an object, in this recording or in those around it."""
    number = load_internals.load_number(state)
    if number is None:
        return None
    around: Collector | None = collector
    while around is not None:
        execution = around.loads.get(number)
        if execution is not None:
            # An object that is refreshed still comes from the query that found it.
            again = execution.origin.kind in ("refresh", "deferred") and execution.parents
            return again or execution.as_parents()
        around = around.parent
    block = building.get()
    # The objects that are being made have their number, and are not yet known by it.
    return block.execution.as_parents() if block is not None and load_number(block.context) == number else None


def _parents_of_many(execution: Execution, purpose: Purpose) -> ParentKey | None:
    """The load at the nearest place above on the path, in the same making of objects."""
    block = building.get()
    if block is None or block.ended:
        return None
    path = purpose.path
    loads = block.loads
    if loads is None:
        loads = block.loads = {}
    loads[path] = execution
    for length in range(len(path) - 2, 0, -2):
        parent = loads.get(path[:length])
        if parent is not None:
            return parent.as_parents()
    return block.execution.as_parents()


def _origin(kind: OriginKind, purpose: Purpose, state: Any) -> Origin:
    prop = purpose.relationship
    if kind in ("refresh", "deferred"):
        return of_attributes(kind, state.class_.__name__, purpose.attributes)
    if prop is None:
        return of_attributes(kind, purpose.entity, frozenset())
    return of_relationship(kind, prop)


def of_relationship(kind: OriginKind, prop: Any) -> Origin:
    link = link_of(prop)
    return _of_words(kind, link.name, str(prop.lazy), link.uselist, link.owner, link.declaration)


# By words, not by SQLAlchemy's objects: classes that an application makes as it runs are not kept alive.


@lru_cache(maxsize=4_096)
def _of_words(kind: OriginKind, name: str, lazy: str, uselist: bool, owner: str, declaration: Declaration) -> Origin:
    return Origin(kind, name, lazy, uselist, owner, declaration=declaration)


@lru_cache(maxsize=4_096)
def of_attributes(kind: OriginKind, entity: str | None, attributes: frozenset[str]) -> Origin:
    return Origin(kind, entity=entity, attributes=tuple(sorted(attributes)))
