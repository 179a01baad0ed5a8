"""Why each statement ran, on the real loaders of the installed SQLAlchemy."""

import asyncio
import gc
import threading
import weakref
from dataclasses import replace
from inspect import currentframe

import pytest
from sqlalchemy import Column, ForeignKey, Integer, Table, create_engine, event, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defaultload,
    defer,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    mapped_column,
    registry,
    relationship,
    selectinload,
    subqueryload,
)
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace import Origin
from sqltrace.capture import join_internals, load_internals, objects
from sqltrace.capture.joins import find_widening
from sqltrace.origin import QUERY
from tests.shelf import fill, mapping, open_async_shelf, open_shelf

pytestmark = pytest.mark.usefixtures("no_faults")


@pytest.fixture(params=["sync", "async"])
def run(request):
    """``run(shelf, work)``: the statements of ``work(session, shelf)``, as (origin, summary of the parents)."""

    def run(shelf, work):
        return told(request.param, shelf, work).statements

    return run


def told(kind, shelf, work):
    if kind == "sync":
        engine = open_shelf(shelf)
        with sqltrace.record() as recording, Session(engine) as session:
            work(session, shelf)
        engine.dispose()
        return recording

    async def main():
        engine = await open_async_shelf(shelf)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            await session.run_sync(work, shelf)
        await engine.dispose()
        return recording

    return asyncio.run(main())


def loads(statements):
    return [
        (str(replace(statement.origin, by_options=())), statement.parents and statement.parents.summary)
        for statement in statements
        if statement.origin is not QUERY
    ]


def read_books(session, shelf, *options):
    return [len(author.books) for author in session.scalars(select(shelf.Author).options(*options)).unique()]


LOADERS = {
    "select": [("lazy Author.books", "SELECT authors")] * 3,
    "joined": [],
    "selectin": [("selectin Author.books", "SELECT authors")],
    "subquery": [("subquery Author.books", "SELECT authors")],
    "immediate": [("immediate Author.books", "SELECT authors")] * 3,
}
OPTIONS = {
    "select": lazyload,
    "joined": joinedload,
    "selectin": selectinload,
    "subquery": subqueryload,
    "immediate": immediateload,
}


@pytest.mark.parametrize("lazy", LOADERS)
def test_loader_of_the_mapping(run, lazy):
    statements = run(mapping(books=lazy), read_books)

    assert loads(statements) == LOADERS[lazy]
    assert statements[0].origin is QUERY
    assert {statement.origin.lazy for statement in statements[1:]} <= {lazy}


@pytest.mark.parametrize("lazy", LOADERS)
def test_loader_of_an_option(run, lazy):
    def work(session, shelf):
        read_books(session, shelf, OPTIONS[lazy](shelf.Author.books))

    statements = run(mapping(), work)

    assert loads(statements) == LOADERS[lazy]
    assert {statement.origin.lazy for statement in statements[1:]} <= {"select"}


def test_options_that_leave_something_for_later_are_told(run):
    def work(session, shelf):
        author, book = shelf.Author, shelf.Book
        options = [
            selectinload(author.books).lazyload(book.topics),
            joinedload(author.books).immediateload(book.author).lazyload(author.books),
            defer(author.name),
        ]
        for option in options:
            found = session.scalars(select(author).options(option)).unique().first()
            found.name, found.books[0].author.books, found.books[0].topics
            session.expunge_all()

    assert {statement.origin.by_options for statement in run(mapping(), work)} == {
        (),
        ("lazyload(Book.topics)",),
        ("defer(Author.name)",),
    }


def test_origin_in_full():
    def work(session, shelf):
        session.scalars(select(shelf.Book)).first().author

    query, load = told("sync", mapping(), work).statements

    assert query.origin is QUERY
    assert load.origin == load.origin
    assert (load.origin.kind, load.origin.relationship, load.origin.lazy) == ("lazy", "Book.author", "select")
    assert (load.origin.uselist, load.origin.entity, load.origin.attributes) == (False, "Book", ())
    assert load.origin.declaration.find().startswith("tests/shelf.py:")


def test_many_to_one_and_many_to_many(run):
    def work(session, shelf):
        for book in session.scalars(select(shelf.Book).limit(2)):
            book.author, book.topics

    assert loads(run(mapping(), work)) == [
        ("lazy Book.author", "SELECT books"),
        ("lazy Book.topics", "SELECT books"),
        ("lazy Book.topics", "SELECT books"),
    ]


def test_attributes_of_an_expired_object(run):
    def work(session, shelf):
        author = session.get(shelf.Author, 1)
        session.commit()
        author.name
        session.expire(author, ["name"])
        author.name

    assert loads(run(mapping(), work)) == [
        ("refresh Author(books, id, name, prizes, publisher, publisher_id) expired by commit", "SELECT authors"),
        ("refresh Author(name)", "SELECT authors"),
    ]


def test_refresh_that_was_asked_for(run):
    def work(session, shelf):
        author = session.get(shelf.Author, 1)
        session.refresh(author)
        session.refresh(author, ["name"])
        session.refresh(author, ["bio"])

    assert loads(run(mapping(), work)) == [
        ("refresh Author by Session.refresh()", "SELECT authors"),
        ("refresh Author(name) by Session.refresh()", "SELECT authors"),
        ("refresh Author(bio) by Session.refresh()", "SELECT authors"),
    ]


def test_first_two_of_each_origin_have_their_line_though_their_text_is_the_same(run):
    def work(session, shelf):
        first, second, _ = [session.get(shelf.Author, key) for key in (1, 2, 3)]
        session.refresh(first)
        session.refresh(second)

    gets, refreshes = [], []
    for statement in run(mapping(), work):
        (refreshes if statement.origin.kind == "refresh" else gets).append(statement.call_site)

    assert len({str(site) for site in gets[:2]}) == 1
    assert [site.line for site in refreshes] == [work.__code__.co_firstlineno + 2, work.__code__.co_firstlineno + 3]


@pytest.mark.parametrize("lazy", ["select", "selectin", "subquery", "immediate"])
def test_relationship_that_is_refreshed_is_loaded_for_one_object(run, lazy):
    def work(session, shelf):
        session.refresh(session.get(shelf.Author, 1), ["books"])

    *_, refresh, load = run(mapping(books=lazy), work)

    assert refresh.origin.kind == "refresh"
    assert "books" in refresh.origin.attributes
    assert str(load.origin) == "immediate Author.books by Session.refresh()"
    assert load.parents.summary == "SELECT authors"


def test_deferred_columns(run):
    def work(session, shelf):
        for author in session.scalars(select(shelf.Author).limit(2)):
            author.bio
        session.expunge_all()
        session.scalars(select(shelf.Author).options(load_only(shelf.Author.id))).first().name
        session.expunge_all()
        session.scalars(select(shelf.Author).options(defer(shelf.Author.name))).first().name

    assert loads(run(mapping(), work)) == [
        ("deferred Author(bio)", "SELECT authors"),
        ("deferred Author(bio)", "SELECT authors"),
        ("deferred Author(name)", "SELECT authors"),
        ("deferred Author(name)", "SELECT authors"),
    ]


CHAINS = {
    "selectin of selectin": (
        (selectinload, selectinload),
        [("selectin Author.books", "SELECT authors"), ("selectin Book.topics", "SELECT books")],
    ),
    "subquery of selectin": (
        (selectinload, subqueryload),
        [("selectin Author.books", "SELECT authors"), ("subquery Book.topics", "SELECT books")],
    ),
    "selectin of subquery": (
        (subqueryload, selectinload),
        [("subquery Author.books", "SELECT authors"), ("selectin Book.topics", "SELECT SELECT authors books")],
    ),
    "lazy of selectin": (
        (selectinload, lazyload),
        [("selectin Author.books", "SELECT authors"), *[("lazy Book.topics", "SELECT books")] * 6],
    ),
    "selectin of joined": ((joinedload, selectinload), [("selectin Book.topics", "SELECT authors books")]),
    "lazy of joined": ((joinedload, lazyload), [("lazy Book.topics", "SELECT authors books")] * 6),
    "selectin of lazy": (
        (lazyload, selectinload),
        [("lazy Author.books", "SELECT authors"), ("selectin Book.topics", "SELECT books")] * 3,
    ),
    "lazy of lazy": (
        (lazyload, lazyload),
        [("lazy Author.books", "SELECT authors"), *[("lazy Book.topics", "SELECT books")] * 2] * 3,
    ),
    "immediate of immediate": (
        (immediateload, immediateload),
        [("immediate Author.books", "SELECT authors"), *[("immediate Book.topics", "SELECT books")] * 2] * 3,
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_parents_of_a_chain_of_loads(run, chain):
    (first, second), expected = CHAINS[chain]

    def work(session, shelf):
        option = first(shelf.Author.books)
        nested = getattr(option, second.__name__)(shelf.Book.topics)
        for author in session.scalars(select(shelf.Author).options(nested)).unique():
            assert [len(book.topics) for book in author.books] == [1, 1]

    found = loads(run(mapping(), work))

    assert sorted(found) == sorted(expected)
    assert {origin for origin, _ in found} == {origin for origin, _ in expected}


def test_parents_are_told_with_their_line_and_origin(run):
    lines = []

    def work(session, shelf):
        lines.append(currentframe().f_lineno + 1)
        authors = session.scalars(select(shelf.Author).options(selectinload(shelf.Author.books))).all()
        authors[0].books[0].topics

    query, selectin, lazy = run(mapping(), work)

    assert selectin.parents.call_site.line == lazy.parents.call_site.line == lines[0]
    assert selectin.parents.fingerprint == query.fingerprint
    assert selectin.parents.origin is QUERY
    assert lazy.parents.fingerprint == selectin.fingerprint
    assert lazy.parents.origin is selectin.origin


@pytest.mark.parametrize("lazy", ["select", "selectin", "subquery", "immediate"])
def test_parents_that_came_from_get(run, lazy):
    def work(session, shelf):
        session.get(shelf.Author, 1).books

    assert {parents for _, parents in loads(run(mapping(books=lazy), work))} == {"SELECT authors"}


def test_parents_from_a_session_that_was_closed(run):
    def work(session, shelf):
        author = session.scalars(select(shelf.Author)).first()
        session.expunge_all()
        with Session(session.connection()) as another:
            another.add(author)
            author.books

    assert loads(run(mapping(), work)) == [("lazy Author.books", "SELECT authors")]


def test_object_that_was_refreshed_still_comes_from_its_query(run):
    def work(session, shelf):
        author = session.scalars(select(shelf.Author)).first()
        session.refresh(author)
        author.bio
        author.books

    query, *others = run(mapping(), work)

    assert [str(other.origin) for other in others] == [
        "refresh Author by Session.refresh()",
        "deferred Author(bio)",
        "lazy Author.books",
    ]
    assert {other.parents.fingerprint for other in others} == {query.fingerprint}


def test_thread_that_runs_a_statement_as_another_meets_it_for_the_first_time_knows_its_origin(monkeypatch, tmp_path):
    shelf = mapping(books="select")
    engine = create_engine(f"sqlite:///{tmp_path}/shelf.db")
    with engine.connect() as connection:
        fill(connection, shelf)
    studying, recordings = threading.Event(), []

    def work():
        with sqltrace.record() as recording, Session(engine) as session:
            session.get(shelf.Author, 1).books
        recordings.append(recording)

    def study(compiled):
        if "books" in compiled.string and not studying.is_set():
            studying.set()
            other = threading.Thread(target=work)
            other.start()
            other.join()
        return find_widening(compiled)

    monkeypatch.setattr("sqltrace.capture.origin.find_widening", study)
    work()
    engine.dispose()

    assert [[str(one.origin) for one in recording.statements] for recording in recordings] == [
        ["query", "lazy Author.books"]
    ] * 2


def test_parents_beyond_the_latest_thousand_loads_are_forgotten(monkeypatch):
    monkeypatch.setattr(objects, "_MAX_LOADS", 2)
    shelf = mapping(books="select")
    engine = open_shelf(shelf)

    with sqltrace.record() as recording, Session(engine) as session:
        first, _, last = [session.scalars(select(shelf.Author).offset(n).limit(1)).one() for n in range(3)]
        kept = len(recording.collector.loads)
        for author in (last, first):
            author.books
    engine.dispose()

    assert kept == 2
    assert [statement.parents is None for statement in recording.statements[3:]] == [False, True]


def test_parents_of_another_recording_are_not_known():
    engine = open_shelf(mapping())
    with Session(engine) as session:
        with sqltrace.record():
            authors = session.scalars(select(mapping().Author)).all()
        with sqltrace.record() as recording:
            authors[0].books

    assert loads(recording.statements) == [("lazy Author.books", None)]


def test_parents_of_the_recording_around_are_known():
    engine = open_shelf(mapping())
    with sqltrace.record() as outer, Session(engine) as session:
        authors = session.scalars(select(mapping().Author)).all()
        with sqltrace.record() as inner:
            authors[0].books

    assert loads(inner.statements) == loads(outer.statements) == [("lazy Author.books", "SELECT authors")]


def test_parents_that_were_not_loaded_are_not_known(run):
    def work(session, shelf):
        author = shelf.Author(id=9, name="new", bio="")
        session.add(author)
        session.flush()
        author.books

    assert ("lazy Author.books", None) in loads(run(mapping(), work))


def test_parents_of_an_attribute_that_a_load_event_touches():
    """While one object is made another is touched, which no query of this recording loaded."""
    shelf = mapping()
    engine = open_shelf(shelf)
    with Session(engine) as session:
        strange = session.get(shelf.Author, 3)

        def load(target, context):
            strange.books

        event.listen(shelf.Book, "load", load)
        try:
            with sqltrace.record() as recording:
                session.scalars(select(shelf.Book).where(shelf.Book.author_id == 1)).first()
        finally:
            event.remove(shelf.Book, "load", load)

    assert set(loads(recording.statements)) == {("lazy Author.books", None)}


def test_yield_per_loads_for_each_chunk(run):
    def work(session, shelf):
        query = select(shelf.Author).options(selectinload(shelf.Author.books))
        for author in session.scalars(query.execution_options(yield_per=2)):
            author.bio

    found = loads(run(mapping(), work))

    assert found.count(("selectin Author.books", "SELECT authors")) == 2
    assert found.count(("deferred Author(bio)", "SELECT authors")) == 3


def test_gathered_sessions_keep_their_parents_apart():
    shelf = mapping(books="selectin", author="immediate", topics="immediate")

    async def read(engine, entity):
        async with AsyncSession(engine) as session:
            await session.scalars(select(entity))

    async def main():
        engine = await open_async_shelf(shelf)
        async with sqltrace.record() as recording:
            await asyncio.gather(*(read(engine, entity) for entity in [shelf.Author, shelf.Book] * 5))
        await engine.dispose()
        return recording

    found = loads(asyncio.run(main()).statements)
    assert {parents for _, parents in found} == {"SELECT authors", "SELECT books"}
    for origin, parents in found:
        of_books = parents == "SELECT books"
        assert origin.split()[1].startswith("Book." if of_books else "Author."), (origin, parents)


def test_what_the_application_asks_for_itself_is_a_query(run):
    def work(session, shelf):
        session.scalars(select(shelf.Book).where(shelf.Book.author_id == 1)).all()
        session.execute(text("SELECT 1"))
        session.execute(select(shelf.Author.id))
        session.execute(insert(shelf.Topic).values(id=7))
        session.merge(shelf.Topic(id=8))
        session.flush()
        session.query(shelf.Author).count()

    statements = run(mapping(), work)

    assert len(statements) > 6
    assert {statement.origin for statement in statements} == {QUERY}


def test_subclasses_that_are_loaded_with_selectin():
    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Writer(Person):
        __tablename__ = "writers"
        id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
        genre: Mapped[str]
        __mapper_args__ = {"polymorphic_identity": "writer", "polymorphic_load": "selectin"}

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        session.add(Writer(id=1, genre="crime"))
        session.commit()
        session.expunge_all()
        (writer,) = session.scalars(select(Person)).all()
        session.expire(writer, ["genre"])
        assert writer.genre == "crime"
    engine.dispose()

    assert loads(recording.statements) == [
        ("selectin Writer", "SELECT people"),
        ("refresh Writer(genre)", "SELECT people"),
    ]


def test_dynamic_and_write_only_collections_are_queried():
    def work(session, shelf):
        author = session.get(shelf.Author, 1)
        books = author.books
        session.scalars(books.select()).all() if hasattr(books, "select") else books.all()

    for lazy in ("dynamic", "write_only"):
        assert loads(told("sync", mapping(books=lazy), work).statements) == []


def test_same_words_are_the_same_origin():
    """Groups are told apart by identity."""

    def work(session, shelf):
        read_books(session, shelf)
        session.expunge_all()
        read_books(session, shelf, defaultload(shelf.Author.books).load_only(shelf.Book.id))

    recording = told("sync", mapping(), work)

    assert len({id(statement.origin) for statement in recording.statements}) == 2
    assert {str(group.origin) for group in recording.groups} == {"query", "lazy Author.books"}


def test_equal_words_of_another_mapping_share_a_group():
    def work(session, shelf):
        read_books(session, shelf)

    one = told("sync", mapping(books="immediate"), work).statements[1].origin
    mapping.cache_clear()
    other = told("sync", mapping(books="immediate"), work).statements[1].origin

    assert one is other


def test_nothing_is_kept_alive():
    shelf = mapping(books="selectin", author="immediate", topics="immediate")
    engine = open_shelf(shelf)
    with sqltrace.record() as recording:
        session = Session(engine)
        authors = session.scalars(select(shelf.Author)).all()
        authors[0].bio
        session.refresh(authors[0])
        kept = [weakref.ref(session), *map(weakref.ref, authors), weakref.ref(authors[0].books[0])]
        kept.append(weakref.ref(inspect(authors[0])))
        session.close()
        del session, authors
        gc.collect()
        alive = [reference() for reference in kept]

    assert alive == [None] * len(kept)
    assert recording.statements[-1].parents is not None


def test_classes_that_are_gone_are_not_kept_alive():
    reference, recording = use_classes_of_the_moment()

    gc.collect()

    assert reference() is None
    assert loads(recording.statements) == [("selectin Author.books", "SELECT authors books")]
    assert [str(join) for join in recording.statements[-2].widening.joins] == ["Author.more"]


def use_classes_of_the_moment():
    """Mapped without annotations: the caches of `typing` keep what they name."""

    class Author:
        pass

    class Book:
        pass

    mappings = registry()
    authors = Table("authors", mappings.metadata, Column("id", Integer, primary_key=True))
    key = Column("author_id", ForeignKey("authors.id"))
    books = Table("books", mappings.metadata, Column("id", Integer, primary_key=True), key)
    mappings.map_imperatively(Book, books)
    loaded = {"books": relationship(Book, lazy="selectin"), "more": relationship(Book, lazy="joined", viewonly=True)}
    mappings.map_imperatively(Author, authors, properties=loaded)
    engine = create_engine("sqlite://", poolclass=StaticPool)
    mappings.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        session.execute(insert(authors).values(id=1))
        session.scalars(select(Author)).unique().all()
    engine.dispose()
    mappings.dispose()
    return weakref.ref(Author), recording


def test_words_of_an_origin():
    assert str(Origin("query")) == "query"
    assert str(Origin("lazy", "Author.books")) == "lazy Author.books"
    assert str(Origin("refresh", entity="Author")) == "refresh Author"
    assert str(Origin("deferred", entity="Author", attributes=("bio", "name"))) == "deferred Author(bio, name)"
    assert str(Origin("refresh", entity="Author", asked_for=True)) == "refresh Author by Session.refresh()"
    assert str(Origin("refresh", entity="Author", expired_by="rollback")) == "refresh Author expired by rollback"
    assert str(Origin("lazy", "Poet.poems", base="Author")) == "lazy Poet.poems of Author"


@pytest.mark.parametrize(
    ("module", "reader"),
    [(load_internals, "load"), (load_internals, "goes_through_orm"), (join_internals, "sources")],
)
def test_fault_of_ours_is_reported_and_the_statement_goes_on(monkeypatch, caplog, module, reader):
    monkeypatch.setattr(module, reader, None)

    recording = told("sync", mapping(books="joined", author="joined", topics="joined"), read_books)

    assert [statement.failed for statement in recording.statements] == [False]
    (record,) = caplog.records
    assert "failed and is skipped; the application is not affected" in record.getMessage()
    caplog.clear()
