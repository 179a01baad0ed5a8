"""
All access to what SQLAlchemy's ORM does not document. Imports `sqlalchemy.orm` only when asked to.

What is read of objects as they are made is `None` where SQLAlchemy has changed under it, which is said once. Whether
the rest is as it is known here, self-tests say.
"""

from __future__ import annotations

import sys
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

from sqltrace.capture.load_internals import names_in
from sqltrace.faults import logger

_warned: set[str] = set()


def imported_session() -> Any:
    """The class, once `sqlalchemy.orm` is imported. Its name comes late there, when what makes objects is complete."""
    return getattr(sys.modules.get("sqlalchemy.orm"), "Session", None)


def is_prebuffered(context: Any) -> bool:
    """Whether all objects of this `QueryContext` are made at once, as for an `AsyncSession`."""
    options = getattr(context, "execution_options", None)
    return bool(options and options.get("prebuffer_rows", False))


def yield_per(result: Any) -> int | None:
    """Rows of a chunk; `None` for all."""
    size: int | None = result._yield_per
    return size


def newest_object(context: Any) -> tuple[Any, Any] | None:
    """State and object that came last into the session. Keep them as long as `objects_since` is to find them."""
    try:
        state = next(reversed(context.session.identity_map._dict.values()), None)
        return state, None if state is None else state.obj()
    except Exception as error:
        _warn_once("which objects a statement makes", error)
        return None


def objects_since(context: Any, newest: tuple[Any, Any] | None) -> dict[str, int] | None:
    """Objects by class name that this `QueryContext` has put into its session after `newest`."""
    if newest is None:
        return None
    try:
        last, runid = newest[0], context.runid
        made: dict[str, int] = {}
        cls = None
        for state in reversed(context.session.identity_map._dict.values()):
            if state is last:
                break
            if state.runid == runid:
                if state.class_ is not cls:  # of most queries there is one
                    cls = state.class_
                    name = cls.__name__
                    made.setdefault(name, 0)
                made[name] += 1
        return made
    except RuntimeError:
        return None  # an object died while its place was passed
    except Exception as error:
        _warn_once("which objects a statement makes", error)
        return None


def distinct_roots(context: Any, rows: list[Any]) -> int | None:
    """Different objects of the first entity asked for, if joined collections can repeat it in many rows."""
    try:
        state = context.compile_state
        if not state.multi_row_eager_loaders:
            return None
        entities = state._entities
    except Exception as error:
        _warn_once("how many rows are repetitions", error)
        return None
    if rows and type(rows[0]) is tuple:
        place = next((place for place, entity in enumerate(entities) if _is_object(entity)), 0)
        rows = [row[place] for row in rows]
    identities: set[int] = set()
    last: Any = identities  # no row
    for row in rows:
        if row is not last:  # they come one after the other
            last = row
            identities.add(id(row))
    return len(identities)


def _is_object(entity: Any) -> bool:
    """Not a column or a bundle of columns, as the keys are that a selectin load asks for first."""
    return entity.supports_single_entity is True and not hasattr(entity, "bundle")


def load_number(owner: Any) -> int | None:
    """The number that SQLAlchemy gives each making of objects: of its context, or of the state of an object made."""
    number: int | None = getattr(owner, "runid", None)
    return number


def orm_loading() -> Any:
    """The module that makes ORM objects; importing it takes a tenth of a second."""
    from sqlalchemy.orm import loading

    return loading


def instances_come_in_chunks() -> bool:
    """
    Self-test: whether ``orm.loading.instances`` answers with a result whose chunks make the objects.

    Run on stand-ins for the cursor and the query. Imports `sqlalchemy.orm`.
    """
    loading = orm_loading()
    asked: list[int | None] = []

    def fetchall() -> list[tuple[int]]:
        asked.append(None)
        return [(1,), (2,)]

    entity = _StandIn(row_processor=lambda *_: (lambda row: row[0], "a", ()), supports_single_entity=True)
    context = _StandIn(
        load_options=_StandIn(),
        compile_state=_StandIn(_has_mapper_entities=True, _entities=[entity]),
        execution_options={},
    )
    stand_in = _StandIn(
        _raw_all_rows=fetchall,
        _raw_all_tuples=fetchall,
        context=_StandIn(),
        _soft_close=lambda **_: None,
    )
    try:
        result: Any = loading.instances(cast("Any", stand_in), cast("Any", context))
        chunks = result.chunks
        result.iterator = chain.from_iterable(chunks(result._yield_per))
        return asked == [] and result.scalars().all() == [1, 2] and asked == [None]
    except Exception:
        return False


class _StandIn(SimpleNamespace):
    """Has no such attribute of any name: what does not matter to a self-test may change in SQLAlchemy."""

    def __getattr__(self, name: str) -> None:
        return None


def _warn_once(what: str, error: Exception) -> None:
    if what not in _warned:
        _warned.add(what)
        logger.warning("this SQLAlchemy does not tell %s, which stays unknown: %r", what, error)


def sessions_are_told() -> bool:
    """Self-test: whether the connections and flushes of a session are known. Imports `sqlalchemy.orm`."""
    try:
        from sqlalchemy.orm import SessionTransaction

        return "_connections" in names_in(SessionTransaction) and flushing() is not None
    except Exception:
        return False


def flushing() -> tuple[type, str] | None:
    """Where a session writes what there is to write, as opposed to `Session.flush`, which each query calls."""
    session = imported_session()
    return (session, "_flush") if session is not None and "_flush" in vars(session) else None


def connections_of(session: Any) -> list[Any]:
    """The connections on which a session has a transaction."""
    transaction = session.get_transaction()
    if transaction is None:
        return []
    return list({id(entry[0]): entry[0] for entry in transaction._connections.values()}.values())
