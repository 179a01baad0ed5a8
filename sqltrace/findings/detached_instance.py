"""`detached_instance`: an attribute that was not loaded, touched when the session of its object was closed."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import finding, fix_for, state_of
from sqltrace.recording import Recording


def detached_instance(recording: Recording) -> Iterator[Finding]:
    for failed in recording.failed_loads:
        if failed.error == "detached_instance":
            yield finding(
                "detached_instance",
                recording,
                failed,
                f"{failed.attribute} {state_of(failed)}, and was touched when the session of its object"
                " was closed (DetachedInstanceError).",
                fix_for(recording, failed, "session.refresh() of the object, before the session is closed"),
            )
