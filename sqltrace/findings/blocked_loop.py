"""`blocked_loop`: this recording held the event loop, and all other requests stood behind it."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter, itemgetter

from sqltrace.callsite import CallSite
from sqltrace.clock import SECOND
from sqltrace.finding import Finding
from sqltrace.findings.costs import kept_of
from sqltrace.findings.loader_options import left_out
from sqltrace.findings.widened import multiplied, repeats_parents
from sqltrace.findings.wording import line, mostly, place, plural, subject, time
from sqltrace.recording import Recording
from sqltrace.statement import Group

_NOTABLE = 0.001  # seconds
_MOSTLY = 0.6
_ELSEWHERE = "await run_in_threadpool(function) for what computes or blocks"
_SMALLER = "fewer objects in the body of the request or response: pages, or only the fields that are needed"
_STREAM = "fewer rows of the stream at once, by yield_per, and more of them in each chunk of the body"

_CHUNKS = (
    "more rows in each chunk of the stream, and await asyncio.sleep(0) between chunks: nothing else lets others in"
)


def blocked_loop(recording: Recording, *, sql: float = 0.1, hold: float = 0.25) -> Iterator[Finding]:
    """
    The event loop was held, by synchronous SQL or by anything else.

    Args:
        sql: Seconds of synchronous SQL on the loop, together.
        hold: Seconds at a stretch, of anything.
    """
    blocked = [(_blocked_by(recording, group), group) for group in recording.groups if group.on_loop]
    held = recording.longest_hold or 0.0
    if sum(seconds for seconds, _ in blocked) >= sql:
        yield _by_sql(recording, blocked)
    elif held >= hold:
        yield _by_python(recording, held)


def _blocked_by(recording: Recording, group: Group) -> float:
    """
    Seconds; without those of its statements that ran in threads, or with an asynchronous driver.

    The loop stands still until a call returns, also while that waits for the interpreter.
    """
    together = group.total + group.gil_wait
    if group.on_loop == group.count:
        return together
    kept = [(execution.elapsed + execution.gil_wait, execution.on_loop) for execution in kept_of(recording, group)]
    blocking = [took for took, on_loop in kept if on_loop]
    seconds, unkept = sum(blocking) / SECOND, group.count - len(kept)
    if unkept:  # their share by number
        others = together - sum(took for took, _ in kept) / SECOND
        seconds += others * (group.on_loop - len(blocking)) / unkept
    return seconds


def _by_sql(recording: Recording, blocked: list[tuple[float, Group]]) -> Finding:
    seconds = sum(seconds for seconds, _ in blocked)
    groups = [group for _, group in blocked]
    count = sum(group.on_loop for group in groups)
    _, worst = max(blocked, key=itemgetter(0))
    return Finding(
        "blocked_loop",
        f"{plural(count, 'synchronous statement')} held the event loop for {time(seconds)}{mostly(worst, groups)}",
        seconds,
        _place_of_blocking(recording, worst),
        fix="await run_in_threadpool(function), or a plain def endpoint, or AsyncSession",
        fingerprint=worst.fingerprint or None,
    )


def _place_of_blocking(recording: Recording, group: Group) -> str | None:
    if group.on_loop < group.count:
        kept = kept_of(recording, group)
        blocking = [execution for execution in kept if execution.on_loop and execution.call_site is not None]
        if blocking:
            return line(max(blocking, key=attrgetter("elapsed")).call_site)
    return place(group)


def _by_python(recording: Recording, held: float) -> Finding:
    sightings = recording.sightings
    site = sightings.site if sightings is not None else None
    if sightings is not None and sightings.collecting >= held / 2:
        return Finding(
            "blocked_loop",
            f"the event loop was held for {time(held)} at a stretch; for {time(sightings.collecting)} of it or more no"
            " thread could go on, while Python collected garbage.",
            held,
            line(site),
            fix="gc.freeze() once the application has started: what it has loaded by then is not looked through again",
        )
    groups = [group for group in recording.groups if group.is_async]
    worst = max(groups, key=lambda group: group.objects, default=None)
    objects = recording.time_account.objects or 0.0
    if worst is not None and worst.objects >= held / 2:
        rows = plural(worst.rows or 0, "row")
        return Finding(
            "blocked_loop",
            f"the event loop was held for {time(held)} at a stretch; making objects took {time(objects)},"
            f" most of it for the {rows} of {subject(worst)}.",
            held,
            place(worst),
            relationship=worst.origin.relationship,
            fix=_fix_for_objects(recording, worst),
            fingerprint=worst.fingerprint,
        )
    if sightings is not None and sightings.waited_for_lock >= _MOSTLY:
        return Finding(
            "blocked_loop",
            f"the event loop was held for {time(held)} at a stretch, but for about {sightings.waited_for_lock:.0%} of"
            " it other threads had the interpreter's lock.",
            held,
            line(site),
            fix="less work in threads at once, or in processes of its own: the loop has to share the interpreter",
        )
    making = f", {time(objects)} of the request making objects" if objects >= _NOTABLE else ""
    return Finding(
        "blocked_loop",
        f"the event loop was held for {time(held)} at a stretch{making}.",
        held,
        line(site),
        fix=_fix_for_python(recording, groups, site),
    )


def _fix_for_python(recording: Recording, groups: list[Group], site: CallSite | None) -> str:
    streams = [group for group in groups if any(execution.streamed for execution in kept_of(recording, group))]
    # Some drivers have the rows already as they are asked for, and a server takes chunks without a pause.
    if streams and (site is None or site.in_framework or any(site == group.call_site for group in streams)):
        return _CHUNKS
    return _SMALLER if site is not None and site.in_framework else _ELSEWHERE


def _fix_for_objects(recording: Recording, worst: Group) -> str:
    if multiplied(worst) or repeats_parents(worst):
        return "fewer rows for the same objects: joined collections by selectinload(), or not at all"
    if any(execution.streamed for execution in kept_of(recording, worst)):
        # Its rows stay with the server until they are read: the loop is free only as more of them are fetched.
        return _STREAM
    if worst.origin.kind == worst.origin.lazy:
        return f"{left_out(recording, worst)}; else fewer rows or columns at once"
    return "fewer rows or columns at once: LIMIT, load_only(), or session.stream() with yield_per"
