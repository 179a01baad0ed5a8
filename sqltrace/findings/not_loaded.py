"""What the findings about loads that raised share."""

from __future__ import annotations

from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings.loader_options import loader_for, options
from sqltrace.findings.wording import loaded_by
from sqltrace.recording import Recording


def finding(kind: str, recording: Recording, failed: FailedLoad, message: str, fix: str) -> Finding:
    """Its cost is all the time that the request took: it was for nothing."""
    return Finding(
        kind,
        message,
        recording.duration,
        None if failed.call_site is None else str(failed.call_site),
        failed.origin.relationship,
        loaded_by(failed.parents),
        fix,
    )


def load_with_query(failed: FailedLoad) -> str:
    """The option for the query that found the object, and of which query it is, where its line does not say so."""
    origin = failed.origin
    if origin.relationship is not None:
        chosen = [((*failed.path, origin.relationship), loader_for(origin.uselist))]
    else:
        chosen = [((*failed.path, f"{origin.entity}.{name}"), "undefer({})") for name in origin.attributes]
    at_its_line = failed.parents is not None and failed.parents.origin.kind != "lazy"
    return options(chosen) + ("" if at_its_line or failed.root is None else f"  # of the select({failed.root})")
