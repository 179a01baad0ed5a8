"""
All access to what SQLAlchemy does not document about the joins of a compiled ORM SELECT.

Whether the names read here are those of the installed SQLAlchemy is tested when the first
ORM statement comes, or `capabilities()` is called: `sqlalchemy.orm` is imported then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy.schema import Table
from sqlalchemy.sql import compiler, elements, operators, selectable, visitors

from sqltrace.capture.load_internals import compile_state_class, names_in
from sqltrace.widening import Lookup

_STATE = {
    "create_eager_joins", "_entities", "attributes", "from_clauses", "eager_joins", "primary_columns",
    "secondary_columns", "compound_eager_adapter", "current_path", "_for_update_arg", "select_statement",
}  # fmt: skip
_CONTAINED = "user_defined_eager_row_processor"
_PATH = {"_loader_key", "_wildcard_path_loader_key", "_default_path_loader_key"}
_SELECT = {"_from_obj", "_raw_columns", "_where_criteria", "_setup_joins", "_with_options"}
_RANGES = {operators.lt, operators.le, operators.gt, operators.ge}


def joins_are_told() -> bool:
    """Self-test: whether the names by which a SELECT tells its eager joins are known. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import context, path_registry, strategies, util

        loader = _class(strategies, "JoinedLoader")
        return bool(
            names_in(compile_state_class()) >= _STATE
            and names_in(loader) >= {"create_eager_joins", "secondary_columns", _CONTAINED}
            and names_in(selectable.Select) >= _SELECT
            and _class(path_registry, "PropRegistry").__dict__.keys() >= _PATH
            and "_result_columns" in names_in(compiler.SQLCompiler)
            and hasattr(selectable.FromClause, "_from_objects")
            and hasattr(elements.ColumnElement, "_annotations")
            and "entity_zero" in names_in(context._MapperEntity)
            and {"_base_alias", "_use_mapper_path"} <= names_in(util.AliasedInsp)
            and "requested_statement" in names_in(_class(context, "ORMFromStatementCompileState"))
        )
    except Exception:
        return False


def _class(module: Any, name: str) -> Any:
    """SQLAlchemy 2.1 has put an underscore before the names of its private classes."""
    return getattr(module, f"_{name}", None) or getattr(module, name)


class EagerTarget(NamedTuple):
    """
    One eager join.

    Attributes:
        properties: On its path.
        entities: In front of these: mappers, or aliases, which may be of a subclass.
        selectable: What was joined.
        by_option, named: Whether an option of the query wants it, and one for this very relationship.
    """

    properties: tuple[Any, ...]
    entities: tuple[Any, ...]
    selectable: Any
    by_option: bool
    named: bool


class SelectState(NamedTuple):
    """
    The compile state of an ORM SELECT, as far as eager joins are concerned.

    Attributes:
        entities: Mappers and selectables of the classes asked for.
        froms: What the FROM clause was made of, before and after the eager joins; repeats itself.
        own_columns: Columns that a load adds to those of its class, to find the parents; 0 for a query.
        lookup: `None` for a load, and where nothing is known. Its `alone` is without a look at the tables.
        contained: Properties on the paths of what a query joins itself and takes along (`contains_eager`).
        target: Mapper of what a load is for; `None` for a query.
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
    lookup: Lookup | None
    contained: tuple[tuple[Any, ...], ...] = ()
    target: Any = None


def select_state(compiled: Any) -> SelectState | None:
    """`None` for a SELECT that takes nothing along, and in which there is nothing to be known of what it looks for."""
    state = compiled.compile_state
    eager = getattr(state, "create_eager_joins", None)
    if eager is None:
        return None
    if hasattr(state, "requested_statement"):
        return _of_own_statement(state, compiled)
    is_load = bool(state.current_path.path)
    lookup = None if is_load else _lookup(state, compiled.binds)
    contained = () if is_load else _contained(state)
    if not (eager or lookup or contained):
        return None
    entities = []
    own_columns = 0
    for entity in state._entities:
        if hasattr(entity, "selectable"):
            entities.append((entity.mapper, entity.selectable))
        else:
            own_columns += len(getattr(entity, "_entities", (entity,)))
    wrapped = state.compound_eager_adapter is not None
    # Around a subquery the eager joins are spliced into the FROM clause; else that has the rest alone.
    froms = [] if wrapped else [*state.eager_joins.values(), *state.statement._where_criteria]
    return SelectState(
        entities,
        joins=[_eager_target(state.attributes, join[2], join[5]) for join in eager],
        froms=[*state.from_clauses, *froms],
        primary_columns=state.primary_columns,
        secondary_columns=state.secondary_columns,
        own_columns=own_columns if is_load else 0,
        sent_columns=len(compiled._result_columns),
        is_load=is_load,
        wrapped=wrapped,
        lookup=lookup,
        contained=contained,
        target=next((step.mapper for step in reversed(state.current_path.path) if hasattr(step, "uselist")), None),
    )


def _eager_target(attributes: Any, path: Any, target: Any) -> EagerTarget:
    # Where SQLAlchemy looks: the relationship's own option, that for its class, that for all.
    key, of_class, of_all = path._loader_key, path._wildcard_path_loader_key, path._default_path_loader_key
    option = attributes.get(key) or attributes.get(of_class) or attributes.get(of_all)
    by_option = option is not None and option.strategy is not None
    named = by_option and option is attributes.get(key)
    return EagerTarget(path.path[1::2], path.path[::2], target.selectable, by_option, named)


def _contained(state: Any) -> tuple[tuple[Any, ...], ...]:
    keys = list(state.attributes)  # in one C call: another thread, that runs the same, may add to them
    return tuple([key[1][1::2] for key in keys if key[0] == _CONTAINED])


def _of_own_statement(state: Any, compiled: Any) -> SelectState | None:
    """The state of a `from_statement`, which may be text: only what its rows become is known."""
    entities = [(entity.mapper, entity.selectable) for entity in state._entities if hasattr(entity, "selectable")]
    if not entities:
        return None
    aliases = tuple([alias_of(entity.entity_zero) for entity in state._entities if hasattr(entity, "selectable")])
    return SelectState(
        entities,
        joins=[],
        froms=[selectable for _, selectable in entities],
        primary_columns=[column for _, selectable in entities for column in selectable.c],
        secondary_columns=[],
        own_columns=0,
        sent_columns=len(compiled._result_columns),
        is_load=False,
        wrapped=False,
        lookup=Lookup(aliases, joinable=False),
    )


def _lookup(state: Any, binds: Any) -> Lookup | None:
    """`None` for a SELECT of no class, and where there is nothing to be known."""
    asked = [entity.entity_zero for entity in state._entities if hasattr(entity, "selectable")]
    if not asked:
        return None
    mapper = asked[0].mapper
    key = mapper.primary_key
    joinable = state._for_update_arg is None  # PostgreSQL locks no outer join
    asked_for = state.select_statement
    options = not all(option._is_criteria_option for option in asked_for._with_options)
    if "pk_1" in binds:  # by the name of its parameter: nothing else tells
        equal = [_name(mapper, mapper.get_property_by_column(column).key) for column in key]
        return Lookup(("",), tuple(equal), alone=True, is_key=True, by_get=True, joinable=joinable, options=options)
    compared, others = _sorted_out(state.statement._where_criteria, mapper)
    equal = [_name(*attribute) for attribute in compared]
    columns = [owner.columns[name] for owner, name in compared]
    is_key = len(asked) == 1 and set(columns) >= set(key)
    alone = len(asked) == 1 and not others
    if is_key and len(columns) > len(key):  # a key needs no more: what else there is, as a tenant, is the same for all
        alone, of_key = False, set(key)
        equal = [name for name, column in zip(equal, columns, strict=True) if column in of_key]
    aliases = tuple(map(alias_of, asked))
    if joinable and not (equal or any(aliases)):
        return None
    return Lookup(
        aliases,
        tuple(equal),
        alone=alone,
        is_key=is_key,
        joinable=joinable,
        values=_have_values([*others, *(join[1] for join in asked_for._setup_joins)]),
        options=options,
    )


def _sorted_out(conditions: Iterable[Any], asked: Any) -> tuple[list[tuple[Any, str]], list[Any]]:
    """What `_compared` says of those that compare, and the others, without those of the mapping."""
    compared, others, waiting = [], [], list(conditions)
    for clause in waiting:  # which grows meanwhile
        operator = getattr(clause, "operator", None)
        if operator is operators.and_:
            waiting += clause.clauses
        elif operator is operators.eq and (attribute := _compared(clause, asked)) is not None:
            compared.append(attribute)
        elif not _is_of_inheritance(clause, operator):
            others.append(clause)
    return compared, others


def _name(mapper: Any, key: str) -> str:
    return f"{mapper.class_.__name__}.{key}"


def _compared(clause: Any, asked: Any) -> tuple[Any, str] | None:
    """
    Mapper and attribute that a comparison holds against one value; `None` where it compares something else.

    Args:
        asked: The mapper that was asked for: a column of its table tells none.
    """
    for column, value in ((clause.left, clause.right), (clause.right, clause.left)):
        about = getattr(column, "_annotations", {})
        if isinstance(value, elements.BindParameter):
            mapper = about.get("parentmapper", asked)
            if "proxy_key" in about:
                return mapper, about["proxy_key"]
            if mapper.columns.contains_column(column):  # also of `Book.author == author`, or with_parent()
                return mapper, mapper.get_property_by_column(column).key
    return None


def _have_values(clauses: Iterable[Any]) -> bool:
    """Whether these conditions have values that may be what differs: one bound (``> 0``) and ``!=`` hardly do."""
    bounds = 0
    for clause in clauses:
        operator = getattr(clause, "operator", None)
        if not isinstance(clause, elements.ColumnElement) or operator is operators.ne or not _has_value(clause):
            continue
        bounds += operator in _RANGES
        if operator not in _RANGES or bounds > 1:
            return True
    return False


def _has_value(clause: Any) -> bool:
    return any(isinstance(element, elements.BindParameter) for element in visitors.iterate(clause))


def _is_of_inheritance(clause: Any, operator: Any) -> bool:
    """Whether the mapping adds it, as of a class that shares its table with others."""
    about = getattr(getattr(clause, "left", None), "_annotations", {})
    return operator is operators.in_op and "parentmapper" in about and "proxy_key" not in about


def alias_of(entity: Any) -> str:
    """``aliased(Book)``, ``with_polymorphic(Book, [Novel])``; empty for the class itself."""
    if not entity.is_aliased_class or getattr(entity, "_use_mapper_path", True):  # SQLAlchemy makes the latter itself
        return ""
    entity = entity._base_alias() or entity  # of a subclass within a with_polymorphic()
    name = entity.mapper.class_.__name__
    others = [mapper.class_.__name__ for mapper in entity.with_polymorphic_mappers if mapper is not entity.mapper]
    return f"with_polymorphic({name}, [{', '.join(others)}])" if others else f"aliased({name})"


def loaded_entity(compiled: Any, subquery: bool) -> Any:
    """What a load of a relationship loads: a mapper, or an alias of one."""
    return compiled.compile_state._entities[0 if subquery else -1].entity_zero


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
