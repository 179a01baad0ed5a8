"""
Connections: waiting for the pool and for whom, opening, holding and giving back.

    Engine.raw_connection()          asked .. taken, in force in this context as `asking`
      QueuePool._do_get()            wait
      _ConnectionRecord.__connect()  connect, whichever the pool and its creator
      Dialect.do_ping()              ping (transactions.py)
    PoolEvents checkin, detach       ended

The `Checkout` stays with the pool's entry in its public ``record_info`` and,
for those who wait, among the occupants of its pool, until the connection is given back.
A fault of ours is reported and swallowed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, Final
from weakref import ref

from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

from sqltrace import connection as measures
from sqltrace.capture import internals, pool_wait, sessions, transactions
from sqltrace.capture.failed_loads import note_error
from sqltrace.capture.failure import describe_failure
from sqltrace.capture.replacements import Replacements, listen_for_good
from sqltrace.capture.transactions import KEY, asking
from sqltrace.capture.wanted import is_wanted
from sqltrace.collector import FOLD_AT, Collector, current, mark, outwards, unmeasurable
from sqltrace.connection import NEGLIGIBLE, Checkout, Occupants
from sqltrace.database import database_of, note_database
from sqltrace.faults import logger, report_fault
from sqltrace.locks import process_lock

Wrapper = Callable[[Any], Any]

_lock: Final = process_lock()
_pools: dict[int, tuple[ref[Pool], Occupants, ref[Dialect]]] = {}
_replacements: Final = Replacements()


def install() -> None:
    """Measure the connections of engines that are wanted. Called again, nothing changes."""
    if _replacements:
        return
    work()
    if "connection" in unmeasurable:
        return
    _replacements.replace(Engine, "raw_connection", _measure_checkout)
    for place, wrapper in ((internals.waiting(), pool_wait.measure_wait), (internals.connecting(), _measure_connect)):
        if place is not None:
            _replacements.replace(*place, wrapper)
    for name in ("checkin", "detach"):
        listen_for_good(Pool, name, checkin)


def uninstall() -> None:
    """Put everything back."""
    _replacements.undo()
    transactions.release_all()
    with _lock:
        known = list(_pools.values())
        _pools.clear()
    for _, occupants, _ in known:
        for checkout in occupants.copy():
            checkout.end()


def release(dialect: Dialect) -> None:
    """Put back what was replaced on this dialect object. A pool of it that comes up again is watched anew."""
    transactions.release(dialect)
    with _lock:
        for key, (_, _, pooled) in list(_pools.items()):
            if pooled() is dialect:
                _pools.pop(key, None)


@cache
def work() -> bool:
    """Self-test: whether all can be measured with the installed SQLAlchemy. The first time, warns of what cannot."""
    found = {
        "raw_connection": internals.asks_for_raw_connection(),
        "wait": internals.waiting() is not None,
        "connect": internals.connecting() is not None,
        "idle_in_transaction": internals.knows_pooled_connection(),
    }
    if not found["raw_connection"]:
        unmeasurable.add("connection")
        measures.unmeasurable_times.update(measures.TIMES)
    measures.unmeasurable_times.update(name for name in measures.TIMES if not found.get(name, True))
    works = all(found.values())
    if not works:
        missing = ", ".join(name for name, measured in found.items() if not measured)
        logger.warning("this SQLAlchemy has its connections in a way not known here: %s not measured", missing)
    return works


def watched_pools() -> list[tuple[Pool, Occupants, bool]]:
    """
    The pools that a recording has asked for a connection, and that still exist.

    Each with whether its engine was disposed of and has another by now: it only takes its connections back.
    """
    with _lock:
        watched = list(_pools.values())
    # Asked once: they go at any moment.
    known = [(pool(), occupants, dialect()) for pool, occupants, dialect in watched]
    latest = {id(dialect): occupants for _, occupants, dialect in known}
    return [(pool, occupants, latest[id(dialect)] is not occupants) for pool, occupants, dialect in known if pool]


def _measure_checkout(original: Wrapper) -> Wrapper:
    @wraps(original)
    def raw_connection(engine: Engine) -> PoolProxiedConnection:
        internals.have_listened_to(engine.dialect)
        collector = current.get()
        if collector is None:
            return original(engine)  # type: ignore[no-any-return]  # what SQLAlchemy itself returns
        checkout = _ask(collector, engine)
        if checkout is None:
            return _pass_by(original, engine)
        outer = asking.get()
        checkout.opening = engine.dialect
        asking.set(checkout)
        connection = None
        try:
            connection = original(engine)
        finally:
            asking.set(outer)
            _take(collector, checkout, engine.dialect, connection)
        return connection  # type: ignore[no-any-return]  # likewise

    return raw_connection


def _pass_by(original: Wrapper, engine: Engine) -> PoolProxiedConnection:
    """Measure nothing, also not as a part of another connection that is being opened in this context."""
    outer = asking.get()
    asking.set(None)
    try:
        return original(engine)  # type: ignore[no-any-return]  # as in `raw_connection`
    finally:
        asking.set(outer)


def _ask(collector: Collector, engine: Engine) -> Checkout | None:
    """Begin a checkout, in the recordings that want this engine."""
    try:
        known = _pools.get(id(engine.pool))
        occupants = _watch(engine) if known is None else known[1]
        if occupants is None:
            return None
        wanting = [
            each
            for each in outwards(collector)
            if each.pending is not None and (each.dialects is None or engine.dialect in each.dialects)
        ]
        if not wanting:
            return None
        checkout = Checkout(wanting[0].clock, tuple([wanted.label for wanted in wanting]), occupants)
        if wanting[0].probe is not None:
            checkout.span = wanting[0].probe(None)
        for wanted in wanting:
            wanted.checkouts.append(checkout)
            if not len(wanted.checkouts) % FOLD_AT:
                wanted.fold()
        return checkout
    except Exception as fault:
        report_fault("measuring a checkout", fault)
        return None


def _watch(engine: Engine) -> Occupants | None:
    """Answers the occupants of a pool that comes up for the first time; `None` where its engine is not wanted."""
    if not is_wanted(engine.dialect):
        return None
    sessions.install_when_imported()  # whoever uses it by now
    transactions.watch(engine.dialect)
    pool = engine.pool
    # By identity, for a WeakKeyDictionary is five times slower: the entry goes before the identity is used again.
    forget = partial(_pools.pop, id(pool), None)
    note_database(engine.dialect, engine.url)
    apart = " (async)" if engine.dialect.is_async else ""  # an engine of each kind on one database is usual
    # The URL tells no database where that is up to the engine's `creator`, or to a data source of ODBC, its host then.
    source = (engine.url.host or "").rpartition("@")[2]  # without what may be a part of the password
    place = str(database_of(engine.dialect)) or source or engine.dialect.name
    occupants = Occupants(pool.logging_name or f"{place}{apart}")
    with _lock:
        return _pools.setdefault(id(pool), (ref(pool, lambda _: forget()), occupants, ref(engine.dialect)))[1]


def _take(collector: Collector, checkout: Checkout, dialect: Dialect, connection: Any) -> None:
    """The pool has answered: with a connection, or with `None` for an exception."""
    try:
        checkout.opening = None
        now = checkout.clock()
        if now - checkout.asked > NEGLIGIBLE:
            mark(collector, dialect, "connection", checkout.asked, now)
        if connection is None:
            checkout.end()
            error = sys.exception()  # on its way through `raw_connection`
            checkout.failure = None if error is None else describe_failure(error)
            note_error(error, dialect)  # SQLAlchemy tells its `handle_error` only of those of a connection
            return
        entry = connection.record_info
        previous = entry.get(KEY)
        if previous is not None and previous.ended is None:
            if previous.proxy == id(connection):  # SingletonThreadPool, a second time in one thread
                checkout.repeated = True
                checkout.end()
                return
            previous.end()  # StaticPool: only the first to close it is told of
        checkout.taken = now
        checkout.proxy = id(connection)
        if dialect.is_async:
            checkout.connection = ref(connection)
        entry[KEY] = checkout
        checkout.neighbours.add(checkout)
    except Exception as fault:
        report_fault("measuring a checkout", fault)


def _measure_connect(original: Wrapper) -> Wrapper:
    @wraps(original)
    def connect(entry: ConnectionPoolEntry) -> None:
        checkout = transactions.opening()
        if checkout is None:
            original(entry)
            return
        started = checkout.clock()
        if checkout.wait_ended is None:
            checkout.wait_ended = started
        checkout.neighbours.add(checkout)
        try:
            original(entry)
        finally:
            checkout.connect += checkout.clock() - started

    return connect


def checkin(_: Any, entry: ConnectionPoolEntry) -> None:
    """Also of one that is detached: it goes back to no pool."""
    try:
        info = entry.record_info
        checkout = info.pop(KEY, None) if info else None
        if checkout is not None:
            checkout.end()
    except Exception as fault:
        report_fault("measuring how long a connection was held", fault)
