"""`missing_greenlet`: an attribute that its query had not loaded, touched where no SQL can be awaited."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import alike, attributes_of, finding, fix_for, state_of
from sqltrace.recording import Recording


def missing_greenlet(recording: Recording) -> Iterator[Finding]:
    """Attributes touched under `AsyncSession` that their query had not loaded, or that had expired."""
    for loads in alike(recording, "missing_greenlet"):
        failed = loads[0]
        attributes = attributes_of(loads)
        what = "it" if attributes == failed.attribute else "them"
        yield finding(
            "missing_greenlet",
            recording,
            failed,
            f"{attributes} {state_of(failed)}, and AsyncSession cannot load {what} on access (MissingGreenlet).",
            _fix(recording, failed),
        )


def _fix(recording: Recording, failed: FailedLoad) -> str:
    origin = failed.origin
    if origin.lazy == "dynamic":
        key = str(origin.relationship).rpartition(".")[2]
        return f'lazy="write_only" for {origin.relationship}, and await session.scalars({key}.select())'
    return fix_for(recording, failed, "await session.refresh() of the object, before it is touched")
