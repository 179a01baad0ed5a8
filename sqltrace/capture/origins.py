"""Origins of loads: equal ones are one object, as recordings compare identities."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqltrace.capture.joins import link_of
from sqltrace.declaration import Declaration
from sqltrace.origin import ExpiredBy, Origin, OriginKind


def of_relationship(
    kind: OriginKind,
    prop: Any,
    asked_for: bool = False,
    expired_by: ExpiredBy | None = None,
    base: str | None = None,
    by_options: tuple[str, ...] = (),
    *,
    step: str | None = None,
) -> Origin:
    link = link_of(prop)
    words = kind, link.name, str(prop.lazy), link.uselist, link.owner, link.declaration
    return _of_words(*words, asked_for, expired_by, base, by_options, step or link.step)


# By words, not by SQLAlchemy's objects: classes that an application makes as it runs are not kept alive.


@lru_cache(maxsize=4_096)
def _of_words(
    kind: OriginKind,
    name: str,
    lazy: str,
    uselist: bool,
    owner: str,
    declared: Declaration,
    asked_for: bool,
    expired_by: ExpiredBy | None,
    base: str | None,
    by_options: tuple[str, ...],
    step: str,
) -> Origin:
    return Origin(
        kind, name, lazy, uselist, entity=owner, declaration=declared, asked_for=asked_for, expired_by=expired_by,
        base=base, by_options=by_options, step=step,
    )  # fmt: skip


@lru_cache(maxsize=4_096)
def of_attributes(
    kind: OriginKind,
    entity: str | None,
    attributes: frozenset[str],
    asked_for: bool,
    expired_by: ExpiredBy | None,
    base: str | None,
    key: str | None,
    by_options: tuple[str, ...],
    root: str | None,
) -> Origin:
    return Origin(
        kind, entity=entity, attributes=tuple(sorted(attributes)), asked_for=asked_for, expired_by=expired_by,
        base=base, key=key, by_options=by_options, root=root,
    )  # fmt: skip
