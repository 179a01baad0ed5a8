"""Why a statement ran: what the application asked for, or a load that the mapping caused. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OriginKind = Literal["query", "lazy", "immediate", "selectin", "subquery", "refresh", "deferred"]


@dataclass(frozen=True, slots=True)
class Origin:
    """
    Why a statement ran.

    Attributes:
        kind:
            ``query`` for what the application asked for itself; a load otherwise:
            ``lazy`` (an attribute was touched), ``immediate`` (one statement for
            each parent, as it is loaded), ``selectin`` and ``subquery`` (one for
            all parents), ``refresh`` (attributes had expired, or
            `Session.refresh`), ``deferred`` (a deferred column was touched).

        relationship: ``Content.user``; `None` for ``query``, ``refresh`` and ``deferred``.
        lazy: The relationship's ``lazy=`` in the mapping.
        uselist: Whether the relationship is a collection; `None` without one.
        entity: Name of the class that is loaded from, or refreshed; `None` for ``query``.
        attributes: What was refreshed or deferred, sorted.
    """

    kind: OriginKind
    relationship: str | None = None
    lazy: str | None = None
    uselist: bool | None = None
    entity: str | None = None
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.relationship is not None:
            return f"{self.kind} {self.relationship}"
        if self.attributes:
            return f"{self.kind} {self.entity}({', '.join(self.attributes)})"
        return self.kind


QUERY = Origin("query")
