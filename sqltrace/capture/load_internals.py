"""
All access to what SQLAlchemy does not document about the loading of relationships and attributes.

Whether the names read here are those of the installed SQLAlchemy is tested when the first
ORM statement comes, or `capabilities()` is called: `sqlalchemy.orm` is imported then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FrameType, FunctionType
from typing import Any

from sqlalchemy.sql import compiler

from sqltrace.capture.compatibility import self_test

_LEAVING = {
    ("lazy", "select"): "lazyload",
    ("lazy", "immediate"): "immediateload",
    ("lazy", "raise"): "raiseload",
    ("lazy", "raise_on_sql"): "raiseload",
    ("deferred", True): "defer",
}


def origins_are_told() -> bool:
    """Self-test: whether the names by which statements tell why they run are known. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import context

        options: Any = context.QueryContext.default_load_options
        return bool(
            {"_lazy_loaded_from", "_sa_top_level_orm_context", "_refresh_state", "_is_user_refresh"}
            <= set(dir(options))
            and hasattr(compiler.SQLCompiler, "compile_state")
            and {"_entities", "current_path", "compile_options", "_sa_orm_load_options"}
            <= names_in(compile_state_class())
            and hasattr(compile_state_class().default_compile_options, "_only_load_props")
        )
    except Exception:
        return False


def compile_state_class() -> Any:
    """The class of what an ORM SELECT keeps of its compilation, whose name differs between 2.0 and 2.1."""
    from sqlalchemy.orm import context

    name = "ORMSelectCompileState"
    return getattr(context, f"_{name}", None) or getattr(context, name)


def names_in(*owners: Any) -> set[str]:
    """What the code of classes, and of functions in modules, mentions: attributes, annotations, strings."""
    names: set[str] = set()
    for owner in owners:
        for cls in getattr(owner, "__mro__", (owner,)):
            names.update(vars(cls), vars(cls).get("__annotations__", ()))
            for member in vars(cls).values():
                function = getattr(member, "__func__", member)
                if isinstance(function, FunctionType):
                    code = function.__code__
                    names.update(code.co_names, (const for const in code.co_consts if isinstance(const, str)))
    return names


def goes_through_orm(compiled: Any) -> bool:
    """Whether the ORM had a hand in the statement: also in INSERT, UPDATE and DELETE, which load nothing."""
    return type(getattr(compiled, "compile_state", None)).__module__.startswith("sqlalchemy.orm.")


def loads(compiled: Any) -> bool:
    """Whether a statement that goes through the ORM loads objects or their columns."""
    return hasattr(compiled.compile_state, "current_path")


def current_path(compiled: Any) -> tuple[Any, ...]:
    """
    From the entity of the query to what is loaded: mappers and relationship properties by turns.

    Ends in the relationship that is loaded; empty for a query of its own.
    """
    path: tuple[Any, ...] = compiled.compile_state.current_path.path
    return path


def is_subclass_load(compiled: Any) -> bool:
    """
    Whether a statement without a path may load the columns of a subclass (``polymorphic_load="selectin"``).

    By the name of its parameter: nothing else tells. Such a load runs while objects are made.
    """
    return "primary_keys" in getattr(compiled, "binds", ())


def only_attributes(compiled: Any) -> frozenset[str]:
    """The attributes that are loaded into an object which is there already; empty for all."""
    names = compiled.compile_state.compile_options._only_load_props
    return frozenset(names or ())


def load(context: Any) -> tuple[Any, bool, bool, bool] | None:
    """
    What the ORM passes along with a statement that loads more for objects it has; `None` for a query of its own.

    Returns:
        The state of the object that the load is for, `None` where it is for
        many; whether it loads attributes of that very object; whether another
        load, which is going on, runs it; whether `Session.refresh` asked for it.
    """
    options = context.execution_options.get("_sa_orm_load_options")
    if options is None:
        return None
    state = options._lazy_loaded_from
    refreshed = options._refresh_state
    within = options._sa_top_level_orm_context is not None
    if refreshed is None:
        return (state, False, within, False) if state is not None or within else None
    return refreshed, True, within, options._is_user_refresh


def is_subquery_load(compiled: Any) -> bool:
    """
    Of a load for many objects: whether it repeats the query of these in a subquery.

    What finds the parents is selected after the entity there, and before it in a ``selectin`` load.
    """
    return not hasattr(compiled.compile_state._entities[-1], "selectable")


def queried_entity(state: Any) -> Any:
    """The entity that the query asked for which loaded an object: a mapper, or an alias of one; `None` without one."""
    path = getattr(getattr(state, "load_path", None), "path", None)
    return path[-1] if path else None


@self_test("keeps options in a way that is not known here: which of them a fix replaces is not told")
def options_are_told() -> bool:
    """Self-test: whether an object tells the options of the query that found it. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import state, strategy_options

        return (
            {"load_options", "load_path"} <= names_in(state.InstanceState)
            and "context" in names_in(strategy_options.Load)
            and {"path", "strategy", "_extra_criteria"} <= names_in(strategy_options._LoadElement)
        )
    except Exception:
        return False


def options_leaving(state: Any, *names: str) -> tuple[str, ...]:
    """Options of the query that found an object which name these attributes of it, and leave them for later."""
    if not options_are_told():
        return ()
    above = state.load_path.path[1::2]
    found: list[str] = []
    for option in state.load_options:
        for element in getattr(option, "context", ()):  # one for criteria has none
            steps = element.path.path[1::2]
            if steps and steps[:-1] == above and getattr(steps[-1], "key", None) in names:  # a wildcard has no key
                criteria = ".and_(…)" if element._extra_criteria else ""
                name = f"{steps[-1].parent.class_.__name__}.{steps[-1].key}{criteria}"
                found += [f"{_LEAVING[how]}({name})" for how in element.strategy or () if how in _LEAVING]
    return tuple(found)


def key_of(state: Any) -> str | None:
    """The attribute that is the primary key of an object's class; `None` where it is several."""
    columns = state.mapper.primary_key
    return state.mapper.get_property_by_column(columns[0]).key if len(columns) == 1 else None


def made_by_database(state: Any, attributes: Iterable[str]) -> bool:
    """Whether all are columns with a default of the database, or one that it computes as a row is changed."""
    columns = [state.mapper.column_attrs[name].columns[0] for name in attributes if name in state.mapper.column_attrs]
    return bool(columns) and all(
        getattr(column, "server_default", None) is not None
        or getattr(column, "server_onupdate", None) is not None
        or getattr(getattr(column, "onupdate", None), "is_clause_element", False)
        for column in columns
    )


def loaded_class(compiled: Any) -> str | None:
    """Name of the class that a statement loads."""
    mapper = getattr(compiled.compile_state._entities[-1], "mapper", None)
    return None if mapper is None else mapper.class_.__name__


FailingLoad = tuple[Any, Any, frozenset[str], str | None]


def failing_load(frames: Iterable[FrameType]) -> FailingLoad | None:
    """
    The load in whose midst a stack stands: property, state of the object, names of columns, attribute touched.

    The property is `None` for columns, and there are no names for a relationship.

    Args:
        frames: Innermost first.
    """
    frames = iter(frames)
    for frame in frames:
        if not frame.f_globals.get("__name__", "").startswith("sqlalchemy.orm."):
            continue
        name = frame.f_code.co_name
        if name in ("_load_for_state", "_emit_lazyload"):
            variables = frame.f_locals
            prop = property_of(variables["self"])
            return prop, variables["state"], frozenset(), prop.key
        if name in ("load_scalar_attributes", "_load_scalar_attributes"):
            variables = frame.f_locals
            return None, variables["state"], frozenset(variables["attribute_names"] or ()), _touched(frames)
        if frame.f_globals["__name__"] == "sqlalchemy.orm.dynamic" and "self" in frame.f_locals:
            collection = frame.f_locals["self"]
            state = collection.instance._sa_instance_state
            return state.mapper.attrs[collection.attr.key], state, frozenset(), collection.attr.key
    return None


def _touched(frames: Iterator[FrameType]) -> str | None:
    for frame in frames:
        if frame.f_code.co_name == "__get__" and frame.f_globals.get("__name__") == "sqlalchemy.orm.attributes":
            key: str = frame.f_locals["self"].key
            return key
    return None


def property_of(loader: Any) -> Any:
    """The relationship or column property that a loader strategy is for."""
    return loader.parent_property


def path_to(state: Any) -> tuple[tuple[Any, ...], tuple[Any, ...], str | None]:
    """
    The relationships from the entity of a query to an object that it loaded, and what each was loaded as.

    The last is the name of that entity.
    """
    path = state.load_path.path
    return path[1::2], path[2::2], path[0].mapper.class_.__name__ if path else None


def failed_loads_are_told() -> bool:
    """Self-test: whether the places are known where loads raise. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import loading, state

        methods = [vars(owner)[name].__code__.co_varnames[:2] for owner, name in raising_methods()]
        columns = vars(loading).get("_load_scalar_attributes") or vars(loading)["load_scalar_attributes"]
        return (
            methods == [("self", "state")] * 2
            and {"state", "attribute_names"} <= set(columns.__code__.co_varnames)
            and all({"_load_for_state", "parent_property"} <= names_in(owner) for owner, _ in raising_methods())
            and "load_path" in names_in(state.InstanceState)
        )
    except Exception:
        return False


def raising_methods() -> list[tuple[type, str]]:
    """Where the loaders of relationships and of columns raise what ``lazy="raise"`` wants."""
    from sqlalchemy.orm import strategies

    name = "_invoke_raise_load"
    return [(owner, name) for owner in vars(strategies).values() if isinstance(owner, type) and name in vars(owner)]


def is_detached(error: BaseException) -> bool:
    kind = type(error)
    return (kind.__name__, kind.__module__) == ("DetachedInstanceError", "sqlalchemy.orm.exc")


def is_raise_load(error: BaseException) -> bool:
    """Whether one of `raising_methods` raised it."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    return entry is not None and entry.tb_frame.f_code.co_name == "_invoke_raise_load"
