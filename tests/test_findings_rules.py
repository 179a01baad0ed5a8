"""The rules about time, with a clock that the test moves; and those that need a whole request."""

import asyncio
import os
import re
import socket
import sqlite3
import threading
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from tempfile import mkdtemp

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import column, create_engine, event, exc, insert, literal_column, orm, select, table, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column
from sqlalchemy.pool import NullPool, QueuePool, StaticPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace.capture import replies
from sqltrace.collector import mark, mark_estimate
from sqltrace.findings import (
    after_response_sql,
    blocked_loop,
    eager_join,
    idle_in_transaction,
    n_plus_one,
    pool_wait,
    repeated_statement,
    row_fan_out,
    slow_statement,
    waited_for_loop,
)
from sqltrace.findings.locking import remedy_for
from sqltrace.label import Label
from sqltrace.loop_log import LoopLog
from sqltrace.recording import Recording
from sqltrace.sql_text import fingerprint
from sqltrace.statement import Failure
from sqltrace.watchdog import Sightings
from tests import shelf as shelves
from tests.asgi import recorded, timed
from tests.databases import books, drivers
from tests.drivers import Runner
from tests.loops import block, get, observed, respond, thrice


@pytest.fixture
def engine(clock):
    """With the function ``wait(seconds)`` in SQL, which moves the clock."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def connect(connection, _):
        connection.create_function("wait", 1, clock.advance)

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


def visit(witness, clock, endpoint, **options):
    app = Starlette(routes=[Route("/", endpoint)])
    TestClient(timed(app, clock, sinks=[witness], **options), raise_server_exceptions=False).get("/")
    return witness.take()[0].findings


async def fill_with_books(database, shelf):
    """A shelf of which one author has 3,000 books."""
    async with database.connect() as connection:
        await connection.run_sync(shelves.fill, shelf)
        await connection.execute(insert(shelf.Book), [{"title": "", "author_id": 1} for _ in range(3_000)])
        await connection.commit()


def kinds(recording):
    return [finding.kind for finding in sqltrace.diagnose(recording)]


@pytest.mark.parametrize(("seconds", "found"), [(0.5, ["slow_statement"]), (0.499, [])])
def test_slow_statement(clock, engine, seconds, found):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})

    assert kinds(recording) == found


@pytest.mark.parametrize(
    ("books", "rules", "found"),
    [
        (600, None, ["slow_statement"]),  # too few values for `row_fan_out`
        (6_000, None, ["row_fan_out"]),
        (6_000, [slow_statement], ["slow_statement"]),
        (6_000, [slow_statement, partial(row_fan_out, rows=10_000)], ["slow_statement"]),
    ],
)
def test_slow_select_is_told_once_whichever_rules_there_are(clock, engine, books, rules, found):
    shelf = shelves.mapping(books="joined")
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
        connection.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(books)])
        connection.commit()
    with recorded(clock) as recording, Session(engine) as session:
        session.scalars(select(shelf.Author).where(text("coalesce(wait(0.6), 1)"), shelf.Author.id == 1)).unique().all()

    assert [finding.kind for finding in sqltrace.diagnose(recording, rules)] == found


def test_slow_select_is_told_once_also_where_the_longest_came_from_another_line(clock, engine):
    shelf = shelves.mapping(books="joined")
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
        connection.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(3_000)])
        connection.commit()
    waits = text("coalesce(wait(:seconds), 1)")
    query = select(shelf.Author).where(waits, shelf.Author.id == 1)
    with recorded(clock) as recording, Session(engine) as session:
        for seconds in (0.4, 0.4, 0.4):
            session.scalars(query, {"seconds": seconds}).unique().all()
        session.scalars(query, {"seconds": 0.6}).unique().all()

    [finding] = sqltrace.diagnose(recording)

    assert (finding.kind, finding.fingerprint) == ("row_fan_out", recording.groups[0].fingerprint)


@contextmanager
def loading(cls, clock, seconds):
    """Objects of the class take that long to be made."""

    def load(*_):
        clock.advance(seconds)

    event.listen(cls, "load", load)
    yield
    event.remove(cls, "load", load)


@pytest.mark.parametrize(
    ("seconds", "more", "found"), [(0.5, 988, ["slow_statement"]), (0.499, 988, []), (0.5, 987, [])]
)
def test_slow_statement_may_be_one_whose_rows_take_long_to_become_objects(clock, engine, seconds, more, found):
    shelf = shelves.mapping()
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
        connection.execute(insert(shelf.Author), [{"name": "more", "bio": ""} for _ in range(more)])
        connection.commit()
    with recorded(clock) as recording, Session(engine) as session, loading(shelf.Author, clock, seconds / (more + 12)):
        session.scalars(select(shelf.Author)).all()

    findings = sqltrace.diagnose(recording)

    assert [finding.kind for finding in findings] == found
    for finding in findings:
        assert finding.message == "SELECT authors took 0.0 ms, and 500.0 ms more to make objects of 1,000 rows."
        assert finding.fix == "fewer rows or columns at once: LIMIT, load_only(), or yield_per"
        assert finding.cost == pytest.approx(0.5)


def test_objects_of_many_executions_are_none_that_take_long(clock, engine):
    shelf = shelves.mapping()
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    with recorded(clock) as recording, Session(engine) as session, loading(shelf.Author, clock, 0.1):
        for number in range(1, shelves.AUTHORS + 1):
            session.get(shelf.Author, number)

    assert sqltrace.diagnose(recording, [partial(slow_statement, rows=1)]) == []


@pytest.mark.parametrize(("long", "found"), [(2, []), (34, ["SELECT books took 0.0 ms, and 600.0 ms more"])])
def test_objects_that_take_long_are_as_many_as_the_rows_of_their_execution(clock, engine, long, found):
    """A thread that waits for others is as slow with the few rows of one of many queries."""
    shelf = shelves.mapping()
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    query = select(shelf.Book).where(shelf.Book.id <= text(":most"), shelf.Book.id > text(":least"))
    with recorded(clock) as recording, Session(engine) as session:
        with loading(shelf.Book, clock, 0.6 / long):
            session.scalars(query, {"least": 0, "most": long}).all()
        session.scalars(query, {"least": long, "most": 36}).all()

    findings = sqltrace.diagnose(recording, [partial(slow_statement, rows=30)])

    assert [finding.message.partition(" to make")[0] for finding in findings] == found
    assert all("objects of 34 rows, the slowest of 2" in finding.message for finding in findings)


def test_objects_of_rows_that_are_fetched_as_they_are_read_are_none_that_take_long(clock, engine):
    shelf = shelves.mapping()
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    with recorded(clock) as recording, Session(engine) as session, loading(shelf.Author, clock, 0.1):
        for author in session.scalars(select(shelf.Author).execution_options(yield_per=2)):
            str(author.name)

    assert sqltrace.diagnose(recording, [partial(slow_statement, rows=1)]) == []


def test_slow_objects_of_a_relationship_that_the_mapping_loads_are_left_out(clock, engine):
    shelf = shelves.mapping(books="selectin")
    with engine.connect() as connection:
        shelves.fill(connection, shelf)

    def read(query):
        with recorded(clock) as recording, Session(engine) as session, loading(shelf.Book, clock, 0.1):
            session.scalars(query).all()
        return sqltrace.diagnose(recording, [partial(slow_statement, rows=36)])

    [finding] = read(select(shelf.Author))
    after = read(eval(f"query{finding.fix}", {**vars(orm), **vars(shelf), "query": select(shelf.Author)}))

    assert finding.message == (
        "the selectin load of Author.books took 0.0 ms, and 3.60 s more to make objects of 36 rows."
    )
    assert finding.fix.startswith(
        '.options(lazyload(Author.books))  # where nobody needs them, or lazy="raise_on_sql" at tests/shelf.py:'
    )
    assert after == []


def test_slow_objects_of_a_relationship_that_the_query_itself_loads_are_to_be_fewer(clock, engine):
    shelf = shelves.mapping()
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    with recorded(clock) as recording, Session(engine) as session, loading(shelf.Book, clock, 0.1):
        session.scalars(select(shelf.Author).options(orm.selectinload(shelf.Author.books))).all()

    [finding] = sqltrace.diagnose(recording, [partial(slow_statement, rows=36)])

    assert finding.relationship == "Author.books"
    assert finding.fix == "fewer rows or columns at once: LIMIT, load_only(), or yield_per"


@pytest.mark.parametrize(
    ("lazy", "query"),
    [
        ({"author": "joined", "publisher": "joined"}, lambda shelf: select(shelf.Book)),
        ({"books": "selectin", "author": "select", "topics": "joined"}, lambda shelf: select(shelf.Author)),
    ],
    ids=["query", "selectin load"],
)
def test_slow_objects_that_the_mapping_joins_are_told_once(clock, engine, lazy, query):
    shelf = shelves.mapping(**lazy)
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    with recorded(clock) as recording, Session(engine) as session, loading(shelf.Book, clock, 0.1):
        session.scalars(query(shelf)).unique().all()
    rules = [partial(slow_statement, rows=36), partial(eager_join, tables=1, values=1)]

    assert [finding.kind for finding in sqltrace.diagnose(recording, rules[:1])] == ["slow_statement"]
    assert [finding.kind for finding in sqltrace.diagnose(recording, rules)] == ["eager_join"]


def test_what_is_joined_for_nothing_or_not_is_left_out_or_loaded_apart(clock, engine):
    shelf = shelves.mapping(author="joined", publisher="joined")
    with engine.connect() as connection:
        shelves.fill(connection, shelf)

    def read(option):
        query = eval(f"query{option}", {**vars(orm), **vars(shelf), "query": select(shelf.Book)})
        with recorded(clock) as recording, Session(engine) as session:
            for book in session.scalars(query):
                str(book.author.name)
        return sqltrace.diagnose(recording, [partial(eager_join, tables=2, values=1), n_plus_one])

    [finding] = read("")
    option, note, _ = finding.fix.split("  # ")

    assert (option, note) == (".options(lazyload(Book.author))", "selectinload() where they are needed")
    assert [one.kind for one in read(option)] == ["n_plus_one"]
    assert read(option.replace("lazyload", "selectinload")) == []


def test_slow_statement_tells_the_longest_of_many(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        for seconds in (0.1, 0.7):
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds}).all()

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == "SELECT took 700.0 ms, the longest of 2, for 2 rows."
    assert finding.fingerprint == recording.groups[0].fingerprint
    assert finding.cost == pytest.approx(0.8)


def test_slow_statement_of_many_whose_rows_nobody_fetched_ends_in_one_full_stop(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        for seconds in (0.1, 0.7):
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == "SELECT took 700.0 ms, the longest of 2."


@pytest.mark.parametrize(
    ("sql", "fix"),
    [
        ("SELECT wait(0.7)", "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it"),
        ("INSERT INTO jobs SELECT 1 + wait(0.7)", "fewer rows at once, fewer indexes or triggers on the table; or "),
        (
            "UPDATE jobs SET id = coalesce(wait(0.7), id)",
            "an index for what it looks for, or fewer rows at once: see EXPLAIN",
        ),
        ("DELETE FROM jobs WHERE wait(0.7)", "an index for what it looks for, or fewer rows at once: see EXPLAIN"),
        ("CREATE TABLE more AS SELECT wait(0.7)", "see in the database what took it so long, if it did not wait for"),
    ],
)
def test_remedy_for_a_slow_statement_is_one_for_its_verb(clock, engine, sql, fix):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs VALUES (7)"))
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text(sql)).close()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert finding.fix.startswith(fix)


@pytest.mark.postgresql
def test_select_for_update_may_have_waited_for_a_lock(postgres_url):
    engine = create_engine(postgres_url)
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE jobs AS SELECT 1 AS id"))
        connection.execute(text("SELECT pg_sleep(0.5), id FROM jobs FOR UPDATE"))
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert finding.fix.endswith("; or shorter transactions, if it waited for the lock of another one")


@pytest.mark.parametrize(
    "database", drivers(lambda driver: not driver.is_async and driver.name != "psycopg2"), indirect=True
)
def test_slow_statement_that_waited_for_a_lock_in_vain_says_so(database):
    database.run(lambda connection: (connection.execute(insert(books), {"title": "one"}), connection.commit()))
    is_sqlite = database.driver.system == "sqlite"
    sql = "DELETE FROM books" if is_sqlite else "SELECT * FROM books FOR UPDATE NOWAIT"
    impatient = create_engine(database.url, poolclass=NullPool, connect_args={"timeout": 0} if is_sqlite else {})
    with database.engine.connect() as holder, impatient.connect() as connection:
        holder.execute(text("UPDATE books SET title = 'locked'"))
        with sqltrace.record() as recording, pytest.raises(OperationalError):
            connection.execute(text(sql))

    [finding] = sqltrace.diagnose(recording, [partial(slow_statement, slow=1e-9)])
    [*_, failed] = recording.statements

    assert finding.message.endswith(f", and failed: {failed.failure}.")
    assert finding.fix == "shorter transactions of those that held the lock for which it waited in vain"


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("0800", "None"),
        ("40P01", "the same order in all transactions that lock several rows"),
        ("1213", "the same order in all transactions that lock several rows"),
        ("SQLITE_BUSY_SNAPSHOT", "shorter transactions of those that held the lock"),
        ("57P01", "see in the database's log why the connection was lost"),
        ("08003", "see in the database's log why the connection was lost"),
        ("2013", "see in the database's log why the connection was lost"),
        ("57014", "None"),
        (None, "None"),
    ],
)
def test_remedy_for_a_failure_is_one_for_its_code(code, remedy):
    assert str(remedy_for(Failure("Error", code))).startswith(remedy)


@pytest.mark.parametrize(
    ("error", "told"),
    [("psycopg.OperationalError", True), ("psycopg2.OperationalError", True), ("sqlite3.OperationalError", False)],
)
def test_connection_was_lost_where_psycopg_fails_without_a_code(error, told):
    assert (remedy_for(Failure(error, None)) is not None) is told


@pytest.mark.parametrize("driver", drivers(lambda driver: driver.system == "postgresql" and not driver.is_async))
def test_statement_whose_connection_is_cut_is_told_to_see_why(driver):
    def cut():
        with socket.socket(fileno=os.dup(descriptor)) as connected:
            connected.shutdown(socket.SHUT_RDWR)

    engine = create_engine(driver.url())
    with sqltrace.record() as recording, engine.connect() as connection:
        descriptor = connection.connection.driver_connection.fileno()
        cutter = threading.Timer(0.1, cut)
        cutter.start()
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT pg_sleep(5)"))
        cutter.join()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [partial(slow_statement, slow=1e-9)])

    assert finding.fix == "see in the database's log why the connection was lost, or what lies between"


@pytest.mark.postgresql
def test_statement_that_a_timeout_cancelled_is_slow_and_says_so(postgres_url):
    engine = create_engine(postgres_url)
    with sqltrace.record() as recording, engine.connect() as connection, pytest.raises(OperationalError):
        connection.execute(text("SET statement_timeout = 500"))
        connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert finding.message.endswith(" ms, and failed: psycopg.errors.QueryCanceled (57014).")
    assert finding.fix == "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it"


@pytest.mark.parametrize(("failing", "failed"), [(0.9, True), (0.1, False)])
def test_slow_statement_has_failed_only_if_the_longest_of_its_kind_has(clock, engine, failing, failed):
    query = text("SELECT wait(:seconds), json(:document)")
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(query, {"seconds": 0.7, "document": "{}"}).all()
        with pytest.raises(OperationalError):
            connection.execute(query, {"seconds": failing, "document": "{"}).all()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert ("and failed: sqlite3.OperationalError" in finding.message) is failed


@pytest.mark.parametrize(
    ("options", "waits", "fix"),
    [
        ({"yield_per": 1}, {}, "more rows at a time"),
        ({"yield_per": 1}, {1: 5}, "an index, fewer rows or fewer columns"),
        ({"yield_per": 1}, {7: 5}, "an index, fewer rows or fewer columns"),
        ({}, {}, "an index, fewer rows or fewer columns"),
    ],
    ids=["fetched slowly", "found slowly", "one fetched slowly", "not streamed"],
)
def test_stream_whose_rows_come_slowly_wants_more_at_a_time(clock, engine, options, waits, fix):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs (id) VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10)"))
    waits = " ".join(f"WHEN id = {number} THEN {wait}" for number, wait in ({0: 0} | waits).items())
    rows = select(literal_column(f"wait(CASE {waits} ELSE 0.1 END)")).select_from(text("jobs"))

    with recorded(clock) as recording, engine.connect() as connection:
        for _ in connection.execute(rows, execution_options=options):
            pass

    [finding] = sqltrace.diagnose(recording, [slow_statement])
    assert finding.fix.startswith(fix)


@pytest.mark.postgresql
def test_server_side_cursor_whose_first_row_is_found_slowly_wants_an_index(postgres_url):
    engine = create_engine(postgres_url)
    rows = text("SELECT pg_sleep(CASE n WHEN 1 THEN 0.5 ELSE 0 END) FROM generate_series(1, 20) AS n")
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(rows, execution_options={"yield_per": 2}).all()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert finding.message.endswith(" for 20 rows.")
    assert finding.fix == "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it"


@pytest.mark.postgresql
def test_stream_that_hangs_until_a_timeout_is_not_told_to_ask_for_more_at_a_time(postgres_url):
    engine = create_engine(postgres_url)
    rows = text("SELECT CASE WHEN n > 50 THEN pg_sleep(5) END FROM generate_series(1, 100) AS n")
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("SET statement_timeout = 600"))
        with pytest.raises(OperationalError):
            for _ in connection.execute(rows, execution_options={"yield_per": 10}):
                pass
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [slow_statement])

    assert finding.message.endswith(" rows, and failed: psycopg.errors.QueryCanceled (57014).")
    assert finding.fix == "an index, fewer rows or fewer columns: see EXPLAIN ANALYZE of it"


@pytest.mark.parametrize("driver", drivers(lambda driver: driver.name in {"pymysql", "aiomysql"}))
def test_stream_that_is_left_early_wants_fewer_rows_where_the_server_sends_them_all(driver):
    def work(connection):
        result = connection.execution_options(stream_results=True).execute(text("SELECT seq FROM seq_1_to_50000"))
        result.fetchone()
        result.close()

    runner = Runner(driver.name, driver.url())
    with sqltrace.record() as recording:
        runner.connection(work)

    [finding] = sqltrace.diagnose(recording, [partial(slow_statement, slow=1e-9)])

    assert finding.fix == "fewer rows or columns: of a stream the server sends all, also what nobody reads"


def test_slow_statement_whose_rows_nobody_fetched_tells_none(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("SELECT wait(0.7)"))

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == "SELECT took 700.0 ms."


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (1, 0, "COMMIT took 500.0 ms."),
        (0, 1, "COMMIT took 500.0 ms, after the response."),
        (2, 1, "COMMIT took 1.50 s, 500.0 ms of it after the response."),
    ],
)
def test_slow_commit_is_told_as_a_statement_is(clock, before, after, message):
    class Slow(sqlite3.Connection):
        def commit(self):
            clock.advance(0.5)
            super().commit()

    def commit(connection):
        connection.execute(text("SELECT 1"))
        connection.commit()

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"factory": Slow})
    with recorded(clock) as recording, engine.connect() as connection:
        for _ in range(before):
            commit(connection)
        recording.end_response()
        for _ in range(after):
            commit(connection)
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)
    assert (finding.kind, finding.message) == ("slow_statement", message)
    assert finding.cost == pytest.approx(0.5 * (before + after))


def test_slow_commit_that_failed_says_so(clock):
    class Broken(sqlite3.Connection):
        def commit(self):
            clock.advance(0.7)
            raise sqlite3.OperationalError("disk I/O error")

    engine = create_engine("sqlite://", connect_args={"factory": Broken})
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(OperationalError):
            connection.commit()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == "COMMIT took 700.0 ms, and failed: sqlite3.OperationalError."
    assert finding.call_site.endswith(" in test_slow_commit_that_failed_says_so")


@pytest.mark.parametrize(("pause", "found"), [(0.049, ["repeated_statement"]), (0.051, [])], ids=["loop", "poll"])
def test_poll_is_no_repeated_statement(clock, engine, pause, found):
    with recorded(clock) as recording, engine.connect() as connection:
        for _ in range(8):
            connection.execute(text("SELECT count(*) FROM jobs")).all()
            connection.commit()
            clock.advance(pause)

    assert kinds(recording) == found


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1] * 4, ["4 times"]),
        ([1] * 3, []),
        ([1] * 8, ["8 times"]),
        ([1] * 9, ["9 times, 8 of the first 8 times"]),
        ([1] * 8 + [2] * 7, ["15 times, 8 of the first 8 times"]),
        ([1] * 8 + [2] * 8, []),
        ([1] * 7 + [3] + [2] * 8, ["16 times, 7 of the first 8 times"]),
    ],
    ids=["four", "three", "eight", "nine", "others later", "a loop in order", "others in between"],
)
def test_repetition_is_one_of_four_or_more_that_no_loop_over_others_explains(clock, engine, values, told):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in values:
            connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": number}).all()

    findings = sqltrace.diagnose(recording, [repeated_statement])

    assert [finding.message for finding in findings] == [
        f"SELECT jobs ran {often} with the same parameters, in 0.0 ms." for often in told
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA table_info('jobs')",
        "SELECT *, random() FROM jobs",
        "DELETE FROM jobs",
        "INSERT INTO jobs (id) SELECT max(id) + 1 FROM jobs",
        "WITH last AS (SELECT max(id) AS id FROM jobs) INSERT INTO jobs (id) SELECT id + 1 FROM last",
    ],
)
def test_repetition_is_one_of_a_select_that_answers_the_same(clock, engine, sql):
    with recorded(clock) as recording, engine.connect() as connection:
        for _ in range(4):
            connection.execute(text(sql)).close()

    assert sqltrace.diagnose(recording, [repeated_statement]) == []


@pytest.mark.parametrize(
    ("between", "found"),
    [
        ("PRAGMA user_version", ["repeated_statement"]),
        ("SELECT 1", ["repeated_statement"]),
        ("SELECT random()", []),
        ("ANALYZE", []),
        ("INSERT INTO jobs DEFAULT VALUES", []),
    ],
)
def test_repetition_is_none_where_a_statement_in_between_may_have_changed_the_answer(clock, engine, between, found):
    with recorded(clock) as recording, engine.connect() as connection:
        for _ in range(4):
            connection.execute(text("SELECT * FROM jobs")).all()
            connection.execute(text(between)).close()

    findings = sqltrace.diagnose(recording, [repeated_statement])

    assert [finding.kind for finding in findings] == found


def test_repeated_statement_costs_what_all_but_the_first_took(clock, engine):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))

    with recorded(clock) as recording, engine.connect() as connection:
        for number in (-3, -3, -3, -3, -4, -5, -6, -7):
            connection.execute(text("SELECT wait(0.01) FROM jobs WHERE id > :id"), {"id": number}).all()

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == "SELECT jobs ran 4 times with the same parameters, in 40.0 ms."
    assert finding.cost == pytest.approx(0.03)


def test_defaults_of_the_database_that_are_fetched_one_by_one_are_told(engine):
    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        made: Mapped[str] = mapped_column(server_default=text("CURRENT_TIMESTAMP"))
        __mapper_args__ = {"eager_defaults": False}

    Base.metadata.create_all(engine)
    with sqltrace.record() as recording, Session(engine) as session:
        orders = [Order() for _ in range(5)]
        session.add_all(orders)
        session.flush()
        assert all(order.made for order in orders)
        session.rollback()

    [finding] = sqltrace.diagnose(recording)
    assert finding.message.startswith("Order.made was loaded by 5 statements, one for each Order after a flush, in ")
    assert finding.fix == '__mapper_args__ = {"eager_defaults": True}  # of Order, added to what is in there'


@pytest.mark.parametrize(
    ("pause", "found"),
    [(0.0, ["n_plus_one"]), (0.049, ["n_plus_one"]), (0.051, [])],
    ids=["loop", "slow loop", "conversation"],
)
def test_conversation_is_no_n_plus_one(clock, engine, pause, found):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(20):
            connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": number}).all()
            connection.rollback()
            clock.advance(pause)

    assert kinds(recording) == found


@pytest.mark.parametrize(("count", "found"), [(10, ["n_plus_one"]), (9, [])])
def test_ten_queries_at_one_line_are_an_n_plus_one(clock, engine, count, found):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(count):
            connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": number}).all()

    assert kinds(recording) == found


@pytest.mark.parametrize(("size", "found"), [(9, ["n_plus_one"]), (10, [])])
def test_ten_values_at_a_time_are_a_batch(clock, engine, size, found):
    some = select(column("id")).select_from(table("jobs"))
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(some.where(column("id").in_(range(number, number + size)))).all()

    assert kinds(recording) == found


def test_what_the_database_says_of_itself_is_no_n_plus_one(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": f"t{number}"}).all()

    assert kinds(recording) == []


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT wait(0.1) FROM jobs WHERE id = 1 AND id > :id", "n_plus_one"),
        ("SELECT wait(0.1) FROM jobs", "repeated_statement"),
    ],
)
def test_loop_whose_statements_are_slow_is_no_poll(clock, engine, sql, found):
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))

    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(text(sql), {"id": -number} if ":id" in sql else {}).all()

    assert kinds(recording) == [found]


@pytest.mark.parametrize(
    ("sql", "found"),
    [("SELECT * FROM jobs WHERE id = :id", ["n_plus_one"]), ("SELECT count(*) FROM jobs", ["repeated_statement"])],
)
def test_loop_that_waits_for_the_event_loop_between_its_statements_is_no_poll(clock, engine, sql, found):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(text(sql), {"id": number} if ":id" in sql else {}).all()
            connection.commit()
            began = clock()
            clock.advance(0.1)
            mark_estimate(recording.collector, began, clock())

    assert kinds(recording) == found


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT wait(0.1) FROM jobs WHERE id = 1 AND id > :id", ["gil_wait", "n_plus_one"]),
        ("SELECT wait(0.1) FROM jobs", ["gil_wait", "repeated_statement"]),
    ],
)
def test_loop_whose_statements_wait_for_the_interpreter_is_neither_a_poll_nor_idle(
    monkeypatch, clock, engine, sql, found
):
    monkeypatch.setattr(replies, "came_at", lambda collector, connection, started, ended: started)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))

    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(text(sql), {"id": -number} if ":id" in sql else {}).all()

    assert kinds(recording) == found
    assert recording.connections.idle_in_transaction == pytest.approx(0)


@pytest.mark.parametrize(("seconds", "found"), [(0.5, ["idle_in_transaction"]), (0.499, [])])
def test_idle_in_transaction(clock, engine, seconds, found):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
        clock.advance(seconds)
        connection.commit()

    assert kinds(recording) == found


@pytest.mark.parametrize("part", ["objects", "loop_wait"])
def test_making_objects_and_waiting_for_the_event_loop_are_no_idling(clock, engine, part):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
        began = clock()
        clock.advance(0.6)
        mark(recording.collector, None, part, began, clock())
        connection.commit()

    assert kinds(recording) == []


@pytest.mark.parametrize(
    ("objects", "held", "told"),
    [
        (0.4, "1.00 s", ", not counting 400.0 ms of waiting, reading rows or making objects"),
        (0.061, "661.0 ms", ", not counting 61.0 ms of waiting, reading rows or making objects"),
        (0.059, "659.0 ms", ""),
        (0.0, "600.0 ms", ""),
    ],
)
def test_idling_says_what_is_not_counted_in_it_where_that_is_much(clock, engine, objects, held, told):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
        began = clock()
        clock.advance(objects)
        mark(recording.collector, None, "objects", began, clock())
        clock.advance(0.6)
        connection.commit()

    [finding] = sqltrace.diagnose(recording)

    assert finding.message == (
        f"a transaction was open for 600.0 ms in which no statement of it ran{told}, and kept its connection"
        f" ({held} in all) and its locks."
    )


def test_event_loop_that_another_request_holds_after_the_response_is_no_idling():
    async def app(scope, receive, send):
        if scope["path"] == "/holds":
            block(0.3)
            await respond(send)
            return
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await respond(send)
            responded.set()
            await asyncio.sleep(0.05)

    observer, records = observed(app)
    engine, responded = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool), asyncio.Event()

    async def main():
        waiting = asyncio.create_task(get(observer, "/waits"))
        await responded.wait()
        await get(observer, "/holds")
        await waiting
        await engine.dispose()

    asyncio.run(main())

    recording = records["/waits"]
    assert recording.connections.idle_in_transaction > 0.2
    assert sqltrace.diagnose(recording, [partial(idle_in_transaction, idle=0.15)]) == []


def test_work_between_transactions_is_not_idle(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        for _ in range(2):
            connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
            connection.commit()
            clock.advance(5)

    assert kinds(recording) == []


@pytest.mark.parametrize(("pause", "found"), [(0.01, []), (0.0101, ["idle_in_transaction"])])
def test_hundreds_of_short_pauses_are_a_busy_transaction(clock, engine, pause, found):
    with recorded(clock) as recording, engine.begin() as connection:
        for _ in range(200):
            connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
            clock.advance(pause)

    assert kinds(recording) == found


@pytest.mark.parametrize(("seconds", "found"), [(0.1, ["blocked_loop"]), (0.099, [])])
def test_synchronous_sql_on_the_loop(witness, clock, engine, seconds, found):
    async def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})
        return JSONResponse({})

    findings = visit(witness, clock, endpoint)

    assert [finding.kind for finding in findings] == found
    if found:
        assert findings[0].message == "1 synchronous statement held the event loop for 100.0 ms: SELECT."
        assert "run_in_threadpool" in findings[0].fix


def test_synchronous_sql_that_waits_for_the_interpreter_holds_the_loop_meanwhile(monkeypatch, witness, clock, engine):
    monkeypatch.setattr(replies, "came_at", lambda collector, connection, started, ended: started)

    async def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(0.2)"))
        return JSONResponse({})

    [finding] = visit(witness, clock, endpoint)

    assert finding.message == "1 synchronous statement held the event loop for 200.0 ms: SELECT."


def test_of_statements_that_run_here_and_there_only_those_on_the_loop_block(witness, clock, engine):
    def wait():
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(0.03)"))

    async def endpoint(request):
        wait()
        for _ in range(4):
            await run_in_threadpool(wait)
        return JSONResponse({})

    assert visit(witness, clock, endpoint) == []


@pytest.mark.parametrize("kept", [10, 1])
def test_what_a_statement_took_in_a_thread_has_not_blocked(witness, clock, engine, kept):
    def wait(seconds):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})

    async def endpoint(request):
        wait(0.001)
        await run_in_threadpool(wait, 0.4)
        return JSONResponse({})

    assert visit(witness, clock, endpoint, max_statements=kept) == []


def test_statement_that_blocks_is_told_with_its_own_time_and_line_where_others_ran_in_threads(witness, clock, engine):
    def wait(seconds):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})

    def wait_at_another_line(seconds):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds})

    async def endpoint(request):
        for _ in range(3):
            await run_in_threadpool(wait_at_another_line, 0.01)
        wait(0.12)
        await run_in_threadpool(wait_at_another_line, 0.4)
        return JSONResponse({})

    [finding] = visit(witness, clock, endpoint)

    assert finding.message == "1 synchronous statement held the event loop for 120.0 ms: SELECT."
    assert " in test_statement_that_blocks_is_told" in finding.call_site.partition(",")[0]
    assert "wait_at_another_line" not in finding.call_site


def test_statement_that_blocks_most_is_named_and_not_one_that_ran_in_threads_for_longer(witness, clock, engine):
    def wait(sql):
        with engine.connect() as connection:
            connection.execute(text(sql))

    async def endpoint(request):
        wait("SELECT wait(0.2), count(*) FROM jobs")
        wait("SELECT wait(0.1)")
        for _ in range(9):
            await run_in_threadpool(wait, "SELECT wait(0.1)")
        return JSONResponse({})

    [finding] = [one for one in visit(witness, clock, endpoint) if one.kind == "blocked_loop"]

    assert finding.message == ("2 synchronous statements held the event loop for 300.0 ms, most of it SELECT jobs.")


def test_synchronous_sql_in_a_thread_does_not_block(witness, clock, engine):
    def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT wait(0.2)"))
        return JSONResponse({})

    assert visit(witness, clock, endpoint) == []


@pytest.mark.parametrize(("seconds", "found"), [(0.25, [("blocked_loop", 0.25)]), (0.249, [])])
def test_python_that_holds_the_loop(witness, clock, seconds, found):
    async def endpoint(request):
        clock.advance(seconds)
        return JSONResponse({})

    findings = visit(witness, clock, endpoint)

    assert [(finding.kind, finding.cost) for finding in findings] == found


@pytest.mark.parametrize(
    ("computed", "objects", "told"),
    [
        (0.39, 0.0, ", but for about 61% of it other threads had the interpreter's lock."),
        (0.41, 0.0, "."),
        (0.41, 0.001, ", 1.0 ms of the request making objects."),
        (0.41, 0.0009, "."),
    ],
)
def test_hold_of_the_loop_is_told_with_what_had_a_notable_part_in_it(clock, computed, objects, told):
    recording = Recording(clock=clock)
    share = recording.observe_loop()
    share.observed, share.longest, share.sightings = True, 1_000_000_000, Sightings()
    share.sightings.add(1, None, 1.0, computed, 1.0)
    mark(recording.collector, None, "objects", clock(), clock() + round(objects * 1e9))
    clock.advance(1)
    recording.end()

    [finding] = sqltrace.diagnose(recording, [blocked_loop])

    assert finding.message == f"the event loop was held for 1.00 s at a stretch{told}"


@pytest.mark.parametrize(
    ("joined", "fix"),
    [
        (["books"], "fewer rows for the same objects: joined collections by selectinload(), or not at all"),
        (["books", "prizes"], "fewer rows for the same objects: joined collections by selectinload(), or not at all"),
        ([], "fewer rows or columns at once: LIMIT, load_only(), or session.stream() with yield_per"),
    ],
    ids=["parents are repeated", "collections multiply", "rows are objects"],
)
@thrice
def test_remedy_for_making_objects_is_that_of_the_rows_where_they_are_too_many(tmp_path, joined, fix):
    shelf = shelves.mapping()
    database = create_async_engine(f"sqlite+aiosqlite:///{mkdtemp(dir=tmp_path)}/shelf.db")

    async def endpoint(request):
        wanted = select(shelf.Author if joined else shelf.Book)
        async with AsyncSession(database) as session:
            options = [joinedload(getattr(shelf.Author, name)) for name in joined]
            (await session.scalars(wanted.options(*options))).unique().all()
        return JSONResponse({})

    async def main():
        await fill_with_books(database, shelf)
        await get(app, "/")
        await database.dispose()

    app, records = observed(Starlette(routes=[Route("/", endpoint)]))
    asyncio.run(main())
    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0.001)])

    assert finding.fix == fix


@thrice
def test_relationship_that_the_mapping_loads_and_that_holds_the_loop_is_left_out(tmp_path):
    shelf = shelves.mapping(books="selectin")
    database = create_async_engine(f"sqlite+aiosqlite:///{mkdtemp(dir=tmp_path)}/shelf.db")
    queries = [select(shelf.Publisher.name, shelf.Author).join(shelf.Author.publisher)]

    async def endpoint(request):
        async with AsyncSession(database) as session:
            (await session.execute(queries[-1])).all()
        return JSONResponse({})

    async def main():
        await fill_with_books(database, shelf)
        await get(app, "/")
        [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0.001)])
        queries.append(eval(f"query{finding.fix}", {**vars(orm), **vars(shelf), "query": queries[0]}))
        await get(app, "/")
        await database.dispose()
        return finding

    app, records = observed(Starlette(routes=[Route("/", endpoint)]))
    finding = asyncio.run(main())

    assert finding.message.endswith("of it for the 3,036 rows of the selectin load of Author.books.")
    assert finding.fix.startswith(
        ".options(raiseload(Author.books, sql_only=True))"
        '  # where nobody needs them, or lazy="raise_on_sql" at tests/shelf.py:'
    )
    assert records["/"].row_count == shelves.AUTHORS


STREAM = "fewer rows of the stream at once, by yield_per, and more of them in each chunk of the body"


@pytest.mark.parametrize(
    ("slow", "fix"),
    [
        ("making objects", STREAM),
        ("all else", "await run_in_threadpool(function) for what computes or blocks"),
    ],
)
@thrice
def test_remedy_for_a_stream_that_holds_the_loop_is_smaller_batches(tmp_path, slow, fix):
    shelf = shelves.mapping()
    database = create_async_engine(f"sqlite+aiosqlite:///{mkdtemp(dir=tmp_path)}/shelf.db")

    async def endpoint(request):
        async with AsyncSession(database) as session:
            await (await session.stream(select(shelf.Author))).all()
            if slow == "all else":
                block(0.5)
        return JSONResponse({})

    async def main():
        async with database.connect() as connection:
            await connection.run_sync(shelves.fill, shelf)
        await get(app, "/")
        await database.dispose()

    def load(*_):
        if slow == "making objects":
            block(0.02)

    app, records = observed(Starlette(routes=[Route("/", endpoint)]))
    event.listen(shelf.Author, "load", load)
    asyncio.run(main())
    event.remove(shelf.Author, "load", load)
    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0.001)])

    assert finding.fix == fix


@pytest.mark.parametrize("driver", drivers(lambda driver: driver.name == "aiomysql"))
@thrice
def test_remedy_for_a_stream_whose_driver_never_pauses_is_a_pause(driver):
    def work(pause):
        async def endpoint(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            async with AsyncSession(database) as session:
                async for _ in await session.stream(text("SELECT seq FROM seq_1_to_3000")):
                    await send({"type": "http.response.body", "body": b"1", "more_body": True})
                    if pause:
                        await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})

        return endpoint

    async def main():
        await get(apps[0], "/")
        await get(apps[1], "/paused")
        await database.dispose()

    database = create_async_engine(driver.url())
    observers = [observed(work(pause)) for pause in (False, True)]
    apps = [app for app, _ in observers]
    asyncio.run(main())
    recording, paused = observers[0][1]["/"], observers[1][1]["/paused"]
    [finding] = sqltrace.diagnose(recording, [partial(blocked_loop, hold=0.001)])

    assert finding.fix.startswith("more rows in each chunk of the stream, and await asyncio.sleep(0) between chunks")
    assert paused.longest_hold < recording.longest_hold / 2


def test_request_that_waited_for_another_of_its_route_is_not_told_to_see_itself():
    async def endpoint(request):
        number = request.path_params["number"]
        await asyncio.sleep(0.01 * number)
        if number == 1:
            block(0.4)
        return JSONResponse({})

    app, records = observed(Starlette(routes=[Route("/items/{number:int}", endpoint)]))

    async def main():
        await asyncio.gather(get(app, "/items/1"), get(app, "/items/2"))

    asyncio.run(main())
    [finding] = records.of("/items/2").findings

    assert finding.kind == "waited_for_loop"
    assert "held by another GET /items/{number} (" in finding.message
    assert finding.fix == "nothing here: see the findings of another request of the same route"


def test_threads_that_wait_for_the_interpreter_at_once_cost_no_more_than_there_was_time(engine, clock):
    sqltrace.instrument()
    recording = Recording(clock=clock)
    outer = recording.open()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1")).all()
    recording.leave(outer)
    clock.advance(1.5)
    recording.end()
    [group] = recording.groups
    group.gil_wait = 8.0

    [finding] = sqltrace.diagnose(recording)

    assert (finding.kind, finding.cost) == ("gil_wait", pytest.approx(1.5))
    assert "for 1.5" in finding.message


@pytest.mark.parametrize(
    ("waits", "duration", "found"),
    [((0.2, 0.05), 1.25, [0.25]), ((0.2, 0.049), 1.0, []), ((0.25, 0.0), 1.26, []), ((1.0, 1.0), 5.0, [2.0])],
)
def test_wait_for_the_interpreter_is_told_if_it_is_long_and_a_good_part_of_the_duration(
    engine, clock, waits, duration, found
):
    sqltrace.instrument()
    recording = Recording(clock=clock)
    outer = recording.open()
    with engine.connect() as connection:
        for number in range(len(waits)):
            connection.execute(text(f"SELECT 1 AS n{number}")).all()
    recording.leave(outer)
    clock.advance(duration)
    recording.end()
    for group, waited in zip(recording.groups, waits, strict=True):
        group.gil_wait = waited

    findings = sqltrace.diagnose(recording)

    assert [(finding.kind, finding.cost) for finding in findings] == [
        ("gil_wait", pytest.approx(cost)) for cost in found
    ]


@pytest.mark.parametrize(
    ("waited", "duration", "found"),
    [(0.25, 1.25, ["waited_for_loop"]), (0.249, 1.0, []), (0.25, 1.26, []), (2.0, 5.0, ["waited_for_loop"])],
)
def test_wait_for_another_request_is_told_if_it_is_long_and_a_good_part_of_the_duration(clock, waited, duration, found):
    recording, log, now = Recording(clock=clock), LoopLog(clock), clock.now
    share = recording.observe_loop()
    share.observed, share.log = True, log
    until = now + round(waited * 1_000_000_000)
    log.add(now, until, Label("GET /other"))
    share.estimate(now, until)
    clock.advance(duration)
    recording.end()

    assert [finding.kind for finding in sqltrace.diagnose(recording, [waited_for_loop])] == found


@pytest.mark.parametrize(
    ("elsewhere", "rules", "found"),
    [
        (0.119, None, ["blocked_loop"]),
        (0.121, None, ["blocked_loop", "idle_in_transaction"]),
        (0.119, [idle_in_transaction], ["idle_in_transaction"]),
    ],
    ids=["in the transaction", "elsewhere, maybe", "hold not told"],
)
def test_transaction_that_is_idle_as_its_request_holds_the_loop_is_told_once(
    witness, clock, engine, elsewhere, rules, found
):
    async def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO jobs DEFAULT VALUES"))
            clock.advance(0.6)
            connection.commit()
        await asyncio.sleep(0)
        clock.advance(elsewhere)
        return JSONResponse({})

    findings = visit(witness, clock, endpoint, rules=rules)

    assert sorted(finding.kind for finding in findings) == found


@pytest.mark.parametrize(
    ("sql", "found"),
    [("SELECT * FROM missing", ["after_response_sql"]), ("SELECT wait(0.3)", []), ("SELECT 1", [])],
    ids=["failed", "short", "quick"],
)
def test_sql_after_the_response(witness, clock, engine, sql, found):
    def work():
        clock.advance(0.001)
        with engine.connect() as connection:
            try:
                connection.execute(text(sql))
            except exc.OperationalError:
                pass

    findings = visit(witness, clock, lambda request: JSONResponse({}, background=BackgroundTask(work)))

    assert [finding.kind for finding in findings] == found


@pytest.mark.parametrize("driver", drivers(lambda driver: driver.name in {"psycopg", "asyncpg"}))
@pytest.mark.parametrize("responded", [True, False])
def test_commit_that_failed_after_the_response_is_told_with_its_line(driver, responded):
    def work(connection):
        connection.execute(text("CREATE TEMPORARY TABLE once (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        connection.execute(text("INSERT INTO once VALUES (1), (1)"))
        if responded:
            recording.end_response()
        with pytest.raises(IntegrityError):
            connection.commit()  # in vain

    runner = Runner(driver.name, driver.url())
    with sqltrace.record() as recording:
        runner.connection(work)

    [failed] = recording.connections.failed_commits
    told = [f"COMMIT after the response failed: {failed.failure}. The client was told otherwise."]
    findings = sqltrace.diagnose(recording)

    assert (failed.failure.code, failed.after_response) == ("23505", responded)
    assert failed.call_site.function == "test_commit_that_failed_after_the_response_is_told_with_its_line.<locals>.work"
    assert [finding.message for finding in findings] == (told if responded else [])
    assert all(finding.kind == "after_response_sql" and finding.call_site for finding in findings)


def test_remedy_for_what_failed_after_the_response_fits_a_background_task(witness, clock, engine):
    def work():
        clock.advance(0.001)
        with engine.connect() as connection:
            connection.execute(text("SELECT * FROM missing"))

    [finding] = visit(witness, clock, lambda request: JSONResponse({}, background=BackgroundTask(work)))

    assert finding.fix == (
        "commit in the endpoint what the exit of a dependency commits;"
        " a background task has to tell somebody itself that it failed"
    )


def test_what_failed_after_the_response_is_told_and_not_what_took_longer(witness, clock, engine):
    def work():
        clock.advance(0.001)
        for sql in ("SELECT wait(0.2)", "SELECT * FROM missing"):
            with engine.connect() as connection, suppress(exc.OperationalError):
                connection.execute(text(sql))

    [finding] = visit(witness, clock, lambda request: JSONResponse({}, background=BackgroundTask(work)))

    assert finding.message == (
        "1 of 2 statements after the response failed, in SELECT missing: the client was told otherwise."
    )
    assert finding.fingerprint == fingerprint("SELECT * FROM missing", "sqlite")


def after_the_response(witness, clock, engine, *statements):
    """What is found where a background task runs these."""

    def work():
        clock.advance(0.001)
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))

    return visit(witness, clock, lambda request: JSONResponse({}, background=BackgroundTask(work)))


def test_sql_after_the_response_is_long_from_a_second_on(witness, clock, engine):
    [finding] = after_the_response(witness, clock, engine, *["SELECT wait(0.25)"] * 4)
    shorter = after_the_response(witness, clock, engine, *["SELECT wait(0.249)"] * 4)

    assert (finding.kind, finding.cost) == ("after_response_sql", 1.0)
    assert finding.message == "4 statements ran for 1.00 s after the response: SELECT."
    assert shorter == []


def test_sql_of_several_kinds_is_told_by_the_one_that_took_most(witness, clock, engine):
    statements = *["SELECT wait(0.4)"] * 4, "SELECT wait(0.2) FROM (SELECT 1) AS one"

    [finding] = after_the_response(witness, clock, engine, *statements)

    assert finding.message == "5 statements ran for 1.80 s after the response, most of it SELECT."


def test_request_that_waits_for_its_own_connection(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    with sqltrace.record() as recording, engine.connect(), pytest.raises(exc.TimeoutError):
        engine.connect()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert finding.kind == "pool_wait"
    assert (
        "waiting in vain for a connection, 1 in use of a pool of 1, while the request held one itself"
        in finding.message
    )
    assert finding.fix.startswith("one session for the whole request")


@pytest.mark.parametrize(("tasks", "kinds"), [(3, []), (12, ["pool_wait"])])
def test_short_waits_at_once_are_told_by_the_time_they_took_together(tmp_path, tasks, kinds):
    async def work(engine):
        async with engine.connect():
            await asyncio.sleep(0.06)

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=1, max_overflow=0)
        with sqltrace.record() as recording:
            await asyncio.gather(*(work(engine) for _ in range(tasks)))
        await engine.dispose()
        return recording

    recording = asyncio.run(main())
    findings = sqltrace.diagnose(recording, [partial(pool_wait, wait=0.16)])

    assert [finding.kind for finding in findings] == kinds
    if findings:
        assert findings[0].message.startswith("the 10 longest waits for a connection, some at once, took ")
        assert findings[0].cost <= recording.duration


def test_waits_at_once_are_not_told_as_if_they_came_one_after_the_other(tmp_path):
    async def work(engine):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0.1)

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=1, max_overflow=0)
        with sqltrace.record("page") as recording:
            await asyncio.gather(*(work(engine) for _ in range(5)))
        await engine.dispose()
        return recording

    recording = asyncio.run(main())
    [finding] = sqltrace.diagnose(recording, [pool_wait])

    waits = [wait.waited for wait in recording.connections.waits]
    assert sum(waits) > 2 * max(waits)  # some 0.1, 0.2, 0.3 and 0.4 s, all from the start on
    assert finding.cost == pytest.approx(max(waits), rel=0.1)
    assert re.match(
        r"4 waits for a connection, some at once, took [\d.]+ m?s, 1 in use of a pool of 1, held by", finding.message
    )


@pytest.mark.parametrize(("pool_size", "max_overflow"), [(4, 0), (1, 3)])
def test_tasks_of_a_request_that_use_up_the_pool_are_told_to_be_fewer_at_once(tmp_path, pool_size, max_overflow):
    async def main(limit):
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=pool_size, max_overflow=max_overflow
        )

        async def work():
            async with limit, engine.connect():
                await asyncio.sleep(0.06)

        with sqltrace.record() as recording:
            await asyncio.gather(*(work() for _ in range(12)))
        await engine.dispose()
        return sqltrace.diagnose(recording, [pool_wait])

    [finding] = asyncio.run(main(nullcontext()))
    names = {"asyncio": asyncio}
    exec(finding.fix, names)

    assert finding.fix == (
        "limit = asyncio.Semaphore(2)  # and async with limit: in the tasks, each of which waits for the others;"
        " or one query for all of them"
    )
    assert asyncio.run(main(names["limit"])) == []


def test_tasks_of_a_request_that_wait_in_vain_for_each_other_are_told_to_be_fewer_at_once(tmp_path):
    async def main():
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=4, max_overflow=0, pool_timeout=0.1
        )

        async def work():
            async with engine.connect():
                await asyncio.sleep(0.5)

        with sqltrace.record() as recording:
            results = await asyncio.gather(*(work() for _ in range(6)), return_exceptions=True)
        await engine.dispose()
        return recording, results

    recording, results = asyncio.run(main())
    [finding] = sqltrace.diagnose(recording, [pool_wait])

    assert [type(result).__name__ for result in results if result is not None] == ["TimeoutError"] * 2
    assert finding.fix.startswith("limit = asyncio.Semaphore(2)  # and async with limit: in the tasks")
    assert finding.message.endswith("while the request held several itself.")


def test_threads_of_a_request_that_use_up_the_pool_are_told_to_be_fewer_at_once(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=0)

    def work():
        with engine.connect():
            block(0.1)

    async def main():
        with sqltrace.record() as recording:
            await asyncio.gather(*(asyncio.to_thread(work) for _ in range(3)))
        return recording

    [finding] = sqltrace.diagnose(asyncio.run(main()), [pool_wait])
    engine.dispose()

    assert finding.fix == "fewer threads at once, each of which waits for the others; or one query for all of them"


def test_wait_of_a_synchronous_engine_is_mended_at_the_synchronous_engine(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    held = engine.connect()
    with sqltrace.record() as recording, pytest.raises(exc.TimeoutError):
        engine.connect()
    held.close()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert re.match(r"\d+\.\d ms spent waiting in vain for a connection, 1 in use of a pool of 1\.$", finding.message)
    assert finding.fix == (
        "create_engine(…, pool_size=6, max_overflow=0) for 6 connections at most instead of 1,"
        " or give connections back sooner: commit or close"
    )


def test_connections_beyond_the_size_of_the_pool_are_told(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=1, pool_timeout=0.01
    )
    with engine.connect(), engine.connect(), sqltrace.record() as recording, pytest.raises(exc.TimeoutError):
        engine.connect()
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert "for a connection, 2 in use of a pool of 1 and 1 beyond it." in finding.message
    assert finding.fix.startswith(
        "create_engine(…, pool_size=7, max_overflow=1) for 8 connections at most instead of 2"
    )


def test_pool_that_nobody_waits_for_is_not_told(engine):
    with sqltrace.record() as recording, engine.connect():
        pass

    assert kinds(recording) == []


def test_lazy_loads_of_a_response_model_are_told_without_a_line_of_the_application(witness):
    shelf = shelves.mapping()
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.connect() as connection:
        shelves.fill(connection, shelf)

    class BookOut(BaseModel, from_attributes=True):
        title: str

    class AuthorOut(BaseModel, from_attributes=True):
        books: list[BookOut]

    app = FastAPI()
    session = Session(engine)

    @app.get("/authors", response_model=list[AuthorOut])
    def list_authors():
        return session.scalars(select(shelf.Author)).all()

    TestClient(sqltrace.SQLTraceMiddleware(app, sinks=[witness])).get("/authors").raise_for_status()
    [record] = witness.take()
    session.close()
    engine.dispose()

    [finding] = record.findings
    assert (finding.kind, finding.relationship) == ("n_plus_one", "Author.books")
    assert finding.parents.startswith("SELECT authors at tests/test_findings_rules.py:")
    assert finding.parents.endswith("list_authors")
    assert finding.fix == ".options(selectinload(Author.books))"


def test_gathered_gets_are_told(tmp_path):
    shelf = shelves.mapping()

    async def get(engine, number):
        async with AsyncSession(engine) as session:
            await session.get(shelf.Author, number)

    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=20)
        async with engine.connect() as connection:
            await connection.run_sync(shelves.fill, shelf)
        with sqltrace.record() as recording:
            await asyncio.gather(*(get(engine, number) for number in range(1, 13)))
        await engine.dispose()
        return recording

    [finding] = sqltrace.diagnose(asyncio.run(main()))

    assert finding.kind == "n_plus_one"
    assert finding.call_site.endswith("get")
    assert finding.fix == (
        "select(Author).where(Author.id.in_(ids))  # once for all, in one session, in place of session.get()"
    )


def test_objects_that_expired_without_a_commit_are_loaded_by_one_query_instead(engine):
    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "expiring_orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        state: Mapped[str] = mapped_column(default="new")

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Order() for _ in range(6)])
        session.commit()

    def work(remedy):
        with sqltrace.record() as recording, Session(engine) as session:
            orders = session.scalars(select(Order)).all()
            session.expire_all()
            if remedy:
                session.scalars(select(Order)).all()
            assert {order.state for order in orders} == {"new"}
        return sqltrace.diagnose(recording)

    [finding] = work(remedy=False)
    assert "one for each Order as the application had expired it" in finding.message
    assert finding.fix == "session.scalars(select(Order).where(…)).all()  # once, after all have expired"
    assert work(remedy=True) == []


def test_rule_about_what_ran_after_the_response_has_nothing_to_tell_of_nothing(clock, no_faults):
    with recorded(clock) as recording:
        pass

    assert sqltrace.diagnose(recording, [partial(after_response_sql, long=0)]) == []
