"""Whether a SELECT locks the rows that it finds, by its text."""

from __future__ import annotations

import re
from functools import lru_cache

_LOCK = re.compile(
    r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|(?P<plain>UPDATE)|(?:KEY\s+)?SHARE)\b(?P<more>.*)|\bLOCK\s+IN\s+SHARE\s+MODE\b",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(maxsize=1_024)
def locks(sql: str) -> bool:
    return _LOCK.search(sql) is not None


def with_for_update(sql: str) -> str:
    """How a `Select` says so: ``.with_for_update()``, ``.with_for_update(…)`` for any other lock, empty for none."""
    found = _LOCK.search(sql)
    if found is None:
        return ""
    return ".with_for_update()" if found["plain"] and not found["more"].strip() else ".with_for_update(…)"
