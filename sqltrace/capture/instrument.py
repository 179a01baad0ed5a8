"""`instrument()` and `uninstrument()`: whose statements are recorded."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Dialect, Engine

from sqltrace.capture import (
    connections,
    cursor_events,
    engine,
    failed_loads,
    internals,
    joins,
    objects,
    origin,
    replies,
    rows,
    sessions,
    wanted,
)
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.replacements import listen_for_good
from sqltrace.checks import shown
from sqltrace.locks import process_lock

_lock = process_lock()


def instrument(*engines: Any) -> None:
    """
    Record the statements of these engines; with no argument, of every engine of the process.

    Engines made before and after count, `~sqlalchemy.engine.Engine` and
    `~sqlalchemy.ext.asyncio.AsyncEngine`. Called twice nothing changes, and a
    statement is recorded once, however many ways lead to its engine.
    Safe from any thread. Engines are not kept alive. Call it at start-up for the first time if the
    application listens to ``do_execute`` itself: SQLAlchemy takes no listener while others are being
    called. None is added later. Where only some engines are instrumented, statements of the others pass the
    same listeners, which return at once.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    dialects = [dialect_of(engine) for engine in engines]
    with _lock:
        rows.work()  # tested here, and not within the first statement
        sessions.install()
        objects.install()
        failed_loads.install()
        connections.install()
        for listener in _LISTENERS if _do_execute_fires() else _FALLBACK:
            listen_for_good(Engine, listener.__name__, listener)
        internals.have_all_listened_to()
        if not engines:
            wanted.everyone = True
            wanted.dialects.clear()
        elif not wanted.everyone:
            for dialect in dialects:
                wanted.add(dialect)


def uninstrument(*engines: Any) -> None:
    """
    Undo `instrument` for these engines; with no argument, for all of them.

    While all engines are instrumented, naming one changes nothing.
    Safe from any thread, also while statements run: the listeners stay with SQLAlchemy, and do nothing.
    What `SQLTraceMiddleware` has wrapped in Starlette stays, too: the body of a `StreamingResponse`, and
    applications inside of `BaseHTTPMiddleware`. It watches the event loop for requests that pass that
    middleware, whatever is instrumented, and passes on all else.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    dialects = [dialect_of(engine) for engine in engines]
    with _lock:
        if not engines:
            wanted.everyone = False
            wanted.dialects.clear()
        for dialect in dialects:
            wanted.discard(dialect)
            if not wanted.is_wanted(dialect):
                connections.release(dialect)
        if not is_instrumented():
            sessions.uninstall()
            objects.uninstall()
            failed_loads.uninstall()
            connections.uninstall()


def is_instrumented() -> bool:
    """Whether any engine is instrumented."""
    return wanted.everyone or bool(wanted.dialects)


def capabilities() -> dict[str, bool]:
    """
    Which measurements work with the installed SQLAlchemy.

    ``do_execute``: whether statements are recorded by the cheap hook. Where
    it is `False` the cursor events do it, at some 5 microseconds a statement.
    ``rows``: rows and the time of fetching them. ``objects``: the time of
    making ORM objects of them; to tell this, `sqlalchemy.orm` is imported.
    ``origins``: why statements run. ``eager_joins``: what eager loading adds to a SELECT.
    ``failed_loads``: which attributes could not be loaded.
    ``connections``: waiting for them, opening, holding, and leaving them idle.
    ``event_loop``: holding and waiting for an asyncio loop; needs nothing of
    SQLAlchemy. ``reply_times``: whether the kernel tells when a reply came in,
    so that waiting for the loop is no estimate for statements over TCP.

    .. versionadded:: 0.1.0
    """
    return {
        "do_execute": _do_execute_fires(),
        "rows": rows.work(),
        "objects": objects.work(),
        "origins": origin.work(),
        "eager_joins": joins.work(),
        "failed_loads": failed_loads.work(),
        "connections": connections.work(),
        "event_loop": True,
        "reply_times": replies.work(),
    }


def dialect_of(engine: Any) -> Dialect:
    """
    The dialect, which an engine shares with its variants made by ``execution_options()``.

    Raises:
        TypeError: for anything that is not an engine.
    """
    sync_engine = getattr(engine, "sync_engine", engine)
    if not isinstance(sync_engine, Engine):
        raise TypeError(f"expected a SQLAlchemy Engine or AsyncEngine, got {type(engine).__name__}: {shown(engine)}")
    return sync_engine.dialect


@self_test("does not fire its do_execute events: statements are recorded by the slower cursor events")
def _do_execute_fires() -> bool:
    return internals.do_execute_fires()


_LISTENERS = (*engine.LISTENERS, failed_loads.handle_error)
_FALLBACK = (*cursor_events.LISTENERS, failed_loads.handle_error)
