"""
All access to what SQLAlchemy does not document about the joins of a compiled ORM SELECT.

Whether the names read here are those of the installed SQLAlchemy is tested when the first
ORM statement comes, or `capabilities()` is called: `sqlalchemy.orm` is imported then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy.schema import Table
from sqlalchemy.sql import compiler, selectable

from sqltrace.capture.load_internals import compile_state_class, names_in

_STATE = {
    "create_eager_joins", "_entities", "attributes", "from_clauses", "eager_joins", "primary_columns",
    "secondary_columns", "compound_eager_adapter", "current_path",
}  # fmt: skip
_PATH = {"_loader_key", "_wildcard_path_loader_key", "_default_path_loader_key"}
_SELECT = {"_from_obj", "_raw_columns", "_where_criteria", "_setup_joins"}


def joins_are_told() -> bool:
    """Self-test: whether the names by which a SELECT tells its eager joins are known. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import path_registry, strategies

        loader = _class(strategies, "JoinedLoader")
        return bool(
            names_in(compile_state_class()) >= _STATE
            and names_in(loader) >= {"create_eager_joins", "secondary_columns"}
            and names_in(selectable.Select) >= _SELECT
            and _class(path_registry, "PropRegistry").__dict__.keys() >= _PATH
            and "_result_columns" in names_in(compiler.SQLCompiler)
            and hasattr(selectable.FromClause, "_from_objects")
        )
    except Exception:
        return False


def _class(module: Any, name: str) -> Any:
    """SQLAlchemy 2.1 has put an underscore before the names of its private classes."""
    return getattr(module, f"_{name}", None) or getattr(module, name)


class EagerTarget(NamedTuple):
    """One eager join: the properties on its path, what was joined, and whether an option of the query wants it."""

    properties: tuple[Any, ...]
    selectable: Any
    by_option: bool


class SelectState(NamedTuple):
    """
    The compile state of an ORM SELECT, as far as eager joins are concerned.

    Attributes:
        entities: Mappers and selectables of the classes asked for.
        froms: What the FROM clause was made of, before and after the eager joins; repeats itself.
        own_columns: Columns that a load adds to those of its class, to find the parents; 0 for a query.
    """

    entities: list[tuple[Any, Any]]
    joins: list[EagerTarget]
    froms: list[Any]
    primary_columns: list[Any]
    secondary_columns: list[Any]
    own_columns: int
    sent_columns: int
    is_load: bool
    wrapped: bool


def select_state(compiled: Any) -> SelectState | None:
    """`None` for a SELECT without eager joins."""
    state = compiled.compile_state
    if not getattr(state, "create_eager_joins", None):
        return None
    entities = []
    own_columns = 0
    for entity in state._entities:
        if hasattr(entity, "selectable"):
            entities.append((entity.mapper, entity.selectable))
        else:
            own_columns += len(getattr(entity, "_entities", (entity,)))
    is_load = bool(state.current_path.path)
    attributes = state.attributes
    wrapped = state.compound_eager_adapter is not None
    joins = []
    for join in state.create_eager_joins:
        path = join[2]
        # Where SQLAlchemy looks: the relationship's own option, that for its class, that for all.
        key, of_class, of_all = path._loader_key, path._wildcard_path_loader_key, path._default_path_loader_key
        option = attributes.get(key) or attributes.get(of_class) or attributes.get(of_all)
        by_option = option is not None and option.strategy is not None
        joins.append(EagerTarget(path.path[1::2], join[5].selectable, by_option))
    return SelectState(
        entities,
        joins,
        # Around a subquery the eager joins are spliced into the FROM clause; else that has the rest alone.
        list(state.from_clauses)
        if wrapped
        else [*state.from_clauses, *state.eager_joins.values(), *state.statement._where_criteria],
        state.primary_columns,
        state.secondary_columns,
        own_columns if is_load else 0,
        len(compiled._result_columns),
        is_load,
        wrapped,
    )


def sources(elements: Iterable[Any]) -> set[Any]:
    """What stands in a FROM clause of these clauses and columns: tables and their aliases, subqueries, CTEs."""
    found: set[Any] = set()
    waiting = list(elements)
    while waiting:
        element = waiting.pop()
        table = getattr(element, "table", None)  # of a column, which most are
        if table is not None:
            found.add(table)
        elif isinstance(element, selectable.Join):
            waiting += (element.left, element.right)
        elif isinstance(element, selectable.FromGrouping):
            waiting.append(element.element)
        elif isinstance(element, selectable.FromClause):
            found.add(element)
        else:
            waiting += (source for source in element._from_objects if source is not element)
    return found


def count_tables(found: Iterable[Any]) -> int:
    """Tables among sources: of a subquery those in it, of a CTE one."""
    count = 0
    for source in found:
        element = getattr(source, "element", None)
        count += 1 if element is None or type(element) is Table else _tables_within(source, element)
    return count


def _tables_within(source: Any, element: Any) -> int:
    if isinstance(source, selectable.CTE) or not isinstance(source, selectable.AliasedReturnsRows):
        return 1
    return _tables_of(element)


def _tables_of(element: Any) -> int:
    if isinstance(element, selectable.SelectStatementGrouping):  # brackets, in a union
        return _tables_of(element.element)
    if isinstance(element, selectable.CompoundSelect):
        return sum(_tables_of(select) for select in element.selects)
    if isinstance(element, selectable.Select):
        return count_tables(_select_sources(element))
    return count_tables(sources([element])) if isinstance(element, selectable.FromClause) else 1


def _select_sources(select: Any) -> set[Any]:
    joined = [join[0] for join in getattr(select, "_setup_joins", ())]
    return sources([*select._raw_columns, *select._from_obj, *select._where_criteria, *joined])
