"""`missing_greenlet`: an attribute that its query had not loaded, touched where no SQL can be awaited."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import finding, load_with_query
from sqltrace.recording import Recording


def missing_greenlet(recording: Recording) -> Iterator[Finding]:
    for failed in recording.failed_loads:
        if failed.error == "missing_greenlet":
            yield finding(
                "missing_greenlet",
                recording,
                failed,
                f"{failed.attribute} {_state(recording, failed)}, and AsyncSession cannot load it as it is touched"
                " (MissingGreenlet).",
                _fix(recording, failed),
            )


def _state(recording: Recording, failed: FailedLoad) -> str:
    if failed.origin.kind != "refresh":
        return "was not loaded"
    return "had expired with the commit" if recording.connections.commit else "had expired"


def _fix(recording: Recording, failed: FailedLoad) -> str:
    origin = failed.origin
    if origin.lazy == "dynamic":
        key = str(origin.relationship).rpartition(".")[2]
        return f'lazy="write_only" for {origin.relationship}, and await session.scalars({key}.select())'
    if origin.kind != "refresh":
        return load_with_query(failed)
    if recording.connections.commit:
        return "async_sessionmaker(engine, expire_on_commit=False)"
    return "await session.refresh() of the object, before it is touched"
