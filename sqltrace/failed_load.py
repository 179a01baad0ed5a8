"""A load that raised instead of loading. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqltrace.callsite import CallSite
from sqltrace.origin import Origin, Parents

LoadError = Literal["missing_greenlet", "raise_load", "detached_instance"]


@dataclass(frozen=True, slots=True)
class FailedLoad:
    """
    An attribute that was touched and could not be loaded.

    Attributes:
        error:
            ``missing_greenlet`` where the statement would have needed an ``await``
            (SQLAlchemy's `MissingGreenlet`), ``raise_load`` where the mapping or
            an option forbids it (``lazy="raise"``, `raiseload`), ``detached_instance``
            where the session was closed (`DetachedInstanceError`).

        attribute: ``Content.user``, which was touched.
        origin: What the load would have been: ``lazy`` with its relationship, or one of attributes.
        path: From the entity of a query to the object, as `Origin.step`: ``("Tag.articles",)``; empty for that entity.
        root: Name of that entity.
        call_site: The application's line that touched the attribute; `None` where none is known.
        parents: The statement that loaded the object; `None` where it is not known.
        of_relationship: Whether that attribute is a relationship, also where its object had expired as a whole.
        in_resolver:
            Whether GraphQL had called that line, which answers with status 200 whatever it raises. In a task or thread
            that a resolver starts this is not known, and `False`.
    """

    error: LoadError
    attribute: str
    origin: Origin
    path: tuple[str, ...] = ()
    root: str | None = None
    call_site: CallSite | None = None
    parents: Parents | None = None
    of_relationship: bool = False
    in_resolver: bool = False
