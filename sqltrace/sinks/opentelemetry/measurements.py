"""Recording what was measured: at once, or in a thread where it is so much that it would hold the event loop."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

from opentelemetry.context import Context
from opentelemetry.metrics import Histogram

from sqltrace.faults import report_fault
from sqltrace.sinks.opentelemetry.attributes import Attributes

Measurement = tuple[Histogram, float, Attributes, int]  # the last says how often: the API takes one at a time

_MOST_AT_ONCE = 500  # some 10 ms


def record_all(measurements: list[Measurement], context: Context | None) -> None:
    """
    Record each as often as it says.

    More than some hundreds are left to a thread of the event loop's default executor. They arrive
    soon after, and at the latest when that is shut down, which `asyncio.run` waits for at its end.
    Where no loop of asyncio runs, or none with an executor any more, all have arrived on return.

    Args:
        context: For exemplars; `None` for the current one.
    """
    if sum(times for *_, times in measurements) <= _MOST_AT_ONCE or not _leave_to_a_thread(measurements, context):
        _record(measurements, context)


def _leave_to_a_thread(measurements: list[Measurement], context: Context | None) -> bool:
    try:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, copy_context().run, _record_guarded, measurements, context)
    except RuntimeError:  # no loop, no executor any more, or no thread
        return False
    return True


def _record_guarded(measurements: list[Measurement], context: Context | None) -> None:
    try:
        _record(measurements, context)
    except Exception as fault:
        report_fault("measuring many statements", fault)


def _record(measurements: list[Measurement], context: Context | None) -> None:
    for histogram, value, attributes, times in measurements:
        for _ in range(times):
            histogram.record(value, attributes, context)
