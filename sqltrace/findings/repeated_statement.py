"""`repeated_statement`: the same SELECT with the same parameters, and nothing written in between."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.n_plus_one import mean_pause
from sqltrace.findings.wording import cost, name_of, place, time
from sqltrace.recording import Recording
from sqltrace.samples import DIGESTS
from sqltrace.statement import Group

_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
_SETTINGS = frozenset({"SET", "RESET", "USE"})


def repeated_statement(recording: Recording, *, times: int = 4, pause: float = 0.05) -> Iterator[Finding]:
    """
    Only the first eight executions of a statement are compared.

    Args:
        times: So many executions with equal parameters, at least; at most 8 can be seen.
        pause: Seconds. Those that are further apart, on average, wait for a change.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    written, changes = _written_tables(recording), _changes(recording)
    for group in recording.groups:
        equal = group.samples.equal
        if equal < times or group.origin.kind != "query" or not _reads_only(group, written):
            continue
        if equal - changes < times:
            continue
        if mean_pause(group, loop_wait) >= pause:
            continue
        busiest = group.samples.busiest(group.count)
        lines = ", at different lines" if busiest is not None and busiest[1] < group.count else ""
        seen = equal if group.count <= DIGESTS else f"{equal} of the first {DIGESTS} times"
        often = f"{seen} times" if isinstance(seen, int) else f"{group.count:,} times, {seen}"
        share = equal / group.samples.compared
        yield Finding(
            "repeated_statement",
            f"{name_of(group)} ran {often} with the same parameters{lines}, in {time(cost(group) * share)}.",
            cost(group) * share * (equal - 1) / equal,
            place(group),
            fix="keep the first result and pass it on, or keep it on request.state",
        )


def _changes(recording: Recording) -> int:
    """
    How often the same may have meant something else since: what was read before a rollback may hold no longer, and
    ``SET search_path`` or ``USE`` leads to other tables.
    """
    settings = (group.count for group in recording.groups if group.summary.partition(" ")[0].upper() in _SETTINGS)
    return recording.connections.rollbacks + sum(settings)


def _written_tables(recording: Recording) -> set[str]:
    words = (group.summary.split() for group in recording.groups)
    return {word for operation, *targets in words if operation.upper() in _WRITES for word in targets}


def _reads_only(group: Group, written: set[str]) -> bool:
    operation, *targets = group.summary.split()
    return (
        operation.upper() == "SELECT"
        and bool(targets)
        and written.isdisjoint(targets)
        and "FOR UPDATE" not in group.sql.upper()
    )
