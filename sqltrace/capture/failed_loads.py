"""
Loads that raise instead of loading: `MissingGreenlet` under `AsyncSession`, `DetachedInstanceError`, ``lazy="raise"``.

They are noticed as they are raised: later the validation of a response may have made another error of them, or the
application may have caught them. What does not pass there is found in the exception that ends the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import currentframe
from operator import attrgetter
from types import TracebackType
from typing import Any

from sqlalchemy.exc import InvalidRequestError, MissingGreenlet

from sqltrace.callsite import CallSite, call_site_in, find_call_site, frames_above, in_resolver
from sqltrace.capture import expiry, load_internals, sessions
from sqltrace.capture.compatibility import self_test
from sqltrace.capture.joins import written_step
from sqltrace.capture.origin import (
    base_of_relationship,
    kind_for_one,
    owner_of_attributes,
    parents_of_one,
    root_of,
)
from sqltrace.capture.origins import of_attributes, of_relationship
from sqltrace.capture.replacements import ORMReplacements, Replacements
from sqltrace.capture.wanted import is_wanted
from sqltrace.collector import Collector, current, outwards
from sqltrace.failed_load import FailedLoad, LoadError
from sqltrace.faults import report_fault
from sqltrace.origin import Origin
from sqltrace.tally import parents_of

_MAX_FAILED = 20  # of a recording, different ones
_MAX_EXCEPTIONS = 50  # of one chain
_what = attrgetter("error", "attribute", "call_site", "in_resolver")


def handle_error(context: Any) -> None:
    """Listener of SQLAlchemy's event. Must not raise: that would take the place of the error."""
    note_error(context.original_exception, context.dialect)


def note_error(error: BaseException | None, dialect: Any) -> None:
    """Note the load that is just failing with this error, if it is one. Never raises."""
    try:
        if isinstance(error, MissingGreenlet) and is_wanted(dialect) and work():
            collector = current.get()
            if collector is not None:
                found = load_internals.failing_load(frames_above(currentframe()))
                _note(collector, "missing_greenlet", found, find_call_site())
    except Exception as fault:
        report_fault("describing a failed load", fault)


def note_exception(error: BaseException) -> None:
    """Note the failed loads that led to an exception which ends a recording. Never raises."""
    try:
        collector = current.get()
        if collector is not None:
            for raised in _chain(error):
                kind = _error_of(raised)
                if kind is not None and raised.__traceback__ is not None and work():
                    found = load_internals.failing_load(_innermost_first(raised.__traceback__))
                    _note(collector, kind, found, call_site_in(raised.__traceback__))
    except Exception as fault:
        report_fault("describing a failed load", fault)


@self_test("raises in a way that is not known here: what could not be loaded is not told")
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy raises where it is known here. Imports `sqlalchemy.orm`."""
    return load_internals.failed_loads_are_told()


def _replace(replacements: Replacements) -> None:
    from sqlalchemy.orm.exc import DetachedInstanceError

    sessions.install_when_imported()
    if work():
        for owner, name in load_internals.raising_methods():
            replacements.replace(owner, name, _noticed)
        replacements.replace(DetachedInstanceError, "__init__", _made)


_replaced = ORMReplacements(_replace)
install, install_when_imported, uninstall = _replaced.install, _replaced.install_when_imported, _replaced.uninstall


def _noticed(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def raise_load(self: Any, state: Any, *arguments: Any, **options: Any) -> Any:
        try:
            collector = current.get()
            if collector is not None:
                prop = load_internals.property_of(self)
                found = prop, state, frozenset[str](), prop.key
                _note(collector, "raise_load", found, find_call_site())
        except Exception as fault:
            report_fault("describing a failed load", fault)
        return original(self, state, *arguments, **options)

    return raise_load


def _made(original: Callable[..., None]) -> Callable[..., None]:
    """An ``__init__`` of `DetachedInstanceError`: an error that a response model makes of it has no way back to it."""

    @wraps(original)
    def made(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        try:
            collector = current.get()
            if collector is not None:
                found = load_internals.failing_load(frames_above(currentframe()))
                _note(collector, "detached_instance", found, find_call_site())
        except Exception as fault:
            report_fault("describing a failed load", fault)

    return made


def _note(
    innermost: Collector, error: LoadError, found: load_internals.FailingLoad | None, call_site: CallSite | None
) -> None:
    if found is None:
        return  # SQL of its own, no load
    prop, state, names, key = found
    parents = parents_of_one(innermost, state)
    properties, entities, root = load_internals.path_to(state)
    origin = _origin(innermost, prop, state, names)
    failed = FailedLoad(
        error,
        origin.relationship or ".".join(filter(None, (origin.entity, key or next(iter(origin.attributes), None)))),
        origin,
        path=tuple(map(written_step, properties, entities)),
        root=root,
        call_site=call_site,
        parents=parents_of(parents),
        of_relationship=key in state.mapper.relationships,
        in_resolver=in_resolver(),
    )
    what = _what(failed)
    for collector in outwards(innermost):
        noted = collector.failed_loads
        if collector.pending is not None and len(noted) < _MAX_FAILED and what not in map(_what, noted):
            noted.append(failed)


def _origin(collector: Collector, prop: Any, state: Any, names: frozenset[str]) -> Origin:
    if hasattr(prop, "uselist"):
        by_options = load_internals.options_leaving(state, prop.key)
        return of_relationship("lazy", prop, base=base_of_relationship(collector, prop, state), by_options=by_options)
    attributes = names or frozenset((prop.key,) if prop is not None else ())
    kind = kind_for_one(attributes, state)
    entity, base = owner_of_attributes(kind, attributes, state)
    expired_by = None
    if kind == "refresh":
        expired_by = expiry.expired_by(state, collector) or expiry.by_flush(state, attributes)
    by_options = load_internals.options_leaving(state, *attributes)
    return of_attributes(
        kind, entity, attributes, False, expired_by, base, None, by_options, root_of(state, expired_by)
    )


def _error_of(error: BaseException) -> LoadError | None:
    if isinstance(error, MissingGreenlet):
        return "missing_greenlet"
    if load_internals.is_detached(error):
        return "detached_instance"
    return "raise_load" if isinstance(error, InvalidRequestError) and load_internals.is_raise_load(error) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, those that it came from, and those in it if it is a group."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MAX_EXCEPTIONS:
        raised = waiting.pop()
        if id(raised) in seen:
            continue
        seen.add(id(raised))
        yield raised
        waiting += [inner for inner in (raised.__cause__, raised.__context__) if inner is not None]
        if isinstance(raised, BaseExceptionGroup):
            waiting += raised.exceptions


def _innermost_first(traceback: TracebackType) -> Iterable[Any]:
    frames = []
    entry: TracebackType | None = traceback
    while entry is not None:
        frames.append(entry.tb_frame)
        entry = entry.tb_next
    return reversed(frames)
