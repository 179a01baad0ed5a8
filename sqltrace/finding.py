"""Something worth telling about a recording. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Finding:
    """
    Something worth telling: what it cost, where, and what to do.

    All values are text and numbers, so that ``Finding(**json.loads(json.dumps(asdict(finding))))`` equals `finding`.

    Attributes:
        kind: ``n_plus_one``, or another of those in the README; rules of your own have their own.
        message: One sentence, with the numbers.
        cost: Seconds, measured. Those of different findings may overlap.
        call_site:
            The application's line, ``app/api.py:46 in list_tags``, with up to two that called it, or `None`. Of what
            the framework computes, its own: ``fastapi/routing.py:345 in serialize_response``.
        relationship: ``Content.user``; `None` where it is about none.
        parents:
            The statement that loaded the objects which a load was for, with its call site. In the log line it is
            ``loaded_for``.
        fix: What to paste or to do; ``.options(…)`` belongs to the query of `parents`, or else of `call_site`.
        fingerprint: Of the statement that it is about, as `Group.fingerprint`; `None` where it is about none.
    """

    kind: str
    message: str
    cost: float
    call_site: str | None = None
    relationship: str | None = None
    parents: str | None = None
    fix: str | None = None
    fingerprint: str | None = None
