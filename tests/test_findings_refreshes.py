"""Objects that are loaded again one by one: who wanted that or had expired them, and that the fix, pasted in, is one."""

import asyncio
from datetime import datetime

import pytest
from sqlalchemy import create_engine, func, orm, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, selectinload
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.findings.locking import locks, with_for_update
from sqltrace.recording import Recording
from tests import shelf as shelves
from tests.scenarios import RECORDERS, innermost

pytestmark = pytest.mark.usefixtures("no_faults")
SHELF = shelves.mapping()
EAGER = shelves.mapping(books="selectin")
AUTHORS = select(SHELF.Author)


def pasted(fix, shelf=SHELF, **names):
    ids = list(range(1, shelves.AUTHORS + 1))
    return eval(fix, {**vars(orm), **vars(shelf), "select": select, "ids": ids, **names})


def refreshing(attributes):
    def work(session, shelf):
        for author in session.scalars(select(shelf.Author)).all():
            session.refresh(author, attributes)

    return work


def all_at_once(fix, attributes):
    def work(session, shelf):
        authors = session.scalars(select(shelf.Author)).all()
        session.scalars(pasted(fix, shelf)).all()
        for author in authors:
            for attribute in attributes or ["name"]:
                str(getattr(author, attribute))

    return work


REFRESHES = {
    "all": (None, "one Author each, by 12 statements", ""),
    "columns": (["name"], "Author.name for one Author each, by 12 statements", ""),
    "collection": (
        ["books"],
        "Author.books for one Author each, by 24 statements",
        ".options(selectinload(Author.books))",
    ),
    "both": (
        ["publisher", "name"],
        "Author.name and Author.publisher for one Author each, by 24 statements",
        ".options(joinedload(Author.publisher))",
    ),
}


@RECORDERS
@pytest.mark.parametrize("name", REFRESHES)
def test_refreshes_that_were_asked_for_one_by_one(record, name):
    attributes, what, option = REFRESHES[name]

    [finding] = sqltrace.diagnose(record(refreshing(attributes), SHELF))

    assert finding.kind == "n_plus_one"
    assert finding.message.startswith(f"12 calls of session.refresh() loaded {what} in ")
    assert innermost(finding.call_site).endswith("refreshing.<locals>.work")
    assert finding.parents.startswith("SELECT authors at tests/test_findings_refreshes.py:")
    assert finding.fix == (
        f"select(Author).where(Author.id.in_(ids)){option}.execution_options(populate_existing=True)"
        "  # once for all, in place of session.refresh(), which may be a repository's"
    )
    assert sqltrace.diagnose(record(all_at_once(finding.fix, attributes), SHELF)) == []


def test_relationships_of_the_mapping_are_part_of_a_refresh():
    [finding] = sqltrace.diagnose(shelves.record_sync(refreshing(None), EAGER))

    assert "loaded one Author each, by 24 statements in" in finding.message
    assert "selectinload" not in finding.fix
    assert sqltrace.diagnose(shelves.record_sync(all_at_once(finding.fix, ["books"]), EAGER)) == []


@pytest.mark.postgresql
def test_refreshes_that_lock_are_replaced_by_a_select_that_locks(postgres_url):
    engine = create_engine(postgres_url)

    def work(fix=None):
        with sqltrace.record() as recording, Session(engine) as session:
            authors = session.scalars(AUTHORS).all()
            if fix is None:
                for author in authors:
                    session.refresh(author, with_for_update=True)
            else:
                session.scalars(pasted(fix)).all()
        return recording

    with engine.connect() as connection:
        shelves.fill(connection, SHELF)
    try:
        [finding] = sqltrace.diagnose(work())
        mended = work(finding.fix)
    finally:
        SHELF.Base.metadata.drop_all(engine)
        engine.dispose()

    assert "select(Author).where(Author.id.in_(ids)).with_for_update()" in finding.fix
    assert "FOR UPDATE" in mended.statements[-1].sql
    assert sqltrace.diagnose(mended) == []


@pytest.mark.parametrize(
    ("lock", "locked"),
    [
        ("FOR UPDATE", ".with_for_update()"),
        ("FOR UPDATE OF t", ".with_for_update(…)"),
        ("FOR NO KEY UPDATE", ".with_for_update(…)"),
        ("FOR SHARE", ".with_for_update(…)"),
        ("LOCK IN SHARE MODE", ".with_for_update(…)"),
        ("", ""),
    ],
)
def test_lock_of_a_select_is_known_by_its_text(lock, locked):
    sql = f"SELECT t.id \nFROM t {lock}"

    assert (locks(sql), with_for_update(sql)) == (bool(lock), locked)


def test_refreshes_after_commits_are_no_fault_of_these():
    def work(session, shelf):
        for number in range(100, 108):
            author = shelf.Author(id=number, name="new", bio="")
            session.add(author)
            session.commit()
            session.refresh(author)

    for options in ({}, {"expire_on_commit": False}):
        [finding] = sqltrace.diagnose(shelves.record_sync(work, SHELF, **options))
        assert finding.message.startswith("8 calls of session.refresh() loaded one Author each, by 8 statements in ")


def test_refreshes_after_commits_are_left_out_where_nothing_expires():
    def work(session, refresh):
        for number in range(100, 108):
            author = SHELF.Author(id=number, name="new", bio="")
            session.add(author)
            session.commit()
            if refresh:
                session.refresh(author)
            assert author.name == "new"

    def record(sessions, refresh):
        with engine.connect() as connection:
            shelves.fill(connection, SHELF)
        with sqltrace.record() as recording, sessions() as session:
            work(session, refresh)
        SHELF.Base.metadata.drop_all(engine)
        return recording

    engine = create_engine("sqlite://", poolclass=StaticPool)
    [finding] = sqltrace.diagnose(record(orm.sessionmaker(engine), True))
    mended = record(eval(finding.fix, {"sessionmaker": orm.sessionmaker, "engine": engine}), False)
    engine.dispose()

    assert finding.fix == (
        "sessionmaker(engine, expire_on_commit=False)  # and no session.refresh() after a commit, which may be a repository's;"
        " eager_defaults=True where the database makes values"
    )
    assert mended.statement_count == 8
    assert sqltrace.diagnose(mended) == []


@pytest.mark.parametrize(
    ("shelf", "attributes", "end"),
    [(SHELF, ["name"], "commit"), (EAGER, None, "commit"), (SHELF, None, "rollback")],
    ids=["of an attribute", "with a relationship of the mapping", "after rollbacks"],
)
def test_refreshes_for_more_than_what_a_commit_expired_are_one_select(shelf, attributes, end):
    def work(session, shelf):
        for author in session.scalars(select(shelf.Author)).all():
            session.refresh(author, attributes)
            getattr(session, end)()

    findings = sqltrace.diagnose(shelves.record_sync(work, shelf))

    [fix] = [finding.fix for finding in findings if "session.refresh()" in finding.message]
    assert fix.startswith("select(Author).where(Author.id.in_(ids)).execution_options(populate_existing=True)")


def test_object_that_is_watched_is_not_told():
    def work(session, shelf):
        author = session.get(shelf.Author, 1)
        for _ in range(20):
            session.refresh(author)

    assert sqltrace.diagnose(shelves.record_sync(work, SHELF)) == []


@pytest.mark.parametrize(("pause", "kinds"), [(0, ["n_plus_one"]), (100_000_000, [])])
def test_refreshes_with_pauses_in_between_are_no_loop(pause, kinds):
    now = [1]
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        shelves.fill(connection, SHELF)
    sqltrace.instrument()
    recording = Recording(clock=lambda: now[0])
    outer = recording.open()
    with Session(engine) as session:
        for author in session.scalars(AUTHORS).all():
            session.refresh(author)
            session.rollback()
            now[0] += pause
    recording.end()
    recording.leave(outer)
    engine.dispose()

    assert [finding.kind for finding in sqltrace.diagnose(recording)] == kinds


def test_key_of_several_columns_is_left_to_the_reader():
    class Base(DeclarativeBase):
        pass

    class Seat(Base):
        __tablename__ = "seats"
        row: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        seats = [Seat(row=1, number=number) for number in range(6)]
        session.add_all(seats)
        session.flush()
        for seat in seats:
            session.refresh(seat)
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)
    assert finding.fix.startswith("select(Seat).where(…).execution_options(populate_existing=True)")


def test_key_is_named_as_its_attribute():
    class Base(DeclarativeBase):
        pass

    class Seat(Base):
        __tablename__ = "seats"
        number: Mapped[int] = mapped_column("seat_pk", primary_key=True)

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        seats = [Seat() for _ in range(6)]
        session.add_all(seats)
        session.flush()
        for seat in seats:
            session.refresh(seat, ["number"])
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)
    assert finding.message.startswith("6 calls of session.refresh() loaded Seat.number for one Seat each, by 6")
    assert finding.fix.startswith("select(Seat).where(Seat.number.in_(numbers)).execution_options(")


def touching(expire, again=False):
    def work(session, shelf):
        session.add(shelf.Author(id=99, name="new", bio=""))
        session.commit()
        authors = session.scalars(select(shelf.Author)).all()
        expire(session)
        if again:
            session.scalars(select(shelf.Author)).all()
        for author in authors:
            str(author.name)

    return work


WHY = {
    "as a rollback had expired it": (lambda session: session.rollback(), "before the loop"),
    "as the application had expired it": (lambda session: session.expire_all(), "after all have expired"),
}


@pytest.mark.parametrize("why", WHY)
@pytest.mark.parametrize("options", [{}, {"expire_on_commit": False}], ids=["expiring", "not expiring"])
@RECORDERS
def test_commit_is_not_blamed_for_what_expired_otherwise(record, why, options):
    expire, when = WHY[why]

    [finding] = sqltrace.diagnose(record(touching(expire), SHELF, **options))

    assert finding.kind == "n_plus_one"
    assert finding.message.startswith(f"Author was loaded by 13 statements, one for each Author {why}, in ")
    asked = "session.scalars(select(Author).where(…))"
    asked = f"(await {asked})" if record is shelves.record_async else asked
    assert finding.fix == f"{asked}.all()  # once, {when}"
    assert sqltrace.diagnose(record(touching(expire, again=True), SHELF, **options)) == []


class TestSetByAnExpression:
    """Which a flush has expire, one row at a time: a query within the loop would load one row, too."""

    FIX = "session.scalars(select(Author).where(…)).all()  # once, after all have been flushed or expired"

    def test_is_loaded_at_once_after_one_flush(self):
        def one_by_one(session, shelf):
            for author in session.scalars(select(shelf.Author)).all():
                author.name = shelf.Author.name + "!"
                session.flush()
                assert author.name.endswith("!")

        def at_once(session, shelf):
            authors = session.scalars(select(shelf.Author)).all()
            for author in authors:
                author.name = shelf.Author.name + "!"
            session.flush()
            pasted(finding.fix.replace("…", "Author.id.in_(ids)"), shelf, session=session)
            assert all(author.name.endswith("!") for author in authors)

        [finding] = sqltrace.diagnose(shelves.record_sync(one_by_one, SHELF))

        assert finding.fix == self.FIX
        assert sqltrace.diagnose(shelves.record_sync(at_once, SHELF)) == []

    def test_is_awaited_under_an_async_session(self):
        async def work(at_once):
            engine = await shelves.open_async_shelf(SHELF, authors=6)
            async with sqltrace.record() as recording, AsyncSession(engine) as session:
                authors = (await session.scalars(select(SHELF.Author))).all()
                for author in authors:
                    author.name = SHELF.Author.name + "!"
                await session.flush()
                if at_once is not None:
                    await at_once(session)
                for author in authors:
                    assert (await session.run_sync(lambda _, author=author: author.name)).endswith("!")
            await engine.dispose()
            return sqltrace.diagnose(recording)

        def prepared(fix):
            scope = {**vars(SHELF), "select": select}
            line = fix.replace("where(…)", "where(Author.id > 0)")
            exec(f"async def prepare(session):\n    {line}", scope)
            return scope["prepare"]

        [finding] = asyncio.run(work(None))
        after = asyncio.run(work(prepared(finding.fix)))

        asked, _, note = self.FIX.partition(".all()")
        assert finding.fix == f"(await {asked}).all(){note}"
        assert after == []


def test_values_that_mariadb_made_in_updates_are_asked_for_at_once(servers):
    class Base(DeclarativeBase):
        pass

    class Seat(Base):
        __tablename__ = "refreshed_seats"
        number: Mapped[int] = mapped_column(primary_key=True)
        taken: Mapped[bool] = mapped_column(default=False)
        changed: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    def work(at_once):
        with sqltrace.record() as recording, Session(engine) as session:
            seats = session.scalars(select(Seat)).all()
            for seat in seats:
                seat.taken = True
            session.flush()
            if at_once:
                session.scalars(select(Seat)).all()
            assert all(seat.changed for seat in seats)
        return recording

    engine = create_engine(servers.url("mysql"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Seat(number=number) for number in range(1, 7)])
        session.commit()
    try:
        [finding] = sqltrace.diagnose(work(False))
        mended = work(True)
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()

    assert finding.message.startswith("Seat.changed was loaded by 6 statements, one for each Seat after a flush, in ")
    assert finding.fix == "session.scalars(select(Seat).where(…)).all()  # once, after one flush of all"
    assert mended.statement_count == 3
    assert sqltrace.diagnose(mended) == []


@pytest.mark.parametrize("eager", [None, "Seat", "Box"])
def test_values_that_the_database_makes_are_asked_for_at_the_top_of_an_inheritance(eager):
    """A subclass has no say in it."""

    class Base(DeclarativeBase):
        pass

    class Seat(Base):
        __tablename__ = "seats"
        number: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        taken: Mapped[bool] = mapped_column(default=False)
        changed: Mapped[str] = mapped_column(default="", onupdate=func.hex(1))
        __mapper_args__ = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "seat",
            "eager_defaults": eager == "Seat" or "auto",
        }

    class Box(Seat):
        __mapper_args__ = {"polymorphic_identity": "box", "eager_defaults": eager == "Box" or "auto"}

    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        boxes = [Box() for _ in range(6)]
        session.add_all(boxes)
        session.flush()
        for box in boxes:
            box.taken = True
        session.flush()
        assert {box.changed for box in boxes} == {"31"}
    engine.dispose()

    told = '__mapper_args__ = {"eager_defaults": True}  # of Seat, added to what is in there'
    assert [finding.fix for finding in sqltrace.diagnose(recording)] == ([] if eager == "Seat" else [told])


def test_nobody_is_blamed_where_several_may_have_expired_it():
    def work(session, shelf):
        authors = session.scalars(AUTHORS).all()
        session.commit()
        session.expire(authors[0])
        for author in authors:
            str(author.name)

    [finding] = sqltrace.diagnose(shelves.record_sync(work, SHELF))

    assert finding.message.startswith("Author was loaded by 12 statements, one for each Author as it had expired, in ")


def test_relationships_of_the_mapping_are_part_of_what_a_commit_costs():
    def work(session, shelf):
        authors = session.scalars(select(shelf.Author)).all()
        session.commit()
        for author in authors:
            str(author.name)

    recording = shelves.record_sync(work, EAGER)

    [finding] = sqltrace.diagnose(recording)
    loads = [group for group in recording.groups if group.origin.expired_by == "commit"]
    assert finding.kind == "refresh_after_commit"
    assert [group.count for group in loads] == [12, 12]
    assert finding.cost == sum(group.total + group.objects for group in loads)
    assert sqltrace.diagnose(shelves.record_sync(work, EAGER, expire_on_commit=False)) == []


@pytest.mark.parametrize("relationship", ["author", "publisher"])
def test_single_objects_are_not_told_as_one_for_each_parent(relationship):
    def work(session, shelf):
        for thing in session.scalars(select(shelf.Book if relationship == "author" else shelf.Author)).all():
            str(getattr(thing, relationship))

    [finding] = sqltrace.diagnose(shelves.record_sync(work, SHELF))

    assert finding.message.split(", in ")[0] == (
        f"{finding.relationship} was loaded by 12 statements, one by one as it was touched"
    )


@pytest.mark.parametrize(
    ("relationship", "told"),
    [
        ("author", "Book.author was loaded by 12 statements, one by one right after their Book, in "),
        ("books", "Author.books was loaded by 12 statements, one for each Author right after it, in "),
    ],
)
def test_objects_that_are_loaded_at_once_come_after_their_parents(relationship, told):
    shelf = shelves.mapping(**{relationship: "immediate"})
    parent = shelf.Book if relationship == "author" else shelf.Author

    [finding] = sqltrace.diagnose(shelves.record_sync(lambda session, _: session.scalars(select(parent)).all(), shelf))

    assert finding.message.startswith(told)


def test_collections_are_told_as_one_for_each_parent():
    def work(session, shelf):
        for author in session.scalars(AUTHORS).all():
            str(author.books)

    [finding] = sqltrace.diagnose(shelves.record_sync(work, SHELF))

    assert "one for each Author as it was touched, in" in finding.message
    assert (
        sqltrace.diagnose(
            shelves.record_sync(
                lambda session, shelf: session.scalars(AUTHORS.options(selectinload(shelf.Author.books))).all(), SHELF
            )
        )
        == []
    )


def touching_books_after(expire, option="", once="None", before=False):
    def work(session, shelf):
        authors = session.scalars(pasted(f"query{option}", query=select(shelf.Author))).all()
        for author in authors if before else ():
            len(author.books)
        getattr(session, expire)()
        pasted(once.replace("…", "Author.id < 100"), session=session)
        for author in authors:
            str(author.name) if before else len(author.books)

    return work


def fix_for_books(work, **options):
    findings = sqltrace.diagnose(shelves.record_sync(work, SHELF, **options))
    return next((finding.fix for finding in findings if finding.relationship == "Author.books"), None)


@pytest.mark.parametrize(
    ("expire", "when"), [("rollback", "before the loop"), ("expire_all", "after all have expired")]
)
def test_relationship_of_what_has_expired_is_loaded_along_when_that_is_loaded_again(expire, when):
    """An option of the first query loads what expires with the objects."""
    fix = fix_for_books(touching_books_after(expire))
    after = shelves.record_sync(touching_books_after(expire, once=fix), SHELF)

    assert fix == f"session.scalars(select(Author).where(…).options(selectinload(Author.books))).all()  # once, {when}"
    assert sqltrace.diagnose(after) == []


def test_relationship_of_what_a_commit_has_expired_needs_both_an_option_and_that_nothing_expires():
    fix = fix_for_books(touching_books_after("commit"))
    option = fix.partition("  # ")[0]

    def statements(**options):
        return shelves.record_sync(touching_books_after("commit", option), SHELF, **options).statement_count

    assert fix == ".options(selectinload(Author.books))  # together with expire_on_commit=False"
    assert (statements(), statements(expire_on_commit=False)) == (26, 2)


@pytest.mark.parametrize("expire", ["rollback", "expire_all", "commit"])
def test_relationship_that_was_touched_before_it_expired_is_loaded_with_the_query(expire):
    assert fix_for_books(touching_books_after(expire, before=True)) == ".options(selectinload(Author.books))"
