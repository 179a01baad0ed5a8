"""
Programs that nobody thought of: made of random steps of an ORM session, run without and with sqltrace.

Both must do the same, and what sqltrace counts must be what listeners of SQLAlchemy's own have seen.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import ForeignKey, NullPool, String, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import SAWarning, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    joinedload,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
    subqueryload,
    undefer,
)

import sqltrace
from tests.databases import drivers

pytestmark = pytest.mark.usefixtures("no_faults")


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "program_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(10), unique=True)
    bio: Mapped[str] = mapped_column(String(10), deferred=True, default="long")
    books: Mapped[list["Book"]] = relationship(
        back_populates="author", cascade="all, delete-orphan", order_by="Book.id"
    )


class Book(Base):
    __tablename__ = "program_books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(10))
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship(back_populates="books")


OPTIONS = {
    "none": (),
    "joined": (joinedload(Author.books),),
    "selectin": (selectinload(Author.books).joinedload(Book.author),),
    "subquery": (subqueryload(Author.books),),
    "raise": (raiseload(Author.books),),
    "columns": (undefer(Author.bio), defer(Author.name)),
}
READERS = {
    "all": lambda result: result.all(),
    "first": lambda result: [result.first()],
    "one": lambda result: [result.one_or_none()],
    "some": lambda result: result.fetchmany(2),
    "each": list,
    "parts": lambda result: [row for part in result.partitions(2) for row in part],
    "none": lambda result: result.close(),
}


class Program:
    """Runs steps in a session, and notes what came of each."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outcomes = []
        self.known = []

    def run(self, steps) -> None:
        for name, *arguments in steps:
            try:
                outcome = getattr(self, name)(*arguments)
            except (SQLAlchemyError, SAWarning) as error:
                outcome = type(error).__name__, type(getattr(error, "orig", None)).__name__
                self.recover()
            self.outcomes.append((name, outcome))

    def recover(self):
        try:
            self.session.rollback()
        except SQLAlchemyError:  # of objects that were deleted in a savepoint
            self.session.close()

    def add(self, name, books):
        self.known.append(Author(name=name, books=[Book(title=f"title {number}") for number in range(books)]))
        self.session.add(self.known[-1])

    def query(self, options, reader, yield_per):
        statement = select(Author).options(*OPTIONS[options]).order_by(Author.name)
        if yield_per:
            statement = statement.execution_options(yield_per=2)
        found = self.session.scalars(statement)
        authors = READERS[reader](found.unique() if options == "joined" else found)
        if yield_per:
            found.close()  # what stays with the server until it is read, drivers want to be told of
        self.known = [author for author in authors or () if author is not None] or self.known
        return [author.name for author in self.known]

    def touch(self, attribute):
        answers = []
        for author in self.known:
            value = getattr(author, attribute)
            answers.append([book.title for book in value] if attribute == "books" else value)
        return answers

    def get(self, place):
        if place < len(self.known):
            found = self.session.get(Author, self.known[place].id, populate_existing=True)
            return found and found.name

    def core(self, reader):
        rows = self.session.execute(select(Author.name, func.length(Author.name)).order_by(Author.name))
        return [tuple(row) for row in READERS[reader](rows) or () if row is not None]

    def many(self, names, returning):
        values = [{"name": name, "bio": "short"} for name in names]
        if returning:
            return sorted(self.session.scalars(insert(Author).returning(Author.name), values))
        return self.session.execute(insert(Author), values) and None

    def rename(self, name):
        return self.session.execute(update(Book).values(title=name)).rowcount

    def remove(self, place):
        if place < len(self.known):
            self.session.delete(self.known[place])

    def savepoint(self, steps, keep):
        point = self.session.begin_nested()
        self.run(steps)
        if point.is_active:
            point.commit() if keep else point.rollback()
        return point.is_active

    def bad(self):
        self.session.execute(text("SELECT nothing FROM program_nowhere"))

    def flush(self):
        self.session.flush()

    def commit(self):
        self.session.commit()

    def rollback(self):
        self.session.rollback()

    def expire(self):
        self.session.expire_all()

    def refresh(self, place):
        if place < len(self.known):
            self.session.refresh(self.known[place])


names = st.sampled_from(["ada", "bob", "cyd", "dan", "eve", "far too long a name"])
places = st.integers(0, 2)
simple = st.one_of(
    st.tuples(st.just("add"), names, st.integers(0, 3)),
    st.tuples(st.just("query"), st.sampled_from(sorted(OPTIONS)), st.sampled_from(sorted(READERS)), st.booleans()),
    st.tuples(st.just("touch"), st.sampled_from(["books", "bio", "name"])),
    st.tuples(st.just("get"), places),
    st.tuples(st.just("core"), st.sampled_from(sorted(READERS))),
    st.tuples(st.just("many"), st.lists(names, min_size=1, max_size=4), st.booleans()),
    st.tuples(st.just("rename"), names),
    st.tuples(st.just("remove"), places),
    st.tuples(st.sampled_from(["bad", "flush", "commit", "rollback", "expire"])),
    st.tuples(st.just("refresh"), places),
)
programs = st.lists(
    st.one_of(simple, st.tuples(st.just("savepoint"), st.lists(simple, max_size=4), st.booleans())), max_size=14
)


@dataclass
class Seen:
    """By listeners of SQLAlchemy's own, and by the driver's cursor where it is Python's."""

    statements: list = field(default_factory=list)
    failed: int = 0
    rows: int = 0


@contextmanager
def listening(engine) -> Iterator[Seen]:
    seen = Seen()

    def started(connection, cursor, statement, parameters, context, executemany):
        seen.statements.append(statement)

    def failed(context):
        seen.failed += context.execution_context is not None

    event.listen(engine, "before_cursor_execute", started)
    event.listen(engine, "handle_error", failed)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", started)
        event.remove(engine, "handle_error", failed)


class CountingCursor(sqlite3.Cursor):
    rows = 0

    def fetchone(self):
        row = super().fetchone()
        CountingCursor.rows += row is not None
        return row

    def fetchmany(self, size=1):
        rows = super().fetchmany(size)
        CountingCursor.rows += len(rows)
        return rows

    def fetchall(self):
        rows = super().fetchall()
        CountingCursor.rows += len(rows)
        return rows


class CountingConnection(sqlite3.Connection):
    def cursor(self, factory=CountingCursor):
        return super().cursor(factory)


@pytest.fixture(params=drivers())
def run(request, tmp_path):
    """Runs the steps of a program in the empty tables of a database of one driver: outcomes, what was seen, recordings."""
    driver = request.param
    url = driver.url(tmp_path / "programs.db")
    counted = driver.name == "sqlite3"
    arguments = {"connect_args": {"factory": CountingConnection}} if counted else {}
    engine = (create_async_engine if driver.is_async else create_engine)(url, poolclass=NullPool, **arguments)

    def empty(session):
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.commit()

    def in_session(work):
        if not driver.is_async:
            with Session(engine) as session:
                return work(session)

        async def main():
            async with AsyncSession(engine) as session:
                return await session.run_sync(work)

        return asyncio.run(main())

    def run(steps, *recordings):
        in_session(empty)
        CountingCursor.rows = 0

        def work(session):
            program = Program(session)
            program.run(steps)
            return program.outcomes

        with ExitStack() as within:
            seen = within.enter_context(listening(getattr(engine, "sync_engine", engine)))
            recorded = [within.enter_context(recording) for recording in recordings]
            outcomes = in_session(work)
        seen.rows = CountingCursor.rows if counted else None
        return outcomes, seen, *recorded

    in_session(lambda session: Base.metadata.create_all(session.connection()) or session.commit())
    yield run
    in_session(lambda session: Base.metadata.drop_all(session.connection()) or session.commit())


# The same programs each time: what SQLAlchemy itself does with a program may depend on where objects lie in memory.
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=programs)
def test_any_program_does_the_same_with_sqltrace_and_is_counted_exactly(run, steps):
    sqltrace.uninstrument()
    expected, _ = run(steps)

    sqltrace.instrument()
    outcomes, seen, *recordings = run(steps, sqltrace.record(max_statements=3), sqltrace.record())

    assert outcomes == expected
    for recording in recordings:
        counts = recording.counts
        assert (counts.statements, counts.failed) == (len(seen.statements), seen.failed)
        assert sum(group.count for group in recording.groups) == counts.statements
        assert sum(group.rows or 0 for group in recording.groups) == counts.rows
        if seen.rows is not None:
            assert counts.rows == seen.rows
        known = [part for part in recording.time_account if part is not None]
        assert sum(known) == pytest.approx(recording.duration, rel=0.02, abs=0.001)
        kept = [statement.sql for statement in recording.statements]
        assert kept == seen.statements[: len(kept)]
