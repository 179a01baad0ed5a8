import asyncio
import gc
import sqlite3
import subprocess
import sys
import time
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, delete, event, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, contains_eager, joinedload, loading, selectinload

import sqltrace
from sqltrace.capture import objects, orm_internals
from sqltrace.collector import LEAST_MARK
from tests.asgi import Clock, recorded
from tests.drivers import ROWS, Author, Book, Runner

QUERY = select(Author).order_by(Author.id)


@pytest.fixture
def engine(databases):
    databases.fill("sqlite3")
    engine = create_engine(databases.url("sqlite3"))
    yield engine
    engine.dispose()
    sqltrace.uninstrument()


def last(recording):
    return recording.statements[-1]


def names(authors):
    return [author.name for author in authors]


def parts(result):
    return [author.name for part in iter(partial(result.fetchmany, 999), []) for author in part]


READ_ALL = {
    "scalars": lambda s: names(s.scalars(QUERY).all()),
    "unique": lambda s: names(s.scalars(QUERY).unique().all()),
    "rows": lambda s: [author.name for (author,) in s.execute(QUERY).all()],
    "iteration": lambda s: names(s.scalars(QUERY)),
    "yield_per": lambda s: names(s.scalars(QUERY, execution_options={"yield_per": 300})),
    "yield_per later": lambda s: names(s.scalars(QUERY).yield_per(300)),
    "partitions": lambda s: [
        a.name for part in s.scalars(QUERY.execution_options(yield_per=70)).partitions() for a in part
    ],
    "partitions of all": lambda s: [a.name for part in s.scalars(QUERY).partitions(700) for a in part],
    "stream": lambda s: names(s.scalars(QUERY, execution_options={"stream_results": True}).all()),
    "stream fetchmany": lambda s: parts(s.scalars(QUERY, execution_options={"stream_results": True})),
    "Query": lambda s: names(s.query(Author).order_by(Author.id).all()),
    "Query iteration": lambda s: names(s.query(Author).order_by(Author.id)),
    "Query yield_per": lambda s: names(s.query(Author).order_by(Author.id).yield_per(300)),
    "columns": lambda s: [name for _, name in s.execute(select(Author.id, Author.name).order_by(Author.id))],
    "entity and column": lambda s: [a.name for a, _ in s.execute(select(Author, Author.name).order_by(Author.id))],
    "from_statement": lambda s: names(s.scalars(select(Author).from_statement(QUERY))),
    "freeze": lambda s: names(s.execute(QUERY).freeze()().scalars()),
}


def test_objects_of_each_execution_are_in_the_group_also_without_a_call_site(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        for _ in range(3):
            session.scalars(QUERY).all()
            session.expunge_all()

    [group], statements = recording.groups, recording.statements
    assert [statement.call_site is None for statement in statements] == [False, False, True]
    assert group.entities == {"Author": 3 * ROWS}
    assert group.objects == pytest.approx(sum(statement.objects for statement in statements))


@pytest.mark.parametrize("way", READ_ALL)
def test_objects_are_timed_and_counted_and_come_out_unchanged(runner, way):
    expected = runner.session(READ_ALL[way])

    with sqltrace.record() as recording:
        found = runner.session(READ_ALL[way])

    statement = last(recording)
    assert found == expected
    assert len(found) == ROWS
    assert statement.rows == ROWS
    assert statement.objects > 0
    assert recording.time_account.objects == pytest.approx(statement.objects, rel=0.05, abs=0.001)
    assert sum(statement.entities.values()) == (0 if way == "columns" else ROWS)


ASYNC_READS = {
    "execute": lambda s: _names(s.execute(QUERY)),
    "scalars": lambda s: _names(s.scalars(QUERY)),
    "stream": lambda s: _stream(s.stream(QUERY)),
    "stream_scalars": lambda s: _stream(s.stream_scalars(QUERY)),
    "stream yield_per": lambda s: _stream(s.stream_scalars(QUERY, execution_options={"yield_per": 300})),
}


async def _names(result):
    return len((await result).all())


async def _stream(result):
    return len([row async for row in await result])


@pytest.mark.parametrize("read", ASYNC_READS.values(), ids=ASYNC_READS)
def test_objects_of_an_async_session(runner, read):
    if not runner.is_async:
        pytest.skip("the driver is not async")

    async def work(engine):
        async with AsyncSession(engine) as session:
            return await read(session)

    with sqltrace.record() as recording:
        assert runner.coroutine(work) == ROWS

    assert (last(recording).rows, last(recording).entities) == (ROWS, {"Author": ROWS})
    assert last(recording).objects > 0


def seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def test_the_split_is_that_of_the_same_queries_without_us(runner, no_garbage_collection):
    core, orm, traced, database, made = [], [], [], [], []

    def work(session):
        for _ in range(7):  # by turns, as other work on the machine comes and goes
            core.append(seconds(lambda: session.connection().execute(select(Author.__table__)).all()))
            orm.append(seconds(lambda: session.scalars(select(Author)).all()))
            session.expunge_all()
            with sqltrace.record() as recording:
                traced.append(seconds(lambda: session.scalars(select(Author)).all()))
            session.expunge_all()
            database.append(last(recording).duration)
            made.append(last(recording).objects)
            assert database[-1] + made[-1] < traced[-1]

    runner.session(work)

    assert min(core) * 0.05 < min(database) < min(core) * 3
    assert (min(orm) - min(core)) * 0.1 < min(made) < min(orm) * 4


READ_ONE = {
    "get": (lambda s: s.get(Author, 7), 1),
    "first": (lambda s: s.scalars(QUERY).first(), ROWS),
    "limit": (lambda s: s.scalars(QUERY.limit(1)).one(), 1),
    "yield_per first": (lambda s: s.scalars(QUERY.execution_options(yield_per=20)).first(), 20),
    "refresh": (lambda s: s.refresh(s.get(Author, 7)), 1),
}


@pytest.mark.parametrize("way", READ_ONE)
def test_reading_a_part(engine, way):
    read, made = READ_ONE[way]

    with sqltrace.record() as recording, Session(engine) as session:
        read(session)

    assert recording.statements[0].objects > 0
    assert recording.statements[0].entities == {"Author": made}
    if way == "refresh":
        assert (last(recording).entities, last(recording).rows) == ({}, 1)


def test_objects_that_the_session_has_are_not_made_again(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        kept = session.scalars(QUERY.where(Author.id <= 10)).all()
        more = session.scalars(QUERY.where(Author.id <= 30)).all()

    assert (len(kept), len(more)) == (10, 30)
    assert [statement.entities for statement in recording.statements] == [{"Author": 10}, {"Author": 20}]
    assert sum(sum(group.entities.values()) for group in recording.groups) == 30


def test_loads_inside_are_not_in_the_time_of_the_parent(engine):
    query = select(Author).where(Author.id <= 10).options(selectinload(Author.books))
    sleep = 0.05

    @event.listens_for(engine, "do_execute")
    def do_execute(cursor, statement, parameters, context):
        if "books" in statement.split("FROM")[1]:
            time.sleep(sleep)

    @event.listens_for(Book, "load")
    def load(target, context):
        if target.id == 1:
            time.sleep(sleep)

    try:
        with sqltrace.record() as recording, Session(engine) as session:
            assert sum(len(author.books) for author in session.scalars(query)) == 200
    finally:
        event.remove(Book, "load", load)

    parent, child = recording.statements
    account = recording.time_account
    assert (parent.entities, child.entities) == ({"Author": 10}, {"Book": 200})
    assert parent.objects < sleep
    assert child.objects > sleep
    assert child.execute > sleep
    assert account.objects == pytest.approx(parent.objects + child.objects, rel=0.01)
    assert account.database > 0.9 * (parent.duration + child.duration)


@pytest.mark.parametrize("options", [[], [selectinload(Author.books)]], ids=["alone", "with a load inside"])
def test_what_counts_in_another_place_than_it_was_is_not_lost(engine, options):
    query = select(Author).options(*options).order_by(Author.id)

    with sqltrace.record() as recording, Session(engine) as session:
        for number in range(64):
            session.scalars(query.where(Author.id.in_([number, number + 1]))).all()

    statements, account = recording.statements, recording.time_account
    objects = sum(statement.objects for statement in statements)
    too_short_to_mark = 3 * 2e-6 * len(statements)
    assert objects - too_short_to_mark <= account.objects <= objects + 1e-9
    assert account.database >= sum(statement.duration for statement in statements) - 1e-9


def test_loads_inside_of_other_tasks_stay_apart(databases):
    """While an async driver loads a relationship, other tasks run on the thread."""
    databases.fill("aiosqlite")
    query = select(Author).where(Author.id <= 10).options(selectinload(Author.books))

    async def load(engine):
        async with AsyncSession(engine) as session:
            with sqltrace.record() as recording:
                await session.scalars(query)
            return recording

    async def main(engine):
        return await asyncio.gather(*(load(engine) for _ in range(10)))

    recordings = Runner("aiosqlite", databases.url("aiosqlite")).coroutine(main)
    sqltrace.uninstrument()

    for recording in recordings:
        assert [statement.entities for statement in recording.statements] == [{"Author": 10}, {"Book": 200}]
        account = recording.time_account
        assert account.objects == pytest.approx(sum(s.objects for s in recording.statements), rel=0.01)


def test_statements_of_a_task_that_was_begun_inside_are_not_taken_off(databases):
    databases.fill("sqlite3")
    tasks = []

    async def main():
        engine = create_async_engine(databases.url("aiosqlite"))
        made = asyncio.Event()

        async def later():
            await made.wait()
            async with engine.connect() as connection:
                await connection.execute(select(Book.id))

        @event.listens_for(Author, "load")
        def load(target, context):
            tasks.append(asyncio.get_running_loop().create_task(later()))

        try:
            with sqltrace.record() as recording:
                async with AsyncSession(engine) as session:
                    await session.scalars(QUERY.limit(1))
                before = recording.statements[0].objects
                made.set()
                await asyncio.gather(*tasks)
        finally:
            event.remove(Author, "load", load)
            await engine.dispose()
        return recording, before

    recording, before = asyncio.run(main())

    assert recording.statement_count == 2
    assert recording.statements[0].objects == before > 0


@pytest.mark.parametrize("driver", ["aiosqlite", pytest.param("asyncpg", marks=pytest.mark.postgresql)])
def test_objects_of_tasks_side_by_side_take_no_longer_than_the_clock(databases, driver):
    databases.fill(driver)

    async def main():
        engine = create_async_engine(databases.url(driver))

        async def work():
            with sqltrace.record() as recording:
                async with AsyncSession(engine) as session:
                    (await session.scalars(QUERY)).all()
            return recording

        try:
            started = time.perf_counter()
            recordings = await asyncio.gather(*[work() for _ in range(8)])
            return recordings, time.perf_counter() - started
        finally:
            await engine.dispose()

    recordings, took = asyncio.run(main())

    assert 0 < sum(recording.time_account.objects for recording in recordings) <= took


def test_rows_per_root_of_joined_collections(engine):
    query = select(Author).where(Author.id <= 10)

    with sqltrace.record() as recording, Session(engine) as session:
        session.scalars(query.options(joinedload(Author.books))).unique().all()
        session.expunge_all()
        session.execute(select(Author.id, Author).options(joinedload(Author.books))).unique().all()
        session.expunge_all()
        session.scalars(query.join(Author.books).options(contains_eager(Author.books))).unique().all()
        session.scalars(select(Book).options(joinedload(Book.author))).all()
        session.scalars(query).all()

    told = [(statement.rows, statement.roots, statement.entities) for statement in recording.statements]
    assert told[:3] == [
        (200, 10, {"Author": 10, "Book": 200}),
        (200 + ROWS - 10, ROWS, {"Author": ROWS, "Book": 200}),
        (200, 10, {"Author": 10, "Book": 200}),
    ]
    assert [roots for _, roots, _ in told[3:]] == [None, None]
    assert max(recording.groups, key=lambda group: group.rows).roots == ROWS


def test_object_that_dies_while_others_are_counted_leaves_their_number_unknown():
    class State:
        class_ = Author

        @property
        def runid(self):
            states.clear()
            return 1

    states = {n: State() for n in range(2)}
    context = SimpleNamespace(runid=1, session=SimpleNamespace(identity_map=SimpleNamespace(_dict=states)))

    assert orm_internals.objects_since(context, (None, None)) is None


def test_error_while_objects_are_made_is_left_alone(engine):
    @event.listens_for(Author, "load")
    def load(target, context):
        raise ValueError("theirs")

    try:
        with sqltrace.record() as recording, Session(engine) as session, pytest.raises(ValueError, match="theirs"):
            session.scalars(QUERY).all()
    finally:
        event.remove(Author, "load", load)

    assert (last(recording).rows, last(recording).failed) == (ROWS, False)


def test_error_of_a_wrong_reading_is_left_alone(engine):
    def attempt(read):
        with Session(engine) as session, pytest.raises(Exception) as error:
            read(session)
        return type(error.value), str(error.value)

    wrong = [
        lambda s: s.scalars(select(Author).options(joinedload(Author.books))).all(),
        lambda s: s.scalars(select(Author).options(joinedload(Author.books)), execution_options={"yield_per": 3}).all(),
        lambda s: s.scalars(QUERY, execution_options={"yield_per": 3}).unique().all(),
        lambda s: s.scalars(QUERY).one(),
    ]
    expected = [attempt(read) for read in wrong]

    with sqltrace.record():
        assert [attempt(read) for read in wrong] == expected


@pytest.mark.parametrize("options", [{}, {"yield_per": 10}], ids=["all", "yield_per"])
def test_nothing_outlives_its_owner(engine, options):
    gc.collect()
    gc.disable()
    try:
        with sqltrace.record() as recording:
            session = Session(engine)
            result = session.scalars(QUERY, execution_options=options)
            author = next(iter(result))
            watched = [weakref.ref(session), weakref.ref(author)]
            session.close()
            del result, author, session
            alive = [reference() for reference in watched]
    finally:
        gc.enable()

    assert alive == [None, None]
    assert recording.statement_count == 1


class TakenOut(dict):
    """As if another thread were faster each time."""

    def __delitem__(self, key):
        super().__delitem__(key)
        super().__delitem__(key)


class PutIn(dict):
    """As if another thread put one in each time."""

    def __iter__(self):
        iterator = super().__iter__()
        self[-len(self)] = None
        return iterator


@pytest.mark.usefixtures("no_faults")
@pytest.mark.parametrize("loads", [TakenOut, PutIn])
def test_oldest_load_is_forgotten_while_another_thread_does_the_same(engine, loads, monkeypatch):
    monkeypatch.setattr(objects, "_MAX_LOADS", 1)
    with sqltrace.record() as recording, Session(engine) as session:
        recording.collector.loads = loads()
        session.scalars(QUERY).all()
        session.scalars(QUERY).all()
        latest = [*recording.collector.loads.values()][-1]

    assert latest.started == recording.started + round(last(recording).start * 1e9)


def test_installing_is_idempotent_and_undone(engine):
    original = loading.instances

    sqltrace.instrument()
    sqltrace.instrument(engine)
    once = loading.instances
    sqltrace.uninstrument()
    kept = loading.instances
    sqltrace.uninstrument(engine)

    assert (once.__wrapped__ is original, kept is original, loading.instances is original) == (True, True, True)


def test_query_that_is_on_its_way_as_we_are_taken_out_is_answered(engine, monkeypatch):
    original = loading.instances
    sqltrace.instrument()
    ours = loading.instances
    sqltrace.uninstrument()

    def late(cursor, context):
        loading.instances = original
        return ours(cursor, context)

    monkeypatch.setattr(loading, "instances", late)
    with Session(engine) as session:
        assert len(session.scalars(QUERY).all()) == ROWS
    assert loading.instances is original


def test_wrapper_of_somebody_else_stays(engine, monkeypatch):
    sqltrace.instrument()
    ours = loading.instances
    calls = []

    def theirs(cursor, context):
        calls.append(1)
        return ours(cursor, context)

    loading.instances = theirs
    try:
        sqltrace.uninstrument()
        with Session(engine) as session:
            assert len(session.scalars(QUERY).all()) == ROWS
        sqltrace.instrument()
        with sqltrace.record() as recording, Session(engine) as session:
            session.scalars(QUERY).all()
        assert (len(calls), last(recording).entities) == (2, {"Author": ROWS})
    finally:
        loading.instances = ours
        sqltrace.uninstrument()
    assert loading.instances is not ours


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_orm_that_is_imported_later_is_measured_and_one_that_is_not_stays_out():
    code = """
import sys, sqltrace, sqlalchemy
sqltrace.instrument()
engine = sqlalchemy.create_engine("sqlite://")
with sqltrace.record():
    engine.connect().execute(sqlalchemy.text("SELECT 1")).all()
before = "sqlalchemy.orm" in sys.modules
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, Session
class Base(DeclarativeBase): pass
class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
Base.metadata.create_all(engine)
with sqltrace.record() as recording, Session(engine) as session:
    session.add_all([Thing(id=1), Thing(id=2)])
    session.commit()
    session.expunge_all()
    session.scalars(sqlalchemy.select(Thing)).all()
print(before, recording.statements[-1].entities)
"""
    assert run(code) == "False {'Thing': 2}"


class SQLClock(Clock):
    """Moves as SQL says, too, with the function ``wait(nanoseconds)``."""

    def __init__(self, engine):
        super().__init__()
        event.listen(engine, "connect", lambda connection, _: connection.create_function("wait", 1, self.wait))

    def wait(self, nanoseconds):
        self.now += nanoseconds


def test_slow_close_of_a_cursor_takes_nothing_from_the_database_of_an_orm_query(databases):
    class Cursor(sqlite3.Cursor):
        def fetchall(self):
            clock.wait(100_000)
            return super().fetchall()

        def close(self):
            clock.wait(60_000)
            super().close()

    class Connection(sqlite3.Connection):
        def cursor(self, *arguments):
            return super().cursor(Cursor)

    databases.fill("sqlite3")
    engine = create_engine(databases.url("sqlite3"), connect_args={"factory": Connection})
    clock = SQLClock(engine)

    with recorded(clock) as recording, Session(engine) as session:
        for number in range(50):
            session.scalars(select(Author).where(Author.id == number)).all()

    engine.dispose()
    assert sum(statement.duration for statement in recording.statements) == pytest.approx(50 * 160e-6)
    assert recording.time_account.database == pytest.approx(50 * 160e-6)


@pytest.fixture
def on_load():
    """Listens for the loading of authors."""
    listeners = []

    def listen(listener):
        listeners.append(listener)
        event.listen(Author, "load", listener)

    yield listen
    for listener in listeners:
        event.remove(Author, "load", listener)


def test_rows_of_another_result_whose_reading_began_before_the_objects_take_nothing_from_them(engine, on_load):
    clock = SQLClock(engine)
    slow = select(func.wait(LEAST_MARK * 6 // 10)).select_from(Author)

    with recorded(clock) as recording, engine.connect() as connection, Session(engine) as session:
        rows = iter(connection.execute(slow))
        next(rows)
        on_load(lambda *_: next(rows))
        session.scalars(QUERY.limit(1)).all()

    account = recording.time_account
    assert account.objects == 0
    assert account.database == pytest.approx(3 * 0.6 * LEAST_MARK / 1e9)  # sqlite3 is one row ahead


def test_statement_that_sql_runs_as_its_rows_are_fetched_is_not_in_the_time_of_the_objects(engine, on_load):
    clock = SQLClock(engine)
    inner = create_engine(engine.url)
    event.listen(inner, "do_execute", lambda *_: clock.wait(20_000))

    def run(_):
        with inner.connect() as connection:
            connection.execute(select(Author.id).limit(1)).all()

    event.listen(engine, "connect", lambda connection, _: connection.create_function("run", 1, run))
    on_load(lambda *_: clock.wait(10_000))

    with recorded(clock) as recording, Session(engine) as session:
        slow = func.run(Author.id).is_(None), func.wait(Author.id * 10_000).is_(None)
        session.scalars(QUERY.where(Author.id.in_([2, 3]), *slow)).all()

    inner.dispose()
    _, outer, _ = recording.statements  # sqlite3 runs the function for the first row in execute()
    assert outer.objects == pytest.approx(20e-6) == recording.time_account.objects
    assert recording.time_account.database == pytest.approx(20e-6 + 20e-6 + 30e-6 + 20e-6)


def test_what_sorts_the_rows_of_a_selectin_load_to_their_parents_belongs_to_the_load(engine):
    with engine.begin() as connection:
        connection.execute(insert(Book), [{"id": n, "author_id": 11} for n in range(1_000, 21_000)])
    query = select(Author).where(Author.id.in_([11, 12])).options(selectinload(Author.books))
    with sqltrace.record() as recording, Session(engine) as session:
        session.scalars(query).all()
        session.expunge_all()  # the second time without the costs of the mapper's first use
        authors = session.scalars(query).all()
    with engine.begin() as connection:
        connection.execute(delete(Book).where(Book.id >= 1_000))

    outer, load = recording.statements[2:]
    assert [len(author.books) for author in authors] == [20_000, 0]
    assert (outer.rows, load.rows) == (2, 20_000)
    assert outer.objects < load.objects / 20
    assert recording.groups[0].objects == pytest.approx(
        sum(one.objects for one in recording.statements if one.rows == 20_000)
    )
