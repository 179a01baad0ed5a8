"""The name of a recording, for those who tell of it: who held a connection, or the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqltrace.callsite import CallSite


class Label:
    """
    The name of a recording. Shared with it, as the route may become known late, and never keeps it alive.

    Attributes:
        known: `False` for what is not a recording, as other tasks that hold an event loop.
        name_route: Sets `name` to the route of a request that still runs, once that is known. Never raises.
        call_site: The line at which something was seen that is no recording; `None` where it was not.
        turns: When the latest two stretches ended in which it held an event loop, the latest first.
    """

    __slots__ = ("call_site", "known", "name", "name_route", "turns")

    def __init__(self, name: str, *, known: bool = True, call_site: CallSite | None = None) -> None:
        self.name: str = name
        self.known: bool = known
        self.name_route: Callable[[], None] | None = None
        self.call_site: CallSite | None = call_site
        self.turns: tuple[int, int] = (0, 0)

    def find_route(self) -> None:
        """See to it that `name` is the route, if that is known by now. For any thread."""
        name_route = self.name_route  # read once: the request may end just now
        if name_route is not None:
            name_route()


def longest_by_name(times: Mapping[Label, int]) -> list[tuple[Label, int]]:
    """A label of each name, and the time of all of that name; the longest first."""
    by_name: dict[str, tuple[Label, int]] = {}
    for label, time in times.items():
        first, others = by_name.get(label.name, (label, 0))
        by_name[label.name] = first, others + time
    return sorted(by_name.values(), key=lambda item: -item[1])
