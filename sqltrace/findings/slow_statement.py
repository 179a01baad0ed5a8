"""`slow_statement`: a single execution that took the database long."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.finding import Finding
from sqltrace.findings.costs import cost, kept_of
from sqltrace.findings.loader_options import left_out
from sqltrace.findings.locking import locks, remedy_for
from sqltrace.findings.widened import FEWER_OBJECTS
from sqltrace.findings.wording import line, name_and_line, place, place_of_longest, plural, subject, time
from sqltrace.recording import Recording
from sqltrace.statement import Failure, Group

_SENT_ALL = "fewer rows or columns: of a stream the server sends all, also what nobody reads"
_STREAM = "more rows at a time, each of which is asked for: a larger yield_per; or fewer rows or columns"


def slow_statement(recording: Recording, *, slow: float = 0.5, rows: int = 1_000) -> Iterator[Finding]:
    """
    Statements of which one execution took the database long, or objects of its rows to be made, and commits that did.

    Objects that are made on the event loop are for `blocked_loop`.

    Args:
        slow:
            Seconds of one execution and its fetching, of making objects of its rows in a thread, or of commits;
            without waiting for the event loop.
        rows: Least number of rows of which objects are made: with fewer, the thread waits for others rather.
    """
    loop_wait = recording.time_account.loop_wait or 0.0
    for group in recording.groups:
        if group.max >= slow and group.max - _unseen_wait(recording, group, loop_wait) >= slow:
            many = f", the longest of {group.count:,}" if group.count > 1 else ""
            for_rows = f"{',' if many else ''} for {plural(group.rows, 'row')}" if group.rows else ""
            failure = _failure_of_longest(recording, group)
            failed = f", and failed: {failure}" if failure is not None else ""
            yield Finding(
                "slow_statement",
                f"{subject(group)} took {time(group.max)}{many}{for_rows}{failed}.",
                group.total,
                place_of_longest(group),
                relationship=group.origin.relationship,
                parents=name_and_line(group.parents),
                fix=remedy_for(failure) or _stream_fix(recording, group) or _fix(group),
                fingerprint=group.fingerprint or None,
            )
        elif (group.rows or 0) >= rows and group.objects >= slow and not (group.is_async or group.on_loop):
            yield from _slow_objects(recording, group, slow, rows)
    yield from _slow_commit(recording, slow)


def _slow_objects(recording: Recording, group: Group, slow: float, rows: int) -> Iterator[Finding]:
    """For one execution; for all batches of an eager load."""
    took, making, count, where, many = group.total, group.objects, group.rows or 0, place(group), ""
    if group.origin.kind not in ("selectin", "subquery"):
        enough = [one for one in kept_of(recording, group) if not one.streamed and (one.rows or 0) >= rows]
        worst = max(enough, key=attrgetter("objects"), default=None)
        if worst is None:
            return
        took, making, count = worst.elapsed / SECOND, worst.objects / SECOND, worst.rows or 0
        if group.count > 1:
            where = line(worst.call_site or group.samples.only_site)
            many = f", the slowest of {group.count:,}"
    if making < slow:
        return
    by_mapping = group.origin.kind == group.origin.lazy
    yield Finding(
        "slow_statement",
        f"{subject(group)} took {time(took)}, and {time(making)} more to make objects of {plural(count, 'row')}{many}.",
        cost(group),
        where,
        relationship=group.origin.relationship,
        parents=name_and_line(group.parents),
        fix=f"{left_out(recording, group)}; else {FEWER_OBJECTS}" if by_mapping else FEWER_OBJECTS,
        fingerprint=group.fingerprint or None,
    )


def _failure_of_longest(recording: Recording, group: Group) -> Failure | None:
    if group.failed in (0, group.count):
        return group.failure
    longest = _longest(recording, group)
    return longest.failure if longest is not None else None


def _longest(recording: Recording, group: Group) -> Execution | None:
    return max(kept_of(recording, group), key=attrgetter("elapsed"), default=None)


def _stream_fix(recording: Recording, group: Group) -> str | None:
    """Where most of its time went by asking the server for more of the rows, a few at a time; not for some alone."""
    longest = _longest(recording, group)
    if longest is None or not longest.streamed or 2 * longest.fetch <= longest.elapsed:
        return None
    if group.system in ("mysql", "mariadb"):
        return _SENT_ALL if longest.failure is None else None
    return _STREAM if 2 * (longest.fetch - longest.longest_fetch) > longest.elapsed else None


def _slow_commit(recording: Recording, slow: float) -> Iterator[Finding]:
    """Commits are in the time of no statement."""
    use = recording.connections
    commit, later = use.commit or 0.0, use.commit_after_response
    if commit >= slow:
        after = f", {'' if later == commit else f'{time(later)} of it '}after the response" if later else ""
        failed = next(iter(use.failed_commits), None)
        vain = f", and {'one ' if use.checkouts > 1 else ''}failed: {failed.failure}" if failed is not None else ""
        yield Finding(
            "slow_statement",
            f"COMMIT took {time(commit)}{' in all' if use.checkouts > 1 else ''}{after}{vain}.",
            commit,
            line(failed.call_site) if failed is not None else None,
            fix="see what it waited for: deferred constraints and triggers, replicas, or the disk",
        )


def _fix(group: Group) -> str:
    """The time of a statement may be that of a wait for a lock: nothing tells."""
    operation = group.summary.partition(" ")[0].upper()
    lock = "or shorter transactions, if it waited for the lock of another one"
    if operation == "SELECT":
        fix = "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it"
        return f"{fix}; {lock}" if locks(group.sql) else fix
    if operation in ("INSERT", "REPLACE"):
        return f"fewer rows at once, fewer indexes or triggers on the table; {lock}"
    if operation in ("UPDATE", "DELETE", "MERGE"):
        return f"an index for what it looks for, or fewer rows at once: see EXPLAIN of it; {lock}"
    return "see in the database what took it so long, if it did not wait for a lock"


def _unseen_wait(recording: Recording, group: Group, loop_wait: float) -> float:
    """Where nobody tells when the reply came, waiting for the event loop may be in the database's time."""
    if not loop_wait or not group.is_async or group.loop_wait:
        return 0.0
    longest = _longest(recording, group)
    return loop_wait if longest is None or longest.loop_wait is None else 0.0
