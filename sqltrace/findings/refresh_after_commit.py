"""`refresh_after_commit`: objects that expired with a commit, loaded again one by one."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.refreshes import cost_with_loads
from sqltrace.findings.wording import kept_after_commit, place, plural, time
from sqltrace.recording import Recording


def refresh_after_commit(recording: Recording, *, refreshes: int = 5) -> Iterator[Finding]:
    """
    Objects that expired with a commit, loaded again one by one.

    Args:
        refreshes: Least number of objects of the same class that were loaded again.
    """
    for group in recording.groups:
        if group.origin.kind == "refresh" and group.origin.expired_by == "commit" and group.count >= refreshes:
            took = cost_with_loads(recording, group)
            yield Finding(
                "refresh_after_commit",
                f"{plural(group.count, 'statement')} loaded {group.origin.entity} objects again, one by one,"
                f" as a commit had expired them, in {time(took)}.",
                took,
                place(group),
                fix=kept_after_commit(group.is_async),
                fingerprint=group.fingerprint,
            )
