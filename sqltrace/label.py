"""The name of a recording, for those who tell of it: who held a connection, or the event loop."""

from __future__ import annotations


class Label:
    """
    The name of a recording. Shared with it, as the route may become known late, and never keeps it alive.

    Attributes:
        known: `False` for what is not a recording, as other tasks that hold an event loop.
        turns: When the latest two stretches ended in which it held an event loop, the latest first.
    """

    __slots__ = ("known", "name", "turns")

    def __init__(self, name: str, *, known: bool = True) -> None:
        self.name = name
        self.known = known
        self.turns = (0, 0)
