"""The drivers that the tests of rows and objects run on, with 5,000 rows in a table of each database."""

import asyncio
from contextlib import contextmanager

from sqlalchemy import ForeignKey, String, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from tests import databases

ROWS = 5_000
ASYNC = {driver.name for driver in databases.DRIVERS if driver.is_async}


def url_of(name, file=":memory:"):
    [driver] = [driver for driver in databases.DRIVERS if driver.name == name]
    return driver.url(file)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "sqltrace_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    books: Mapped[list["Book"]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "sqltrace_books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship(back_populates="books")


class Databases:
    """Engines on filled databases, made when asked for and disposed of at the end."""

    def __init__(self, directory):
        self.file = directory / "rows.db"
        self.filled = {}

    def url(self, driver):
        return url_of(driver, self.file)

    def fill(self, driver):
        sync = {"aiosqlite": "sqlite3", "psycopg_async": "psycopg", "asyncpg": "psycopg"}.get(driver, driver)
        sync = {"aiomysql": "pymysql", "asyncmy": "pymysql", "psycopg2": "psycopg"}.get(sync, sync)
        if sync not in self.filled:
            engine = self.filled[sync] = create_engine(self.url(sync))
            Base.metadata.drop_all(engine)
            Base.metadata.create_all(engine)
            with engine.begin() as connection:
                connection.execute(insert(Author), [{"id": n, "name": f"name {n}"} for n in range(1, ROWS + 1)])
                books = [{"id": n, "author_id": n % 10 + 1} for n in range(1, 201)]
                connection.execute(insert(Book), books)

    def close(self):
        for engine in self.filled.values():
            Base.metadata.drop_all(engine)
            engine.dispose()


class Runner:
    """Runs a function with a `Connection` or a `Session` of one driver, in a greenlet where the driver is async."""

    def __init__(self, driver, url):
        self.driver = driver
        self.url = url
        self.is_async = driver in ASYNC

    @contextmanager
    def engine(self):
        engine = create_engine(self.url)
        try:
            yield engine
        finally:
            engine.dispose()

    def connection(self, function):
        if self.is_async:
            return self.coroutine(lambda engine: self._run_sync(engine.connect(), function))
        with self.engine() as engine, engine.connect() as connection:
            return function(connection)

    def session(self, function):
        if self.is_async:
            return self.coroutine(lambda engine: self._run_sync(AsyncSession(engine), function))
        with self.engine() as engine, Session(engine) as session:
            return function(session)

    def coroutine(self, function):
        """Run an async function with an `AsyncEngine`."""

        async def main():
            engine = create_async_engine(self.url)
            try:
                return await function(engine)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    @staticmethod
    async def _run_sync(owner, function):
        async with owner:
            return await owner.run_sync(function)
