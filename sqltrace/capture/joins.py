"""What a SELECT was asked for and what eager joins added: once per compiled statement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

from sqltrace.capture import join_internals
from sqltrace.capture.compatibility import self_test
from sqltrace.declaration import Declaration
from sqltrace.faults import report_fault
from sqltrace.widening import EagerJoin, Widening

_ATTRIBUTE = "_sqltrace_link"


def find_widening(compiled: Any) -> Widening | None:
    """How eager loading widened an ORM SELECT, and what it looks for; `None` for neither. Never raises."""
    try:
        state = join_internals.select_state(compiled) if work() else None
        return None if state is None else _widening(state)
    except Exception as fault:
        report_fault("analysing eager joins", fault)
        return None


@self_test("makes its eager joins in a way that is not known here: what they add is not told")
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy tells its eager joins. Imports `sqlalchemy.orm`."""
    return join_internals.joins_are_told()


def _widening(state: join_internals.SelectState) -> Widening:
    columns = [] if state.wrapped else state.primary_columns
    sent = _count_tables([*state.froms, *columns])
    joins = _eager_joins(state)
    own = _count_tables([selectable for _, selectable in state.entities])
    asked = own if state.is_load else sent - sum(join.tables for join in joins)
    lookup = state.lookup
    if lookup is not None and asked != own:
        lookup = replace(lookup, alone=False)
    return Widening(
        entities=tuple(mapper.class_.__name__ for mapper, _ in state.entities),
        asked_tables=asked,
        asked_columns=len(state.primary_columns) - state.own_columns,
        sent_tables=sent,
        sent_columns=state.sent_columns,
        joins=joins,
        lookup=lookup,
        contained=tuple(map(_contained, state.contained)),
    )


def _count_tables(elements: Iterable[Any]) -> int:
    return join_internals.count_tables(join_internals.sources(elements))


def _eager_joins(state: join_internals.SelectState) -> tuple[EagerJoin, ...]:
    targets = [join_internals.sources((join.selectable,)) for join in state.joins]
    owners = {source: place for place, sources in enumerate(targets) for source in sources}
    columns = [0] * len(targets)
    place = 0
    for column in state.secondary_columns:
        # An expression over a subquery has no table: it stands among the columns of its class.
        place = owners.get(getattr(column, "table", None), place)
        columns[place] += 1
    return tuple(map(_eager_join, state.joins, targets, columns, repeat(state.target)))


def _eager_join(join: join_internals.EagerTarget, sources: set[Any], columns: int, target: Any) -> EagerJoin:
    links = [link_of(prop) for prop in join.properties]
    last = links[-1]
    path = tuple([link.name for link in links])
    written = (*map(written_step, join.properties, join.entities[1:]), last.step)
    owner = join.properties[0].parent
    below = target is not None and owner is not target and owner.isa(target)
    return EagerJoin(
        path,
        last.entity,
        last.uselist,
        by_option=join.by_option,
        tables=join_internals.count_tables(sources) + last.secondary_tables,
        columns=columns,
        declaration=last.declaration,
        named=join.named,
        written=written,
        subclass=owner.class_.__name__ if below else None,
    )


def _contained(properties: tuple[Any, ...]) -> EagerJoin:
    links = [link_of(prop) for prop in properties]
    path = tuple([link.name for link in links])
    last = links[-1]
    return EagerJoin(
        path, last.entity, last.uselist, by_option=True, tables=0, columns=0, declaration=last.declaration, named=True,
        written=tuple([link.step for link in links]),
    )  # fmt: skip


def step_of(prop: Any, compiled: Any, subquery: bool) -> str:
    """How options have to name a relationship that a statement loads."""
    return written_step(prop, join_internals.loaded_entity(compiled, subquery) if work() else prop.entity)


def written_step(prop: Any, entity: Any) -> str:
    """How an option has to name a relationship that was loaded as this entity: of a subclass, or of an alias."""
    link, mapper = link_of(prop), entity.mapper
    if entity is prop.entity:
        return link.step
    if alias := join_internals.alias_of(entity):
        return f"{link.name}.of_type({alias})"
    subclass = mapper is not prop.mapper and mapper.isa(prop.mapper)
    return f"{link.name}.of_type({mapper.class_.__name__})" if subclass else link.step


class Link:
    """A relationship in words; `step` is `name`, and what it leads to where that is an alias: ``A.b as aliased(B)``."""

    __slots__ = ("declaration", "entity", "name", "owner", "secondary_tables", "step", "uselist")

    def __init__(self, prop: Any) -> None:
        owner, key = prop.parent.class_, prop.key
        self.owner: str = owner.__name__
        self.name = f"{self.owner}.{key}"
        self.entity: str = prop.mapper.class_.__name__
        alias = join_internals.alias_of(prop.entity)
        self.step = f"{self.name} as {alias}" if alias else self.name
        self.uselist = bool(prop.uselist)
        secondary = prop.secondary
        self.secondary_tables = 0 if secondary is None else _count_tables((secondary,))
        declaring = [
            (cls.__module__, cls.__qualname__)
            for cls in owner.__mro__
            if key in cls.__dict__ or key in cls.__dict__.get("__dataclass_fields__", ())
        ]
        self.declaration = Declaration(key, tuple(declaring))


def link_of(prop: Any) -> Link:
    """Kept on the property itself, and lives as long: no class is kept alive for it."""
    known: Link | None = prop.__dict__.get(_ATTRIBUTE)
    if known is None:
        known = prop.__dict__[_ATTRIBUTE] = Link(prop)
    return known
