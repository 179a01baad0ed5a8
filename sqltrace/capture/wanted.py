"""Whose statements are recorded: the listeners, which stay with SQLAlchemy for good, ask here."""

from __future__ import annotations

from functools import partial
from typing import Final
from weakref import ref

from sqlalchemy.engine import Dialect

everyone = False
# By identity, for a WeakSet is five times slower: the entry goes before the identity is used again.
dialects: Final[dict[int, ref[Dialect]]] = {}


def add(dialect: Dialect) -> None:
    forget = partial(dialects.pop, id(dialect), None)
    dialects[id(dialect)] = ref(dialect, lambda _: forget())


def discard(dialect: Dialect) -> None:
    dialects.pop(id(dialect), None)


def is_wanted(dialect: Dialect) -> bool:
    return everyone or id(dialect) in dialects
