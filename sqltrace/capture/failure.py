"""What a driver's exception says, in two words: its class and its code."""

from __future__ import annotations

import re
from typing import Final

from sqltrace.statement import Failure

# "[42S02] ... Invalid object name. (208) (SQLExecDirectW)", where 0 stands for none
_NATIVE: Final = re.compile(r"\((?!0+\))(\d+)\) \(SQL\w+\)")
_SQLSTATE: Final = re.compile(r"[0-9A-Z]{5}")


def describe_failure(error: BaseException) -> Failure:
    """
    The failure as plain data. The exception itself is not kept: its traceback holds the Session.

    SQLAlchemy's asyncio adapters raise classes of their own ``from`` the driver's
    exception; the driver's is the one that is told.
    """
    cause = error.__cause__
    if cause is not None and type(error).__module__.startswith("sqlalchemy."):
        error = cause
    return Failure(f"{type(error).__module__}.{type(error).__qualname__}", _code(error))


def _code(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return None  # its number is the operating system's, as of a connection that was refused
    first = error.args[0] if error.args else None
    # The MySQL drivers raise (errno, text), and the semantic conventions want the errno, though some have an SQLSTATE.
    # That of MariaDB has it as an attribute. 0 and -1 stand for none.
    for number in (first, getattr(error, "errno", None)):
        if isinstance(number, int) and not isinstance(number, bool) and number not in (0, -1):
            return str(number)
    if type(error).__module__ == "pyodbc":
        return _code_of_odbc([text for text in error.args if isinstance(text, str)])
    # psycopg and asyncpg, psycopg2, sqlite3; oracledb; pg8000: the fields that PostgreSQL's protocol names by letters.
    codes = [getattr(error, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorname")]
    codes += [getattr(first, "full_code", None), first.get("C") if isinstance(first, dict) else None]
    return next((code for code in codes if isinstance(code, str)), None)


def _code_of_odbc(texts: list[str]) -> str | None:
    """The database's own number, which the text ends with; else the SQLSTATE, which stands before or after the text."""
    number = next((found[1] for text in texts if (found := _NATIVE.search(text))), None)
    return number or next((text for text in texts if _SQLSTATE.fullmatch(text)), None)
