"""One database, two engines: a sync one and an async one."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema

from example_app.tables import metadata

SCHEMA = "sqltrace_example"

# libpq's names for what asyncpg takes; asyncpg refuses names that it does not know.
_ASYNCPG_NAMES = {"sslmode": "ssl", "host": "host", "port": "port"}


@dataclass(frozen=True)
class Database:
    """
    Attributes:
        name: The URL for people, without its password.
        schema: The PostgreSQL schema that holds the tables, `None` for SQLite.
    """

    name: str
    sync_engine: Engine
    async_engine: AsyncEngine
    schema: str | None = None

    def create_tables(self) -> None:
        """Make the tables anew. On PostgreSQL nothing outside the schema is touched."""
        self.drop_tables()
        with self.sync_engine.begin() as connection:
            if self.schema:
                connection.execute(CreateSchema(self.schema))
            metadata.create_all(connection)

    def drop_tables(self) -> None:
        with self.sync_engine.begin() as connection:
            if self.schema:
                connection.execute(DropSchema(self.schema, cascade=True, if_exists=True))
            else:
                metadata.drop_all(connection)

    def analyze(self) -> None:
        """Give the planner its statistics, which a running service has and fresh tables lack."""
        with self.sync_engine.begin() as connection:
            connection.execute(text("ANALYZE"))


def open_sqlite(path: Path) -> Database:
    """Both engines on the same file, which need not exist."""
    sync_engine = create_engine(URL.create("sqlite+pysqlite", database=str(path)))

    @event.listens_for(sync_engine, "connect")
    def connect(connection: object, _: object) -> None:
        # Kept in the file, so it holds for the async engine too: readers do not wait for the token's writer.
        connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]  # the driver's own connection

    return Database("SQLite", sync_engine, create_async_engine(URL.create("sqlite+aiosqlite", database=str(path))))


def open_postgresql(url: str) -> Database:
    """
    psycopg and asyncpg on the same database, whichever driver the URL names.

    Raises:
        ValueError: The URL is not one of PostgreSQL's.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not told what was got: what cannot be parsed may hold a password anywhere.
        raise ValueError("not a URL of the form postgresql://user@host:port/database") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(f"expected postgresql://user@host:port/database, got {parsed.render_as_string()!r}")
    query = {_ASYNCPG_NAMES[name]: value for name, value in parsed.query.items() if name in _ASYNCPG_NAMES}
    return Database(
        parsed.render_as_string(),
        create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={"options": f"-csearch_path={SCHEMA}", "connect_timeout": 10},
        ),
        create_async_engine(
            parsed.set(drivername="postgresql+asyncpg", query=query),
            connect_args={"server_settings": {"search_path": SCHEMA}},
        ),
        SCHEMA,
    )
