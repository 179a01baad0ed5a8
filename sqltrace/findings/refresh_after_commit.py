"""`refresh_after_commit`: objects that expired with a commit, loaded again one by one."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.wording import cost, place, plural, time
from sqltrace.recording import Recording


def refresh_after_commit(recording: Recording, *, refreshes: int = 5) -> Iterator[Finding]:
    """
    Args:
        refreshes: So many objects of the same class that were loaded again, at least.
    """
    if recording.connections.commit == 0:
        return
    for group in recording.groups:
        if group.origin.kind == "refresh" and group.count >= refreshes:
            maker = "async_sessionmaker" if group.is_async else "sessionmaker"
            yield Finding(
                "refresh_after_commit",
                f"{plural(group.count, 'statement')} loaded {group.origin.entity} objects again, one by one,"
                f" as a commit had expired them, in {time(cost(group))}.",
                cost(group),
                place(group),
                fix=f"{maker}(engine, expire_on_commit=False)",
            )
