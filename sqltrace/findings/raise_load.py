"""`raise_load`: an attribute that its query had not loaded, and that nobody may load later."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings.not_loaded import finding, load_with_query, state_of
from sqltrace.recording import Recording


def raise_load(recording: Recording) -> Iterator[Finding]:
    """Attributes touched that their query had not loaded, and that nobody may load later."""
    for failed in recording.failed_loads:
        if failed.error == "raise_load":
            yield finding(
                "raise_load",
                recording,
                failed,
                f"{failed.attribute} {state_of(failed)}, and {_by_whom(failed)} forbids loading it on access.",
                load_with_query(recording, failed),
            )


def _by_whom(failed: FailedLoad) -> str:
    origin = failed.origin
    if origin.lazy in ("raise", "raise_on_sql"):
        declared = None if origin.declaration is None else origin.declaration.find()
        return f'lazy="{origin.lazy}"' + (f" at {declared}" if declared else "")
    return "an option of the query" if origin.relationship is not None else "raiseload=True"
