"""`record()`: a recording around any code, and the innermost that is open."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from sqltrace.capture.failed_loads import note_exception
from sqltrace.capture.instrument import dialect_of, instrument, is_instrumented
from sqltrace.checks import checked_engines, checked_flag, checked_size
from sqltrace.collector import Collector, current, outwards
from sqltrace.faults import report_fault
from sqltrace.locks import call_in_forked_child
from sqltrace.recording import Recording


def current_recording() -> Recording | None:
    """The innermost recording that is open in this context, or `None`."""
    return next((each.recording for each in outwards(current.get()) if isinstance(each.recording, Recording)), None)


class record:  # noqa: N801 - used as a verb, like contextlib.suppress
    """
    Record the statements of a block: a job, a script, a test.

        with sqltrace.record("nightly-import") as recording:
            run_import()
        print(recording.statement_count)

    Also as ``async with``. Nests: a statement counts in every recording around
    it. Tasks and `asyncio.to_thread` calls begun inside count too, bare threads
    do not. If nothing is instrumented yet, all engines are, from here on.

    Args:
        name: Of the recording.
        engines: Record the statements of these only. They must be instrumented, which all are by default.
        capture_parameters: Keep a shortened `repr` of the parameters with each kept statement.
        max_statements: Statements, and groups, kept in detail. Counts and times stay exact beyond.
        max_sql_length: Characters of SQL kept of each statement.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: a number is less than 1, or `engines` is empty.
        RuntimeError: entered a second time.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        name: str = "",
        *,
        engines: Iterable[Any] | None = None,
        capture_parameters: bool = False,
        max_statements: int = 500,
        max_sql_length: int = 10_000,
    ) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {name!r:.100}")
        self._recording: Recording | None = Recording(
            name,
            dialects=frozenset(map(dialect_of, checked_engines(engines))) or None,
            capture_parameters=checked_flag("capture_parameters", capture_parameters),
            max_statements=checked_size("max_statements", max_statements),
            max_sql_length=checked_size("max_sql_length", max_sql_length),
        )
        self._entered: tuple[Recording, Collector | None] | None = None

    def __enter__(self) -> Recording:
        recording, self._recording = self._recording, None
        if recording is None:
            raise RuntimeError("this record() was entered before; make a new one for each block")
        if not is_instrumented():
            instrument()
        _settle_wait()
        self._entered = (recording, recording.open())
        return recording

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered is not None:
            recording, outer = self._entered
            if exc is not None:
                note_exception(exc)
            recording.end()
            recording.leave(outer)

    async def __aenter__(self) -> Recording:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


def _settle_wait() -> None:
    """What a request has waited for the event loop until now is not a part of the block. Never raises."""
    try:
        around = current.get()
        if around is not None:
            around.settle()
    except Exception as fault:
        report_fault("observing the event loop", fault)


def _unlock() -> None:
    for collector in outwards(current.get()):
        if isinstance(collector.recording, Recording):
            collector.recording.unlock()


call_in_forked_child(_unlock)
