"""What a driver's exception says, in two words: its class and its code."""

from __future__ import annotations

from sqltrace.statement import Failure


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
    # The MySQL drivers raise (errno, text), and the semantic conventions want the errno, though some have an SQLSTATE.
    first = error.args[0] if error.args else None
    if isinstance(first, int) and not isinstance(first, bool):
        return str(first)
    # psycopg and asyncpg, psycopg2, sqlite3; oracledb; pg8000: the fields that PostgreSQL's protocol names by letters.
    codes = [getattr(error, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorname")]
    codes += [getattr(first, "full_code", None), first.get("C") if isinstance(first, dict) else None]
    return next((code for code in codes if isinstance(code, str)), None)
