"""
All access to what SQLAlchemy does not document.

Each reader answers `None` when SQLAlchemy has changed under it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

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
            repeated = context.compiled._insertmanyvalues.num_positional_params_counted
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
