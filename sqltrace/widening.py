"""What a SELECT was asked for, and what eager loading made of it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from sqltrace.declaration import Declaration


@dataclass(frozen=True, slots=True)
class EagerJoin:
    """
    A relationship that was joined to a SELECT for its entities to be loaded along.

    Attributes:
        path: From an entity that was asked for: ``("Article.user", "User.contents")``.
        entity: Name of the class that is loaded.
        uselist: Whether it is a collection, which multiplies the rows.
        by_option: An option of the query wants it; otherwise the mapping's ``lazy="joined"`` does.
        named: That option is for this very relationship, and no wildcard.
        tables: Added to the statement, a secondary one included.
        columns: Added to the statement.
        declaration: Where the relationship is declared.
        written: `path` as an option has to name it: ``("Log.user.of_type(Admin)", "Admin.grants")``, or `Origin.step`.
        subclass: Name of the class that has the first of `path`, where that is one of those a load is for; else `None`.
    """

    path: tuple[str, ...]
    entity: str
    uselist: bool
    by_option: bool
    tables: int
    columns: int
    declaration: Declaration | None = None
    named: bool = False
    written: tuple[str, ...] = ()
    subclass: str | None = None

    @property
    def relationship(self) -> str:
        return self.path[-1]

    def __str__(self) -> str:
        return " → ".join(self.path)


@dataclass(frozen=True, slots=True)
class Lookup:
    """
    What a query of the ORM looks for.

    Attributes:
        aliases: Of each entity: ``aliased(Book)``, ``with_polymorphic(Book, [Novel])``; empty for the class itself.
        equal: Attributes that have to be equal to one value each: ``("Book.isbn",)``. Of a primary key no others.
        alone: Whether there is no other condition, and no other table.
        is_key: Whether `equal` is the primary key.
        by_get: Whether `Session.get` or `Session.merge` asks.
        joinable: Whether an eager join could be added: not to `from_statement`, and not under ``FOR UPDATE``.
        values: Whether other conditions compare with values, too, which may be what differs from query to query.
        options: Whether the query itself says how to load (`selectinload` and others).
    """

    aliases: tuple[str, ...]
    equal: tuple[str, ...] = ()
    alone: bool = False
    is_key: bool = False
    by_get: bool = False
    joinable: bool = True
    values: bool = False
    options: bool = False


@dataclass(frozen=True, slots=True)
class Widening:
    """
    A SELECT before and after eager loading.

    Attributes:
        entities: Names of the classes that were asked for.
        asked_tables, asked_columns: Of what was asked for, explicit joins included.
        sent_tables, sent_columns: Of what was sent.
        joins: The eager joins, in the order of the statement; empty where it was not widened.
        lookup: What a query of the application looks for; `None` for a load, and where nothing is known of that.
        contained: What a query joins itself and takes along (`contains_eager`): no table or column was added for it.
    """

    entities: tuple[str, ...]
    asked_tables: int
    asked_columns: int
    sent_tables: int
    sent_columns: int
    joins: tuple[EagerJoin, ...]
    lookup: Lookup | None = None
    contained: tuple[EagerJoin, ...] = ()

    @property
    def collections(self) -> tuple[EagerJoin, ...]:
        """The joins that multiply rows."""
        return tuple(join for join in self.joins if join.uselist)

    @property
    def siblings(self) -> tuple[tuple[EagerJoin, EagerJoin], ...]:
        """
        Pairs of collections of which neither lies below the other: their rows multiply each other.

        A collection within a collection has as many rows as it has members; a
        cartesian product has more.
        """
        return tuple(
            (one, other)
            for one, other in combinations(self.collections, 2)
            if one.path != other.path[: len(one.path)] and other.path != one.path[: len(other.path)]
        )
