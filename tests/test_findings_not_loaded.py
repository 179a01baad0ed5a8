"""`missing_greenlet`, `raise_load` and `detached_instance`: what they say, and that their fix, pasted in, is one."""

import asyncio

import pytest
from sqlalchemy import func, orm, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, defer, joinedload, raiseload, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

import sqltrace
from sqltrace import code_files
from tests.scenarios import innermost
from tests.shelf import fill, mapping, open_async_shelf, open_shelf

pytestmark = [
    pytest.mark.usefixtures("no_faults", "leftovers"),
    # What SQLAlchemy leaves behind where it could not await.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ERRORS = (InvalidRequestError, MissingGreenlet, StatementError)


async def find(session, query):
    return (await session.scalars(query)).unique().first()


async def read(shelf, query, touch, **options):
    engine = await open_async_shelf(shelf)
    async with sqltrace.record() as recording, AsyncSession(engine, **options) as session:
        thing = await find(session, query)
        if options:
            await session.commit()
        try:
            touch(thing)
        except ERRORS:
            pass
    await engine.dispose()
    return recording


def findings(shelf, query, touch, **options):
    return sqltrace.diagnose(asyncio.run(read(shelf, query, touch, **options)))


L, R = mapping(), mapping(books="raise")
author_alias = orm.aliased(L.Author)
GREENLET = "and AsyncSession cannot load it on access (MissingGreenlet)."
FORBIDDEN = "forbids loading it on access."
SCENARIOS = {
    "collection": (
        L,
        select(L.Author),
        lambda author: author.books,
        ("missing_greenlet", "Author.books", f"Author.books was not loaded, {GREENLET}"),
        ".options(selectinload(Author.books))",
    ),
    "many to one": (
        L,
        select(L.Book),
        lambda book: book.author,
        ("missing_greenlet", "Book.author", f"Book.author was not loaded, {GREENLET}"),
        ".options(joinedload(Book.author))",
    ),
    "deferred column": (
        L,
        select(L.Author),
        lambda author: author.bio,
        ("missing_greenlet", None, f"Author.bio was not loaded, {GREENLET}"),
        ".options(undefer(Author.bio))",
    ),
    "below selectin": (
        L,
        select(L.Author).options(selectinload(L.Author.books)),
        lambda author: author.books[0].topics,
        ("missing_greenlet", "Book.topics", f"Book.topics was not loaded, {GREENLET}"),
        ".options(defaultload(Author.books).selectinload(Book.topics))",
    ),
    "below joined": (
        L,
        select(L.Book).options(joinedload(L.Book.author)),
        lambda book: book.author.bio,
        ("missing_greenlet", None, f"Author.bio was not loaded, {GREENLET}"),
        ".options(defaultload(Book.author).undefer(Author.bio))",
    ),
    "of an alias": (
        L,
        select(author_alias),
        lambda author: author.books,
        ("missing_greenlet", "Author.books", f"Author.books was not loaded, {GREENLET}"),
        ".options(selectinload(author_alias.books))  # author_alias: the aliased(Author) of the query",
    ),
    "raise of the mapping": (
        R,
        select(R.Author),
        lambda author: author.books,
        (
            "raise_load",
            "Author.books",
            f'Author.books was not loaded, and lazy="raise" at tests/shelf.py:43 {FORBIDDEN}',
        ),
        ".options(selectinload(Author.books))",
    ),
    "raise by an option": (
        L,
        select(L.Book).options(raiseload(L.Book.author)),
        lambda book: book.author,
        ("raise_load", "Book.author", f"Book.author was not loaded, and an option of the query {FORBIDDEN}"),
        ".options(joinedload(Book.author))  # in place of raiseload(Book.author)",
    ),
    "raise of a column": (
        L,
        select(L.Author).options(defer(L.Author.name, raiseload=True)),
        lambda author: author.name,
        ("raise_load", None, f"Author.name was not loaded, and raiseload=True {FORBIDDEN}"),
        ".options(undefer(Author.name))  # in place of defer(Author.name)",
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_attribute_that_was_not_loaded(name):
    shelf, query, touch, told, fix = SCENARIOS[name]

    (finding,) = findings(shelf, query, touch)

    assert (finding.kind, finding.relationship, finding.message) == told
    assert finding.fix == fix
    assert finding.cost > 0
    assert finding.call_site.startswith("tests/test_findings_not_loaded.py:")
    assert innermost(finding.call_site).endswith("<lambda>")
    assert innermost(finding.parents).endswith(" in find")


def pasted(fix, shelf, query):
    return eval(f"statement{fix}", {**vars(orm), **vars(shelf), "statement": query, "author_alias": author_alias})


@pytest.mark.parametrize("name", SCENARIOS)
def test_fix_that_is_pasted_in_makes_the_finding_go_away(name):
    shelf, query, touch, _, fix = SCENARIOS[name]
    if "in place of" in fix:
        query = select(query.column_descriptions[0]["entity"])

    mended = pasted(fix, shelf, query)

    assert findings(shelf, mended, touch) == []


def test_object_that_was_gotten_by_its_key_has_the_option_there():
    async def main(get):
        engine = await open_async_shelf(L)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = await get(session)
            try:
                _ = author.books
            except ERRORS:
                pass
        await engine.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main(lambda session: session.get(L.Author, 1)))

    assert (
        finding.fix == "session.get(Author, …, options=[selectinload(Author.books)])  # session.merge() takes them, too"
    )
    mended = f"lambda session: {finding.fix.replace('…', '1')}"
    assert asyncio.run(main(eval(mended, {**vars(orm), **vars(L)}))) == []


def test_expired_attribute_wants_another_session_maker():
    (finding,) = findings(L, select(L.Author), lambda author: author.name, expire_on_commit=True)

    assert finding.message == f"Author.name had expired with the commit, {GREENLET}"
    assert finding.fix == "async_sessionmaker(engine, expire_on_commit=False)"
    assert findings(L, select(L.Author), lambda author: author.name, expire_on_commit=False) == []


@pytest.mark.parametrize("subclass", [False, True], ids=["class", "subclass"])
@pytest.mark.parametrize("kept", [False, True], ids=["flush", "commit"])
def test_value_that_the_database_makes_in_a_flush_wants_to_be_asked_for(kept, subclass, tmp_path):
    async def main(**arguments):
        class Base(orm.DeclarativeBase):
            pass

        class Note(Base):
            __tablename__ = "notes"
            __mapper_args__ = arguments
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            text: orm.Mapped[str]
            changed: orm.Mapped[str] = orm.mapped_column(default="", onupdate=func.hex(1))

        class Memo(Note):
            pass

        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/{len(arguments)}")
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            note = (Memo if subclass else Note)(text="old")
            session.add(note)
            await session.commit()
            async with sqltrace.record() as recording:
                note.text = "new"
                await (session.commit() if kept else session.flush())
                try:
                    assert note.changed == "31"
                except ERRORS:
                    pass
        await engine.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main())

    assert finding.message == f"{'Memo' if subclass else 'Note'}.changed had expired with a flush, {GREENLET}"
    assert finding.fix == '__mapper_args__ = {"eager_defaults": True}  # of Note, added to what is in there'
    assert asyncio.run(main(eager_defaults=True)) == []


def test_attributes_that_one_commit_had_expired_are_told_once():
    def touch(book):
        for name in ("id", "author_id", "id"):
            try:
                getattr(book, name)
            except ERRORS:
                pass

    (finding,) = findings(L, select(L.Book), touch, expire_on_commit=True)

    assert finding.message == (
        "Book.id and Book.author_id had expired with the commit, and AsyncSession cannot load them on access"
        " (MissingGreenlet)."
    )
    assert finding.fix == "async_sessionmaker(engine, expire_on_commit=False)"


def test_attributes_that_were_not_loaded_each_want_an_option():
    def touch(author):
        for name in ("books", "bio"):
            try:
                getattr(author, name)
            except ERRORS:
                pass

    told = findings(L, select(L.Author), touch)

    assert {finding.fix for finding in told} == {
        ".options(selectinload(Author.books))",
        ".options(undefer(Author.bio))",
    }


CLOSED = "and was touched when the session of its object was closed (DetachedInstanceError)."
DETACHED = {
    name: (query, touch, f"{told[2].partition(' and ')[0]} {CLOSED}", fix)
    for name, (_, query, touch, told, fix) in SCENARIOS.items()
    if told[0] == "missing_greenlet"
}


def closed(kind, query, touch, prepare=lambda session, thing: None, **options):
    """The recording of a touch when the session is closed."""
    if kind == "sync":
        engine = open_shelf(L)
        with sqltrace.record() as recording:
            with Session(engine, **options) as session:
                thing = session.scalars(query).unique().first()
                prepare(session, thing)
            try:
                touch(thing)
            except DetachedInstanceError:
                pass
        engine.dispose()
        return recording

    async def main():
        engine = await open_async_shelf(L)
        async with sqltrace.record() as recording:
            async with AsyncSession(engine, **options) as session:
                thing = await find(session, query)
                await session.run_sync(prepare, thing)
            try:
                touch(thing)
            except DetachedInstanceError:
                pass
        await engine.dispose()
        return recording

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", DETACHED)
def test_attribute_that_was_not_loaded_before_the_session_was_closed(kind, name):
    query, touch, message, fix = DETACHED[name]

    (finding,) = sqltrace.diagnose(closed(kind, query, touch))

    assert (finding.kind, finding.message, finding.fix) == ("detached_instance", message, fix)
    assert finding.call_site.startswith("tests/test_findings_not_loaded.py:")
    assert innermost(finding.parents).endswith(" in find" if kind == "async" else " in closed")
    mended = pasted(fix, L, query)
    assert sqltrace.diagnose(closed(kind, mended, touch)) == []


def name_of(author):
    return author.name


def commit(session, author):
    session.commit()


def rollback(session, author):
    session.rollback()


def rollback_and_refresh(session, author):
    session.rollback()
    session.refresh(author)


@pytest.mark.parametrize(("kind", "maker"), [("sync", "sessionmaker"), ("async", "async_sessionmaker")])
def test_detached_object_that_a_commit_had_expired_wants_another_session_maker(kind, maker):
    (finding,) = sqltrace.diagnose(closed(kind, select(L.Author), name_of, commit))

    assert finding.message == f"Author.name had expired with the commit, {CLOSED}"
    assert finding.fix == f"{maker}(engine, expire_on_commit=False)"
    assert sqltrace.diagnose(closed(kind, select(L.Author), name_of, commit, expire_on_commit=False)) == []


def test_attributes_of_detached_objects_that_commits_had_expired_are_told_once():
    def touch(author):
        try:
            author.id
        except DetachedInstanceError:
            pass
        return author.name

    (finding,) = sqltrace.diagnose(closed("sync", select(L.Author), touch, commit))

    assert finding.message == (
        "Author.id and Author.name had expired with the commit, and were touched when the session of their object"
        " was closed (DetachedInstanceError)."
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_detached_object_that_a_rollback_had_expired_wants_a_refresh(kind):
    (finding,) = sqltrace.diagnose(closed(kind, select(L.Author), name_of, rollback))

    assert finding.message == f"Author.name had expired with the rollback, {CLOSED}"
    assert finding.fix == "session.refresh() of the object, before the session is closed"
    assert sqltrace.diagnose(closed(kind, select(L.Author), name_of, rollback_and_refresh)) == []


def test_attribute_that_a_rollback_had_expired_wants_no_other_session_maker():
    async def main():
        engine = await open_async_shelf(L)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = await find(session, select(L.Author))
            await session.commit()
            await session.refresh(author)
            await session.rollback()
            with pytest.raises(ERRORS):
                author.name
        await engine.dispose()
        return recording

    (finding,) = sqltrace.diagnose(asyncio.run(main()))

    assert finding.message == f"Author.name had expired with the rollback, {GREENLET}"
    assert finding.fix == "await session.refresh() of the object, before it is touched"


def test_dynamic_relationship_wants_to_be_write_only():
    shelf = mapping(books="dynamic")

    (finding,) = findings(shelf, select(shelf.Author), lambda author: list(author.books))

    assert finding.fix == 'lazy="write_only" for Author.books, and await session.scalars(books.select())'


def test_attribute_that_expired_otherwise_wants_a_refresh():
    def touch(author):
        orm.object_session(author).expire(author)
        return author.name

    (finding,) = findings(L, select(L.Author), touch)

    assert finding.message == f"Author.name had expired, {GREENLET}"
    assert finding.fix == "await session.refresh() of the object, before it is touched"


def test_relationship_that_a_commit_had_expired_has_to_be_loaded_before_that():
    def read(query, **options):
        return findings(L, query, touch_books, **options)

    [finding] = read(select(L.Author), expire_on_commit=True)
    loading = select(L.Author).options(selectinload(L.Author.books))

    assert finding.fix == "async_sessionmaker(engine, expire_on_commit=False)  # and Author.books loaded with the query"
    assert [one.kind for one in read(select(L.Author), expire_on_commit=False)] == ["missing_greenlet"]
    assert read(loading, expire_on_commit=False) == []


def test_fix_for_what_commits_had_expired_is_about_that_error_and_commits_only():
    async def main():
        engine = await open_async_shelf(L)
        async with sqltrace.record() as recording:
            async with AsyncSession(engine) as session:
                author = await find(session, select(L.Author))
                await session.commit()
                book = await find(session, select(L.Book))
                with pytest.raises(ERRORS):
                    author.books
            for touch in (lambda: book.author, lambda: author.name):
                with pytest.raises(DetachedInstanceError):
                    touch()
        await engine.dispose()
        return sqltrace.diagnose(recording)

    assert {finding.message.partition(" ")[0]: finding.fix for finding in asyncio.run(main())} == {
        "Author.books": "async_sessionmaker(engine, expire_on_commit=False)  # and Author.books loaded with the query",
        "Book.author": ".options(joinedload(Book.author))",
        "Author.name": "async_sessionmaker(engine, expire_on_commit=False)",
    }


def test_detached_object_of_a_synchronous_session_beside_an_async_one_is_mended_at_its_own():
    async def main():
        engine, other = await open_async_shelf(L), open_shelf(L)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            await find(session, select(L.Book))
            with Session(other) as inner:
                author = inner.scalars(select(L.Author)).first()
                inner.commit()
            with pytest.raises(DetachedInstanceError):
                author.name
        await engine.dispose()
        other.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main())

    assert finding.fix == "sessionmaker(engine, expire_on_commit=False)"


@pytest.mark.parametrize("names", [None, ["books"]], ids=["once", "once more"])
def test_relationship_that_a_rollback_had_expired_has_to_be_refreshed_itself(names):
    async def main(refresh):
        engine = await open_async_shelf(L)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = await find(session, select(L.Author))
            await session.rollback()
            for attributes in refresh:
                await session.refresh(author, attributes)
            try:
                touch_books(author)
            except ERRORS:
                pass
        await engine.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main([]))

    assert finding.fix == (
        'await session.refresh() of the object, before it is touched; once more with ["books"],'
        " unless its query loads that"
    )
    assert bool(asyncio.run(main([None, names]))) is (names is None)


def touch_books(author):
    return list(author.books)


async def create(shelf, fix, *, close):
    engine = await open_async_shelf(shelf)
    async with sqltrace.record() as recording:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            author = shelf.Author(name="new", bio="")
            session.add(author)
            await session.commit()
            if fix is not None:
                await eval(fix.removeprefix("await "), {"session": session, "author": author})
            try:
                if not close:
                    touch_books(author)
            except ERRORS:
                pass
        try:
            if close:
                touch_books(author)
        except DetachedInstanceError:
            pass
    await engine.dispose()
    return recording


@pytest.mark.parametrize(
    ("lazy", "close", "kind"),
    [("select", False, "missing_greenlet"), ("select", True, "detached_instance"), ("raise", False, "raise_load")],
)
def test_object_that_no_query_has_loaded_wants_a_refresh(lazy, close, kind):
    shelf = mapping(books=lazy)

    (finding,) = sqltrace.diagnose(asyncio.run(create(shelf, None, close=close)))

    assert (finding.kind, finding.parents) == (kind, None)
    assert finding.fix == 'await session.refresh(author, ["books"])  # before: no query has loaded it'
    assert sqltrace.diagnose(asyncio.run(create(shelf, finding.fix, close=close))) == []


LIBRARY = {}
CURRENT_USER = "async def current_user(session, query):\n    return (await session.scalars(query)).first()\n"
exec(compile(CURRENT_USER, "/venv/site-packages/fastapi_users_db_sqlalchemy/__init__.py", "exec"), LIBRARY)


async def read_of_library(shelf, touch, fix=None):
    engine = await open_async_shelf(shelf)
    async with sqltrace.record() as recording, AsyncSession(engine) as session:
        author = await LIBRARY["current_user"](session, select(shelf.Author))
        if fix is not None:
            await eval(fix.removeprefix("await "), {"session": session, "author": author})
        try:
            touch(author)
        except ERRORS:
            pass
    await engine.dispose()
    return recording


@pytest.mark.parametrize(
    ("shelf", "name", "touch"),
    [(L, "books", touch_books), (R, "books", touch_books), (L, "bio", lambda author: author.bio)],
    ids=["lazy", "raise", "deferred"],
)
def test_object_of_a_query_of_a_library_wants_a_refresh(monkeypatch, shelf, name, touch):
    """As the user that a dependency of theirs finds: there is no query to which an option could be added."""
    monkeypatch.setitem(code_files.kinds, __file__, code_files.SKIP)

    (finding,) = sqltrace.diagnose(asyncio.run(read_of_library(shelf, touch)))

    assert finding.fix == f'await session.refresh(author, ["{name}"])  # before: the query is a library\'s'
    assert sqltrace.diagnose(asyncio.run(read_of_library(shelf, touch, finding.fix))) == []


def test_new_object_of_a_synchronous_session_is_refreshed_without_await():
    engine = open_shelf(L)
    with sqltrace.record() as recording:
        with Session(engine, expire_on_commit=False) as session:
            author = L.Author(name="new", bio="")
            session.add(author)
            session.commit()
        with pytest.raises(DetachedInstanceError):
            author.books
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert finding.fix == 'session.refresh(author, ["books"])  # before: no query has loaded it'


def findings_of_found_before(touch, prepare=None):
    """Of touching an attribute of an author whom a query before the recording has found."""

    async def main():
        engine = await open_async_shelf(L)
        async with AsyncSession(engine) as session:
            author = await find(session, select(L.Author))
            async with sqltrace.record() as recording:
                if prepare is not None:
                    await prepare(session)
                with pytest.raises(ERRORS):
                    touch(author)
        await engine.dispose()
        return recording

    return sqltrace.diagnose(asyncio.run(main()))


def test_expired_attribute_wants_an_async_session_maker_also_where_no_statement_is_known():
    [finding] = findings_of_found_before(lambda author: author.name, AsyncSession.commit)

    assert finding.fix == "async_sessionmaker(engine, expire_on_commit=False)"


def test_query_of_an_unknown_line_is_told_by_its_class():
    (finding,) = findings_of_found_before(lambda author: author.books)

    assert (finding.fix, finding.parents) == (".options(selectinload(Author.books))  # of the select(Author)", None)


@pytest.mark.postgresql
def test_loads_that_failed_one_after_the_other_are_no_n_plus_one(postgres_url):
    async def main():
        engine = create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"))
        async with engine.begin() as connection:
            await connection.run_sync(fill, L)
        async with AsyncSession(engine) as session:
            session.add_all([L.Author(id=100 + number, name="", bio="") for number in range(10)])
            await session.commit()
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            for author in (await session.scalars(select(L.Author))).all():
                try:
                    _ = author.books
                except ERRORS:
                    pass
        async with engine.begin() as connection:
            await connection.run_sync(L.Base.metadata.drop_all)
        await engine.dispose()
        return recording

    recording = asyncio.run(main())

    assert recording.failed_count == 0
    assert [finding.kind for finding in sqltrace.diagnose(recording)] == ["missing_greenlet"]
