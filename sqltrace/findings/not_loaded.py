"""What the findings about loads that raised share."""

from __future__ import annotations

import json

from sqltrace.failed_load import FailedLoad, LoadError
from sqltrace.finding import Finding
from sqltrace.findings.loader_options import in_place_of, loaders_for, options
from sqltrace.findings.paths import names_of_query
from sqltrace.findings.refreshes import eager_defaults
from sqltrace.findings.wording import kept_after_commit, line, listed, name_and_line, of_subclass
from sqltrace.recording import Recording

_COMMIT = -1


def finding(kind: str, recording: Recording, failed: FailedLoad, message: str, fix: str) -> Finding:
    """The cost is all the time that the request took, for it was spent for nothing."""
    return Finding(
        kind,
        message,
        recording.duration,
        line(failed.call_site),
        relationship=failed.origin.relationship,
        parents=name_and_line(failed.parents),
        fix=fix,
    )


def alike(recording: Recording, error: LoadError) -> list[list[FailedLoad]]:
    """The loads that raised an error: those of what commits had expired together, as one option mends them."""
    found: dict[int, list[FailedLoad]] = {}
    for number, failed in enumerate(recording.failed_loads):
        if failed.error == error:
            found.setdefault(_COMMIT if _is_by_commit(failed) else number, []).append(failed)
    return list(found.values())


def attributes_of(loads: list[FailedLoad]) -> str:
    """``Order.id and Order.state``."""
    return listed(list(dict.fromkeys([failed.attribute for failed in loads])))


def _is_by_commit(failed: FailedLoad) -> bool:
    return failed.origin.kind == "refresh" and failed.origin.expired_by == "commit"


def state_of(failed: FailedLoad) -> str:
    """``was not loaded``, ``had expired with the commit``."""
    origin = failed.origin
    if origin.kind == "refresh":
        by = {"commit": "the commit", "rollback": "the rollback", "flush": "a flush"}.get(str(origin.expired_by))
        return "had expired" + (f" with {by}" if by else "")
    return "was not loaded" + (f", {of_subclass(origin)}" if origin.base is not None else "")


def fix_for(recording: Recording, failed: FailedLoad, refresh: str) -> str:
    """
    Args:
        refresh: What is left for an object that something else than a commit had expired.
    """
    if failed.origin.kind != "refresh":
        return load_with_query(recording, failed)
    if _is_by_commit(failed):
        expired = [one for one in recording.failed_loads if one.error == failed.error and _is_by_commit(one)]
        relationships = list(dict.fromkeys(one.attribute for one in expired if one.of_relationship))
        also = f"  # and {listed(relationships)} loaded with the query" if relationships else ""
        return kept_after_commit(_is_async(recording, failed)) + also
    if failed.origin.expired_by == "flush":
        return eager_defaults(failed.origin)
    if failed.of_relationship:
        refresh += f"; once more with {json.dumps([failed.attribute.rpartition('.')[2]])}, unless its query loads that"
    return refresh


def load_with_query(recording: Recording, failed: FailedLoad) -> str:
    """The option for the query that found the object, and of which query it is, where its line does not say so."""
    if failed.root is None:
        return _refresh(recording, failed, "no query has loaded it")
    site = failed.parents.call_site if failed.parents is not None else None
    if site is not None and site.in_helper and failed.error != "detached_instance":  # its session is still there
        return _refresh(recording, failed, "the query is a library's")
    names = names_of_query(recording, failed.parents)
    chosen = loaders_for(recording, failed.origin, failed.parents, (*names, *failed.path))
    loads = options(chosen) + in_place_of(recording, failed.origin, failed.parents, failed.path)
    at_its_line = failed.parents is not None and failed.parents.origin.kind != "lazy"
    return loads + ("" if at_its_line else f"  # of the select({failed.root})")


def _refresh(recording: Recording, failed: FailedLoad, why: str) -> str:
    """What helps for an object whose query the application cannot change."""
    origin = failed.origin
    names = [origin.relationship.rpartition(".")[2]] if origin.relationship is not None else list(origin.attributes)
    wait = "await " if _is_async(recording, failed) else ""
    return f"{wait}session.refresh({str(origin.entity).lower()}, {json.dumps(names)})  # before: {why}"


def _is_async(recording: Recording, failed: FailedLoad) -> bool:
    fingerprint = None if failed.parents is None else failed.parents.fingerprint
    known = [group for group in recording.groups if group.fingerprint == fingerprint] or recording.groups
    return failed.error == "missing_greenlet" or any(group.is_async for group in known)
