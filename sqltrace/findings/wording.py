"""How findings put numbers and places into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqltrace.callsite import CallSite
from sqltrace.origin import Origin, Parents
from sqltrace.statement import Group


def time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1_000:.1f} ms"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def of_threads(count: int | None) -> str:
    """Of the threads that `def` endpoints and dependencies share: ``one of the 40 threads``."""
    return "the only thread" if count == 1 else f"one of the {count or 'many'} threads"


def listed(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def line(site: CallSite | None) -> str | None:
    """``app/repository.py:12 in Repository.get, from app/api.py:46 in list_tags``."""
    return ", from ".join(map(str, (site, *site.callers))) if site is not None else None


def place(group: Group) -> str | None:
    return line(group.site)


def place_of_longest(group: Group) -> str | None:
    return line(group.longest_at or group.samples.only_site)


def place_of_failed(group: Group) -> str | None:
    return line(group.failed_at or group.site)


def name_of(statement: Group | Parents) -> str:
    """Its summary, without the subqueries of a SELECT: ``SELECT comments articles``."""
    if "SELECT " not in statement.summary[1:].upper():
        return statement.summary
    operation, *words = statement.summary.split(" ")
    nested = [word for word in words if operation.upper() != "SELECT" or word.upper() != "SELECT"]
    return " ".join([operation, *nested])


def by_name(held: Iterable[tuple[str, float]], told: Callable[[float], str]) -> list[str]:
    """
    Each holder once: ``GET /slow (80.1 ms)``, ``GET /report (up to 71.0 ms each)``.

    Args:
        held: Names, in the order in which they are told, and times in any unit.
        told: Puts a time into words.
    """
    times: dict[str, list[float]] = {}
    for name, time_held in held:
        times.setdefault(name, []).append(time_held)
    return [
        f"{name} ({told(each[0])})" if len(each) == 1 else f"{name} (up to {told(max(each))} each)"
        for name, each in times.items()
    ]


def mostly(worst: Group, groups: list[Group]) -> str:
    """The end of a sentence about these groups: ``, most of it SELECT contents.``, or ``: SELECT contents.``."""
    return f", most of it {name_of(worst)}." if len(groups) > 1 else f": {name_of(worst)}."


def name_and_line(parents: Parents | None) -> str | None:
    """``SELECT contents at app/api.py:46 in list_contents``."""
    if parents is None:
        return None
    return f"{name_of(parents)} at {line(parents.call_site)}" if parents.call_site else name_of(parents)


def of_subclass(origin: Origin, *, several: bool = False) -> str:
    """In words, what a query of the base does not load."""
    what = "a column" if origin.relationship is None else "a relationship"
    return f"{'columns' if several else what} of a subclass of {origin.base}"


def kept_after_commit(is_async: bool) -> str:
    """Has a commit expire nothing."""
    return f"{'async_sessionmaker' if is_async else 'sessionmaker'}(engine, expire_on_commit=False)"


def subject(group: Group) -> str:
    """``selectin load of Tag.articles``, or the name of a query."""
    origin = group.origin
    if origin.relationship is not None:
        return f"the {origin.kind} load of {origin.relationship}"
    return name_of(group)
