"""`n_plus_one`: the same statement again and again, once for each object of another one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter

from sqltrace.finding import Finding
from sqltrace.findings.costs import cost_at_once, kept_of, mean_pause
from sqltrace.findings.loader_options import in_place_of, loader_for, loaders_for, options
from sqltrace.findings.locking import locks
from sqltrace.findings.one_for_all import EQUAL, LIMIT, is_one_in_each_transaction, one_for_all
from sqltrace.findings.paths import in_a_query, loads_above, paths_from_query, query_above, times_asked
from sqltrace.findings.refreshes import cost_with_loads, eager_defaults, is_within, refreshed_one_by_one
from sqltrace.findings.wording import line, listed, name_and_line, name_of, of_subclass, place, plural, time
from sqltrace.literals import IN_SCHEMA
from sqltrace.origin import Origin
from sqltrace.recording import Recording
from sqltrace.statement import Group

_ONE_BY_ONE = frozenset({"lazy", "immediate", "deferred", "subclass", "refresh"})
_KEY = attrgetter("key")
_WHERE = re.compile(r"\bWHERE\b", re.IGNORECASE)
_UNEQUAL = re.compile(r"(?<=\s)[<>]=?(?=\s)|\bBETWEEN\b", re.IGNORECASE)
_IN = re.compile(r"\bIN\s*\(", re.IGNORECASE)
_ANY = re.compile(r"=\s*ANY\s*\((?:\s|\(|CAST\b|ARRAY\[)*[?%:$]", re.IGNORECASE)  # of what is given, not of a column
_SIGNS = re.compile("[(),]")
_SYSTEM_TABLES = ("pg_catalog", "information_schema", "sqlite_master", "PRAGMA")
_BATCH = 10
_UPDATES_TELL_NOTHING = ("mariadb", "mysql")  # no RETURNING: eager_defaults asks one by one, too
_EXPIRED: dict[str | None, str] = {
    "rollback": "as a rollback had expired it",
    "expire": "as the application had expired it",
}
# When one query loads all of them again: within a loop that has each of them expire, it would be one of many.
_EXPIRE_AT_ONCE: dict[str | None, str] = {
    "rollback": "before the loop",
    "flush": "after one flush of all",
    None: "after all have been flushed or expired",  # of single attributes: mostly SQL expressions were set on them
}


def n_plus_one(recording: Recording, *, loads: int = 5, queries: int = 10, pause: float = 0.05) -> Iterator[Finding]:
    """
    The same statement again and again, once for each object of another one.

    Args:
        loads: Least number of loads of the same relationship or attributes at one line, each for one object.
        queries: Least number of executions of the same query at the same line.
        pause: Seconds. Queries that are further apart, on average, are no loop but a poll or a conversation.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    of_subclasses: dict[tuple[object, ...], list[Group]] = {}  # one option is for all of the same base
    for group in recording.groups:
        if group.failed == group.count:
            continue  # nothing was loaded
        each = _at_one_place(group) / max(1, recording.messages) / max(1, len(group.samples.engines))
        if each < min(loads, queries):
            continue
        each /= _schemas(recording, group)
        if group.origin.kind in _ONE_BY_ONE:
            if each >= loads and not (_told_elsewhere(group) or _is_one_for_each_rollback(recording, group)):
                if group.origin.kind == "subclass":
                    of_subclasses.setdefault((group.origin.base, group.parents, group.site), []).append(group)
                elif not group.origin.asked_for:
                    yield _of_load(recording, loads, group)
                elif not _same_each_time(group) and mean_pause(group, loop_wait) < pause:
                    yield refreshed_one_by_one(recording, group)
        elif each >= queries and group.origin.kind == "query" and _asks_for_one(group):
            meant = locks(group.sql) and is_one_in_each_transaction(recording, group)
            if not meant and mean_pause(group, loop_wait) < pause:
                yield _of_query(recording, group)
    for groups in of_subclasses.values():
        yield _of_load(recording, loads, *groups)


def _at_one_place(group: Group) -> int:
    """About how many came from the same line; all, where that is not known, as with a response model."""
    busiest = group.samples.busiest(group.count)
    return group.count if busiest is None else busiest[1]


def _schemas(recording: Recording, group: Group) -> int:
    """In how many it asked, which makes as many questions of it; 1 without `schema_translate_map`."""
    kept = kept_of(recording, group)
    if not any(IN_SCHEMA in key for key in set(map(_KEY, kept))):
        return 1
    return len({execution.sql for execution in kept if IN_SCHEMA in execution.key})


def _told_elsewhere(group: Group) -> bool:
    return is_within(group) or (group.origin.kind == "refresh" and group.origin.expired_by == "commit")


def _is_one_for_each_rollback(recording: Recording, group: Group) -> bool:
    """Of objects that are rolled back one by one, each of which has to be read again if it is needed."""
    if group.origin.expired_by != "rollback":
        return False
    to_savepoints = sum(other.count for other in recording.groups if other.summary.startswith("ROLLBACK"))
    return recording.connections.rollbacks + to_savepoints >= group.count


def _same_each_time(group: Group) -> bool:
    samples = group.samples
    return samples.compared > 1 and samples.equal == samples.compared and not samples.varied


def _asks_for_one(group: Group) -> bool:
    """Whether it is a SELECT of what belongs to one object, with different parameters: no page and no batch."""
    if _same_each_time(group) or not _looks_up(group.summary, group.sql):
        return False
    rows = (group.rows or 0) / group.count
    paged = rows >= _BATCH and LIMIT.search(group.sql) is not None
    offset = rows > 1 and " OFFSET " in group.sql.upper()
    return not (paged or offset)


@lru_cache(maxsize=1_024)
def _looks_up(summary: str, sql: str) -> bool:
    """Whether it is a SELECT of what belongs to one object, by its text."""
    operation, _, targets = summary.partition(" ")
    if operation.upper() != "SELECT" or not targets or any(name in sql for name in _SYSTEM_TABLES):
        return False
    return _WHERE.search(sql) is not None and not (_is_batch(sql) or _goes_on(sql))


def _is_batch(sql: str) -> bool:
    """Whether it asks for many at once already, by ``IN`` or ``= ANY``."""
    if _ANY.search(sql):
        return True
    return any(_values(sql, match.end()) >= _BATCH for match in _IN.finditer(sql))


def _values(sql: str, start: int) -> int:
    """How many values are in the parenthesis that was opened right before; each may be a tuple in one of its own."""
    depth, count = 1, 1
    for sign in _SIGNS.finditer(sql, start):
        depth += (sign[0] == "(") - (sign[0] == ")")
        count += sign[0] == "," and depth == 1
        if not depth:
            break
    return count


def _goes_on(sql: str) -> bool:
    """Whether it asks for what comes before or after something, which no ``IN`` can ask for at once."""
    _, *conditions = _WHERE.split(sql)
    compared = " ".join(conditions)
    if not _UNEQUAL.search(compared):
        return False
    return LIMIT.search(sql) is not None or not EQUAL.search(compared)


def _of_load(recording: Recording, loads: int, group: Group, *others: Group) -> Finding:
    """
    Args:
        loads: Least number of those that are told.
        others: Those of other subclasses of the same base.
    """
    origin = group.origin
    each = f"one for each {origin.base if others else origin.entity}"
    if origin.uselist is False:
        each = "one by one"  # parents may share an object
    took = sum(cost_with_loads(recording, one) for one in (group, *others))
    count = sum(one.count for one in (group, *others))
    return Finding(
        "n_plus_one",
        f"{_what(origin, *(other.origin for other in others))} loaded by {plural(count, 'statement')},"
        f" {each} {_when(origin)}, in {time(took)}.",
        took,
        place(group),
        relationship=origin.relationship,
        parents=name_and_line(group.parents),
        fix=_fix_of_load(recording, group, loads),
        fingerprint=group.fingerprint,
    )


def _when(origin: Origin) -> str:
    """``as it was touched``, ``after a flush``."""
    if origin.expired_by == "flush":
        return "after a flush"
    if origin.kind == "refresh":
        return _EXPIRED.get(origin.expired_by, "as it had expired")
    if origin.kind == "immediate":
        return "right after it" if origin.uselist else f"right after their {origin.entity}"
    return "as it was touched"


def _fix_of_load(recording: Recording, group: Group, loads: int) -> str:
    origin = group.origin
    if origin.expired_by == "flush" and group.system not in _UPDATES_TELL_NOTHING:
        return eager_defaults(origin)
    if origin.kind == "refresh":
        return _at_once(group, _when_expired(origin))
    again = _loaded_again(recording, group, loads)
    if again is not None and again.origin.expired_by != "commit":
        loader = (str(origin.relationship),), loader_for(origin.uselist)
        return _at_once(group, _when_expired(again.origin), options([loader]))
    fix = _options_for(recording, group)
    if fix.startswith(".options"):
        fix += _together(recording, group, loads) + ("  # together with expire_on_commit=False" if again else "")
    return fix


def _loaded_again(recording: Recording, group: Group, loads: int) -> Group | None:
    """The refreshes before a relationship was touched: what an option has loaded expires with its object."""
    if group.origin.kind != "lazy":
        return None
    refreshes = (
        other
        for other in recording.groups
        if (other.origin.kind, other.origin.entity) == ("refresh", group.origin.entity)
        and other.origin.expired_by in ("commit", "rollback", "expire")
        and other.count >= loads
        and other.samples.first < group.samples.first
    )
    return next(refreshes, None)


def _when_expired(origin: Origin) -> str:
    return _EXPIRE_AT_ONCE.get(origin.expired_by, "after all have expired")


def _options_for(recording: Recording, group: Group) -> str:
    """The options of the query that loaded the objects; of new ones, a query."""
    origin, parents = group.origin, group.parents
    paths, asked = paths_from_query(recording, group), times_asked(recording, parents)
    for_each = origin.uselist and 2 * asked > group.count  # an option of each query would make as many statements
    if for_each:
        paths = [in_a_query(path) for path in paths]
    above = [path[:-1] if origin.relationship is not None else path for path in paths]
    fix = options(chosen for path in above for chosen in loaders_for(recording, origin, parents, path))
    # They are new, or the session had them.
    if origin.relationship is not None and (parents is None or parents.origin.kind == "refresh"):
        fix = _at_once(group, "before the loop", fix)
    fix += in_place_of(recording, origin, parents, above[0])
    if fix.startswith(".options"):
        fix += _of_query_above(recording, group)
        fix += f"  # of one query for all, in place of {asked:,}" if for_each else ""
    return fix


def _together(recording: Recording, group: Group, loads: int) -> str:
    """For the end of a fix: which others it needs, as alone it adds a statement to each of their loads."""
    above = dict.fromkeys(
        str(load.origin.relationship)
        for load in loads_above(recording, group)
        if load.origin.kind in ("lazy", "immediate") and _at_one_place(load) >= loads
    )
    above.pop(str(group.origin.relationship), None)  # of a tree, whose option is for all levels
    return f"  # together with the fix for {listed(list(above))}" if above else ""


def _at_once(group: Group, when: str, loads: str = "") -> str:
    asked = f"session.scalars(select({group.origin.entity}).where(…){loads})"
    return f"{f'(await {asked})' if group.is_async else asked}.all()  # once, {when}"


def _what(origin: Origin, *others: Origin) -> str:
    """``Author.books was``, ``Star.fame and Star.name, columns of a subclass of Author, were``."""
    named = [name for each in (origin, *others) for name in _names(each)]
    several = len(named) > 1
    of_base = f", {of_subclass(origin, several=several)}," if origin.base is not None else ""
    if others:
        of_base = f", columns of subclasses of {origin.base},"
    return f"{listed(named)}{of_base} {'were' if several else 'was'}"


def _names(origin: Origin) -> list[str]:
    names = [f"{origin.entity}.{name}" for name in origin.attributes if origin.expired_by in (None, "flush")]
    return names or [origin.relationship or str(origin.entity)]


def _of_query_above(recording: Recording, group: Group) -> str:
    """For the end of a fix: whose options these are, where another line has loaded the parents."""
    query = query_above(recording, group.parents)
    if group.parents is None or query is None or query.call_site == group.parents.call_site:
        return ""
    return f"  # of the {name_and_line(query)}"


def _of_query(recording: Recording, group: Group) -> Finding:
    site, count = group.samples.busiest(group.count) or (group.site, group.count)
    where = "at the same line" if count == group.count else "at several lines"  # of most it is not known
    within = ", in what a flush calls," if site is not None and site.in_flush else ""
    took = cost_at_once(recording, group)
    return Finding(
        "n_plus_one",
        f"{name_of(group)} ran {group.count:,} times {where}{within} with different parameters, in {time(took)}.",
        took,
        line(site),
        fix=one_for_all(recording, group),
        fingerprint=group.fingerprint,
    )
