"""Which options of a query leave something for later, so that a fix can say what it takes the place of."""

from __future__ import annotations

from typing import Any

from sqltrace.capture import load_internals
from sqltrace.capture.compatibility import self_test


def options_leaving(state: Any, *names: str) -> tuple[str, ...]:
    """Options of the query that found an object which name these attributes of it, and leave them for later."""
    return load_internals.options_leaving(state, names) if work() else ()


@self_test("keeps options in a way that is not known here: which of them a fix replaces is not told")
def work() -> bool:
    """Self-test: whether the installed SQLAlchemy keeps options as it is known here. Imports `sqlalchemy.orm`."""
    return load_internals.options_are_told()
