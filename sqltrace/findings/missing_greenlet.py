"""`missing_greenlet`: an attribute that its query had not loaded, touched where no SQL can be awaited."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import finding, fix_for, state_of
from sqltrace.recording import Recording


def missing_greenlet(recording: Recording) -> Iterator[Finding]:
    for failed in recording.failed_loads:
        if failed.error == "missing_greenlet":
            yield finding(
                "missing_greenlet",
                recording,
                failed,
                f"{failed.attribute} {state_of(failed)}, and AsyncSession cannot load it as it is touched"
                " (MissingGreenlet).",
                _fix(recording, failed),
            )


def _fix(recording: Recording, failed: FailedLoad) -> str:
    origin = failed.origin
    if origin.lazy == "dynamic":
        key = str(origin.relationship).rpartition(".")[2]
        return f'lazy="write_only" for {origin.relationship}, and await session.scalars({key}.select())'
    return fix_for(recording, failed, "await session.refresh() of the object, before it is touched")
