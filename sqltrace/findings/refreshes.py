"""What the findings about objects that are loaded again share."""

from __future__ import annotations

from sqltrace.finding import Finding
from sqltrace.findings.costs import cost_at_once
from sqltrace.findings.loader_options import loader_for, options
from sqltrace.findings.locking import locks, with_for_update
from sqltrace.findings.one_for_all import is_one_in_each_transaction
from sqltrace.findings.wording import kept_after_commit, listed, name_and_line, place, plural, time
from sqltrace.origin import Origin
from sqltrace.recording import Recording
from sqltrace.statement import Group


def eager_defaults(origin: Origin) -> str:
    """Two assignments would leave the second: no polymorphic identity, no version. A subclass has no say in it."""
    return (
        f'__mapper_args__ = {{"eager_defaults": True}}  # of {origin.root or origin.entity}, added to what is in there'
    )


def is_within(group: Group) -> bool:
    """Whether it loads relationships along with objects that are loaded again."""
    return group.origin.kind == "immediate" and (group.origin.asked_for or group.origin.expired_by is not None)


def cost_with_loads(recording: Recording, group: Group) -> float:
    """Seconds of a refresh, and of the relationships that are loaded along with it."""
    return sum(cost_at_once(recording, each) for each in (group, *_loads_within(recording, group)))


def refreshed_one_by_one(recording: Recording, group: Group) -> Finding:
    """The finding about objects that `Session.refresh` loaded one after the other."""
    origin = group.origin
    within = _loads_within(recording, group)
    took = cost_with_loads(recording, group)
    # SQLAlchemy adds the key to the names that were given.
    names = [
        f"{origin.entity}.{name}" for name in origin.attributes if name != origin.key or len(origin.attributes) == 1
    ]
    what = f"{listed(names)} for one {origin.entity} each" if names else f"one {origin.entity} each"
    plain = not (origin.attributes or within or locks(group.sql))
    committed = is_one_in_each_transaction(recording, group) and recording.connections.commit
    statements = group.count + sum(load.count for load in within)
    return Finding(
        "n_plus_one",
        f"{plural(group.count, 'call')} of session.refresh() loaded {what},"
        f" by {plural(statements, 'statement')} in {time(took)}.",
        took,
        place(group),
        parents=name_and_line(group.parents),
        fix=_unexpired(group) if plain and committed else _all_at_once(group, within),
        fingerprint=group.fingerprint,
    )


def _unexpired(group: Group) -> str:
    """Of objects that are committed each: to ask them all for their keys would load each of them again."""
    note = "no session.refresh() after a commit, which may be a repository's"
    return f"{kept_after_commit(group.is_async)}  # and {note}; eager_defaults=True where the database makes values"


def _all_at_once(group: Group, within: list[Group]) -> str:
    entity, key = group.origin.entity, group.origin.key
    which = "…" if key is None else f"{entity}.{key}.in_({key}s)"
    named = [load.origin for load in within if _key(load) in group.origin.attributes]
    lock = with_for_update(group.sql)
    loaders = [((str(origin.relationship),), loader_for(origin.uselist, joins=not lock)) for origin in named]
    also = options(loaders) if loaders else ""
    return (
        f"select({entity}).where({which}){lock}{also}.execution_options(populate_existing=True)"
        "  # once for all, in place of session.refresh(), which may be a repository's"
    )


def _loads_within(recording: Recording, group: Group) -> list[Group]:
    """The loads of relationships of these objects. What is loaded below them is a batch for all of one object."""
    origin = group.origin
    return [
        other
        for other in recording.groups
        if is_within(other)
        and (other.origin.asked_for, other.origin.expired_by) == (origin.asked_for, origin.expired_by)
        and (other.origin.entity == origin.entity or _key(other) in origin.attributes)
        and other.phase == group.phase
    ]


def _key(group: Group) -> str:
    return str(group.origin.relationship).rpartition(".")[2]
