"""Fixes below a relationship to an alias of a class: SQLAlchemy refuses, or passes over, the names of the class."""

import asyncio
import gc
from functools import partial

import pytest
from sqlalchemy import ForeignKey, and_, func, insert, orm, select
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    defaultload,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
    subqueryload,
)
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.findings import row_fan_out
from tests.asgi import memory_engine

pytestmark = pytest.mark.usefixtures("no_faults")


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    books: Mapped[list["Book"]] = relationship()


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    reviews: Mapped[list["Review"]] = relationship()


class Review(Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"))


numbered = select(
    Book, func.row_number().over(order_by=Book.id, partition_by=Book.author_id).label("number")
).subquery()
FIRST, OTHER = aliased(Book, numbered), aliased(Book)
Author.first_books = relationship(
    FIRST, primaryjoin=and_(FIRST.author_id == Author.id, numbered.c.number <= 2), viewonly=True
)
AUTHORS = range(1, 13)


def fill(connection):
    Base.metadata.create_all(connection)
    books = [{"id": 3 * author + more, "author_id": author} for author in AUTHORS for more in range(3)]
    connection.execute(insert(Author), [{"id": author} for author in AUTHORS])
    connection.execute(insert(Book), books)
    connection.execute(insert(Review), [{"book_id": book["id"]} for book in books for _ in range(9)])
    connection.commit()


@pytest.fixture(scope="module")
def engine():
    engine = memory_engine()
    with engine.connect() as connection:
        fill(connection)
    yield engine
    engine.dispose()


def read(engine, query, key):
    """Findings, and how many reviews the books of each author have."""
    with sqltrace.record() as recording, Session(engine) as session:
        authors = session.scalars(query).unique().all()
        reviews = [[len(book.reviews) for book in getattr(author, key)] for author in authors]
    return sqltrace.diagnose(recording), reviews


def pasted(query, *fixes, **aliases):
    names = {**vars(orm), "Author": Author, "Book": Book, **aliases}
    for fix in fixes:
        query = eval(f"query{fix}", {**names, "query": query})
    return query


@pytest.mark.parametrize(
    "options", [[], [selectinload(Author.first_books)], [joinedload(Author.first_books)]], ids=["lazy", "in", "joined"]
)
def test_option_below_a_relationship_to_an_alias_is_one_of_that(engine, options):
    query = select(Author).options(*options)

    before, expected = read(engine, query, "first_books")
    fixes = {finding.relationship: finding.fix for finding in before}
    after, reviews = read(engine, pasted(query, *fixes.values(), first_books_alias=FIRST), "first_books")

    assert fixes["Book.reviews"].startswith(
        ".options(defaultload(Author.first_books).selectinload(first_books_alias.reviews))"
        "  # first_books_alias: the aliased(Book) of Author.first_books"
    )
    assert (after, reviews) == ([], expected)
    assert expected == [[9, 9]] * len(AUTHORS)


@pytest.mark.parametrize("load", [selectinload, subqueryload])
def test_option_below_an_option_to_an_alias_is_one_of_that(engine, load):
    query = select(Author).options(load(Author.books.of_type(OTHER)))

    [finding], expected = read(engine, query, "books")
    after, reviews = read(engine, pasted(query, finding.fix, books_alias=OTHER), "books")

    assert finding.fix.startswith(
        ".options(defaultload(Author.books.of_type(books_alias)).selectinload(books_alias.reviews))"
        "  # books_alias: the aliased(Book) of Author.books"
    )
    assert (after, reviews) == ([], expected)


def test_join_of_a_relationship_to_an_alias_is_replaced_by_its_own_name(engine):
    query = select(Author).options(joinedload(Author.first_books))
    with sqltrace.record() as recording, Session(engine) as session:
        session.scalars(query).unique().all()

    [finding] = sqltrace.diagnose(recording, [partial(row_fan_out, rows=1, ratio=1, values=1)])

    assert finding.fix == (".options(selectinload(Author.first_books))  # in place of joinedload(Author.first_books)")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("option", "key", "alias"),
    [(selectinload(Author.first_books), "first_books", FIRST), (selectinload(Author.books.of_type(OTHER)), "books", OTHER)],
)  # fmt: skip
def test_what_cannot_be_loaded_below_an_alias_is_mended_at_that(option, key, alias):
    async def touch(query):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.run_sync(fill)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            author = (await session.scalars(query)).first()
            try:
                reviews = len(getattr(author, key)[0].reviews)
            except (MissingGreenlet, StatementError):
                reviews = None
        await engine.dispose()
        return sqltrace.diagnose(recording), reviews

    query = select(Author).options(option)

    [finding], _ = asyncio.run(touch(query))
    after = asyncio.run(touch(pasted(query, finding.fix, **{f"{key}_alias": alias})))
    gc.collect()

    assert finding.kind == "missing_greenlet"
    assert after == ([], 9)


def test_alias_of_the_mapping_below_one_of_the_query(engine):
    author = aliased(Author)
    query = select(author)

    before, expected = read(engine, query, "first_books")
    fixes = {finding.relationship: finding.fix for finding in before}
    mended = pasted(query, *fixes.values(), author_alias=author, first_books_alias=FIRST)

    assert fixes["Book.reviews"].startswith(
        ".options(defaultload(author_alias.first_books).selectinload(first_books_alias.reviews))"
    )
    assert read(engine, mended, "first_books") == ([], expected)
    assert read(engine, query.options(defaultload(author.first_books).selectinload(FIRST.reviews)), "first_books")[0]
