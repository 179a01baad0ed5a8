"""`repeated_statement`: the same SELECT with the same parameters, and nothing written in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from sqltrace.callsite import CallSite
from sqltrace.finding import Finding
from sqltrace.findings.costs import cost_at_once, mean_pause
from sqltrace.findings.locking import locks
from sqltrace.findings.one_for_all import OF_LIBRARY
from sqltrace.findings.wording import name_of, place, time
from sqltrace.recording import Recording
from sqltrace.samples import DIGESTS
from sqltrace.sql_text import WRITES

# Of all others, as CALL, CREATE or SET, nobody knows what they change.
_KNOWN = WRITES | frozenset("SELECT VALUES SAVEPOINT RELEASE SHOW EXPLAIN PRAGMA BEGIN START".split())
_DIFFERS = re.compile(
    r"\b(?:rand|random|randomblob|newid|uuid|gen_random_uuid|uuid_generate_\w+|nextval|lastval|clock_timestamp"
    r"|statement_timestamp|sysdate|timeofday|row_count|changes|last_insert_id)\s*\(|\bpg_stat_|\bpg_locks\b",
    re.IGNORECASE,
)


def repeated_statement(recording: Recording, *, times: int = 4, pause: float = 0.05) -> Iterator[Finding]:
    """
    SELECTs that ran again with the same parameters, and nothing written in between.

    The first eight executions of a statement are compared, and of the later ones those that have a call site.

    Args:
        times: Least number of executions with equal parameters; at most 8 can be seen.
        pause: Seconds. Those that are further apart, on average, wait for a change.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    written, changes = _written_tables(recording), _changes(recording)
    for group in recording.groups:
        equal = group.samples.equal
        if equal - changes < times or group.count < times * recording.messages:
            continue
        tables = _tables_read(group.summary, group.sql)
        if group.origin.kind != "query" or not tables or not written.isdisjoint(tables):
            continue
        if mean_pause(group, loop_wait) >= pause:
            continue
        if group.samples.varied and equal == group.samples.compared and group.count >= 2 * DIGESTS:
            continue  # a loop over what is in the order of what it asks for, which is no repetition
        busiest = group.samples.busiest(group.count)
        lines = ", at different lines" if busiest is not None and busiest[1] < group.count else ""
        first = max(DIGESTS, group.samples.compared)  # more where recordings within had the first of their own compared
        seen = equal if group.count <= first else f"{equal} of the first {first} times"
        often = f"{seen} times" if isinstance(seen, int) else f"{group.count:,} times, {seen}"
        took = cost_at_once(recording, group) * equal / group.samples.compared
        yield Finding(
            "repeated_statement",
            f"{name_of(group)} ran {often} with the same parameters{lines}, in {time(took)}.",
            took * (equal - 1) / equal,
            place(group),
            fix=_fix(busiest[0] if busiest is not None else None),
            fingerprint=group.fingerprint,
        )


def _fix(site: CallSite | None) -> str:
    if site is not None and site.in_flush:
        return OF_LIBRARY if site.in_library else "keep the first result for the others, as in session.info"
    return "keep the first result and pass it on, or keep it on request.state"


def _changes(recording: Recording) -> int:
    """
    How often the same may have meant something else since: what was read before a rollback may hold no longer, and
    ``SET search_path``, a procedure, or a function that is called for its effect may have changed anything.
    """
    changing = (group.count for group in recording.groups if _may_change_anything(group.summary, group.sql))
    return recording.connections.rollbacks + sum(changing)


@lru_cache(maxsize=1_024)
def _may_change_anything(summary: str, sql: str) -> bool:
    operation, *others = summary.split()
    if operation.upper() == "SELECT":
        return not others and "(" in sql  # SELECT set_config(…)
    return operation.upper() not in _KNOWN


def _written_tables(recording: Recording) -> set[str]:
    return {word for group in recording.groups if _writes(group.summary) for word in group.summary.split()}


@lru_cache(maxsize=1_024)
def _writes(summary: str) -> bool:
    """Also ``WITH … INSERT``."""
    return any(word.upper() in WRITES for word in summary.split())


@lru_cache(maxsize=1_024)
def _tables_read(summary: str, sql: str) -> tuple[str, ...]:
    """The tables of a SELECT that answers the same until they change; none for any other statement."""
    operation, *tables = summary.split()
    return () if operation.upper() != "SELECT" or locks(sql) or _DIFFERS.search(sql) else tuple(tables)
