"""
What has expired the objects of a session: a commit, a rollback, or the application.

An object does not say so itself. It is noted with the session and, as that may be closed when it is wanted, with the
recordings in which it happened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from sqltrace.capture.load_internals import made_by_database
from sqltrace.collector import Collector, current, outwards
from sqltrace.faults import report_fault
from sqltrace.origin import ExpiredBy

_NOTED, _SOME = "_sqltrace_expired_by", "_sqltrace_expired_some"  # on the session, and live as long


def committed(session: Any) -> None:
    """Never raises."""
    if getattr(session, "expire_on_commit", False):
        _note(session, "commit", all_objects=True)


def rolled_back(session: Any, *, to_savepoint: bool) -> None:
    """A rollback to a savepoint expires only what was changed since then. Never raises."""
    _note(session, "rollback", all_objects=not to_savepoint)


def expired_by(state: Any, collector: Collector) -> ExpiredBy | None:
    """What has expired an object, by its state; `None` where only some of its attributes have: see `by_flush`."""
    if not state.expired:
        return None
    session = state.session
    if session is not None:
        noted: ExpiredBy = vars(session).get(_NOTED, "unknown")
        return noted
    only = collector.expired_by
    return next(iter(only)) if len(only) == 1 else "unknown"


def by_flush(state: Any, attributes: frozenset[str]) -> ExpiredBy | None:
    """``flush`` for attributes that the database makes, which expire then; `None` for others. The same for a class."""
    return "flush" if made_by_database(state, attributes) else None


def expires_some(state: Any) -> bool:
    """Whether the application has had single attributes expire in the session of an object, maybe its own."""
    return state.session is not None and _SOME in vars(state.session)


def _note(session: Any, by: ExpiredBy, *, all_objects: bool) -> None:
    """Never raises."""
    try:
        noted = vars(session).get(_NOTED, by)
        setattr(session, _NOTED, by if all_objects or noted == by else "unknown")
        for collector in outwards(current.get()):
            collector.expired_by.add(by)
    except Exception as fault:
        report_fault("noting what expired objects", fault)


def noticed_all(original: Callable[..., None]) -> Callable[..., None]:
    """What stands in the place of `Session.expire_all`."""

    @wraps(original)
    def expire_all(self: Any) -> None:
        original(self)
        _note(self, "expire", all_objects=True)

    return expire_all


def noticed(original: Callable[..., None]) -> Callable[..., None]:
    """What stands in the place of `Session.expire`."""

    @wraps(original)
    def expire(self: Any, instance: Any, attribute_names: Any = None) -> None:
        original(self, instance, attribute_names)
        if attribute_names:
            vars(self)[_SOME] = True
        else:
            _note(self, "expire", all_objects=False)

    return expire
