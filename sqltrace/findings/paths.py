"""From queries of the application to what was loaded for them: which relationships lead there, and how to call them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqltrace.origin import QUERY, Origin, Parents
from sqltrace.recording import Recording
from sqltrace.sql_text import WRITES
from sqltrace.statement import Group, Statement
from sqltrace.widening import EagerJoin, Widening

Path = tuple[str, ...]
Key = tuple[str, Origin]  # fingerprint and origin: what tells the kinds of statements apart
GET, ONE_OF, OR, INSTEAD = "session.get", "one of ", "or ", " in place of the "
WITH = " with selectin_polymorphic "  # a base and its subclasses: what comes next is of one of these
ALIAS = re.compile(r"(?P<written>\w+\((?P<entity>\w+)(?:, \[(?P<others>[^]]*)\])?\))")
TO_ALIAS = re.compile(
    r"(?P<relationship>\w+\.\w+)(?: as |(?P<of_type>\.of_type\())"
    rf"(?P<called>{ALIAS.pattern}(?:{INSTEAD}.+\))?)(?(of_type)\))"
)
_OF_TYPE = re.compile(r"\.of_type\((\w+)\)$")
_MAX_DEPTH = 6


class Asked(str):
    """
    How a query calls what it asked for, where that is not the class itself: the first of a path.

    ``aliased(Author)``, ``one of aliased(Author), aliased(Book)`` beside others, or ``session.get(Author)``; or has to:
    ``with_polymorphic(Author, [Star]) in place of the aliased(Author)``. ``or aliased(Author)`` beside the class.
    """

    __slots__ = ()


def paths_from_query(recording: Recording, group: Group) -> list[Path]:
    """
    The relationships that lead from queries of the application to what a group loaded; an empty path for a query.

    An option has to name them all: ``Book.topics`` does not apply to
    ``select(Author)``. There are several paths where objects of the same class came on different ways.
    A path may begin with how the query calls what it asked for (`Asked`).
    """
    parents_of = {} if group.origin is QUERY else _parents_of_loads(recording)
    widenings = {_key(other): other.widening for other in recording.groups}
    found = _paths(group.fingerprint, group.origin, _Known(recording, parents_of, widenings), _MAX_DEPTH)
    own: Path = () if group.origin.step is None else (group.origin.step,)
    return list(dict.fromkeys(found)) or [own]


def others(alias: re.Match[str]) -> list[str]:
    """The subclasses that it names."""
    return alias["others"].split(", ") if alias["others"] else []


def ends_at_class(path: Path) -> bool:
    """Whether it ends with a class that a query asked for, and no alias or relationship."""
    return not path or path[-1].startswith((GET, OR))


def of_subclass(above: Path, subclass: str | None, base: str | None = None, missed: Iterable[str] = ()) -> Path:
    """
    The way to what has a relationship of a subclass.

    Args:
        above: To its base.
        base: Name of that, where the query does not have the relationship; else the mapping loads it with the base.
        missed: Subclasses that have to be named besides.
    """
    if ends_at_class(above):
        return above
    *before, last = above
    if WITH in last:  # of a tree, whose levels are one step
        return above
    if isinstance(last, Asked):
        own = next((alias for alias in ALIAS.finditer(last) if alias["entity"] == base), None)
        known = own is None or INSTEAD in last or subclass in others(own)
        return above if own is None or known else (*before, Asked(_with(own, {str(subclass), *missed})))
    found = TO_ALIAS.fullmatch(last)
    if found is not None and found["of_type"]:
        if subclass in others(found):
            return above
        return (*before, f"{found['relationship']}.of_type({_with(found, {str(subclass), *missed})})")
    if base is not None:  # of_type() below contains_eager() is a cartesian product
        return (*before, f"{last}{WITH}{base}, [{', '.join(sorted({str(subclass), *missed}))}]")
    return (*before, f"{last}.of_type({subclass})") if found is None else above


def _with(alias: re.Match[str], subclasses: Iterable[str]) -> str:
    """What a query has to ask for in place of an alias: no option names a relationship that this does not have."""
    named = sorted({*others(alias), *subclasses})
    return f"with_polymorphic({alias['entity']}, [{', '.join(named)}]){INSTEAD}{alias['written']}"


def missed_subclasses(recording: Recording, base: str) -> set[str]:
    """The subclasses of which anything was loaded one by one, or could not be: one option is for all of them."""
    origins = [group.origin for group in recording.groups] + [failed.origin for failed in recording.failed_loads]
    return {str(origin.entity) for origin in origins if origin.base == base}


def loaded_subclasses(recording: Recording, parents: Parents | None) -> set[str]:
    """The subclasses that an option or the mapping loads all at once."""
    if parents is None:
        return set()
    loaded = set[str]()
    for group in recording.groups:
        origin, above = group.origin, group.parents
        if origin.kind != "selectin" or above is None:
            continue
        if origin.relationship is None and above.fingerprint == parents.fingerprint:
            loaded.add(str(origin.entity))
        elif origin.relationship == parents.origin.relationship and (of_type := _OF_TYPE.search(origin.step or "")):
            loaded.add(of_type[1])
    return loaded


def names_of_query(recording: Recording, parents: Parents | None) -> Path:
    """The beginning of a path: how the query that led to some objects calls what it asked for. Mostly empty."""
    return _asked(_widening_of(recording, query_above(recording, parents)))


def query_above(recording: Recording, parents: Parents | None) -> Parents | None:
    """The query of the application that led to some objects; `None` where it is not known, or too far above."""
    for _ in range(_MAX_DEPTH):
        if parents is None or parents.origin.kind == "query":
            return parents
        load = _key(parents)
        parents = next((one.parents for one in recording.statements if _key(one) == load), None)
    return None


def loads_above(recording: Recording, group: Group) -> list[Group]:
    """The loads by which the objects came that a group was for, and those above them; the nearest first."""
    found, waiting, parents_of = list[Group](), [group], _parents_of_loads(recording)
    while waiting:
        keys = parents_of.get(_key(waiting.pop(0)), {})
        above = [one for one in recording.groups if _key(one) in keys and one.origin is not QUERY and one not in found]
        found += above
        waiting += above
    return found


def _parents_of_loads(recording: Recording) -> dict[Key, dict[Key, Parents]]:
    """What the statements of each kind were loads for, in their order: of each kind the first, whatever its line."""
    found: dict[Key, dict[Key, Parents]] = {}
    for statement in recording.statements:
        if statement.parents is not None:
            found.setdefault(_key(statement), {}).setdefault(_key(statement.parents), statement.parents)
    return found


def _key(one: Group | Statement | Parents) -> Key:
    return one.fingerprint, one.origin


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
    return [one for one in recording.groups if _key(one) == _key(query)]


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


class _Known(NamedTuple):
    recording: Recording
    parents_of: dict[Key, dict[Key, Parents]]
    widenings: dict[Key, Widening | None]


def _paths(fingerprint: str, origin: Origin, known: _Known, depth: int) -> Iterator[Path]:
    own: Path = () if origin.step is None else (origin.step,)
    if origin.kind == "query":
        own = _asked(known.widenings.get((fingerprint, origin)))
    loaded_for = known.parents_of.get((fingerprint, origin))
    if loaded_for is None:
        yield own
    elif depth:  # else of a tree, whose objects are loaded for each other: shorter ways lead there, too
        for key, parents in loaded_for.items():
            widening = known.widenings.get(key)
            join = _join_of(widening, origin)
            for way in _paths(*key, known, depth - 1):
                above = way if join is None else way_of_join(way, join, widening)
                if origin.base is not None and depth < _MAX_DEPTH:  # what is told itself has an option of its own
                    named = missed_subclasses(known.recording, origin.base)
                    named |= loaded_subclasses(known.recording, parents)
                    above = of_subclass(above, origin.entity, origin.base, named)
                yield above + own


def _join_of(widening: Widening | None, origin: Origin) -> EagerJoin | None:
    """By which objects came that were not asked for, but joined to those that were."""
    if widening is None:
        return None
    joins = (*widening.joins, *widening.contained)
    if (entity := origin.base or origin.entity) in widening.entities:
        # Of a tree: the next level of those that were asked for is there.
        joins = tuple(join for join in joins if join.relationship == origin.relationship)
    return min((join for join in joins if join.entity == entity), key=lambda join: len(join.written), default=None)


def way_of_join(above: Path, join: EagerJoin, widening: Widening | None) -> Path:
    """
    The way to what was joined, its relationship included.

    Args:
        above: To what was asked for.
        widening: That has the join.
    """
    contained = {} if widening is None else {one.path: one.entity for one in widening.contained}
    steps = list(join.written)
    for place, step in enumerate(steps):
        base, subclass = contained.get(join.path[: place + 1]), _OF_TYPE.search(step)
        if base is not None and subclass is not None:  # where of_type() would be a cartesian product
            steps[place] = f"{step[: subclass.start()]}{WITH}{base}, [{subclass[1]}]"
    return (*(above if join.subclass is None else of_subclass(above, join.subclass)), *steps)


def _asked(widening: Widening | None) -> Path:
    if widening is None or widening.lookup is None:
        return ()
    lookup, entities = widening.lookup, widening.entities
    if lookup.by_get:
        return (Asked(f"{GET}({entities[0]})"),)
    plain = {entity for entity, alias in zip(entities, lookup.aliases, strict=True) if not alias}
    aliases = [alias for entity, alias in zip(entities, lookup.aliases, strict=True) if alias and entity not in plain]
    among = ONE_OF if len(entities) > 1 else ""
    if aliases:
        return (Asked(among + ", ".join(aliases)),)
    beside = {alias for alias in lookup.aliases if alias}
    return (Asked(OR + " or ".join(sorted(beside))),) if beside else ()
