"""Which database a statement went to, as far as its engine's URL says. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True, slots=True)
class Database:
    """
    Where an engine connects to. Never the user or the password.

    Attributes:
        address: Host name, or the directory of a Unix socket. `None` where the URL tells neither.
        port: `None` where the URL leaves it to the driver.
        namespace: Name of the database; of SQLite the file, or ``:memory:``.
    """

    address: str | None = None
    port: int | None = None
    namespace: str | None = None

    def __str__(self) -> str:
        """As pools without a name of their own are called: ``db.example.com:5432/shop``."""
        place = f"{self.address or ''}:{self.port}" if self.port else self.address or ""
        return "/".join(part for part in (place, self.namespace) if part)


_known: WeakKeyDictionary[Any, Database] = WeakKeyDictionary()


def database_of(dialect: Any) -> Database | None:
    """The database of a dialect, of which each engine has its own. `None` until `note_database` was called for it."""
    return _known.get(dialect)


def note_database(dialect: Any, url: Any) -> None:
    """
    Args:
        url: The engine's `sqlalchemy.engine.URL`.
    """
    if dialect not in _known:
        _known[dialect] = _describe(dialect, url)


def _describe(dialect: Any, url: Any) -> Database:
    host, namespace = url.host, url.database or None
    if "odbc" in getattr(dialect, "driver", "") and (namespace is None or "dsn" in url.query):
        # SQLAlchemy takes it for the name of a data source: where that leads to, a file of the system's says.
        host = namespace = None
    elif dialect.name == "sqlite" and not host:  # which libSQL has
        namespace = namespace or ":memory:"
    elif host and "@" in f"{host}{namespace}":
        # A password with an @ or a / that is not written as %40 or %2F: SQLAlchemy takes a part of it for these.
        host, _, namespace = f"{host}/{namespace or ''}".rpartition("@")[2].partition("/")
    elif dialect.name == "oracle" and namespace is None:
        namespace = _text(url.query.get("service_name"))
    port, told = url.port, _text(url.query.get("port"))
    if port is None and told is not None and told.isdecimal():
        port = int(told)
    return Database(host or _text(url.query.get("host")), port, namespace)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
