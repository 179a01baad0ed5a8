"""From queries of the application to what was loaded for them: which relationships lead there, and how to call them."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.origin import QUERY, Origin, Parents
from sqltrace.recording import Recording
from sqltrace.sql_text import WRITES
from sqltrace.statement import Group
from sqltrace.widening import Widening

Path = tuple[str, ...]
GET, ONE_OF = "session.get", "one of "
_MAX_DEPTH = 6


class Asked(str):
    """
    How a query calls what it asked for, where that is not the class itself: the first of a path.

    ``aliased(Author)``, ``one of aliased(Author), aliased(Book)`` beside others, or ``session.get(Author)``.
    """

    __slots__ = ()


def paths_from_query(recording: Recording, group: Group) -> list[Path]:
    """
    The relationships that lead from queries of the application to what a group loaded; an empty path for a query.

    An option has to name them all: ``Book.topics`` does not apply to
    ``select(Author)``. There are several paths where objects of the same class came on different ways.
    A path may begin with how the query calls what it asked for (`Asked`).
    """
    parents_of: dict[tuple[str, Origin], dict[Parents | None, None]] = {}
    if group.origin is not QUERY:
        for statement in recording.statements:
            parents_of.setdefault((statement.fingerprint, statement.origin), {})[statement.parents] = None
    widenings = {(other.fingerprint, other.origin): other.widening for other in recording.groups}
    found = _paths(group.fingerprint, group.origin, parents_of, widenings, _MAX_DEPTH)
    own: Path = () if group.origin.step is None else (group.origin.step,)
    return list(dict.fromkeys(found)) or [own]


def names_of_query(recording: Recording, parents: Parents | None) -> Path:
    """The beginning of a path: how the query that led to some objects calls what it asked for. Mostly empty."""
    return _asked(_widening_of(recording, query_above(recording, parents)))


def query_above(recording: Recording, parents: Parents | None) -> Parents | None:
    """The query of the application that led to some objects; `None` where it is not known, or too far above."""
    for _ in range(_MAX_DEPTH):
        if parents is None or parents.origin.kind == "query":
            return parents
        load = parents.fingerprint, parents.origin
        above = (one.parents for one in recording.statements if (one.fingerprint, one.origin) == load)
        parents = next(above, None)
    return None


def loads_above(recording: Recording, group: Group) -> list[Group]:
    """The loads by which the objects came that a group was for, and those above them; the nearest first."""
    found, waiting = list[Group](), [group]
    while waiting:
        load = waiting.pop(0)
        loaded_for = {one.parents for one in recording.statements if (one.fingerprint, one.origin) == _key(load)}
        keys = {(parents.fingerprint, parents.origin) for parents in loaded_for if parents is not None}
        above = [one for one in recording.groups if _key(one) in keys and one.origin is not QUERY and one not in found]
        found += above
        waiting += above
    return found


def _key(group: Group) -> tuple[str, Origin]:
    return group.fingerprint, group.origin


def times_asked(recording: Recording, parents: Parents | None) -> int:
    """How often the query ran that led to some objects; 0 where it is not known."""
    return sum(group.count for group in _groups_of(recording, query_above(recording, parents)))


def in_a_query(path: Path) -> Path:
    """The path in a query for all, in place of each `Session.get`."""
    return path[1:] if isinstance(path[0], Asked) and path[0].startswith(GET) else path


def _groups_of(recording: Recording, query: Parents | None) -> list[Group]:
    """Of a query: one of each phase in which it ran."""
    if query is None:
        return []
    return [one for one in recording.groups if (one.fingerprint, one.origin) == (query.fingerprint, query.origin)]


def _widening_of(recording: Recording, query: Parents | None) -> Widening | None:
    return next((group.widening for group in _groups_of(recording, query)), None)


def takes_joins(recording: Recording, parents: Parents | None) -> bool:
    """Whether ``joinedload`` has an effect on the query that led to some objects, and does not make it fail."""
    query = query_above(recording, parents)
    if query is None:
        return True
    if query.summary.partition(" ")[0].upper() in WRITES:
        return False  # RETURNING
    widening = _widening_of(recording, query)
    return widening is None or widening.lookup is None or widening.lookup.joinable


def _paths(
    fingerprint: str,
    origin: Origin,
    parents_of: dict[tuple[str, Origin], dict[Parents | None, None]],
    widenings: dict[tuple[str, Origin], Widening | None],
    depth: int,
) -> Iterator[Path]:
    own: Path = () if origin.step is None else (origin.step,)
    if origin.kind == "query":
        own = _asked(widenings.get((fingerprint, origin)))
    found = False
    for parents in parents_of.get((fingerprint, origin), {}):
        if parents is not None:
            found = True
            if not depth:
                break  # of a tree, whose objects are loaded for each other: shorter ways lead there, too
            widening = widenings.get((parents.fingerprint, parents.origin))
            joined = _joined_path(widening, origin)
            for above in _paths(parents.fingerprint, parents.origin, parents_of, widenings, depth - 1):
                yield above + joined + own
    if not found:
        yield own


def _joined_path(widening: Widening | None, origin: Origin) -> Path:
    """The path to objects that were not asked for, but joined to those that were."""
    if widening is None:
        return ()
    joins = (*widening.joins, *widening.contained)
    if (entity := origin.base or origin.entity) in widening.entities:
        # Of a tree: the next level of those that were asked for is there.
        joins = tuple(join for join in joins if join.relationship == origin.relationship)
    return min((join.written for join in joins if join.entity == entity), key=len, default=())


def _asked(widening: Widening | None) -> Path:
    if widening is None or widening.lookup is None:
        return ()
    lookup, entities = widening.lookup, widening.entities
    if lookup.by_get:
        return (Asked(f"{GET}({entities[0]})"),)
    plain = {entity for entity, alias in zip(entities, lookup.aliases, strict=True) if not alias}
    aliases = [alias for entity, alias in zip(entities, lookup.aliases, strict=True) if alias and entity not in plain]
    among = ONE_OF if len(entities) > 1 else ""
    return (Asked(among + ", ".join(aliases)),) if aliases else ()
