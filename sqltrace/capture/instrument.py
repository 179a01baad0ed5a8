"""`instrument()` and `uninstrument()`: whose statements are recorded."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
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
)
from sqltrace.capture.compatibility import self_test

_lock = threading.RLock()
_instrumented: WeakSet[Dialect] = WeakSet()
_all_engines = False


def instrument(*engines: Any) -> None:
    """
    Record the statements of these engines; with no argument, of every engine of the process.

    Engines made before and after count, `~sqlalchemy.engine.Engine` and
    `~sqlalchemy.ext.asyncio.AsyncEngine`. Called twice nothing changes, and a
    statement is recorded once, however many ways lead to its engine.
    Safe from any thread. Engines are not kept alive. Call it at start-up if the application
    listens to ``do_execute`` itself: SQLAlchemy takes no listener while others are being called.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    global _all_engines
    dialects = [dialect_of(engine) for engine in engines]
    with _lock:
        rows.work()  # tested here, and not within the first statement
        objects.install()
        failed_loads.install()
        connections.install(_is_wanted)
        if not engines and not _all_engines:
            _listen(Engine)
            _all_engines = True
            # A dialect that is heard twice would count what is in no recording twice.
            for dialect in list(_instrumented):
                _instrumented.discard(dialect)
                _unlisten(dialect)
        for dialect in dialects:
            if not _all_engines and dialect not in _instrumented:
                _listen(dialect)
                _instrumented.add(dialect)


def uninstrument(*engines: Any) -> None:
    """
    Undo `instrument` for these engines; with no argument, for all of them.

    While all engines are instrumented, one that is named here still is.
    Safe from any thread.

    Raises:
        TypeError: for anything that is not an engine.

    .. versionadded:: 0.1.0
    """
    global _all_engines
    dialects = [dialect_of(engine) for engine in engines]
    with _lock:
        if not engines and _all_engines:
            _all_engines = False
            _unlisten(Engine)
        for dialect in dialects or list(_instrumented):
            if dialect in _instrumented:
                _instrumented.discard(dialect)
                _unlisten(dialect)
            if not _is_wanted(dialect):
                connections.release(dialect)
        if not is_instrumented():
            objects.uninstall()
            failed_loads.uninstall()
            connections.uninstall()


def is_instrumented() -> bool:
    """Whether any engine is instrumented."""
    return _all_engines or bool(_instrumented)


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
        "connections": all(connections.works().values()),
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
        raise TypeError(f"expected a SQLAlchemy Engine or AsyncEngine, got {type(engine).__name__}: {engine!r:.100}")
    return sync_engine.dialect


@self_test("does not fire its do_execute events: statements are recorded by the dearer cursor events")
def _do_execute_fires() -> bool:
    return internals.do_execute_fires()


def _listen(target: Any) -> None:
    if _do_execute_fires():
        for listener in _LISTENERS:
            event.listen(target, listener.__name__, listener)
    elif not is_instrumented():
        # Cursor events know engines, not dialects: heard from all, and sorted out by `_is_wanted`.
        for listener in _FALLBACK:
            event.listen(Engine, listener.__name__, listener)


def _unlisten(target: Any) -> None:
    if _do_execute_fires():
        for listener in _LISTENERS:
            event.remove(target, listener.__name__, listener)
    elif not is_instrumented():
        for listener in _FALLBACK:
            event.remove(Engine, listener.__name__, listener)


def _is_wanted(dialect: Dialect) -> bool:
    return _all_engines or dialect in _instrumented


_LISTENERS = (*engine.LISTENERS, failed_loads.handle_error)
_FALLBACK = (*cursor_events.listeners(_is_wanted), failed_loads.handle_error)
