"""
All access to what SQLAlchemy's Core does not document. That of the ORM is in files of their own: `orm_internals`,
`load_internals`, `join_internals`.

A reader answers `None` where SQLAlchemy has changed under it. Those that raise instead are called where that is
reported; a self-test at install has then said that what they measure is missing.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import pool
from sqlalchemy.engine import Connection, CursorResult, Dialect, Engine, cursor
from sqlalchemy.engine.default import DefaultDialect, DefaultExecutionContext
from sqlalchemy.engine.interfaces import ExecuteStyle

__all__ = ["BufferedRowCursorFetchStrategy", "CursorFetchStrategy"]

try:
    from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy, CursorFetchStrategy
except ImportError:  # pragma: no cover - tests/test_internals.py has it happen, in another process
    BufferedRowCursorFetchStrategy = CursorFetchStrategy = object  # type: ignore[misc, assignment]
DEFAULT_FETCH: Any = getattr(cursor, "_DEFAULT_FETCH", None)


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


def driver_descriptor(adapted: Any) -> int | None:
    """
    The file descriptor on which a driver talks to the database; `None` where it has none, or does not tell.

    Args:
        adapted: SQLAlchemy's adapted connection, or the pool's proxy of it.
    """
    try:
        # Of psycopg the connection tells itself, of asyncpg and asyncmy its transport, of aiomysql its writer, and of
        # PyMySQL its socket.
        connection = adapted.driver_connection
        if getattr(getattr(connection, "pgconn", None), "pipeline_status", 0):
            return None  # what comes in may be the reply to another statement
        source = connection
        if not hasattr(connection, "fileno"):
            transport = getattr(connection, "_transport", None) or getattr(connection, "_writer", None)
            source = getattr(connection, "_sock", None) if transport is None else transport.get_extra_info("socket")
        descriptor = -1 if source is None else source.fileno()
        return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None
    except Exception:
        return None


def fetch_strategy(context: Any) -> Any:
    """How SQLAlchemy is going to read the cursor of this execution, unless the dialect decides otherwise."""
    return context.cursor_fetch_strategy


def have_all_listened_to(kind: Any = Dialect) -> None:
    """
    Have dialects ask their listeners, as SQLAlchemy's own do since there are any.

    That of DuckDB, and those made after it, say of themselves that they have none. Those that are imported later are
    for `have_listened_to`.
    """
    if vars(kind).get("_has_events") is False:
        kind._has_events = True
    for each in kind.__subclasses__():
        have_all_listened_to(each)


def have_listened_to(dialect: Any) -> None:
    if not getattr(dialect, "_has_events", True):
        dialect._has_events = True


def rows_at_hand(context: Any) -> Any:
    """The rows that an asynchronous driver has fetched with the execution; nothing where that is not known."""
    return getattr(context.cursor, "_rows", None) or ()


def make_room(dialect: Dialect) -> None:
    """
    Have the executions of a dialect laid out with room for what we set on them, until `take_room_back`.

    CPython lays the attributes of all instances of a class out alike, by the names of the first few. What is set
    later on one of them gives that one a dictionary of its own, which makes each use of it dearer. So they get a
    class that has had no instances, also where statements ran before.
    """
    try:
        kind: Any = dialect.execution_ctx_cls
        if _ROOM_OF not in vars(kind):
            dialect.execution_ctx_cls = _with_room(kind)
    except Exception:
        return


def take_room_back(dialect: Dialect) -> None:
    kind: Any = vars(dialect).get("execution_ctx_cls")
    original = getattr(kind, "__dict__", {}).get(_ROOM_OF)
    if original is None:
        return
    dialect.execution_ctx_cls = original  # at each moment another thread may run a statement
    if getattr(type(dialect), "execution_ctx_cls", None) is original:
        del dialect.execution_ctx_cls


_ROOM_OF = "_sqltrace_room_of"


@lru_cache(maxsize=64)
def _with_room(kind: Any) -> Any:
    named = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
    roomy: Any = type(kind.__name__, (kind,), {**named, _ROOM_OF: kind})
    first = roomy.__new__(roomy)
    first.cursor_fetch_strategy = first._sqltrace = None
    return roomy


def is_read_directly(context: Any) -> bool:
    """Whether a compiled SELECT is not streamed, and read as SQLAlchemy reads most cursors."""
    return (
        context.cursor_fetch_strategy is DEFAULT_FETCH
        and not context._is_server_side
        and not context.execution_options.get("stream_results", False)
    )


def is_streamed(context: Any) -> bool:
    """Whether SQLAlchemy would read the cursor through a buffer, of a server-side cursor or because it was asked to."""
    if context._is_server_side:
        return True
    return bool(context.execution_options.get("stream_results", False) and not context.is_crud and not context.is_text)


def buffer_rows(strategy: BufferedRowCursorFetchStrategy, result: Any, dbapi_cursor: Any) -> None:
    """Fill the buffer, which is empty."""
    BufferedRowCursorFetchStrategy._buffer_rows(strategy, result, dbapi_cursor)


def buffered_rows(strategy: BufferedRowCursorFetchStrategy) -> int:
    """Rows in the buffer."""
    return len(strategy._rowbuffer)


# What SQLAlchemy does to a result whose rows were all read; where it is missing, `rows.work` finds out.
soft_close: Any = getattr(CursorResult, "_soft_close", None)


def stand_in_context(rows: list[tuple[int, ...]], *, server_side: bool) -> Any:
    """An execution of textual SQL with these rows, without an engine or a connection: for self-tests."""
    context: Any = DefaultExecutionContext.__new__(DefaultExecutionContext)
    pending = list(rows)

    def take(size: int) -> list[tuple[int, ...]]:
        taken = pending[:size]
        del pending[:size]
        return taken

    context.dialect = DefaultDialect()
    context.execution_options = {}
    context.is_text = True
    if not hasattr(context, "_is_server_side"):
        raise AttributeError("_is_server_side")
    context._is_server_side = server_side
    context.cursor = SimpleNamespace(
        rowcount=-1,
        description=[("a", None, None, None, None, None, None)],
        fetchone=lambda: next(iter(take(1)), None),
        fetchmany=take,
        fetchall=lambda: take(len(pending)),
        close=lambda: None,
    )
    context.root_connection = SimpleNamespace(_echo=False, _safe_close_cursor=lambda cursor: cursor.close())
    return context


def result_of(context: Any) -> Any:
    """The result of an execution, made as SQLAlchemy makes it."""
    return context._setup_result_proxy()


def waiting() -> tuple[type, str] | None:
    """Where `QueuePool`, of threads and of asyncio, waits for a connection: the class and the name of its method."""
    asked: list[str] = []

    class Asked(pool.QueuePool):
        def _do_get(self) -> Any:
            asked.append("itself")
            _reraise(LookupError())

    try:
        if vars(pool.QueuePool)["_do_get"] is pool.AsyncAdaptedQueuePool._do_get:
            Asked(cast("Any", None)).connect()
    except Exception:
        return (pool.QueuePool, "_do_get") if asked else None
    return None


def connecting() -> tuple[type, str] | None:
    """Where every pool opens a connection and initialises it: the class and the name of its method."""
    name = "_ConnectionRecord__connect"
    asked: list[str] = []
    try:
        entry: Any = vars(pool)["_ConnectionRecord"]
        if name in vars(entry):
            type("Asked", (entry,), {name: lambda _: asked.append("itself")})(None)
    except Exception:
        return None
    return (entry, name) if asked else None


def asks_for_raw_connection() -> bool:
    """Self-test: whether a `Connection` takes what it runs on from ``Engine.raw_connection()``, which is public."""
    asked: list[str] = []

    def raw_connection() -> None:
        asked.append("itself")
        _reraise(LookupError())

    dialect = SimpleNamespace(loaded_dbapi=SimpleNamespace(Error=AssertionError))
    try:
        Connection(cast("Any", SimpleNamespace(raw_connection=raw_connection, dialect=dialect)))
    except Exception:
        return bool(asked) and "raw_connection" in vars(Engine)
    return False


def pooled_connection(context: Any) -> Any:
    """The pool's proxy of the connection that an execution runs on."""
    return context._dbapi_connection


def max_overflow(pool: Any) -> int | None:
    """Connections that a `QueuePool` opens beyond its size, -1 without limit; `None` where that cannot be known."""
    overflow = getattr(pool, "_max_overflow", None)
    return overflow if isinstance(overflow, int) else None


def knows_pooled_connection() -> bool:
    """Self-test: whether an execution makes its cursor from the proxy that `pooled_connection` answers."""
    context: Any = DefaultExecutionContext.__new__(DefaultExecutionContext)
    try:
        context._dbapi_connection = SimpleNamespace(cursor=lambda: "its cursor")
        return bool(context.create_default_cursor() == "its cursor")
    except Exception:
        return False


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
