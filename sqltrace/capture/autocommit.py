"""Whether a connection is in the autocommit mode of its driver, where `begin` begins nothing."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Dialect


def commits_itself(dialect: Dialect, connection: Any) -> bool:
    """
    Whether it is, as far as that is known without asking the database. Never raises.

    With SQLite an application may have sent its own BEGIN, as SQLAlchemy's documentation has it for savepoints.

    Args:
        connection: From the pool.
    """
    try:
        driver = connection.driver_connection
        return _detect(dialect, connection, driver) and not getattr(driver, "in_transaction", False)
    except Exception:  # a dialect that cannot tell
        return False


def _detect(dialect: Dialect, connection: Any, driver: Any) -> bool:
    if dialect.driver == "mysqlconnector":
        return bool(getattr(driver, "_autocommit", False))  # its `autocommit` sends a query each time it is read
    detect = getattr(dialect, "detect_autocommit_setting", None)
    if detect is not None:
        return bool(detect(connection))
    # SQLAlchemy before 2.0.44
    if hasattr(driver, "get_autocommit"):  # those of MySQL
        return bool(driver.get_autocommit())
    adapter = connection.dbapi_connection
    if isinstance(autocommit := getattr(adapter, "autocommit", None), bool):  # of sqlite3 it is a number, since 3.12
        return autocommit
    return dialect.name == "sqlite" and adapter.isolation_level is None
