"""What groups cost, and the pauses between their statements."""

from __future__ import annotations

from operator import add

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.intervals import Coverage
from sqltrace.recording import Recording
from sqltrace.statement import Group


def cost(group: Group) -> float:
    """Seconds of the database and of making objects."""
    return group.total + group.objects


def cost_at_once(recording: Recording, group: Group) -> float:
    """As `cost`, but what ran at the same time counts once, if there was not enough time to run one after the other."""
    samples = group.samples
    if cost(group) <= (samples.last - samples.first) / SECOND:
        return cost(group)  # as in a loop; the rest takes a while to find out
    kept = kept_of(recording, group)
    lengths = [execution.elapsed + execution.objects for execution in kept]
    starts = [execution.started for execution in kept]
    ends = list(map(add, starts, lengths))
    latest = samples.last + group.max * SECOND
    if len(kept) == group.count:  # the longest may not be the latest
        latest = max(ends, default=latest)
    if cost(group) <= (latest - samples.first) / SECOND:
        return cost(group)
    together, apart = Coverage(), sum(lengths)
    together.add_all(starts, ends)
    return cost(group) * together.total() / apart if apart else cost(group)


def kept_of(recording: Recording, group: Group) -> list[Execution]:
    """The single executions of a group, as far as they were kept."""
    return next((executions for other, executions in recording.executions() if other is group), [])


def waited_for_gil(recording: Recording) -> float:
    """
    Seconds of the response in which threads could not go on, though they had the replies to their statements.

    Of those in which nothing else is told to have taken the time: while another request has the event loop and the
    interpreter's lock, it is waited for as the loop. Threads that wait at once count no more than that either.
    """
    waited = sum(group.gil_wait for group in recording.groups if group.phase == "response")
    return min(waited, recording.time_account.python) if waited else 0.0


def mean_pause(group: Group, loop_wait: float) -> float:
    """Seconds between the end of one statement and the start of the next, without waiting for loop or interpreter."""
    between = (group.samples.last - group.samples.first) / SECOND
    return (between - group.total - group.gil_wait - loop_wait) / max(1, group.count - 1)
