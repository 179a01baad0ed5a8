"""`detached_instance`: an attribute that was not loaded, touched when the session of its object was closed."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import alike, attributes_of, finding, fix_for, state_of
from sqltrace.recording import Recording


def detached_instance(recording: Recording) -> Iterator[Finding]:
    """Attributes touched that were not loaded, when the session of their object was closed."""
    for loads in alike(recording, "detached_instance"):
        failed = loads[0]
        attributes = attributes_of(loads)
        one = attributes == failed.attribute
        touched = "was touched when the session of its" if one else "were touched when the session of their"
        yield finding(
            "detached_instance",
            recording,
            failed,
            f"{attributes} {state_of(failed)}, and {touched} object was closed (DetachedInstanceError).",
            fix_for(recording, failed, "session.refresh() of the object, before the session is closed"),
        )
