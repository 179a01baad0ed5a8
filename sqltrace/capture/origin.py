"""Which relationship and loader a statement comes from, and which statement loaded the objects it is for."""

from __future__ import annotations

from typing import Any, Final

from sqltrace.capture import expiry, load_internals, rows
from sqltrace.capture.building import building
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.joins import find_widening, step_of
from sqltrace.capture.origins import of_attributes, of_relationship
from sqltrace.capture.orm_internals import load_number
from sqltrace.collector import Collector, Execution, ParentKey
from sqltrace.faults import report_fault
from sqltrace.origin import ExpiredBy, Origin, OriginKind
from sqltrace.sql_text import without_number
from sqltrace.widening import Widening

_OF_ATTRIBUTES: Final = ("refresh", "deferred", "subclass")
_FOR_MANY = (None, False, False, False)  # the `load` of a load that SQLAlchemy says nothing about but its path


class Purpose:
    """
    What a compiled statement tells, whoever executes it. Kept on it, and lives as long.

    Attributes:
        key: Its text before IN lists are expanded.
        is_async: Of the dialect that it was compiled for.
        reads: Whether it is a SELECT whose rows are read in the usual way.
        through_orm: Whether `explain` may have something to say.
        widening: What eager joins made of it.
        loads: Whether it loads through the ORM, and SQLAlchemy is as it is known here: only then the rest is set.
        relationship: The property that is loaded; `None` for a query, and for the attributes of an object.
        path: Of `load_internals.current_path`.
        of_subclass: Whether it may load the columns of a subclass.
        entity: Name of the class that is loaded.
        for_many: The kind of load, if it is one for many objects.
        attributes: What is loaded into one object; empty for all.
        for_one: The kind, if it is a load into one object: ``query`` until there was one, `None` where objects differ.
        inherits: Whether the relationship belongs to a class that has a base.
        step: How options name the relationship, as `Origin.step`.
        origins: Of its executions, by what these differ in. Equal ones are one object: recordings compare identities.
    """

    __slots__ = (
        "attributes", "entity", "for_many", "for_one", "inherits", "is_async", "key", "loads", "of_subclass", "origins",
        "path", "reads", "relationship", "step", "through_orm", "widening",
    )  # fmt: skip

    def __init__(self) -> None:
        self.key = ""
        self.is_async = self.reads = self.through_orm = self.loads = False
        self.widening: Widening | None = None

    def study(self, compiled: Any) -> None:
        """Set the rest, of a statement that goes through the ORM."""
        if work() and not load_internals.loads(compiled):
            return  # an INSERT, UPDATE or DELETE
        self.through_orm = True
        self.widening = find_widening(compiled)
        if not work():
            return
        self.path = load_internals.current_path(compiled)
        last = self.path[-1] if self.path else None
        self.relationship = last if hasattr(last, "uselist") else None
        self.inherits = self.relationship is not None and self.relationship.parent.inherits is not None
        self.of_subclass = not self.path and load_internals.is_subclass_load(compiled)
        self.entity = load_internals.loaded_class(compiled)
        subquery = self.relationship is not None and load_internals.is_subquery_load(compiled)
        self.for_many: OriginKind = "subquery" if subquery else "selectin"
        self.step = None
        if self.relationship is not None:
            self.step = step_of(self.relationship, compiled, subquery)
        self.attributes = load_internals.only_attributes(compiled)
        self.for_one: OriginKind | None = "query"
        self.origins: dict[Any, Origin] = {}
        self.loads = True


NOTHING: Final = Purpose()  # of SQL that was not compiled


def purpose_of(context: Any) -> Purpose:
    """The purpose of a compiled statement that was not met before."""
    compiled, purpose = context.compiled, Purpose()
    try:
        purpose.key = without_number(compiled.string)
        purpose.is_async = bool(context.dialect.is_async)
        purpose.reads = rows.work() and rows.is_made_to_return_rows(context) and not context.is_crud
        if load_internals.goes_through_orm(compiled):
            purpose.study(compiled)
    except Exception as fault:
        report_fault("finding the origin of a statement", fault)
    compiled._sqltrace_purpose = purpose  # only now: other threads take it as it is
    return purpose


def explain(execution: Execution, purpose: Purpose, context: Any) -> None:
    """Note of an execution that goes through the ORM why it ran, and how it was widened. Never raises."""
    try:
        execution.widening = purpose.widening
        if not purpose.loads:
            return
        load = load_internals.load(context)
        if load is not None or purpose.path or (purpose.of_subclass and building.get() is not None):
            _explain_load(execution, purpose, load or _FOR_MANY)
    except Exception as fault:
        report_fault("finding the origin of a statement", fault)


@self_test("loads relationships in a way that is not known here: the origin of statements is not told")
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy tells why statements run. Imports `sqlalchemy.orm`."""
    return load_internals.origins_are_told()


def _explain_load(execution: Execution, purpose: Purpose, load: tuple[Any, bool, bool, bool]) -> None:
    state, refreshes, within, asked_for = load
    kind: OriginKind
    entity = base = expired_by = None
    if refreshes:
        if purpose.for_one == "query":
            purpose.for_one = _certain_kind(purpose.attributes, state)
        kind = "refresh" if asked_for else purpose.for_one or kind_for_one(purpose.attributes, state)
        entity, base = owner_of_attributes(kind, purpose.attributes, state)
        if kind == "refresh" and not asked_for:
            expired_by = expiry.expired_by(state, execution.collector)
    else:
        kind = purpose.for_many if state is None else "immediate" if within else "lazy"
        if within and (block := building.get()) is not None:  # it may be a part of a refresh
            around = block.execution.origin
            asked_for, expired_by = around.asked_for, around.expired_by
        if purpose.inherits and state is not None:
            base = base_of_relationship(execution.collector, purpose.relationship, state)
    # What a statement has of the query's options is a part of it, but for that of a deferred column.
    by_options = load_internals.options_leaving(state, *purpose.attributes) if kind == "deferred" else ()
    key = kind, asked_for, expired_by, entity, base, by_options
    origin = purpose.origins.get(key)
    if origin is None:
        origin = purpose.origins[key] = _origin(purpose, state, *key)
    execution.origin = origin
    execution.parents = (
        parents_of_one(execution.collector, state) if state is not None else _parents_of_many(execution, purpose)
    )


def kind_for_one(attributes: frozenset[str], state: Any) -> OriginKind:
    """The kind of a load into one object: of what was loaded before, or of what was left for later."""
    certain = _certain_kind(attributes, state)
    if certain is not None:
        return certain
    if state.expired_attributes.isdisjoint(attributes):
        return "deferred"
    # What a query of the base does not load of a subclass, SQLAlchemy treats as if it had expired.
    never = not state.expired and not expiry.expires_some(state) and _lacks(_base(state), attributes)
    return "subclass" if never else "refresh"


def owner_of_attributes(kind: OriginKind, attributes: frozenset[str], state: Any) -> tuple[str, str | None]:
    """Names of the class by which an option names attributes, and of its base if that is what the query asked for."""
    own = state.class_.__name__
    base = None if kind == "refresh" else _base(state)
    if base is None:
        return own, None
    queried = base.mapper.class_.__name__
    return (own, queried) if _lacks(base, attributes) else (queried, None)


def base_of_relationship(collector: Collector, prop: Any, state: Any) -> str | None:
    """Name of the class that the query asked for, if it does not have the relationship."""
    if prop.parent.inherits is None:
        return None
    base = _base(state)
    if base is None or base.mapper.isa(prop.parent) or prop.parent in base.with_polymorphic_mappers:
        return _base_before(collector, prop, state)
    name: str = base.mapper.class_.__name__
    return name


def _base_before(collector: Collector, prop: Any, state: Any) -> str | None:
    """The same, of an object whose columns of the subclass were loaded since: it tells of their query only."""
    since = collector.loads.get(load_number(state) or 0)
    if since is None or since.origin.kind != "subclass":
        return None
    above = {mapper.class_.__name__ for mapper in prop.parent.inherits.iterate_to_root()}
    return since.origin.base if since.origin.base in above else None


def root_of(state: Any, expired_by: ExpiredBy | None) -> str | None:
    """Name of the class at the top of the inheritance of an object that expired with a flush, where it is another."""
    if expired_by != "flush":
        return None  # where there may be no object
    root = state.mapper.base_mapper
    return None if root is state.mapper else root.class_.__name__


def _base(state: Any) -> Any:
    """The entity that the query asked for, if its class is a base of the object's."""
    if state.mapper.inherits is None:
        return None
    entity = load_internals.queried_entity(state)
    return None if entity is None or entity.mapper is state.mapper else entity


def _lacks(base: Any, attributes: frozenset[str]) -> bool:
    return base is not None and not all(map(base.mapper.has_property, attributes))


def _certain_kind(attributes: frozenset[str], state: Any) -> OriginKind | None:
    """As `kind_for_one`, without looking at what the object has; `None` where that decides."""
    columns = state.mapper.column_attrs
    known = [columns[name] for name in attributes if name in columns]
    if not known or len(known) < len(attributes):
        return "refresh"
    return "deferred" if all(column.deferred for column in known) else None


def parents_of_one(collector: Collector, state: Any) -> ParentKey | None:
    """The statement that loaded an object, in this recording or in those around it."""
    number = load_number(state)
    if number is None:
        return None
    around: Collector | None = collector
    while around is not None:
        execution = around.loads.get(number)
        if execution is not None:
            # An object that is refreshed still comes from the query that found it.
            again = execution.origin.kind in _OF_ATTRIBUTES and execution.parents
            return again or execution.as_parents()
        around = around.outer
    block = building.get()
    # The objects that are being made have their number, and are not yet known by it.
    return block.execution.as_parents() if block is not None and load_number(block.context) == number else None


def _parents_of_many(execution: Execution, purpose: Purpose) -> ParentKey | None:
    """The load that is nearest above on the path, among those of the same making of objects; else the query."""
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


def _origin(
    purpose: Purpose,
    state: Any,
    kind: OriginKind,
    asked_for: bool,
    expired_by: ExpiredBy | None,
    entity: str | None,
    base: str | None,
    by_options: tuple[str, ...],
) -> Origin:
    prop = purpose.relationship
    if kind in _OF_ATTRIBUTES or prop is None:
        key = load_internals.key_of(state) if asked_for and kind == "refresh" else None
        attributes = purpose.attributes if kind in _OF_ATTRIBUTES else frozenset[str]()
        if kind == "refresh" and not asked_for:
            expired_by = expired_by or expiry.by_flush(state, attributes)
        words = kind, entity or purpose.entity, attributes, asked_for, expired_by, base, key, by_options
        return of_attributes(*words, root_of(state, expired_by))
    if state is not None:
        by_options = load_internals.options_leaving(state, prop.key)
    return of_relationship(kind, prop, asked_for, expired_by, base, by_options, step=purpose.step)
