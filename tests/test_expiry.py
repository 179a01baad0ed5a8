"""What had expired the objects that are loaded again."""

import asyncio
import gc
import subprocess
import sys

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

import sqltrace
from sqltrace.capture import expiry, sessions
from tests.shelf import mapping, open_async_shelf, open_shelf

pytestmark = pytest.mark.usefixtures("no_faults")


@pytest.fixture(params=["sync", "async"])
def run(request):
    """``run(work)``: the refreshes of ``work(session, authors, shelf)``, and what had expired their objects."""

    def run(work, lazy="select", **options):
        shelf = mapping(books=lazy)

        def within(session):
            work(session, session.scalars(select(shelf.Author).order_by(shelf.Author.id)).all(), shelf)

        recording = record(request.param, shelf, within, options)
        origins = [group.origin for group in recording.groups if group.origin.kind in ("refresh", "immediate")]
        return {(origin.kind, origin.expired_by, origin.asked_for) for origin in origins}

    return run


def record(kind, shelf, work, options):
    if kind == "sync":
        engine = open_shelf(shelf)
        with sqltrace.record() as recording, Session(engine, **options) as session:
            work(session)
        engine.dispose()
        return recording

    async def main():
        engine = await open_async_shelf(shelf)
        async with sqltrace.record() as recording, AsyncSession(engine, **options) as session:
            await session.run_sync(work)
        await engine.dispose()
        return recording

    return asyncio.run(main())


def commit(session, authors, shelf):
    session.commit()
    authors[0].name


def rollback(session, authors, shelf):
    session.commit()
    authors[0].name
    session.rollback()
    authors[0].name


def expire_all(session, authors, shelf):
    session.expire_all()
    authors[0].name


def expire_one(session, authors, shelf):
    session.expire(authors[0])
    authors[0].name


def expire_one_that_a_commit_may_have_expired(session, authors, shelf):
    session.commit()
    session.expire(authors[1])
    authors[0].name


def expire_an_attribute_of_another(session, authors, shelf):
    session.commit()
    session.expire(authors[1], ["name"])
    authors[0].name


def expire_one_attribute(session, authors, shelf):
    session.expire(authors[0], ["name"])
    authors[0].name


def change_and_release_a_savepoint(session, authors, shelf):
    with session.begin_nested():
        authors[0].name = "new"
    authors[0].name


def roll_back_to_a_savepoint(session, authors, shelf):
    savepoint = session.begin_nested()
    authors[0].name = "new"
    session.flush()
    savepoint.rollback()
    authors[0].name


def refresh(session, authors, shelf):
    session.commit()
    session.refresh(authors[0])


EXPIRED = {
    commit: {("refresh", "commit", False)},
    rollback: {("refresh", "commit", False), ("refresh", "rollback", False)},
    expire_all: {("refresh", "expire", False)},
    expire_one: {("refresh", "expire", False)},
    expire_one_that_a_commit_may_have_expired: {("refresh", "unknown", False)},
    expire_an_attribute_of_another: {("refresh", "commit", False)},
    expire_one_attribute: {("refresh", None, False)},
    change_and_release_a_savepoint: set(),
    roll_back_to_a_savepoint: {("refresh", "rollback", False)},
    refresh: {("refresh", None, True)},
}


@pytest.mark.parametrize("work", EXPIRED, ids=lambda work: work.__name__)
def test_what_had_expired_an_object(run, work):
    assert run(work) == EXPIRED[work]


def test_commit_that_expires_nothing_is_not_blamed(run):
    def work(session, authors, shelf):
        session.commit()
        session.expire_all()
        authors[0].name

    assert run(work, expire_on_commit=False) == {("refresh", "expire", False)}


@pytest.mark.parametrize("lazy", ["selectin", "immediate"])
def test_relationships_that_are_loaded_along_have_the_same_reason(run, lazy):
    def work(session, authors, shelf):
        session.expire_all()
        authors[0].name
        session.refresh(authors[0])

    reasons = {(kind, *why) for kind, *why in run(work, lazy) if lazy == "selectin" or why != [None, False]}

    assert reasons == {(kind, *why) for kind in ("refresh", "immediate") for why in [("expire", False), (None, True)]}


def test_reasons_are_groups_of_their_own():
    def work(session):
        author = session.get(shelf.Author, 1)
        for again in (session.expire_all, session.rollback, session.commit):
            again()
            author.name

    shelf = mapping()
    recording = record("sync", shelf, work, {})

    assert sorted(str(group.origin.expired_by) for group in recording.groups if group.origin.kind == "refresh") == [
        "commit",
        "expire",
        "rollback",
    ]


def test_session_is_given_back_as_it_was():
    def methods():
        return [
            Session.expire,
            Session.expire_all,
            Session._flush,
            SessionTransaction.commit,
            SessionTransaction.rollback,
        ]

    before = methods()

    sqltrace.instrument()
    sqltrace.instrument()
    during = methods()
    sqltrace.uninstrument()

    assert [ours.__wrapped__ for ours in during] == before
    assert methods() == before


def test_methods_stay_given_back_where_a_checkout_was_on_its_way():
    before = Session.expire_all
    sqltrace.instrument()
    sqltrace.uninstrument()

    sessions.install_when_imported()  # as for a pool that comes up for the first time

    assert Session.expire_all is before


@pytest.mark.parametrize("moment", ["after_commit", "after_rollback", "before_flush", "after_flush_postexec"])
def test_first_recording_of_the_process_within_an_event_of_a_session_changes_nothing(moment):
    code = f"""
import sqltrace
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
class Base(DeclarativeBase): pass
class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
engine, other = create_engine("sqlite://"), create_engine("sqlite://")
Base.metadata.create_all(engine)
@event.listens_for(Session, "{moment}")
def audit(*_):
    with sqltrace.record() as recording, other.connect() as connection:
        connection.execute(text("SELECT 1"))
    print(recording.statement_count)
with Session(engine) as session:
    session.add(Thing(id=1))
    session.flush()
    session.{"rollback" if moment == "after_rollback" else "commit"}()
    session.get(Thing, 1)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (finished.stdout, finished.stderr) == ("1\n", "")


def test_fault_of_ours_changes_no_commit_and_no_rollback(monkeypatch, caplog, memory_engine):
    def changed(_):
        raise AttributeError("as in another SQLAlchemy")

    monkeypatch.setattr(SessionTransaction, "parent", property(changed))
    monkeypatch.setattr(SessionTransaction, "is_active", property(changed))
    with sqltrace.record() as recording, Session(memory_engine) as session:
        session.execute(text("CREATE TABLE things (id INTEGER)"))
        session.commit()
        session.execute(text("INSERT INTO things VALUES (1)"))
        session.rollback()
        left = session.execute(text("SELECT count(*) FROM things")).scalar()

    assert (left, recording.statement_count) == (0, 3)
    assert {record.getMessage().partition(" failed")[0] for record in caplog.records} >= {
        "noting a commit",
        "noting a rollback",
    }
    caplog.clear()


def test_wrapper_of_somebody_else_stays(monkeypatch):
    monkeypatch.setattr(Session, "expire_all", Session.expire_all)
    sqltrace.instrument()
    ours = Session.expire_all

    def theirs(self):
        return ours(self)

    Session.expire_all = theirs
    sqltrace.uninstrument()

    assert Session.expire_all is theirs
    Session().expire_all()


def test_orm_that_is_imported_later_is_noticed():
    code = """
import sys, sqltrace
sqltrace.instrument()
assert "sqlalchemy.orm" not in sys.modules
from tests.shelf import mapping, open_shelf
from sqlalchemy.orm import Session, SessionTransaction
shelf = mapping()
engine = open_shelf(shelf)
with sqltrace.record() as recording, Session(engine) as session:
    author = session.get(shelf.Author, 1)
    session.commit()
    author.name
print([str(group.origin.expired_by) for group in recording.groups])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "'commit'" in output


@pytest.mark.parametrize("happening", ["commit", "rollback", "expire_all", "expire"])
def test_fault_of_ours_is_reported_and_the_session_goes_on(monkeypatch, caplog, happening):
    shelf = mapping()
    engine = open_shelf(shelf)
    sqltrace.instrument()
    monkeypatch.setattr(expiry, "outwards", None)
    with Session(engine) as session:
        author = session.get(shelf.Author, 1)
        getattr(session, happening)(*([author] if happening == "expire" else []))
        assert author.name == "author 1"
    engine.dispose()
    gc.collect()

    (record,) = caplog.records
    assert record.getMessage().startswith("noting what expired objects failed")
    caplog.clear()
