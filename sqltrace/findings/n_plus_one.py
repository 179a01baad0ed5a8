"""`n_plus_one`: the same statement again and again, once for each object of another one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.loader_options import (
    in_place_of_levels,
    in_place_of_options,
    in_place_of_subclasses,
    loaders_for,
    options,
    paths_from_query,
    query_above,
)
from sqltrace.findings.refreshes import EAGER_DEFAULTS, cost_with_loads, is_within, refreshed_one_by_one
from sqltrace.findings.wording import cost, listed, loaded_by, name_of, of_subclass, place, plural, time
from sqltrace.origin import Origin
from sqltrace.recording import Recording
from sqltrace.sql_text import redact
from sqltrace.statement import Group

_ONE_BY_ONE = frozenset({"lazy", "immediate", "deferred", "subclass", "refresh"})
_EQUALS = re.compile(r"\bWHERE\b.*?\b(?P<table>\w+)\.(?P<column>\w+) = ", re.DOTALL)
_WHERE = re.compile(r"\bWHERE\b", re.IGNORECASE)
_EQUAL = re.compile(r"(?<![<>!:=])=(?![=>])")
_UNEQUAL = re.compile(r"(?<=\s)[<>]=?(?=\s)|\bBETWEEN\b", re.IGNORECASE)
_LIMIT = re.compile(r"\sLIMIT\s|\sFETCH\s+(FIRST|NEXT)\s|\bSELECT\s+TOP\b", re.IGNORECASE)
_AGGREGATE = re.compile(r"\b(?:(?:COUNT|SUM|AVG|MIN|MAX)\(|(?P<source>FROM)\b)", re.IGNORECASE)
_IN = re.compile(r"\bIN \((?P<values>[^()]*)\)")
_SYSTEM_TABLES = ("pg_catalog", "information_schema", "sqlite_master", "PRAGMA")
_BATCH = 10
_EXPIRED: dict[str | None, str] = {
    "rollback": "as a rollback had expired it",
    "expire": "as the application had expired it",
}


def n_plus_one(recording: Recording, *, loads: int = 5, queries: int = 10, pause: float = 0.05) -> Iterator[Finding]:
    """
    Args:
        loads: So many loads of the same relationship, each for one object.
        queries: So many executions of the same query at the same line.
        pause: Seconds. Queries that are further apart, on average, are no loop but a poll or a conversation.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    for group in recording.groups:
        if group.failed == group.count:
            continue  # nothing was loaded
        if group.origin.kind in _ONE_BY_ONE:
            if group.count >= loads and _at_one_place(group) >= loads and not _told_elsewhere(group):
                if not group.origin.asked_for:
                    yield _of_load(recording, group)
                elif not _same_each_time(group) and mean_pause(group, loop_wait) < pause:
                    yield refreshed_one_by_one(recording, group)
        elif group.count >= queries and _is_loop(group, queries) and mean_pause(group, loop_wait) < pause:
            yield _of_query(group)


def mean_pause(group: Group, loop_wait: float) -> float:
    """Seconds between the end of one and the start of the next, without waiting for the event loop."""
    between = (group.samples.last - group.samples.first) / 1_000_000_000
    return (between - group.total - loop_wait) / max(1, group.count - 1)


def _at_one_place(group: Group) -> int:
    """About how many came from the same line; all, where that is not known, as with a response model."""
    busiest = group.samples.busiest(group.count)
    return group.count if busiest is None else busiest[1]


def _is_loop(group: Group, queries: int) -> bool:
    each = _at_one_place(group) / max(1, len(group.samples.engines))  # no query asks several databases
    return group.origin.kind == "query" and each >= queries and _asks_for_one(group)


def _told_elsewhere(group: Group) -> bool:
    return is_within(group) or (group.origin.kind == "refresh" and group.origin.expired_by == "commit")


def _same_each_time(group: Group) -> bool:
    return group.samples.compared > 1 and group.samples.equal == group.samples.compared


def _asks_for_one(group: Group) -> bool:
    """Whether it is a SELECT of what belongs to one object, with other parameters each time: no page and no batch."""
    operation, _, targets = group.summary.partition(" ")
    if operation.upper() != "SELECT" or not targets or any(name in group.sql for name in _SYSTEM_TABLES):
        return False
    if _same_each_time(group) or ("WHERE" not in group.sql and not _WHERE.search(group.sql)):
        return False
    rows = (group.rows or 0) / group.count
    paged = rows >= _BATCH and _LIMIT.search(group.sql) is not None
    offset = rows > 1 and " OFFSET " in group.sql.upper()
    batched = any(match["values"].count(",") + 1 >= _BATCH for match in _IN.finditer(group.sql))
    return not (paged or offset or batched or _goes_on(group))


def _goes_on(group: Group) -> bool:
    """Whether it asks for what comes before or after something, which no ``IN`` can ask for at once."""
    if not any(word in group.sql for word in ("<", ">", "BETWEEN", "between")):  # as of most: the rest takes longer
        return False
    _, *conditions = _WHERE.split(group.sql)
    compared = " ".join(conditions)
    if not _UNEQUAL.search(compared):
        return False
    return _LIMIT.search(group.sql) is not None or not _EQUAL.search(compared)


def _of_load(recording: Recording, group: Group) -> Finding:
    origin = group.origin
    paths = paths_from_query(recording, group)
    above = [path[:-1] if origin.relationship is not None else path for path in paths]
    fix = options(chosen for path in above for chosen in loaders_for(recording, origin, group.parents, path))
    if origin.relationship is not None:
        if group.parents is None or group.parents.origin.kind == "refresh":  # they are new, or the session had them
            fix = f"session.scalars(select({origin.entity}).where(…){fix}).all()  # once, before the loop"
        fix += in_place_of_levels(origin, group.parents)
    fix += in_place_of_options(origin) + in_place_of_subclasses(recording, origin, group.parents)
    if fix.startswith(".options"):
        fix += _of_query_above(recording, group)
    each = "one by one" if origin.uselist is False else f"one for each {origin.entity}"  # parents may share an object
    why = "as it was touched"
    if origin.kind == "immediate":
        why = "right after it" if origin.uselist else f"right after their {origin.entity}"
    took = cost_with_loads(recording, group)
    if origin.expired_by == "flush":
        why, fix = "after a flush", EAGER_DEFAULTS
    elif origin.kind == "refresh":
        why = _EXPIRED.get(origin.expired_by, "as it had expired")
        fix = f"session.scalars(select({origin.entity}).where(…)).all()  # once, before the loop"
    return Finding(
        "n_plus_one",
        f"{_what(origin)} loaded by {plural(group.count, 'statement')}, {each} {why}, in {time(took)}.",
        took,
        place(group),
        origin.relationship,
        loaded_by(group.parents),
        fix,
    )


def _what(origin: Origin) -> str:
    """``Author.books was``, ``Star.fame and Star.name, columns of a subclass of Author, were``."""
    names = [f"{origin.entity}.{name}" for name in origin.attributes if origin.expired_by in (None, "flush")]
    named = names or [origin.relationship or str(origin.entity)]
    several = len(named) > 1
    of_base = f", {of_subclass(origin, several=several)}," if origin.base is not None else ""
    return f"{listed(named)}{of_base} {'were' if several else 'was'}"


def _of_query_above(recording: Recording, group: Group) -> str:
    """For the end of a fix: whose options these are, where another line has loaded the parents."""
    query = query_above(recording, group.parents)
    if group.parents is None or query is None or query.call_site == group.parents.call_site:
        return ""
    return f"  # of the {loaded_by(query)}"


def _of_query(group: Group) -> Finding:
    busiest = group.samples.busiest(group.count)
    line, count = busiest or (None, group.count)
    where = "at the same line" if count == group.count else "at several lines"  # of most it is not known
    return Finding(
        "n_plus_one",
        f"{name_of(group)} ran {group.count:,} times {where} with other parameters each time, in {time(cost(group))}.",
        cost(group),
        str(line) if line else place(group),
        fix=_one_for_all(group),
    )


def _one_for_all(group: Group) -> str:
    lookup = group.widening.lookup if group.widening is not None else None
    if group.widening is None or lookup is None or not lookup.equal:
        return _one_for_all_by_text(group)
    [entity, *_], equal = group.widening.entities, lookup.equal
    if lookup.alone and (len(equal) == 1 or lookup.is_key):
        which = _in(equal[0]) if len(equal) == 1 else f"tuple_({', '.join(equal)}).in_(keys)"
        select = f"select({entity}).where({which})"
        if lookup.by_get:
            return _kept(select, group.is_async, bool(group.widening.collections))
        return f"{select}  # once, before the loop"
    if len(equal) == 1:
        return f"the same query once, before the loop, with {_in(equal[0])}, and {equal[0]} asked for, too"
    return f"one query for all, before the loop, with in_() for what differs of {listed(list(equal))}"


def _kept(select: str, is_async: bool, collections: bool) -> str:
    """For `Session.get`, which finds what is there already."""
    rows = f"(await session.scalars({select}))" if is_async else f"session.scalars({select})"
    unique = ".unique()" if collections else ""
    return f"kept = {rows}{unique}.all()  # once, before the loop, and kept: the session alone keeps no object"


def _in(attribute: str) -> str:
    """``Author.id.in_(ids)``."""
    return f"{attribute}.in_({attribute.partition('.')[2]}s)"


def _is_aggregate(sql: str) -> bool:
    """Whether what it asks for is counted, added up or the like."""
    first = _AGGREGATE.search(sql) if "(" in sql else None
    return first is not None and first["source"] is None


def _one_for_all_by_text(group: Group) -> str:
    sql = redact(group.sql, group.system)  # what looks like a column may be a part of a value
    grouped = _is_aggregate(sql)
    match = _EQUALS.search(sql)
    if match is None or len(_EQUAL.findall(sql, match.start())) != 1:
        which = "WHERE … IN (…) and GROUP BY" if grouped else "WHERE … IN (…)"
        return f"one statement for all, before the loop: {which} for what differs"
    column = f"{match['table']}.{match['column']}"
    if grouped:
        groups = f"{column}, …" if "GROUP BY" in sql.upper() else column
        return f"one statement for all, before the loop: SELECT {column}, … WHERE {column} IN (…) GROUP BY {groups}"
    return f"one statement for all, before the loop: WHERE {column} IN (…)"
