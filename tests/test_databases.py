"""What is recorded of a statement, on every driver."""

import asyncio
import itertools

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    bindparam,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

import sqltrace
from sqltrace.database import Database, database_of, note_database
from sqltrace.statement import system_name
from tests.databases import Book, books, drivers

pytestmark = pytest.mark.usefixtures("no_faults")

async_drivers = pytest.mark.parametrize("database", drivers(lambda driver: driver.is_async), indirect=True)
sleeping_drivers = pytest.mark.parametrize(
    "database", drivers(lambda driver: driver.is_async and driver.system != "sqlite"), indirect=True
)
postgresql_drivers = pytest.mark.parametrize(
    "database", drivers(lambda driver: driver.system == "postgresql"), indirect=True
)
# What listeners do is the same for all drivers.
two_drivers = pytest.mark.parametrize(
    "database", drivers(lambda driver: driver.name in ("sqlite3", "asyncpg")), indirect=True
)
SLEEP = {"postgresql": text("SELECT pg_sleep(20)"), "mariadb": text("SELECT sleep(20)")}

MISSING_TABLE = {
    "sqlite3": ("sqlite3.OperationalError", "SQLITE_ERROR"),
    "aiosqlite": ("sqlite3.OperationalError", "SQLITE_ERROR"),
    "psycopg": ("psycopg.errors.UndefinedTable", "42P01"),
    "psycopg2": ("psycopg2.errors.UndefinedTable", "42P01"),
    "asyncpg": ("asyncpg.exceptions.UndefinedTableError", "42P01"),
    "psycopg_async": ("psycopg.errors.UndefinedTable", "42P01"),
    "pymysql": ("pymysql.err.ProgrammingError", "1146"),
    "aiomysql": ("pymysql.err.ProgrammingError", "1146"),
    "asyncmy": ("asyncmy.errors.ProgrammingError", "1146"),
}
NOT_UNIQUE = {
    "sqlite3": ("sqlite3.IntegrityError", "SQLITE_CONSTRAINT_UNIQUE"),
    "aiosqlite": ("sqlite3.IntegrityError", "SQLITE_CONSTRAINT_UNIQUE"),
    "psycopg": ("psycopg.errors.UniqueViolation", "23505"),
    "psycopg2": ("psycopg2.errors.UniqueViolation", "23505"),
    "asyncpg": ("asyncpg.exceptions.UniqueViolationError", "23505"),
    "psycopg_async": ("psycopg.errors.UniqueViolation", "23505"),
    "pymysql": ("pymysql.err.IntegrityError", "1062"),
    "aiomysql": ("pymysql.err.IntegrityError", "1062"),
    "asyncmy": ("asyncmy.errors.IntegrityError", "1062"),
}


def titles(count):
    return [{"title": f"title {number}"} for number in range(count)]


def add_books(count):
    def work(connection):
        connection.execute(insert(books), titles(count))
        connection.commit()

    return work


def read_titles(connection):
    return connection.scalars(select(books.c.title).order_by(books.c.id)).all()


def failures(recording):
    return [(statement.failure.type, statement.failure.code) for statement in recording.statements if statement.failed]


def test_select_is_recorded_once(database):
    recording = database.record(lambda connection: connection.execute(select(books.c.title)).all())

    (statement,) = recording.statements
    assert statement.sql == "SELECT books.title \nFROM books"
    assert statement.summary == "SELECT books"
    assert statement.system == database.driver.system
    assert (statement.failure, statement.executemany, statement.batch_size) == (None, False, None)
    assert 0 < statement.duration <= recording.duration
    assert statement.call_site.file == __file__
    assert statement.call_site.function == "test_select_is_recorded_once.<locals>.<lambda>"


@async_drivers
def test_call_site_of_an_awaited_statement_is_the_line_that_awaits(database):
    async def list_books():
        async with database.engine.connect() as connection:
            await connection.execute(select(books))

    with sqltrace.record() as recording:
        asyncio.run(list_books())

    (statement,) = recording.statements
    line = list_books.__code__.co_firstlineno + 2
    assert (statement.call_site.file, statement.call_site.line) == (__file__, line)
    assert statement.call_site.function.endswith("list_books")


def test_failed_statement_is_recorded_with_the_drivers_own_class_and_code(database):
    def work(connection):
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT * FROM nowhere"))

    recording = database.record(work)

    assert (recording.statement_count, recording.failed_count) == (1, 1)
    assert failures(recording) == [MISSING_TABLE[database.driver.name]]


def test_unique_violation_is_recorded_with_the_drivers_own_class_and_code(database):
    database.run(add_books(1))

    def work(connection):
        with pytest.raises(IntegrityError):
            connection.execute(insert(books), titles(1))

    assert failures(database.record(work)) == [NOT_UNIQUE[database.driver.name]]


def test_executemany_is_one_statement_with_its_batch_size(database):
    database.run(add_books(3))
    statement = update(books).where(books.c.id == bindparam("key")).values(title=bindparam("new"))

    def work(connection):
        connection.execute(statement, [{"key": key, "new": f"new {key}"} for key in (1, 2, 3)])
        return connection.commit()

    recording = database.record(work)

    assert [(s.summary, s.executemany, s.batch_size) for s in recording.statements] == [("UPDATE books", True, 3)]
    assert database.run(read_titles) == ["new 1", "new 2", "new 3"]


def test_failed_executemany_is_recorded_with_its_batch_size(database):
    database.run(add_books(3))
    statement = update(books).where(books.c.id == bindparam("key")).values(title=bindparam("new"))

    def work(connection):
        with pytest.raises(IntegrityError):
            connection.execute(statement, [{"key": 1, "new": "same"}, {"key": 2, "new": "same"}])

    recording = database.record(work)

    assert [(s.executemany, s.batch_size) for s in recording.statements] == [(True, 2)]
    assert failures(recording) == [NOT_UNIQUE[database.driver.name]]


def test_each_batch_of_a_bulk_insert_is_a_statement_with_its_own_size(database):
    def work(connection):
        options = {"insertmanyvalues_page_size": 4}
        with Session(connection) as session:
            ids = session.scalars(insert(Book).returning(Book.id), titles(10), execution_options=options).all()
            session.commit()
        return ids

    with sqltrace.record() as recording:
        ids = database.run(work)

    assert [(s.summary, s.batch_size, s.executemany) for s in recording.statements] == [
        ("INSERT books", 4, False),
        ("INSERT books", 4, False),
        ("INSERT books", 2, False),
    ]
    assert [group.count for group in recording.groups] == [3]
    assert len(ids) == 10


def test_objects_of_one_flush_are_recorded_as_the_batches_that_ran(database):
    def work(connection):
        with Session(connection) as session:
            session.add_all([Book(f"title {number}") for number in range(25)])
            session.commit()

    recording = database.record(work)

    # One batch where the database returns rows in order, single rows elsewhere.
    assert [statement.batch_size or 1 for statement in recording.statements] in ([25], [1] * 25)
    assert len(recording.groups) == 1
    assert len(database.run(read_titles)) == 25


@sleeping_drivers
def test_statement_cancelled_by_a_timeout_is_recorded_with_the_time_it_took(database):
    async def wait_too_long():
        async with database.engine.connect() as connection, asyncio.timeout(0.3):
            await connection.execute(SLEEP[database.driver.system])

    with sqltrace.record() as recording, pytest.raises(TimeoutError):
        asyncio.run(wait_too_long())

    (statement,) = recording.statements
    assert failures(recording) == [("asyncio.exceptions.CancelledError", None)]
    assert 0.2 < statement.duration < 10
    assert statement.call_site.function.endswith("wait_too_long")


@sleeping_drivers
def test_statements_running_at_once_are_each_recorded_with_their_own_time(database):
    sleep = text(f"SELECT {'pg_sleep' if database.driver.system == 'postgresql' else 'sleep'}(0.3)")

    async def ask():
        async with database.engine.connect() as connection:
            await connection.execute(sleep)

    async def ask_twice():
        await asyncio.gather(ask(), ask())

    with sqltrace.record() as recording:
        asyncio.run(ask_twice())

    assert [statement.duration > 0.25 for statement in recording.statements] == [True, True]
    assert 0.25 < recording.time_account.database < sum(statement.duration for statement in recording.statements) - 0.1


def test_streamed_result_is_one_statement_and_complete(database):
    database.run(add_books(50))

    def work(connection):
        result = connection.execution_options(yield_per=7).execute(select(books))
        return [len(partition) for partition in result.partitions()]

    with sqltrace.record() as recording:
        lengths = database.run(work)

    assert lengths == [7, 7, 7, 7, 7, 7, 7, 1]
    assert [statement.summary for statement in recording.statements] == ["SELECT books"]


@async_drivers
def test_result_of_stream_is_one_statement_and_complete(database):
    database.run(add_books(50))

    async def read():
        async with database.engine.connect() as connection, connection.stream(select(books)) as result:
            return [row async for row in result]

    with sqltrace.record() as recording:
        rows = asyncio.run(read())

    assert len(rows) == 50
    assert [statement.summary for statement in recording.statements] == ["SELECT books"]


def test_transaction_and_savepoint_end_as_they_do_unrecorded(database):
    def work(connection):
        connection.execute(insert(books), {"title": "kept"})
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert(books), {"title": "kept"})
        connection.execute(insert(books), {"title": "kept too"})
        connection.commit()
        connection.execute(insert(books), {"title": "taken back"})
        connection.rollback()
        return read_titles(connection)

    with sqltrace.record() as recording:
        left = database.run(work)

    assert left == ["kept", "kept too"]
    assert [statement.failed for statement in recording.statements if statement.summary == "INSERT books"] == [
        False,
        True,
        False,
        False,
    ]


def test_savepoints_are_one_group_for_each_thing_that_is_done_with_them(database):
    def work(connection):
        for number in range(12):
            savepoint = connection.begin_nested()
            savepoint.commit() if number % 2 else savepoint.rollback()

    with sqltrace.record(max_statements=5) as recording:
        database.run(work)

    assert {group.summary: group.count for group in recording.groups} == {"SAVEPOINT": 12, "RELEASE": 6, "ROLLBACK": 6}
    assert len({statement.fingerprint for statement in recording.statements}) == 3
    assert sqltrace.diagnose(recording) == []


def test_engines_option_keeps_the_statements_of_those_engines_only(database):
    wanted, other = database.engine, database.new_engine()
    database.run(lambda connection: None, other)

    with sqltrace.record() as everything, sqltrace.record(engines=[wanted]) as some:
        database.run(lambda connection: connection.execute(text("SELECT 1")), wanted)
        database.run(lambda connection: connection.execute(text("SELECT 2")), other)

    assert [statement.sql for statement in everything.statements] == ["SELECT 1", "SELECT 2"]
    assert [statement.sql for statement in some.statements] == ["SELECT 1"]


def test_engine_given_to_instrument_is_the_only_one_recorded(database):
    other = database.new_engine()
    database.run(lambda connection: None, other)
    sqltrace.instrument(database.engine)

    with sqltrace.record() as recording:
        database.run(lambda connection: connection.execute(text("SELECT 1")))
        database.run(lambda connection: connection.execute(text("SELECT 2")), other)

    assert [statement.sql for statement in recording.statements] == ["SELECT 1"]


def test_statement_is_recorded_and_executed_once_when_instrumented_both_ways(database):
    sqltrace.instrument()
    sqltrace.instrument(database.engine)

    recording = database.record(add_books(1))

    assert recording.statement_count == 1
    assert len(database.run(read_titles)) == 1


def test_unattributed_statement_is_counted_once_when_instrumented_both_ways(database):
    sqltrace.instrument()
    sqltrace.instrument(database.engine)
    before = sqltrace.missed_statements().unattributed

    database.run(lambda connection: connection.execute(text("SELECT 1")))

    assert sqltrace.missed_statements().unattributed - before == 1


def test_nothing_is_recorded_or_counted_after_uninstrument(database):
    sqltrace.instrument()
    sqltrace.instrument(database.engine)
    before = sqltrace.missed_statements()

    with sqltrace.record() as recording:
        sqltrace.uninstrument()
        database.run(lambda connection: connection.execute(text("SELECT 1")))
    database.run(lambda connection: connection.execute(text("SELECT 1")))

    assert recording.statement_count == 0
    assert sqltrace.missed_statements() == before


def test_in_lists_of_different_lengths_are_one_group(database):
    def work(connection):
        for ids in ([1], [1, 2], list(range(40))):
            connection.execute(select(books).where(books.c.id.in_(ids)))

    recording = database.record(work)

    (group,) = recording.groups
    assert group.count == 3
    assert len({statement.sql for statement in recording.statements}) == 3
    assert {statement.fingerprint for statement in recording.statements} == {group.fingerprint}


def test_statement_text_with_literals_is_one_group(database):
    def work(connection):
        for number in range(3):
            connection.execute(text(f"SELECT title FROM books WHERE id = {number}"))

    recording = database.record(work)

    assert [group.count for group in recording.groups] == [3]


def test_driver_sql_is_recorded_as_it_was_written(database):
    recording = database.record(lambda connection: connection.exec_driver_sql("SELECT count(*) FROM books").all())

    assert [(s.sql, s.summary) for s in recording.statements] == [("SELECT count(*) FROM books", "SELECT books")]


def test_statement_without_parameter_processing_is_recorded(database):
    def work(connection):
        options = {"no_parameters": True}
        return connection.exec_driver_sql("SELECT title FROM books", execution_options=options).all()

    recording = database.record(work)

    assert [(s.sql, s.summary) for s in recording.statements] == [("SELECT title FROM books", "SELECT books")]


@two_drivers
@pytest.mark.parametrize("form", ["{sql} /* {number} */", "/* {number} */ {sql}"], ids=["after", "before"])
def test_statement_to_which_another_tool_adds_a_comment_keeps_its_group_and_size(database, form):
    target = getattr(database.engine, "sync_engine", database.engine)
    numbers = itertools.count()

    @event.listens_for(target, "before_cursor_execute", retval=True)
    def comment(connection, cursor, statement, parameters, context, executemany):
        return form.format(sql=statement, number=next(numbers)), parameters

    def work(connection):
        options = {"insertmanyvalues_page_size": 2}
        connection.execute(insert(books).returning(books.c.id), titles(5), execution_options=options)
        connection.execute(
            update(books).where(books.c.id == bindparam("key")).values(title="new"), [{"key": 1}, {"key": 0}]
        )

    recording = database.record(work)

    assert [(s.summary, s.executemany, s.batch_size) for s in recording.statements] == [
        ("INSERT books", False, 2),
        ("INSERT books", False, 2),
        ("INSERT books", False, 1),
        ("UPDATE books", True, 2),
    ]
    assert sorted(group.count for group in recording.groups) == [1, 3]


@pytest.fixture
def boxes(database):
    """A table whose key is asked of a sequence before each INSERT."""
    metadata = MetaData()
    key = Column("id", Integer, Sequence("box_numbers"), primary_key=True)
    yield Table("boxes", metadata, key, Column("label", String), implicit_returning=False)
    database.run(lambda connection: (metadata.drop_all(connection), connection.commit()))


@postgresql_drivers
def test_sequence_is_a_statement_of_its_own(database, boxes):
    def work(connection):
        connection.execute(insert(boxes), {"label": "first"})
        connection.scalar(boxes.c.id.default)
        connection.commit()

    database.run(lambda connection: (boxes.metadata.create_all(connection), connection.commit()))

    recording = database.record(work)

    assert [(statement.sql.split("(")[0], statement.rows) for statement in recording.statements] == [
        ("select nextval", None),
        ("INSERT INTO boxes ", None),
        ("select nextval", None),
    ]
    assert sorted(group.count for group in recording.groups) == [1, 2]


@pytest.fixture(params=["engine", "class"])
def target(request, database):
    return getattr(database.engine, "sync_engine", database.engine) if request.param == "engine" else Engine


@pytest.fixture
def listen(target):
    listeners = []

    def listen(listener):
        listeners.append(listener)
        event.listen(target, "do_execute", listener)

    yield listen
    for listener in listeners:
        event.remove(target, "do_execute", listener)


@pytest.fixture(params=["all engines", "this engine"])
def engines(request, database):
    """What to give to `instrument`."""
    return [database.engine] if request.param == "this engine" else []


@two_drivers
@pytest.mark.parametrize("first", ["application", "sqltrace"])
def test_listener_of_the_application_runs_once_beside_ours(database, engines, listen, first):
    seen = []

    def look(cursor, statement, parameters, context):
        seen.append(statement)

    if first == "application":
        listen(look)
        sqltrace.instrument(*engines)
    else:
        sqltrace.instrument(*engines)
        listen(look)

    recording = database.record(lambda connection: connection.execute(text("SELECT 1")))

    assert seen == ["SELECT 1"]
    assert [statement.sql for statement in recording.statements] == ["SELECT 1"]


def execute_it(cursor, statement, parameters, context):
    context.dialect.do_execute(cursor, statement, parameters, context)
    return True


@two_drivers
@pytest.mark.parametrize("first", ["application", "sqltrace"])
def test_statement_that_a_listener_of_the_application_executes_runs_once(database, engines, listen, first):
    if first == "application":
        listen(execute_it)
        sqltrace.instrument(*engines)
    else:
        sqltrace.instrument(*engines)
        listen(execute_it)

    database.record(add_books(1))

    assert database.run(read_titles) == ["title 0"]


@two_drivers
def test_statement_that_a_listener_after_ours_executes_is_recorded(database, listen):
    sqltrace.instrument()
    listen(execute_it)

    recording = database.record(add_books(1))

    assert [statement.summary for statement in recording.statements] == ["INSERT books"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("oracle://scott:tiger@db.example.com/?service_name=shop", Database("db.example.com", None, "shop")),
        ("oracle://scott:tiger@db.example.com:1521/shop", Database("db.example.com", 1521, "shop")),
        ("postgresql://scott:ti@ger@db.example.com/shop", Database("db.example.com", None, "shop")),
        ("postgresql://scott:ti@ge/r@db.example.com/shop", Database("db.example.com", None, "shop")),
        ("postgresql:///shop?host=/run/postgresql", Database("/run/postgresql", None, "shop")),
        ("postgresql:///shop?host=db.example.com&port=5433", Database("db.example.com", 5433, "shop")),
        ("postgresql:///shop?host=db1&host=db2&port=5433&port=5434", Database(None, None, "shop")),
        (
            "mssql+pyodbc://scott:tiger@db.example.com:1433/shop?driver=FreeTDS",
            Database("db.example.com", 1433, "shop"),
        ),
        ("sqlite://", Database(None, None, ":memory:")),
        ("sqlite+pysqlite://shop.example.com/?secure=true", Database("shop.example.com", None, None)),  # as libSQL's
        # The name of a data source, which stands for address and database in a file of the system's.
        ("mssql+pyodbc://scott:tiger@shop", Database()),
        ("mssql+aioodbc://scott:tiger@shop/?autocommit=true", Database()),
        ("mysql+pyodbc://scott:tiger@shop/unused?dsn=shop", Database()),
    ],
)
def test_database_is_told_as_the_url_says_it(url, told):
    url = make_url(url)
    dialect = url.get_dialect()()  # needs no driver
    note_database(dialect, url)

    assert database_of(dialect) == told


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("firebird", "firebirdsql"),
        ("clickhouse", "clickhouse"),
        ("clickhousedb", "clickhouse"),
        ("redshift", "aws.redshift"),
        ("hana", "sap.hana"),
        ("ibm_db_sa", "ibm.db2"),
        ("spanner+spanner", "gcp.spanner"),
        ("teradatasql", "teradata"),
        ("trino", "trino"),
        ("duckdb", "other_sql"),
        ("mysql", "mysql"),  # a dialect that is not SQLAlchemy's own, and does not ask for MariaDB
    ],
)
def test_system_is_told_in_the_words_of_the_semantic_conventions(name, system):
    dialect = DefaultDialect()
    dialect.name = name

    assert system_name(dialect) == system
