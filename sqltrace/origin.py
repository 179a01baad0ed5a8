"""Why a statement ran: what the application asked for, or a load that the mapping caused. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqltrace.callsite import CallSite
from sqltrace.declaration import Declaration

OriginKind = Literal["query", "lazy", "immediate", "selectin", "subquery", "refresh", "deferred", "subclass"]
ExpiredBy = Literal["commit", "rollback", "expire", "flush", "unknown"]


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
            `Session.refresh`), ``deferred`` (a deferred column was touched),
            ``subclass`` (columns of a subclass were touched, which a query of its base does not load).

        relationship: ``Content.user``; `None` where attributes are loaded, and for ``query``.
        lazy: The relationship's ``lazy=`` in the mapping.
        uselist: Whether the relationship is a collection; `None` without one.
        entity: Name of the class whose relationship or attributes are loaded; `None` for ``query``.
        attributes: What was refreshed, deferred or a subclass's, sorted.
        declaration: Where the relationship is declared.
        asked_for: Whether `Session.refresh` asks for it; so it does for relationships that are loaded along.
        expired_by:
            Why objects have to be loaded again: a ``commit``, a ``rollback``, or ``expire`` for
            `Session.expire_all` and `Session.expire`; ``unknown`` where it may have been several of these. Of
            single attributes ``flush``, if the database makes their values, else `None`.

        base: Name of the class that the query had asked for, where that does not have the relationship or attributes.
        key: The attribute that is the primary key, if `Session.refresh` asks; `None` where the key is several.
        root: Name of the class at the top of its inheritance, for what expired with a ``flush``; `None` for itself.
        step:
            How options below it name the relationship: ``Author.books as aliased(Book)`` where the mapping leads there,
            ``Author.books.of_type(aliased(Book))`` where an option of the query does; else as `relationship`.
        by_options: Options of the query that leave this for later: ``("lazyload(Author.books)",)``; no wildcards.
    """

    kind: OriginKind
    relationship: str | None = None
    lazy: str | None = None
    uselist: bool | None = None
    entity: str | None = None
    attributes: tuple[str, ...] = ()
    declaration: Declaration | None = None
    asked_for: bool = False
    expired_by: ExpiredBy | None = None
    base: str | None = None
    key: str | None = None
    by_options: tuple[str, ...] = ()
    root: str | None = None
    step: str | None = None

    def __str__(self) -> str:
        """What tells the origins of one statement apart; the rest shows in its SQL."""
        what = self.relationship or self.entity
        words = self.kind if what is None else f"{self.kind} {what}"
        if self.attributes:
            words += f"({', '.join(self.attributes)})"
        if self.base is not None:
            words += f" of {self.base}"
        if self.by_options:
            words += f" by {', '.join(self.by_options)}"
        if self.asked_for:
            return f"{words} by Session.refresh()"
        return words if self.expired_by is None else f"{words} expired by {self.expired_by}"


QUERY = Origin("query")


@dataclass(frozen=True, slots=True)
class Parents:
    """
    The statement that loaded the objects which a load was for: ``loaded_for`` in the log line.

    Attributes:
        fingerprint: Of its group.
        summary: ``SELECT contents``.
        call_site: The application's line that ran it; `None` when not taken, as of the third of a group.
        origin: Why it ran: the objects may have been loaded for others themselves.
    """

    fingerprint: str
    summary: str
    call_site: CallSite | None = None
    origin: Origin = QUERY
