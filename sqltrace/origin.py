"""Why a statement ran: what the application asked for, or a load that the mapping caused. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqltrace.callsite import CallSite
from sqltrace.declaration import Declaration

OriginKind = Literal["query", "lazy", "immediate", "selectin", "subquery", "refresh", "deferred"]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, in the hot path: `capture.origin` keeps each once
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
        entity: Name of the class whose relationship or attributes are loaded; `None` for ``query``.
        attributes: What was refreshed or deferred, sorted.
        declaration: Where the relationship is declared.
    """

    kind: OriginKind
    relationship: str | None = None
    lazy: str | None = None
    uselist: bool | None = None
    entity: str | None = None
    attributes: tuple[str, ...] = ()
    declaration: Declaration | None = None

    def __str__(self) -> str:
        if self.relationship is not None:
            return f"{self.kind} {self.relationship}"
        if self.attributes:
            return f"{self.kind} {self.entity}({', '.join(self.attributes)})"
        return self.kind if self.entity is None else f"{self.kind} {self.entity}"


QUERY = Origin("query")


@dataclass(frozen=True, slots=True)
class Parents:
    """
    The statement that loaded the objects which a load was for.

    Attributes:
        fingerprint: Of its group.
        summary: ``SELECT contents``.
        call_site: The application's line that ran it; `None` when not taken, as from the third of a group on.
        origin: Why it ran: the objects may have been loaded for others themselves.
    """

    fingerprint: str
    summary: str
    call_site: CallSite | None = None
    origin: Origin = QUERY
