"""A fault of ours while rows are read and objects made changes no row, no object and no exception."""

import pytest
from sqlalchemy import Column, ForeignKey, Integer, Result, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, joinedload, relationship, selectinload

import sqltrace
from sqltrace.capture import fetching, objects, replies, rows, transactions


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    id = Column(Integer, primary_key=True)
    books = relationship("Book")


class Book(Base):
    __tablename__ = "book"
    id = Column(Integer, primary_key=True)
    shelf_id = Column(ForeignKey("shelf.id"))


class Broken:
    """Raises whatever is done with it."""

    def __getattr__(self, name):
        raise RuntimeError(f"fault of ours: {name}")

    def __call__(self, *arguments, **options):
        raise RuntimeError("fault of ours")


@pytest.fixture(scope="module")
def engine():
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Shelf(id=shelf, books=[Book(id=10 * shelf + n) for n in range(3)]) for shelf in range(40)])
        session.commit()
    yield engine
    engine.dispose()


FAILS_LATE = text("SELECT abs(CASE WHEN id < 20 THEN id ELSE -9223372036854775807 - 1 END) FROM shelf")


def read(engine):
    """All that an application gets to see."""
    seen = []
    with engine.connect() as connection:
        seen += connection.execute(select(Book.id)).all()
        seen += list(connection.execute(select(Book.id)))
        seen.append(connection.execute(select(Book.id)).first())
        with sqltrace.record():  # of a connection that it has not taken itself
            seen += connection.execute(select(Shelf.id)).all()
        seen += connection.execute(select(Book.id)).fetchmany(7)
        seen += connection.execution_options(stream_results=True).execute(select(Shelf.id)).fetchmany(3)
        seen += connection.execute(select(Shelf.id).execution_options(yield_per=4)).all()
        seen.append(connection.scalar(text("UPDATE book SET id = id WHERE id = 11 RETURNING id")))
        for way in (list, Result.all, lambda result: result.fetchmany(30), lambda result: list(result.yield_per(3))):
            with pytest.raises(DBAPIError) as caught:
                way(connection.execute(FAILS_LATE))
            seen.append(str(caught.value.orig))
    with Session(engine) as session:
        for options in ([], [selectinload(Shelf.books)], [joinedload(Shelf.books)]):
            shelves = session.scalars(select(Shelf).options(*options)).unique().all()
            seen += [(shelf.id, [book.id for book in shelf.books]) for shelf in shelves]
            session.expunge_all()
        for shelf in session.scalars(select(Shelf), execution_options={"yield_per": 9}):
            seen.append(shelf.id)
        session.refresh(shelf)
        session.commit()
        seen.append(shelf.id)
    return seen


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (fetching, "mark"),
        (fetching, "building"),
        (fetching, "describe_failure"),
        (fetching, "_loop_wait"),
        (rows, "_is_ours_to_choose"),
        (rows, "CountedFetch"),
        (rows, "CountedStream"),
        (objects, "Block"),
        (objects, "building"),
        (objects, "partial"),
        (objects.orm_internals, "newest_object"),
        (objects.orm_internals, "objects_since"),
        (objects.orm_internals, "distinct_roots"),
        (objects.orm_internals, "load_number"),
        (transactions, "internals"),
        (transactions, "mark"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
def test_what_the_application_reads_is_untouched(engine, module, name, monkeypatch, caplog):
    expected = read(engine)
    assert hasattr(module, name)
    monkeypatch.setattr(module, name, Broken())
    monkeypatch.setattr(transactions, "NEGLIGIBLE", -1)
    monkeypatch.setattr(replies, "SLOW", -1)

    with sqltrace.record() as recording:
        got = read(engine)

    assert got == expected
    assert recording.statement_count > 20
    faults = [record.message for record in caplog.records if record.name == "sqltrace"]
    assert faults
    assert all(fault.endswith("failed and is skipped; the application is not affected") for fault in faults)


def test_objects_that_are_made_at_once_are_untouched(engine, monkeypatch, caplog):
    monkeypatch.setattr(objects, "next", Broken(), raising=False)  # shadows the builtin, to read what was made

    with sqltrace.record() as recording, Session(engine) as session:
        shelves = session.scalars(select(Shelf), execution_options={"prebuffer_rows": True}).all()  # as AsyncSession

    assert (len(shelves), recording.statement_count) == (40, 1)
    faults = [record.message for record in caplog.records if record.name == "sqltrace"]
    assert faults == ["timing objects failed and is skipped; the application is not affected"]
