"""`after_response_sql`: statements that nobody waits for, and of whose failure nobody hears."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.costs import cost
from sqltrace.findings.wording import line, mostly, name_of, place_of_failed, plural, time
from sqltrace.recording import Recording

_TELL = (
    "commit in the endpoint what the exit of a dependency commits;"
    " a background task has to tell somebody itself that it failed"
)


def after_response_sql(recording: Recording, *, long: float = 1.0) -> Iterator[Finding]:
    """
    Statements and commits after the response that failed, and statements that took long.

    Args:
        long: Seconds of statements after the response; failed ones are reported in any case.
    """
    yield from _failed_commit(recording)
    groups = [group for group in recording.groups if group.phase == "after_response"]
    took = sum(cost(group) for group in groups)
    failed = sum(group.failed for group in groups)
    if not groups or (not failed and took < long):
        return
    worst = next((group for group in groups if group.failed), max(groups, key=cost))
    count = plural(sum(group.count for group in groups), "statement")
    if failed:
        message = (
            f"{failed:,} of {count} after the response failed, in {name_of(worst)}: the client was told otherwise."
        )
        fix = _TELL
    else:
        message = f"{count} ran for {time(took)} after the response{mostly(worst, groups)}"
        fix = "hand it to a job queue, if it need not be done in the web process"
    yield Finding(
        "after_response_sql",
        message,
        took,
        place_of_failed(worst),
        relationship=worst.origin.relationship,
        fix=fix,
        fingerprint=worst.fingerprint or None,
    )


def _failed_commit(recording: Recording) -> Iterator[Finding]:
    """A commit is no statement."""
    use = recording.connections
    failed = next((one for one in use.failed_commits if one.after_response), None)
    if failed is not None:
        yield Finding(
            "after_response_sql",
            f"COMMIT after the response failed: {failed.failure}. The client was told otherwise.",
            use.commit_after_response or 0.0,
            line(failed.call_site),
            fix=_TELL,
        )
