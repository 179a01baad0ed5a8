"""`n_plus_one`: the same statement again and again, once for each object of another one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.loader_options import in_place_of_subclasses, loaders_for, options, paths_from_query
from sqltrace.findings.refreshes import cost_with_loads, is_within, refreshed_one_by_one
from sqltrace.findings.wording import cost, loaded_by, of_subclass, place, plural, time
from sqltrace.recording import Recording
from sqltrace.statement import Group

_ONE_BY_ONE = frozenset({"lazy", "immediate", "deferred", "subclass", "refresh"})
_EQUALS = re.compile(r"\bWHERE\b.*?\b(?P<table>\w+)\.(?P<column>\w+) = ", re.DOTALL)
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
            continue  # nothing was loaded: where the driver may not wait, as under `MissingGreenlet`
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
    return group.origin.kind == "query" and _at_one_place(group) >= queries and _asks_for_one(group)


def _told_elsewhere(group: Group) -> bool:
    return is_within(group) or (group.origin.kind == "refresh" and group.origin.expired_by == "commit")


def _same_each_time(group: Group) -> bool:
    return group.samples.compared > 1 and group.samples.equal == group.samples.compared


def _asks_for_one(group: Group) -> bool:
    """Whether it is a SELECT of what belongs to one object, with other parameters each time: no page and no batch."""
    operation, _, targets = group.summary.partition(" ")
    if operation.upper() != "SELECT" or not targets or any(name in group.sql for name in _SYSTEM_TABLES):
        return False
    if _same_each_time(group):
        return False
    rows = (group.rows or 0) / group.count
    sql = group.sql.upper()
    paged = rows >= _BATCH and (" LIMIT " in sql or " FETCH FIRST " in sql or "\nLIMIT " in sql)
    offset = rows > 1 and " OFFSET " in sql
    batched = any(match["values"].count(",") + 1 >= _BATCH for match in _IN.finditer(group.sql))
    return not (paged or offset or batched)


def _of_load(recording: Recording, group: Group) -> Finding:
    origin = group.origin
    paths = paths_from_query(recording, group)
    above = [path[:-1] if origin.relationship is not None else path for path in paths]
    fix = options(chosen for path in above for chosen in loaders_for(recording, origin, group.parents, path))
    fix += in_place_of_subclasses(recording, origin, group.parents)
    what = origin.relationship or ", ".join(f"{origin.entity}.{name}" for name in origin.attributes)
    each = "one by one" if origin.uselist is False else f"one for each {origin.entity}"  # parents may share an object
    why = "as it was touched"
    if origin.kind == "immediate":
        why = "right after it" if origin.uselist else f"right after their {origin.entity}"
    took = cost_with_loads(recording, group)
    if origin.kind == "refresh" and origin.expired_by is None and _writes(recording):
        why, fix = "after a flush", '__mapper_args__ = {"eager_defaults": True}'
    elif origin.kind == "refresh":
        what = what if origin.expired_by is None else str(origin.entity)
        why = _EXPIRED.get(origin.expired_by, "as it had expired")
        fix = f"session.scalars(select({origin.entity}).where(…)).all()  # once, before the loop"
    if origin.base is not None:
        what += f", {of_subclass(origin)},"
    return Finding(
        "n_plus_one",
        f"{what or origin.entity} was loaded by {plural(group.count, 'statement')}, {each} {why}, in {time(took)}.",
        took,
        place(group),
        origin.relationship,
        loaded_by(group.parents),
        fix,
    )


def _writes(recording: Recording) -> bool:
    return any(group.summary.partition(" ")[0].upper() in ("INSERT", "UPDATE") for group in recording.groups)


def _of_query(group: Group) -> Finding:
    busiest = group.samples.busiest(group.count)
    line, count = busiest or (None, group.count)
    times = f"{group.count:,} times" if count == group.count else f"{group.count:,} times, {count:,} of them"
    return Finding(
        "n_plus_one",
        f"{group.summary} ran {times} at the same line with other parameters each time, in {time(cost(group))}.",
        cost(group),
        str(line) if line else place(group),
        fix=_one_for_all(group),
    )


def _one_for_all(group: Group) -> str:
    match = _EQUALS.search(group.sql)
    entities = list(group.entities or {})
    if match is None:
        return "one statement for all, before the loop: WHERE … IN (…)"
    column = match["column"]
    if len(entities) == 1:
        return f"select({entities[0]}).where({entities[0]}.{column}.in_({column}s))  # once, before the loop"
    return f"one statement for all, before the loop: WHERE {match['table']}.{column} IN (…)"
