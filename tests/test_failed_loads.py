"""Attributes that could not be loaded: which, touched where, loaded by which query."""

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from contextvars import copy_context
from inspect import currentframe
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import NullPool, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, defer, joinedload, raiseload, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

import sqltrace
from sqltrace import FailedLoad
from sqltrace.capture import load_internals
from tests import databases
from tests.asgi import call, http_scope
from tests.shelf import fill, mapping, open_async_shelf, open_shelf

pytestmark = [
    pytest.mark.usefixtures("no_faults", "leftovers"),
    # What SQLAlchemy leaves behind where it could not await.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ASYNC = databases.drivers(lambda driver: driver.is_async)
HERE = "tests/test_failed_loads.py"


GRAPHQL = {}
EXECUTE = """
def execute(resolver):
    try:
        return {"data": resolver()}
    except Exception as error:
        return {"errors": [str(error)]}

async def execute_async(resolver):
    try:
        return {"data": await resolver()}
    except Exception as error:
        return {"errors": [str(error)]}
"""
exec(compile(EXECUTE, "/venv/site-packages/graphql/execution/execute.py", "exec"), GRAPHQL)


class Lines:
    """Where the last query and the last touch stand."""

    query = touch = attribute = None


async def find(session, entity, *options):
    Lines.query = currentframe().f_lineno + 1
    return (await session.scalars(select(entity).options(*options).limit(1))).unique().one()


def touch(thing, attribute):
    Lines.touch, Lines.attribute = currentframe().f_lineno + 1, attribute
    return getattr(thing, attribute)


def told(failed):
    origin, parents = failed.origin, failed.parents
    assert failed.call_site.line == Lines.touch
    assert str(failed.call_site).startswith(f"{HERE}:{Lines.touch} in touch")
    assert parents.call_site.line == Lines.query
    assert failed.attribute == f"{origin.entity}.{Lines.attribute}"
    return failed.error, str(origin), failed.root, failed.path, parents.summary


@pytest.fixture(params=ASYNC)
def library_engine(request, tmp_path):
    """A function that makes an engine of each asynchronous driver, on a filled shelf."""

    async def engine():
        engine = create_async_engine(request.param.url(tmp_path / "test.db"))
        async with engine.connect() as connection:
            await connection.run_sync(mapping().Base.metadata.drop_all)
            await connection.run_sync(fill, mapping())
        return engine

    return engine


async def touch_relationship(session, shelf):
    touch(await find(session, shelf.Author), "books")


async def touch_many_to_one(session, shelf):
    touch(await find(session, shelf.Book), "author")


async def touch_expired(session, shelf):
    author = await find(session, shelf.Author)
    await session.commit()
    touch(author, "name")


async def touch_deferred(session, shelf):
    touch(await find(session, shelf.Author), "bio")


async def touch_deferred_by_option(session, shelf):
    touch(await find(session, shelf.Author, defer(shelf.Author.name)), "name")


async def touch_below_selectin(session, shelf):
    author = await find(session, shelf.Author, selectinload(shelf.Author.books))
    touch(author.books[0], "topics")


async def touch_below_joined(session, shelf):
    author = await find(session, shelf.Author, joinedload(shelf.Author.books))
    touch(author.books[0], "topics")


async def touch_without_connection(session, shelf):
    author = await find(session, shelf.Author)
    await session.commit()
    await session.bind.dispose()
    touch(author, "bio")


async def touch_by_overwriting(session, shelf):
    author = await find(session, shelf.Author)
    session.expire(author)
    Lines.touch, Lines.attribute = currentframe().f_lineno + 1, "books"
    author.id = 7


MISSING_GREENLET = {
    touch_relationship: ("lazy Author.books", "Author", (), "SELECT authors"),
    touch_many_to_one: ("lazy Book.author", "Book", (), "SELECT books"),
    touch_expired: (
        "refresh Author(books, id, name, prizes, publisher, publisher_id) expired by commit",
        "Author",
        (),
        "SELECT authors",
    ),
    touch_deferred: ("deferred Author(bio)", "Author", (), "SELECT authors"),
    touch_deferred_by_option: ("deferred Author(name) by defer(Author.name)", "Author", (), "SELECT authors"),
    touch_by_overwriting: (
        "refresh Author(books, id, name, prizes, publisher, publisher_id) expired by expire",
        "Author",
        (),
        "SELECT authors",
    ),
    touch_below_selectin: ("lazy Book.topics", "Author", ("Author.books",), "SELECT books"),
    touch_below_joined: ("lazy Book.topics", "Author", ("Author.books",), "SELECT SELECT authors books"),
    touch_without_connection: ("deferred Author(bio)", "Author", (), "SELECT authors"),
}


@pytest.mark.parametrize("work", MISSING_GREENLET, ids=lambda work: work.__name__)
def test_missing_greenlet(library_engine, work):
    async def main():
        engine = await library_engine()
        try:
            async with AsyncSession(engine) as session:
                with pytest.raises((MissingGreenlet, StatementError)):
                    async with sqltrace.record() as recording:
                        await work(session, mapping())
        finally:
            async with engine.begin() as connection:
                await connection.run_sync(mapping().Base.metadata.drop_all)
            await engine.dispose()
        return recording

    recording = asyncio.run(main())

    assert [told(failed) for failed in recording.failed_loads] == [("missing_greenlet", *MISSING_GREENLET[work])]
    assert recording.failed_count == 0  # it was never sent


@pytest.mark.parametrize("lazy", ["dynamic", "select"])
def test_missing_greenlet_that_the_application_caught_is_noted_as_it_is_raised(lazy):
    async def main():
        engine = await open_async_shelf(mapping(books=lazy))
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = await find(session, mapping(books=lazy).Author)
            for _ in range(3):
                try:
                    list(author.books)
                except (MissingGreenlet, StatementError):
                    pass
        await engine.dispose()
        return recording

    (failed,) = asyncio.run(main()).failed_loads

    assert (failed.error, str(failed.origin)) == ("missing_greenlet", "lazy Author.books")


def test_missing_greenlet_of_an_engine_that_is_not_instrumented_is_not_noted(memory_engine):
    async def main():
        engine = await open_async_shelf(mapping())
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = await find(session, mapping().Author)
            with pytest.raises((MissingGreenlet, StatementError)):
                touch(author, "books")
        await engine.dispose()
        return recording

    sqltrace.instrument(memory_engine)

    assert asyncio.run(main()).failed_loads == []


def raise_in_mapping(session, shelf):
    touch(session.scalars(select(shelf.Author)).first(), "books")


def raise_on_sql_many_to_one(session, shelf):
    touch(session.scalars(select(shelf.Book).options(raiseload(shelf.Book.author, sql_only=True))).first(), "author")


def raise_by_option(session, shelf):
    touch(session.scalars(select(shelf.Book).options(raiseload("*"))).first(), "topics")


def raise_of_column(session, shelf):
    touch(session.scalars(select(shelf.Author).options(defer(shelf.Author.name, raiseload=True))).first(), "name")


RAISE_LOAD = [
    (raise_in_mapping, "raise", "lazy Author.books", "raise"),
    (raise_in_mapping, "raise_on_sql", "lazy Author.books", "raise_on_sql"),
    (raise_on_sql_many_to_one, "select", "lazy Book.author by raiseload(Book.author)", "select"),
    (raise_by_option, "select", "lazy Book.topics", "select"),
    (raise_of_column, "select", "deferred Author(name) by defer(Author.name)", None),
]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("work", "lazy", "origin", "told_lazy"), RAISE_LOAD)
def test_raise_load(work, lazy, origin, told_lazy, is_async):
    shelf = mapping(books=lazy)
    if is_async:

        async def main():
            engine = await open_async_shelf(shelf)
            with pytest.raises(InvalidRequestError):
                async with sqltrace.record() as recording, AsyncSession(engine) as session:
                    await session.run_sync(work, shelf)
            await engine.dispose()
            return recording

        recording = asyncio.run(main())
    else:
        engine = open_shelf(shelf)
        with pytest.raises(InvalidRequestError), sqltrace.record() as recording, Session(engine) as session:
            work(session, shelf)

    (failed,) = recording.failed_loads
    assert (failed.error, str(failed.origin), failed.origin.lazy) == ("raise_load", origin, told_lazy)
    assert failed.call_site.function == "touch"
    assert failed.parents.call_site.function == work.__name__


def relationship(session, shelf):
    return session.scalars(select(shelf.Author)).first(), "books"


def many_to_one_below_selectin(session, shelf):
    query = select(shelf.Author).options(selectinload(shelf.Author.books))
    return session.scalars(query).first().books[0], "author"


def deferred(session, shelf):
    return session.scalars(select(shelf.Author)).first(), "bio"


def expired(session, shelf):
    author = session.scalars(select(shelf.Author)).first()
    session.commit()
    return author, "name"


def expired_by_several(session, shelf):
    author = session.scalars(select(shelf.Author)).first()
    session.commit()
    author.name
    session.rollback()
    return author, "name"


def never_loaded(session, shelf):
    author = shelf.Author(name="new", bio="")
    session.add(author)
    session.flush()
    return author, "books"


DETACHED = {
    relationship: ("lazy Author.books", "Author", (), "SELECT authors"),
    many_to_one_below_selectin: ("lazy Book.author", "Author", ("Author.books",), "SELECT books"),
    deferred: ("deferred Author(bio)", "Author", (), "SELECT authors"),
    expired: (
        "refresh Author(books, id, name, prizes, publisher, publisher_id) expired by commit",
        "Author",
        (),
        "SELECT authors",
    ),
    expired_by_several: (
        "refresh Author(books, id, name, prizes, publisher, publisher_id) expired by unknown",
        "Author",
        (),
        "SELECT authors",
    ),
    never_loaded: ("lazy Author.books", None, (), None),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("find", DETACHED, ids=lambda find: find.__name__)
def test_detached_instance(find, is_async):
    shelf = mapping()
    with pytest.raises(DetachedInstanceError, match="is not bound to a Session"):
        find_and_close(find, shelf, is_async=is_async)

    (failed,) = find_and_close.recording.failed_loads
    assert (failed.error, failed.call_site.line) == ("detached_instance", Lines.touch)
    origin, root, path, summary = DETACHED[find]
    assert (str(failed.origin), failed.root, failed.path) == (origin, root, path)
    parents = failed.parents and (failed.parents.summary, failed.parents.call_site.function)
    assert parents == (summary and (summary, find.__name__))


def find_and_close(find, shelf, *, is_async):
    """Touch what was found when its session is closed. The recording is an attribute of this function, as it raises."""
    if is_async:

        async def main():
            engine = await open_async_shelf(shelf)
            async with sqltrace.record() as find_and_close.recording:
                async with AsyncSession(engine) as session:
                    thing, attribute = await session.run_sync(find, shelf)
                await engine.dispose()
                touch(thing, attribute)

        asyncio.run(main())
    else:
        engine = open_shelf(shelf)
        with sqltrace.record() as find_and_close.recording:
            with Session(engine) as session:
                thing, attribute = find(session, shelf)
            touch(thing, attribute)


def application():
    shelf = mapping()
    app = FastAPI()
    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=[sink := Sink()])

    class BookOut(BaseModel, from_attributes=True):
        topics: list[int]

    async def open_session():
        async with AsyncSession(app.state.engine) as session:
            yield session

    @app.get("/validated", response_model=BookOut)
    async def validated(session: Annotated[AsyncSession, Depends(open_session)]):
        return await find(session, shelf.Book)

    @app.get("/closed", response_model=BookOut)
    async def closed():
        async with AsyncSession(app.state.engine) as session:
            return await find(session, shelf.Book)

    @app.get("/coped")
    async def coped():
        async with AsyncSession(app.state.engine) as session:
            try:
                touch(await find(session, shelf.Book), "topics")
            except (MissingGreenlet, StatementError):
                return "not known"

    @app.get("/resolved")
    async def resolved():
        async with AsyncSession(app.state.engine) as session:
            book = await find(session, shelf.Book)
            return GRAPHQL["execute"](lambda: touch(book, "topics"))

    @app.get("/resolved/in-greenlet")
    async def resolved_in_greenlet():
        async with AsyncSession(app.state.engine) as session:
            book = await find(session, shelf.Book, raiseload(shelf.Book.topics))
            return await GRAPHQL["execute_async"](lambda: session.run_sync(lambda _: touch(book, "topics")))

    @app.get("/resolved/after-one-that-was-coped-with")
    async def resolved_again():
        async with AsyncSession(app.state.engine) as session:
            book = await find(session, shelf.Book, raiseload(shelf.Book.topics))
            with suppress(InvalidRequestError):
                touch(book, "topics")
            return GRAPHQL["execute"](lambda: touch(book, "topics"))

    @app.get("/handled/{status}")
    async def handled(status: int):
        async with AsyncSession(app.state.engine) as session:
            try:
                touch(await find(session, shelf.Book), "topics")
            except (MissingGreenlet, StatementError):
                raise HTTPException(status) from None

    return app, sink


class Sink:
    def response_ready(self, record):
        self.in_time = list(record.recording.failed_loads)

    def request_finished(self, record):
        self.record = record


def request(path):
    app, sink = application()

    async def main():
        app.state.engine = await open_async_shelf(mapping())
        try:
            await call(app, http_scope(path))
        except Exception:
            pass
        await app.state.engine.dispose()

    asyncio.run(main())
    return sink


def test_failed_load_that_a_response_model_turned_into_another_error():
    sink = request("/validated")

    (failed,) = sink.record.recording.failed_loads
    assert (failed.error, failed.attribute, failed.parents.call_site.function) == (
        "missing_greenlet",
        "Book.topics",
        "find",
    )


def test_detached_object_that_a_response_model_turned_into_another_error():
    sink = request("/closed")

    (failed,) = sink.record.recording.failed_loads
    assert (failed.error, failed.attribute, failed.parents.call_site.function) == (
        "detached_instance",
        "Book.topics",
        "find",
    )


@pytest.mark.parametrize("status", [400, 503])
def test_failed_load_that_became_a_response_is_known_when_the_response_is_ready(status):
    """Also below 500: handlers of the application answer so to all errors of SQLAlchemy, or of validation."""
    assert [failed.attribute for failed in request(f"/handled/{status}").in_time] == ["Book.topics"]


def test_failed_load_that_the_application_copes_with_is_not_told():
    sink = request("/coped")

    assert (sink.record.status, sink.in_time, sink.record.recording.failed_loads) == (200, [], [])


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {"pool_pre_ping": True}], ids=["NullPool", "pre_ping"])
def test_load_that_gets_no_connection_after_a_commit_is_told_though_the_application_catches_it(options, tmp_path):
    shelf, others = mapping(), set(threading.enumerate())

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shelf.db", **options)
        async with engine.connect() as connection:
            await connection.run_sync(fill, shelf)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            book = await find(session, shelf.Book)
            await session.commit()
            with suppress(MissingGreenlet):
                touch(book, "title")
        await engine.dispose()
        for thread in set(threading.enumerate()) - others:
            if "_connection_worker_thread" in thread.name:  # of aiosqlite: it was told to end, and tells the loop
                await asyncio.to_thread(thread.join, 10)  # SQLAlchemy 2.0.40 does not tell it
        return recording

    (failed,) = asyncio.run(main()).failed_loads

    assert (failed.attribute, failed.origin.expired_by) == ("Book.title", "commit")
    assert failed.call_site.line == Lines.touch


@pytest.mark.parametrize("path", ["/resolved", "/resolved/in-greenlet", "/resolved/after-one-that-was-coped-with"])
def test_failed_load_of_a_graphql_resolver_is_told_in_a_response_of_status_200(path):
    sink = request(path)

    assert (sink.record.status, [failed.attribute for failed in sink.in_time]) == (200, ["Book.topics"])


def test_other_errors_are_no_failed_loads():
    with pytest.raises(ValueError, match="theirs"), sqltrace.record() as recording:
        raise ValueError("theirs") from InvalidRequestError("'Author.books' is not available due to lazy='raise'")

    assert recording.failed_loads == []


def test_sql_of_its_own_outside_of_a_greenlet_is_no_load():
    async def main():
        engine = await open_async_shelf(mapping())
        with pytest.raises((MissingGreenlet, StatementError)), sqltrace.record() as recording:
            AsyncSession(engine).sync_session.scalars(select(mapping().Author))
        await engine.dispose()
        return recording

    assert asyncio.run(main()).failed_loads == []


def test_failed_loads_in_an_exception_group_are_found():
    shelf = mapping(books="raise")
    engine = open_shelf(shelf)
    with Session(engine) as session:
        author = session.scalars(select(shelf.Author)).first()
        try:
            author.books
        except InvalidRequestError as error:
            raised = error
        with pytest.raises(ExceptionGroup), sqltrace.record() as recording:
            raise ExceptionGroup("many", [ValueError(), raised])

    (failed,) = recording.failed_loads
    assert (failed.error, failed.attribute, failed.parents) == ("raise_load", "Author.books", None)


def test_each_is_noted_once_and_few_are_kept():
    shelf = mapping(books="raise")
    engine = open_shelf(shelf)
    with sqltrace.record() as outer, sqltrace.record() as inner, Session(engine) as session:
        author = session.scalars(select(shelf.Author)).first()
        for _ in range(100):
            with pytest.raises(InvalidRequestError):
                author.books
        for number in range(100):
            scope = {"author": author}
            with pytest.raises(InvalidRequestError):
                exec(compile("\n" * number + "author.books", "application.py", "exec"), scope)

    assert len(inner.failed_loads) == len(outer.failed_loads) == 20
    assert len(set(map(str, (failed.call_site for failed in inner.failed_loads)))) == 20


def test_nothing_is_kept_alive():
    shelf = mapping(books="raise")
    engine = open_shelf(shelf)
    with sqltrace.record() as recording:
        session = Session(engine)
        author = session.scalars(select(shelf.Author)).first()
        with pytest.raises(InvalidRequestError):
            author.books
        kept = [weakref.ref(session), weakref.ref(author), weakref.ref(author._sa_instance_state)]
        session.close()
        del session, author
        gc.collect()

    assert [reference() for reference in kept] == [None] * 3
    assert isinstance(recording.failed_loads[0], FailedLoad)


def test_loaders_are_given_back():
    from sqlalchemy.orm import strategies

    name = "_invoke_raise_load"
    owners = [owner for owner in vars(strategies).values() if isinstance(owner, type) and name in vars(owner)]
    before = [vars(owner)[name] for owner in owners]

    sqltrace.instrument()
    sqltrace.instrument()
    during = [vars(owner)[name] for owner in owners]
    sqltrace.uninstrument()

    assert len(owners) == 2
    assert all(ours.__wrapped__ is theirs for ours, theirs in zip(during, before, strict=True))
    assert [vars(owner)[name] for owner in owners] == before


def test_error_of_a_detached_object_is_given_back():
    before = DetachedInstanceError.__init__

    sqltrace.instrument()
    sqltrace.instrument()
    during = DetachedInstanceError.__init__
    sqltrace.uninstrument()

    assert during is not before
    assert "__init__" not in vars(DetachedInstanceError)


def test_error_of_a_detached_object_is_made_as_ever():
    sqltrace.instrument()

    class Theirs(DetachedInstanceError):
        pass

    with sqltrace.record() as recording:
        errors = [Theirs("words"), DetachedInstanceError("words", code="bhk3")]

    assert [str(error).partition(" (Background")[0] for error in errors] == ["words", "words"]
    assert recording.failed_loads == []


def test_wrapper_of_somebody_else_around_a_loader_stays(monkeypatch):
    owner, name = load_internals.raising_methods()[0]
    monkeypatch.setattr(owner, name, vars(owner)[name])
    sqltrace.instrument()
    ours = vars(owner)[name]

    def theirs(*arguments, **options):
        return ours(*arguments, **options)

    setattr(owner, name, theirs)
    sqltrace.uninstrument()

    assert vars(owner)[name] is theirs
    shelf = mapping(books="raise")
    with Session(open_shelf(shelf)) as session, pytest.raises(InvalidRequestError, match="is not available due"):
        raise_in_mapping(session, shelf)


def test_fault_of_ours_is_reported_and_the_error_is_the_same(monkeypatch, caplog):
    monkeypatch.setattr(load_internals, "path_to", None)
    shelf = mapping(books="raise")
    engine = open_shelf(shelf)

    with (
        pytest.raises(InvalidRequestError, match=r"'Author.books' is not available due to lazy='raise'"),
        sqltrace.record() as recording,
        Session(engine) as session,
    ):
        raise_in_mapping(session, shelf)

    assert recording.failed_loads == []
    (record,) = caplog.records
    assert record.getMessage().startswith("describing a failed load failed")
    caplog.clear()


def test_fault_of_ours_as_it_is_raised_leaves_missing_greenlet_the_same(monkeypatch, caplog):
    monkeypatch.setattr(load_internals, "path_to", None)

    async def main():
        engine = await open_async_shelf(mapping())
        with sqltrace.record() as recording:
            async with AsyncSession(engine) as session:
                with pytest.raises((MissingGreenlet, StatementError), match="greenlet_spawn has not been called"):
                    await touch_relationship(session, mapping())
        await engine.dispose()
        return recording

    assert asyncio.run(main()).failed_loads == []
    (record,) = caplog.records
    assert record.getMessage().startswith("describing a failed load failed")
    caplog.clear()


def test_recording_that_ends_in_another_context_leaves_the_error_alone(caplog):
    shelf = mapping(books="raise")
    with Session(open_shelf(shelf)) as session, pytest.raises(InvalidRequestError) as raised:
        raise_in_mapping(session, shelf)
    recorder = sqltrace.record()

    recording = copy_context().run(recorder.__enter__)  # as the exit of a sync generator dependency
    swallowed = recorder.__exit__(raised.type, raised.value, raised.tb)

    assert (swallowed, recording.failed_loads, caplog.records) == (None, [], [])


def test_fault_of_ours_leaves_the_error_of_a_detached_object_the_same(monkeypatch, caplog):
    monkeypatch.setattr(load_internals, "path_to", None)

    with pytest.raises(DetachedInstanceError, match="is not bound to a Session"):
        find_and_close(relationship, mapping(), is_async=False)

    assert find_and_close.recording.failed_loads == []
    assert caplog.records[0].getMessage().startswith("describing a failed load failed")
    caplog.clear()


def test_detached_object_that_raised_before_the_recording_is_found_in_what_ended_it():
    shelf = mapping()
    with Session(open_shelf(shelf)) as session:
        author = session.scalars(select(shelf.Author)).first()
    try:
        author.books
    except DetachedInstanceError as error:
        raised = error

    with pytest.raises(ValueError, match="theirs"), sqltrace.record() as recording:
        raise ValueError("theirs") from raised

    assert [(failed.error, failed.attribute) for failed in recording.failed_loads] == [
        ("detached_instance", "Author.books")
    ]


def test_errors_outside_of_recordings_are_left_alone():
    sqltrace.instrument()
    with pytest.raises(DetachedInstanceError):
        author = None
        with Session(open_shelf(mapping())) as session:
            author = session.scalars(select(mapping().Author)).first()
        author.books
    shelf = mapping(books="raise")
    engine = open_shelf(shelf)
    with Session(engine) as session, pytest.raises(InvalidRequestError, match="is not available due to"):
        raise_in_mapping(session, shelf)

    async def main():
        engine = await open_async_shelf(mapping())
        async with AsyncSession(engine) as session:
            with pytest.raises((MissingGreenlet, StatementError)):
                await touch_relationship(session, mapping())
        await engine.dispose()

    asyncio.run(main())
