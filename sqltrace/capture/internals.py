"""
All access to what SQLAlchemy does not document.

Each reader answers `None` when SQLAlchemy has changed under it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import ExecuteStyle


def batch_size(context: Any, parameters: Any) -> int | None:
    """
    Parameter sets of an executemany, or rows of the insertmanyvalues batch that is running.

    The batch is not on the context; its parameters are one flat sequence or
    dictionary, with those of the VALUES clause repeated for every row.
    """
    try:
        if context.execute_style is ExecuteStyle.EXECUTEMANY:
            return len(parameters)
        per_set = len(context.parameters[0])
        if isinstance(parameters, dict):
            repeated = sum(name.endswith("__0") for name in parameters)
        else:
            repeated = context.compiled._insertmanyvalues.num_positional_params_per_batch
        if len(parameters) == per_set:
            return 1
        size: int = (len(parameters) - (per_set - repeated)) // repeated
        return size
    except Exception:
        return None


def do_execute_fires() -> bool:
    """
    Self-test: whether a connection asks the ``do_execute`` listeners of its dialect to run a statement.

    SQLAlchemy documents these events and calls them semi-public. The method
    that fires them is run on stand-ins, not on an engine: listeners that the
    application has on its engines must not see a statement that nobody ran.
    """
    asked: list[str] = []

    def do_execute(*arguments: Any) -> bool:
        asked.append(arguments[1])
        return True

    dialect = SimpleNamespace(
        bind_typing=None,
        _has_events=True,
        dispatch=SimpleNamespace(do_execute=[do_execute]),
        do_execute=lambda *_: asked.append("the dialect, which the listener should have spared"),
    )
    context = SimpleNamespace(
        cursor=None,
        statement="SELECT 1",
        parameters=[(1,)],
        executemany=False,
        execute_style=ExecuteStyle.EXECUTE,
        no_parameters=False,
        post_exec=lambda: None,
        _setup_result_proxy=lambda: None,
    )
    connection = SimpleNamespace(
        dialect=dialect,
        engine=SimpleNamespace(_has_events=False),
        _has_events=False,
        _echo=False,
        _handle_dbapi_exception=_reraise,
    )
    try:
        Connection._exec_single_context(cast("Any", connection), cast("Any", dialect), cast("Any", context), "", [])
    except Exception:
        return False
    return asked == ["SELECT 1"]


def _reraise(error: BaseException, *_: Any) -> None:
    raise error


class LoadOptions(NamedTuple):
    """What the ORM passes along with a statement that loads entities."""

    lazy_loaded_from: Any
    within_load: bool
    refresh_state: Any


def load_options(context: Any) -> LoadOptions | None:
    """`None` for a statement that the ORM does not load entities with."""
    options = context.execution_options.get("_sa_orm_load_options")
    if options is None:
        return None
    return LoadOptions(options._lazy_loaded_from, options._sa_top_level_orm_context is not None, options._refresh_state)


def loaded_relationship(context: Any) -> Any:
    """The relationship property at the end of the path that is loaded, or `None` at the root."""
    path = context.compiled.compile_state.current_path.path
    return path[-1] if path else None


def refreshed(context: Any, options: LoadOptions) -> tuple[Literal["refresh", "deferred"], str, frozenset[str]] | None:
    """What of which entity is loaded again, or for the first time because it was deferred."""
    state = options.refresh_state
    if state is None:
        return None
    names = context.compiled.compile_state.compile_options._only_load_props or frozenset()
    columns = [state.mapper.attrs[name] for name in names if name in state.mapper.column_attrs]
    expired = bool(state.expired_attributes & names) or not columns
    kind: Literal["refresh", "deferred"] = "refresh" if expired else "deferred"
    return kind, state.class_.__name__, names


class SelectState(NamedTuple):
    """The compile state of an ORM SELECT, as far as eager joins are concerned."""

    mappers: list[Any]
    eager_joins: list[tuple[Any, Any]]
    option_paths: set[Any]
    secondary_columns: list[Any]
    primary_columns: int
    all_columns: int
    tables: int
    wrapped: bool


def select_state(compiled: Any) -> SelectState | None:
    """`None` for anything but an ORM SELECT."""
    state = getattr(compiled, "compile_state", None)
    joins = getattr(state, "create_eager_joins", None)
    if joins is None:
        return None
    mappers = [entity.mapper for entity in state._entities if getattr(entity, "mapper", None) is not None]
    added = [(join[2], join[5].selectable) for join in joins]
    tables = set()
    for mapper in mappers:
        tables.update(mapper.tables)
    asked = len(tables) + len(state._join_entities)
    return SelectState(
        mappers=mappers,
        eager_joins=added,
        option_paths={key[1] for key in state.attributes if isinstance(key, tuple) and key[0] == "loader"},
        secondary_columns=list(state.secondary_columns),
        primary_columns=len(state.primary_columns),
        all_columns=len(compiled._result_columns),
        tables=asked + sum(len(path[-1].mapper.tables) + (path[-1].secondary is not None) for path, _ in added),
        wrapped=state.compound_eager_adapter is not None,
    )
