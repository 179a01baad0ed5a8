"""Fixes, pasted into the code they are for: they raise nothing, and there is nothing left to be told."""

import asyncio
import gc

import pytest
import sqlalchemy
from sqlalchemy import ForeignKey, create_engine, exists, func, insert, orm, select, text
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    immediateload,
    joinedload,
    lazyload,
    mapped_column,
    relationship,
    selectinload,
    with_parent,
    with_polymorphic,
)
from sqlalchemy.pool import StaticPool

import sqltrace
from tests.asgi import memory_engine

pytestmark = pytest.mark.usefixtures("no_faults")


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column("author_pk", primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    tenant: Mapped[int] = mapped_column(default=1)
    books: Mapped[list["Book"]] = relationship(back_populates="author")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "author"}


class Star(Author):
    prizes: Mapped[list["Prize"]] = relationship(lazy="joined")
    __mapper_args__ = {"polymorphic_identity": "star"}


class Prize(Base):
    __tablename__ = "prizes"
    id: Mapped[int] = mapped_column(primary_key=True)
    star_id: Mapped[int] = mapped_column(ForeignKey("authors.author_pk"))


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.author_pk"))
    author: Mapped[Author] = relationship(back_populates="books")
    reviews: Mapped[list["Review"]] = relationship()
    topics: Mapped[list["Topic"]] = relationship()


class Review(Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"))


class Topic(Base):
    __tablename__ = "topics"
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


STARS = range(1, 13)
ROWS = {
    Author: [{"id": number, "kind": "star", "name": f"star {number}", "tenant": 1} for number in STARS],
    Prize: [{"star_id": number} for number in STARS for _ in range(5)],
    Book: [{"id": number, "isbn": f"isbn {number}", "author_id": number} for number in STARS],
    Review: [{"book_id": number} for number in STARS for _ in range(9)],
    Topic: [{"book_id": number, "number": other} for number in STARS for other in range(9)],
}


def fill(connection):
    Base.metadata.create_all(connection)
    for owner, rows in ROWS.items():
        connection.execute(insert(owner.__table__), [{_column(owner, key): row[key] for key in row} for row in rows])
    connection.commit()


def _column(owner, key):
    return sqlalchemy.inspect(owner).columns[key].name


@pytest.fixture(scope="module")
def engine():
    engine = memory_engine()
    with engine.connect() as connection:
        fill(connection)
    yield engine
    engine.dispose()


def told(engine, work):
    """Findings of `work`, and what it answered."""
    with sqltrace.record() as recording, Session(engine) as session:
        answer = work(session)
    return sqltrace.diagnose(recording), answer


NAMES = {**vars(sqlalchemy), **vars(orm), **{cls.__name__: cls for cls in (Author, Star, Prize, Book, Review, Topic)}}


def paste(fix, **names):
    """What a fix evaluates to, or the query with it."""
    return eval(f"query{fix}" if fix.startswith(".") else fix, {**NAMES, **names})


AUTHOR, BOOK = aliased(Author), aliased(Book)
EVERY = with_polymorphic(Author, [Star])
SOME = aliased(Book, select(Book.__table__).limit(8).subquery())


@pytest.mark.parametrize(
    ("query", "touch", "names", "fix"),
    [
        (
            select(AUTHOR),
            lambda author: len(author.books),
            {"author_alias": AUTHOR},
            ".options(selectinload(author_alias.books))  # author_alias: the aliased(Author) of the query",
        ),
        (
            select(SOME),
            lambda book: len(book.reviews),
            {"book_alias": SOME},
            ".options(selectinload(book_alias.reviews))  # book_alias: the aliased(Book) of the query",
        ),
        (
            select(EVERY).options(lazyload(EVERY.Star.prizes)),
            lambda author: len(author.books),
            {"author_alias": EVERY},
            ".options(selectinload(author_alias.books))"
            "  # author_alias: the with_polymorphic(Author, [Star]) of the query",
        ),
        (
            select(BOOK, Author).join(Author, BOOK.author_id == Author.id),
            lambda book: len(book.reviews),
            {"book_alias": BOOK},
            ".options(selectinload(book_alias.reviews))  # book_alias: the aliased(Book) of the query",
        ),
        (
            select(AUTHOR).options(joinedload(AUTHOR.books)),
            lambda author: len(author.books[0].reviews),
            {"author_alias": AUTHOR},
            ".options(defaultload(author_alias.books).selectinload(Book.reviews))"
            "  # author_alias: the aliased(Author) of the query",
        ),
        (select(Author, BOOK).join(BOOK, BOOK.author_id == Author.id), lambda author: len(author.books), {}, None),
    ],
    ids=["aliased", "subquery", "with_polymorphic", "one of two", "below", "another one is an alias"],
)
def test_option_is_one_of_the_alias_that_was_asked_for(engine, query, touch, names, fix):
    def work(query):
        return lambda session: [touch(found) for found in session.scalars(query).unique().all()]

    [finding], _ = told(engine, work(query))
    after, _ = told(engine, work(paste(finding.fix, query=query, **names)))

    assert fix in (None, finding.fix)
    assert (finding.kind, after) == ("n_plus_one", [])


def test_option_of_a_class_that_was_asked_for_beside_its_alias_may_be_that_of_the_alias(engine):
    query = select(Book, BOOK).join(BOOK, BOOK.id == Book.id + 6)

    def touch(query):
        return lambda session: [len(later.reviews) for _, later in session.execute(query)]

    [finding], _ = told(engine, touch(query))
    after, _ = told(engine, touch(query.options(selectinload(BOOK.reviews))))

    assert finding.fix == ".options(selectinload(Book.reviews))  # or the same of the aliased(Book) of the query"
    assert after == []


def multiplied(engine, query):
    return told(engine, lambda session: len(session.scalars(query).unique().all()))


def test_product_below_an_alias_is_mended_at_the_alias(engine):
    query = select(BOOK).options(joinedload(BOOK.reviews), joinedload(BOOK.topics))
    mended = ".options(selectinload(book_alias.reviews), selectinload(book_alias.topics))"

    [finding], _ = multiplied(engine, query)
    after, _ = multiplied(engine, paste(mended, query=select(BOOK), book_alias=BOOK))

    assert finding.fix.startswith(f"{mended}  # book_alias: the aliased(Book) of the query")
    assert after == []


def test_product_is_one_of_what_is_side_by_side_and_not_of_what_is_above(engine):
    below = joinedload(Author.books)

    [finding], _ = multiplied(
        engine, select(Author).options(below.joinedload(Book.reviews), below.joinedload(Book.topics))
    )

    assert "; Book.reviews × Book.topics multiply each other into " in finding.message
    assert finding.fix.startswith(
        ".options(defaultload(Author.books).options(selectinload(Book.reviews), selectinload(Book.topics)))"
    )


def test_options_of_the_query_are_replaced_and_none_is_added_to_them(engine):
    [finding], _ = multiplied(engine, select(Book).options(joinedload(Book.reviews), joinedload(Book.topics)))
    after, _ = multiplied(engine, paste(finding.fix, query=select(Book)))

    assert finding.fix == (
        ".options(selectinload(Book.reviews), selectinload(Book.topics))"
        "  # in place of joinedload(Book.reviews) and joinedload(Book.topics)"
    )
    assert after == []


def test_option_with_a_wildcard_is_not_told_to_be_replaced(engine):
    query = select(Book).options(joinedload("*"))

    [finding], _ = multiplied(engine, query)
    after, _ = multiplied(engine, paste(finding.fix, query=query))

    assert finding.fix.startswith(".options(selectinload(Book.reviews), selectinload(Book.topics))")
    assert "in place of" not in finding.fix
    assert after == []


@pytest.mark.parametrize("loader", [joinedload, selectinload])
def test_option_below_a_subclass_says_of_which_type(engine, loader):
    class Other(DeclarativeBase):
        pass

    class Person(Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Admin(Person):
        grants: Mapped[list["Grant"]] = relationship(lazy="joined")
        rights: Mapped[list["Right"]] = relationship(lazy="joined")
        __mapper_args__ = {"polymorphic_identity": "admin"}

    class Grant(Other):
        __tablename__ = "grants"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(ForeignKey(Person.id))

    class Right(Other):
        __tablename__ = "rights"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(ForeignKey(Person.id))

    class Entry(Other):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(ForeignKey(Person.id))
        person: Mapped[Person] = relationship()

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Other.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Admin(id=1, grants=[Grant() for _ in range(12)], rights=[Right() for _ in range(12)])])
        session.flush()
        session.add(Entry(person_id=1))
        session.commit()
    query = select(Entry).options(loader(Entry.person.of_type(Admin)))

    [finding], _ = multiplied(engine, query)
    after, _ = multiplied(engine, paste(finding.fix, query=query, Admin=Admin, Entry=Entry))
    engine.dispose()

    assert finding.fix.startswith(
        ".options(defaultload(Entry.person.of_type(Admin)).options(lazyload(Admin.grants), lazyload(Admin.rights)))"
    )
    assert after == []


@pytest.mark.parametrize(
    ("option", "note"),
    [
        (immediateload(Author.books), "  # in place of immediateload(Author.books)"),
        (joinedload(Author.books).immediateload(Book.reviews), "  # in place of immediateload(Book.reviews)"),
    ],
)
def test_option_that_loads_one_by_one_is_told_to_be_replaced(engine, option, note):
    [finding], _ = told(engine, lambda session: session.scalars(select(Author).options(option)).unique().all())

    assert finding.fix.endswith(note)


def test_option_that_leaves_a_relationship_for_later_is_told_to_be_replaced(engine):
    def work(query):
        return lambda session: [len(star.prizes) for star in session.scalars(query).all()]

    [finding], _ = told(engine, work(select(Star).options(lazyload(Star.prizes))))
    after, _ = told(engine, work(paste(finding.fix, query=select(Star))))

    assert finding.fix == (".options(selectinload(Star.prizes))  # in place of lazyload(Star.prizes)")
    assert after == []


@pytest.mark.parametrize("asks", ["get", "query"])
def test_what_is_loaded_for_each_of_many_queries_wants_one_for_all(engine, asks):
    def each(session, number):
        if asks == "get":
            return session.get(Author, number)
        return session.scalars(select(Author).where(Author.id == number)).one()

    def work(session, found):
        for author in found:
            for book in author.books:
                len(book.reviews)

    findings, _ = told(engine, lambda session: work(session, [each(session, number) for number in STARS[:6]]))
    fixes = {finding.relationship: finding.fix for finding in findings}
    query = select(Author).where(Author.id.in_(STARS[:6]))
    for fix in fixes.values():
        query = paste(fix, query=query)
    with sqltrace.record() as recording, Session(engine) as session:
        work(session, session.scalars(query).unique().all())

    note = "  # of one query for all, in place of 6"
    assert fixes["Author.books"] == f".options(selectinload(Author.books)){note}"
    assert fixes["Book.reviews"].startswith(".options(defaultload(Author.books).selectinload(Book.reviews))  # of the ")
    assert fixes["Book.reviews"].endswith(f"{note}  # together with the fix for Author.books")
    assert recording.statement_count == 3


def test_option_for_get_is_taken_by_merge(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        author = session.merge(Author(id=1, name="other"), options=[selectinload(Author.books)])
        count = recording.statement_count
        books = len(author.books)

        assert (books, recording.statement_count) == (1, count)


def test_new_objects_come_with_their_relationship_by_one_query(engine):
    def work(once):
        def load(session):
            authors = [Star(name="new", tenant=2) for _ in range(6)]
            session.add_all(authors)
            session.commit()
            if once:
                paste(once.replace("…", "Author.tenant == 2"), session=session)
            assert [len(author.books) for author in authors] == [0] * 6
            for author in authors:
                session.delete(author)
            session.commit()

        return load

    def loads(findings):
        return [finding.fix for finding in findings if finding.relationship == "Author.books"]

    findings, _ = told(engine, work(once=None))
    [fix] = loads(findings)
    after, _ = told(engine, work(once=fix))

    assert fix.startswith("session.scalars(select(Author).where(…).options(selectinload(Author.books))).all()  # once,")
    assert loads(after) == []


def test_refreshes_of_a_relationship_that_a_subclass_inherits_are_counted_with_it(engine):
    def work(session):
        for star in session.scalars(select(Star)).unique().all():
            session.refresh(star, ["books"])

    [finding], _ = told(engine, work)

    assert finding.message.startswith(
        "12 calls of session.refresh() loaded Star.books for one Star each, by 24 statements"
    )


def in_a_loop(ask):
    def work(session):
        return [ask(session, number) for number in STARS]

    return work


@pytest.mark.parametrize(
    ("ask", "fix", "names"),
    [
        (
            lambda s, n: s.scalars(select(Author).where(Author.name == f"star {n}")).one(),
            "select(Author).where(Author.name.in_(names))",
            {"names": ["star 1"]},
        ),
        (
            lambda s, n: s.scalars(select(Star).where(Star.id == n)).unique().one(),
            "select(Star).where(Star.id.in_(ids))",
            {"ids": [1]},
        ),
        (
            lambda s, n: s.scalars(select(AUTHOR).where(AUTHOR.id == n)).one(),
            "select(Author).where(Author.id.in_(ids))",
            {"ids": [1]},
        ),
        (
            lambda s, n: s.scalars(select(Author).where(sqlalchemy.inspect(Author).primary_key[0] == n)).one(),
            "select(Author).where(Author.id.in_(ids))  # once",
            {"ids": [1]},
        ),
        (lambda s, n: s.query(Book).filter_by(author_id=n).all(), "select(Book).where(Book.author_id.in_(", None),
        (
            lambda s, n: s.scalars(select(Author).join(Book).where(Book.isbn == f"isbn {n}")).one(),
            "the same query once, before the loop, with Book.isbn.in_(isbns), and Book.isbn asked for, too",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Author).where(Author.tenant == 1, Author.name == f"star {n}")).one(),
            "one query for all, before the loop, with in_() for what differs of Author.tenant and Author.name",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Book).where(Book.author == s.get(Author, 1), Book.id == n)).all(),
            "the same query once, before the loop, with Book.id.in_(ids)",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Book).where(Book.author == Author(id=n))).all(),
            "select(Book).where(Book.author_id.in_(author_ids))  # once",
            {"author_ids": [1]},
        ),
        (
            lambda s, n: s.scalars(select(Book).where(with_parent(Author(id=n), Author.books))).all(),
            "select(Book).where(Book.author_id.in_(author_ids))  # once",
            {"author_ids": [1]},
        ),
        (
            lambda s, n: s.scalars(select(Author).where(Author.tenant == 1, func.lower(Author.name) == f"star {n}")).one(),
            "one query for all, before the loop, with in_() for what differs of Author.tenant and the other conditions",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Author).where(Author.tenant == 1, Author.id >= n, Author.id < n + 1)).one(),
            "one query for all, before the loop, with in_() for what differs of Author.tenant and the other conditions",
            None,
        ),
        (
            lambda s, n: s.scalars(
                select(Author).join(Book, (Book.author_id == Author.id) & (Book.isbn == f"isbn {n}")).where(Author.tenant == 1)
            ).all(),
            "one query for all, before the loop, with in_() for what differs of Author.tenant and the other conditions",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Book).options(joinedload(Book.author)).where(Book.isbn == f"isbn {n}")).all(),
            "select(Book).options(…).where(Book.isbn.in_(isbns))  # once",
            None,
        ),
        (
            lambda s, n: s.execute(select(Book.id).where(Book.author_id == n)).all(),
            "one statement for all, before the loop: WHERE books.author_id IN (…)",
            None,
        ),
        (
            lambda s, n: s.scalar(select(func.count()).select_from(Book).where(Book.author_id == n)),
            "one statement for all, before the loop:"
            " SELECT books.author_id, … WHERE books.author_id IN (…) GROUP BY books.author_id",
            None,
        ),
        (
            lambda s, n: s.scalar(select(exists().where(Book.isbn == f"isbn {n}"))),
            "one statement for all, before the loop: SELECT DISTINCT books.isbn … WHERE books.isbn IN (…)",
            None,
        ),
        (
            lambda s, n: s.scalar(select(exists().where(Book.isbn == f"isbn {n}", Book.author_id == n))),
            "one statement for all, before the loop: SELECT DISTINCT books.isbn, books.author_id"
            " … WHERE (books.isbn, books.author_id) IN (…)",
            None,
        ),
        (
            lambda s, n: s.scalar(select(exists().where((Book.isbn == f"isbn {n}") & (Book.author_id == n) | (Book.id == 0)))),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(text("SELECT max(id) FROM books WHERE author_id = :n"), {"n": n}).all(),
            "one statement for all, before the loop: WHERE … IN (…) and GROUP BY for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(
                select(Book.isbn, func.count()).where(Book.author_id == n).group_by(Book.isbn)
            ).all(),
            "one statement for all, before the loop:"
            " SELECT books.author_id, … WHERE books.author_id IN (…) GROUP BY books.author_id, …",
            None,
        ),
        (
            lambda s, n: s.execute(
                text("SELECT * FROM books WHERE books.id = :n AND books.author_id = :a"), {"n": n, "a": 1}
            ).all(),
            "one statement for all, before the loop: WHERE (books.id, books.author_id) IN (…)",
            None,
        ),
        (
            lambda s, n: s.execute(
                select(Author.id, Book.id)
                .outerjoin(Book, (Book.author_id == Author.id) & (Book.isbn == f"isbn {n}"))
                .where(Author.tenant == 1, Author.id == n)
            ).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(
                select(Book.isbn)
                .where(Book.author_id == 1, Book.id == n)
                .group_by(Book.isbn)
                .having(func.count() > n)
            ).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(text(f"SELECT id FROM books WHERE isbn LIKE 'anna.smith = {n}'")).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(select(Book.id).where(Book.author_id == 1, Book.isbn.like(f"isbn {n}%"))).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(select(Book.id).where(Book.author_id == n, Book.id > 0, Book.isbn != "")).all(),
            "one statement for all, before the loop: WHERE books.author_id IN (…)",
            None,
        ),
        (
            lambda s, n: s.execute(select(Book.id).where(Book.author_id == n, Book.id > 0, Book.id < 100)).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.execute(
                text("SELECT 1 FROM books b, authors a WHERE b.author_id = a.author_pk AND a.name = :n"), {"n": f"star {n}"}
            ).all(),
            "one statement for all, before the loop: WHERE … IN (…) for what differs",
            None,
        ),
        (
            lambda s, n: s.scalars(select(Author).join(Book).where(Book.isbn == f"isbn {n}").limit(1)).one(),
            "the same query once, before the loop, with Book.isbn.in_(isbns), and Book.isbn asked for, too, with row_number()",
            None,
        ),
    ],
    ids=[
        "attribute", "subclass", "alias", "column", "Query", "other table", "which",
        "and a relationship", "relationship", "with_parent", "and a function", "range", "and in a join", "options", "columns", "count", "exists", "exists by two", "exists by either", "text of an aggregate", "counts", "text", "columns and a join", "columns of groups", "literal", "pattern", "bound", "two bounds", "join by text", "one of another table",
    ],
)  # fmt: skip
def test_loop_is_mended_by_the_attributes_of_its_query(engine, ask, fix, names):
    findings, _ = told(engine, in_a_loop(ask))
    told_fix = next(finding.fix for finding in findings if finding.kind == "n_plus_one")

    assert told_fix.startswith(fix)
    if names is not None:
        _, found = told(engine, lambda session: session.scalars(paste(told_fix, **names)).unique().all())
        assert len(found) == 1


KEPT = "  # once, before the loop, and kept: the session alone keeps no object"


@pytest.mark.parametrize(
    ("get", "names", "fix"),
    [
        (
            lambda s, n: s.get(Author, n),
            {"ids": STARS},
            "kept = session.scalars(select(Author).where(Author.id.in_(ids))).all()",
        ),
        (
            lambda s, n: s.get(Star, n),
            {"ids": STARS},
            "kept = session.scalars(select(Star).where(Star.id.in_(ids))).unique().all()",
        ),
        (
            lambda s, n: s.get(Topic, (n, 0)),
            {"keys": [(number, 0) for number in STARS]},
            "kept = session.scalars(select(Topic).where(tuple_(Topic.book_id, Topic.number).in_(keys))).all()",
        ),
    ],
    ids=["column of another name", "with a join", "composite key"],
)
def test_get_in_a_loop_finds_what_was_kept(engine, get, names, fix):
    def work(fix):
        def loop(session):
            scope = {**NAMES, **names, "session": session}
            exec(fix, scope)
            for number in STARS:
                get(session, number)

        return loop

    [finding], _ = told(engine, work(""))
    after, _ = told(engine, work(finding.fix))

    assert finding.fix == fix + KEPT
    assert after == []


def test_get_with_options_finds_what_was_kept_with_them(engine):
    def work(fix):
        def loop(session):
            scope = {**NAMES, "ids": STARS, "session": session}
            exec(fix.replace("…", "selectinload(Author.books)"), scope)
            for number in STARS:
                len(session.get(Author, number, options=[selectinload(Author.books)]).books)

        return loop

    findings, _ = told(engine, work(""))
    fix = next(finding.fix for finding in findings if "SELECT authors" in finding.message)
    after, _ = told(engine, work(fix))

    assert fix == "kept = session.scalars(select(Author).options(…).where(Author.id.in_(ids))).all()" + KEPT
    assert after == []


def test_get_in_a_loop_finds_what_was_kept_under_an_async_session():
    async def read(fix):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.run_sync(fill)
        scope = {**NAMES, "ids": STARS}
        exec("async def prepare(session):\n    " + fix + "\n    return kept", scope)
        async with sqltrace.record() as recording, AsyncSession(engine) as session:
            kept = await scope["prepare"](session)
            for number in STARS:
                await session.get(Book, number)
        await engine.dispose()
        return sqltrace.diagnose(recording), kept

    [finding], _ = asyncio.run(read("kept = None"))
    after, kept = asyncio.run(read(finding.fix))

    assert finding.fix == "kept = (await session.scalars(select(Book).where(Book.id.in_(ids)))).all()" + KEPT
    assert (after, len(kept)) == ([], len(STARS))


@pytest.mark.parametrize(
    "ask",
    [
        lambda s, n: s.scalars(select(Author).where(Author.id > n).order_by(Author.id).limit(1)).first(),
        lambda s, n: s.scalars(
            select(Author).where(Author.tenant == 1, Author.id >= n).order_by(Author.id).limit(1)
        ).first(),
        lambda s, n: s.execute(text("SELECT * FROM books WHERE id > :n ORDER BY id LIMIT 1"), {"n": n}).first(),
        lambda s, n: s.execute(text("SELECT count(*) FROM books WHERE id BETWEEN :n AND :m"), {"n": n, "m": 9}).all(),
    ],
    ids=["keyset", "of a tenant", "text", "ranges"],
)
def test_what_is_asked_for_by_inequality_is_no_n_plus_one(engine, ask):
    findings, _ = told(engine, in_a_loop(ask))

    assert findings == []


def test_constant_inequality_beside_an_equality_is_an_n_plus_one(engine):
    findings, _ = told(
        engine, in_a_loop(lambda s, n: s.scalars(select(Book).where(Book.author_id == n, Book.id > 0)).all())
    )

    assert [finding.fix for finding in findings] == [
        "the same query once, before the loop, with Book.author_id.in_(author_ids)"
    ]


def test_alias_is_told_under_an_async_session():
    def work(session):
        return [len(author.books) for author in session.scalars(select(AUTHOR))]

    async def main():
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.run_sync(fill)
        with sqltrace.record() as recording:
            async with AsyncSession(engine) as session:
                await session.run_sync(work)
        await engine.dispose()
        return sqltrace.diagnose(recording)

    [finding] = asyncio.run(main())

    assert finding.fix.startswith(".options(selectinload(author_alias.books))  # author_alias: ")


async def touched(load, touch):
    """What is told of an object that cannot load what is touched, and what it has with the remedy."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.connect() as connection:
        await connection.run_sync(fill)
    async with sqltrace.record() as recording, AsyncSession(engine) as session:
        found = await load(session)
        try:
            answer = touch(found)
        except (MissingGreenlet, StatementError):
            answer = None
    await engine.dispose()
    return sqltrace.diagnose(recording), answer


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("load", "touch", "fix", "mended"),
    [
        (
            lambda session: session.get(Author, 1),
            lambda author: len(author.books),
            "session.get(Author, …, options=[selectinload(Author.books)])  # session.merge() takes them, too",
            lambda session: session.get(Author, 1, options=[selectinload(Author.books)]),
        ),
        (
            lambda session: session.get(Author, 1, options=[selectinload(Author.books)]),
            lambda author: len(author.books[0].reviews),
            "session.get(Author, …, options=[defaultload(Author.books).selectinload(Book.reviews)])"
            "  # session.merge() takes them, too",
            lambda session: session.get(
                Author,
                1,
                options=[selectinload(Author.books), orm.defaultload(Author.books).selectinload(Book.reviews)],
            ),
        ),
        (
            lambda session: session.scalar(select(AUTHOR)),
            lambda author: len(author.books),
            ".options(selectinload(author_alias.books))  # author_alias: the aliased(Author) of the query",
            lambda session: session.scalar(select(AUTHOR).options(selectinload(AUTHOR.books))),
        ),
    ],
    ids=["get", "below get", "alias"],
)
def test_what_cannot_be_loaded_is_mended_in_the_names_of_its_query(load, touch, fix, mended):
    [finding], answer = asyncio.run(touched(load, touch))
    after, mended_answer = asyncio.run(touched(mended, touch))
    gc.collect()

    assert (finding.fix, answer) == (fix, None)
    assert (after, bool(mended_answer)) == ([], True)
