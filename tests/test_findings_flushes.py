"""What event listeners ask while a session flushes, and who the listener belongs to."""

import asyncio
from contextlib import contextmanager

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import sqltrace
from tests.shelf import mapping, open_async_shelf, open_shelf

pytestmark = pytest.mark.usefixtures("no_faults")

SHELF = mapping()
TWELVE = range(101, 113)


@pytest.fixture
def engine():
    engine = open_shelf(SHELF)
    yield engine
    engine.dispose()


def ask_for_books(session, author):
    session.execute(select(SHELF.Book.title).where(SHELF.Book.author_id == author.id)).all()


def ask_before_flush(session, context, instances):
    for author in session.new:
        ask_for_books(session, author)


def ask_after_flush(session, context):
    for author in session.new:
        ask_for_books(session, author)


def ask_before_insert(mapper, connection, author):
    ask_for_books(connection, author)


def ask_the_same(mapper, connection, author):
    connection.execute(select(SHELF.Book.title).where(SHELF.Book.author_id == 1)).all()


@contextmanager
def listening(target, name, listener):
    event.listen(target, name, listener)
    yield
    event.remove(target, name, listener)


def new_authors():
    return [SHELF.Author(id=number, name="new", bio="") for number in TWELVE]


def commit(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        session.add_all(new_authors())
        session.commit()
    return sqltrace.diagnose(recording)


@pytest.mark.parametrize(
    ("target", "name", "listener"),
    [
        (Session, "before_flush", ask_before_flush),
        (Session, "after_flush", ask_after_flush),
        (SHELF.Author, "before_insert", ask_before_insert),
    ],
    ids=["before_flush", "after_flush", "before_insert"],
)
def test_what_a_listener_asks_for_each_object_is_asked_once_before_the_flush(engine, target, name, listener):
    with listening(target, name, listener):
        [finding] = commit(engine)

    assert finding.kind == "n_plus_one"
    assert finding.message.startswith(
        "SELECT books ran 12 times at the same line, in what a flush calls, with different parameters, in "
    )
    assert finding.call_site.partition(":")[2].partition(" in ")[2].startswith("ask_for_books, from ")
    assert f" in {listener.__name__}" in finding.call_site
    assert finding.fix == (
        "one statement for all, in before_flush, for all objects of one flush (session.new, session.dirty):"
        " WHERE books.author_id IN (…)"
    )


def test_what_a_listener_asks_again_and_again_is_kept_for_the_others(engine):
    with listening(SHELF.Author, "before_insert", ask_the_same):
        [finding] = commit(engine)

    assert (finding.kind, finding.fix) == (
        "repeated_statement",
        "keep the first result for the others, as in session.info",
    )


def listener_of_a_library(tmp_path, value):
    code = f"def listener(mapper, connection, author):\n    connection.execute(query.where(column == {value})).all()\n"
    names = {"query": select(SHELF.Book.title), "column": SHELF.Book.author_id}
    exec(compile(code, str(tmp_path / "site-packages" / "somelibrary" / "listeners.py"), "exec"), names)
    return names["listener"]


@pytest.mark.parametrize(("value", "kind"), [("author.id", "n_plus_one"), ("1", "repeated_statement")])
def test_listener_of_a_library_is_told_as_such(engine, tmp_path, value, kind):
    with listening(SHELF.Author, "before_insert", listener_of_a_library(tmp_path, value)):
        [finding] = commit(engine)

    library, flushing = finding.call_site.split(", from ")[:2]
    assert library.endswith("site-packages/somelibrary/listeners.py:2 in listener")
    assert flushing.endswith("in commit")
    assert (finding.kind, finding.fix) == (
        kind,
        "see the library's options: its listener asks; insert() and update() with a list of rows call none",
    )


def test_listener_of_a_library_is_told_under_an_async_session(tmp_path):
    async def main():
        engine = await open_async_shelf(SHELF)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            session.add_all(new_authors())
            await session.commit()
        await engine.dispose()
        return sqltrace.diagnose(recording)

    with listening(SHELF.Author, "before_insert", listener_of_a_library(tmp_path, "author.id")):
        [finding] = asyncio.run(main())

    library, flushing = finding.call_site.split(", from ")[:2]
    assert library.endswith("somelibrary/listeners.py:2 in listener")
    assert flushing.endswith("<locals>.main")


def test_what_the_flush_asks_itself_is_told_at_the_line_that_flushes(engine):
    with Session(engine) as session:
        authors = session.scalars(select(SHELF.Author)).all()
        with sqltrace.record() as recording:
            for author in authors:
                session.delete(author)
            with pytest.raises(IntegrityError):
                session.flush()

    loads = [statement for statement in recording.statements if statement.origin.kind == "lazy"]
    assert {(site.function, site.in_flush) for load in loads if (site := load.call_site)} == {
        ("test_what_the_flush_asks_itself_is_told_at_the_line_that_flushes", False)
    }
    assert loads


def test_query_after_a_flush_that_failed_is_none_of_it(engine):
    def fail(mapper, connection, author):
        raise ValueError

    with listening(SHELF.Author, "before_insert", fail), sqltrace.record() as recording, Session(engine) as session:
        session.add_all(new_authors())
        with pytest.raises(ValueError):
            session.flush()
        session.rollback()
        session.scalars(select(SHELF.Book)).all()

    assert [statement.call_site.in_flush for statement in recording.statements] == [False]


def test_task_that_a_listener_begins_is_none_of_the_flush():
    def ask_for_all(session):
        for author in new_authors():
            ask_for_books(session, author)

    async def work(engine):
        async with AsyncSession(engine) as session:
            await session.run_sync(ask_for_all)

    async def main():
        def begin_task(session, context):
            tasks.append(asyncio.get_running_loop().create_task(work(engine)))

        engine, tasks = await open_async_shelf(SHELF), []
        with listening(Session, "after_flush", begin_task):
            async with sqltrace.record() as recording, AsyncSession(engine) as session:
                session.add(SHELF.Author(id=101, name="new", bio=""))
                await session.commit()
                await asyncio.gather(*tasks)
        await engine.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main())

    assert finding.message.startswith("SELECT books ran 12 times at the same line with different parameters, in ")
    assert finding.fix == "one statement for all, before the loop: WHERE books.author_id IN (…)"
