"""Whether a SELECT locks the rows that it finds, by its text, and what to do where a lock was waited for in vain."""

from __future__ import annotations

import re
from functools import lru_cache

from sqltrace.statement import Failure

_LOCK = re.compile(
    r"\bFOR\s+(?:NO\s+KEY\s+UPDATE|(?P<plain>UPDATE)|(?:KEY\s+)?SHARE)\b(?P<more>.*)|\bLOCK\s+IN\s+SHARE\s+MODE\b",
    re.IGNORECASE | re.DOTALL,
)

_DEADLOCKS = ("40P01", "1213")  # PostgreSQL; MySQL and MariaDB
_TIMEOUTS = ("55P03", "1205", "SQLITE_BUSY", "SQLITE_LOCKED")
_LOST = ("57P01", "57P02", "2006", "2013")
_LOST_WITHOUT_CODE = ("psycopg.OperationalError", "psycopg2.OperationalError")
_SQLSTATE = 5  # characters; those of lost connections begin with 08
_SEE_LOG = "see in the database's log why the connection was lost, or what lies between"


@lru_cache(maxsize=1_024)
def locks(sql: str) -> bool:
    return _LOCK.search(sql) is not None


def with_for_update(sql: str) -> str:
    """How a `Select` says so: ``.with_for_update()``, ``.with_for_update(…)`` for any other lock, empty for none."""
    found = _LOCK.search(sql)
    if found is None:
        return ""
    return ".with_for_update()" if found["plain"] and not found["more"].strip() else ".with_for_update(…)"


def remedy_for(failure: Failure | None) -> str | None:
    """What to do about a failure that took long, where its code tells that no index would have made it shorter."""
    if failure is None:
        return None
    code = failure.code
    if code is None:
        return _SEE_LOG if failure.type in _LOST_WITHOUT_CODE else None
    if code in _DEADLOCKS:
        return "the same order in all transactions that lock several rows, shorter ones, and a retry: it was a deadlock"
    if code.startswith(_TIMEOUTS):
        return "shorter transactions of those that held the lock for which it waited in vain"
    if code in _LOST or (len(code) == _SQLSTATE and code.startswith("08")):
        return _SEE_LOG
    return None
