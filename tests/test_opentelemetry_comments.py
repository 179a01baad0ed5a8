"""What the database itself sees of a request."""

import asyncio
import re
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from sqlalchemy import NullPool, bindparam, create_engine, event, text
from sqlalchemy.dialects import mssql, mysql, oracle, postgresql, sqlite

from sqltrace import RequestRecord, SQLTraceMiddleware
from sqltrace.recording import Recording
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.opentelemetry.comments import Commenter
from tests.asgi import BODY, START, http_scope, run, select
from tests.databases import books
from tests.telemetry import server_span

pytestmark = pytest.mark.usefixtures("no_faults")

ITSELF = {
    "postgresql": "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() AND 1 = :one",
    "mariadb": "SELECT info FROM information_schema.processlist WHERE id = connection_id() AND 1 = :one",
}


class Route:
    path_format = "/100%/{item}/*'"


def commented(work, *others, tracing, **options):
    """A request that does this work, in a thread."""

    async def app(scope, receive, send):
        scope["route"] = Route()
        await asyncio.to_thread(work)
        await send(START)
        await send(BODY)

    options = {"sql_comments": True, **options}
    sinks = [OpenTelemetrySink(tracer_provider=tracing.provider, **options), *others]
    run(SQLTraceMiddleware(app, sinks=sinks), http_scope())


def seen_by_sqlite(engine):
    """What SQLite is sent from now on."""
    statements = []

    @event.listens_for(engine, "checkout")
    def trace(connection, *_):
        connection.set_trace_callback(statements.append)

    return statements


def pairs(statement):
    return {key: unquote(value) for key, value in re.findall(r"(\w+)='([^']*)'", statement.partition("/*")[2])}


def test_database_sees_the_route_the_trace_and_the_line(database, tracing, witness):
    if database.driver.system == "sqlite":
        pytest.skip("SQLite has nothing to be asked")
    seen = []

    def work():
        question = text(ITSELF[database.driver.system])
        database.run(lambda connection: seen.append(connection.execute(question, {"one": 1}).scalar_one()))

    commented(work, witness, tracing=tracing)

    span, told = server_span(tracing.spans()), pairs(seen[0])
    assert told["route"] == "/100%/{item}/*'"
    assert re.fullmatch(r"tests/test_opentelemetry_comments.py:\d+", told["call_site"])
    traceparent = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    assert told.get("traceparent") == (None if database.driver.name == "asyncpg" else traceparent)
    [record] = witness.take()
    assert not any("/*" in statement.sql for statement in record.recording.statements)


@pytest.mark.postgresql
def test_pg8000_which_takes_percent_signs_in_quotes_as_they_are_is_handed_them_once(tracing, postgres_url):
    engine = create_engine(postgres_url.set(drivername="postgresql+pg8000"), poolclass=NullPool)
    seen = []

    def work():
        with engine.connect() as connection:
            seen.append(connection.execute(text(ITSELF["postgresql"]), {"one": 1}).scalar_one())
            seen.append(connection.exec_driver_sql(ITSELF["postgresql"].replace(":one", "1")).scalar_one())

    commented(work, tracing=tracing)

    assert [pairs(statement)["route"] for statement in seen] == ["/100%/{item}/*'"] * 2


def test_all_kinds_of_statements_run_with_it(database, tracing):
    def work(connection):
        connection.execute(books.insert(), {"id": 1, "title": "100%"})
        connection.execute(books.insert(), [{"id": number, "title": f"{number}"} for number in range(2, 9)])
        connection.execute(books.update().where(books.c.id == 1).values(title="50%"))
        rename = books.update().where(books.c.id == bindparam("number")).values(title=bindparam("name"))
        connection.execute(rename, [{"number": number, "name": f"{number}"} for number in (2, 3)])
        connection.execute(books.delete().where(books.c.title.like("5%")))
        remaining.append(connection.execute(books.select().where(books.c.id.in_([1, 2, 3]))).all())
        for options in ({}, {"no_parameters": True}):
            question = "SELECT title FROM books WHERE id = 4;"
            remaining.append(connection.exec_driver_sql(question, execution_options=options).all())

    remaining = []
    commented(lambda: database.run(work), tracing=tracing)

    assert remaining == [[(2, "2"), (3, "3")], [("4",)], [("4",)]]


def test_statements_for_many_rows_and_without_parameters_have_it(memory_engine, tracing):
    statements = seen_by_sqlite(memory_engine)

    def work():
        with memory_engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
            connection.exec_driver_sql("INSERT INTO t VALUES (?)", [(1,), (2,)])
            connection.exec_driver_sql("SELECT x FROM t", execution_options={"no_parameters": True}).all()

    commented(work, tracing=tracing)

    assert [statement.partition("*")[0] for statement in statements if statement.startswith(("INSERT", "SELECT"))] == [
        "INSERT INTO t VALUES (1) /",
        "INSERT INTO t VALUES (2) /",
        "SELECT x FROM t /",
    ]


def test_percent_sign_is_told_once_where_there_are_no_parameters(database, tracing):
    if database.driver.system == "sqlite":
        pytest.skip("SQLite has nothing to be asked")
    question = ITSELF[database.driver.system].removesuffix(" AND 1 = :one")
    seen, options = [], {"no_parameters": True}

    def work():
        database.run(
            lambda connection: seen.append(connection.exec_driver_sql(question, execution_options=options).scalar_one())
        )

    commented(work, tracing=tracing)

    assert pairs(seen[0])["route"] == "/100%/{item}/*'"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 -- why",
        "SELECT 1 /* mine */",
        "SELECT 'a--b' /* mine */",
        "PRAGMA user_version",
    ],
)
def test_what_a_comment_could_break_is_left_alone(memory_engine, tracing, sql):
    statements = seen_by_sqlite(memory_engine)

    def work():
        with memory_engine.connect() as connection:
            connection.execute(text(sql)).all()

    commented(work, tracing=tracing)

    assert sql in statements


@pytest.mark.parametrize(
    ("sql", "commented"),
    [
        ("SELECT 'a--b', '/*'", "SELECT 'a--b', '/*' /*route='x'*/"),
        ("SELECT 1;\n", "SELECT 1 /*route='x'*/;\n"),
        ("SELECT ';'", "SELECT ';' /*route='x'*/"),
        ("(SELECT 1) UNION (SELECT 2)", "(SELECT 1) UNION (SELECT 2) /*route='x'*/"),
        ("merge INTO t USING s ON 1=1;", "merge INTO t USING s ON 1=1 /*route='x'*/;"),
        ("CALL p()", "CALL p() /*route='x'*/"),
        ("REPLACE INTO t VALUES (1)", "REPLACE INTO t VALUES (1) /*route='x'*/"),
        ("VALUES (1)", "VALUES (1) /*route='x'*/"),
        ("SELECT 1;;", "SELECT 1;;"),
        ("EXPLAIN SELECT 1", "EXPLAIN SELECT 1"),
    ],
)
def test_comment_stands_at_the_end_of_what_can_have_one(monkeypatch, sql, commented):
    monkeypatch.setattr("sqltrace.sinks.opentelemetry.comments.find_call_site", lambda: None)

    assert Commenter(RequestRecord(Recording(), "http", "/", route="x"), {})(sql, sqlite.dialect()) == commented


@pytest.mark.parametrize(
    ("dialect", "sql", "comments"),
    [
        (postgresql.psycopg.dialect, "INSERT INTO t VALUES (%s)", True),
        (mysql.dialect, "INSERT INTO t VALUES (%s)", False),
        (mysql.dialect, "replace INTO t VALUES (%s)", False),
        (mysql.dialect, "UPDATE t SET x = %s", True),
    ],
)
def test_insert_of_many_rows_that_a_driver_may_make_one_of_is_left_alone(dialect, sql, comments):
    comment = Commenter(RequestRecord(Recording(), "http", "/", route="x"), {})

    assert (comment(sql, dialect(), "do_executemany") != sql) is comments


def test_comments_are_off_unless_asked_for(memory_engine, tracing):
    statements = seen_by_sqlite(memory_engine)

    def work():
        with memory_engine.connect() as connection:
            connection.execute(text("SELECT 1")).all()

    commented(work, tracing=tracing, sql_comments=False)
    commented(work, tracing=tracing)

    assert [statement.startswith("SELECT 1 /*call_site=") for statement in statements if "SELECT" in statement] == [
        False,
        True,
    ]


def test_statements_outside_of_a_request_have_none(memory_engine, tracing):
    statements = seen_by_sqlite(memory_engine)
    commented(lambda: None, tracing=tracing)
    with memory_engine.connect() as connection:
        connection.execute(text("SELECT 1")).all()

    assert "SELECT 1" in statements


def test_comment_without_a_span_has_the_route_and_the_line(memory_engine):
    statements = seen_by_sqlite(memory_engine)

    commented(lambda: select(memory_engine), tracing=SimpleNamespace(provider=None))

    [statement] = [statement for statement in statements if statement.startswith("SELECT")]
    assert "route='" in statement
    assert "traceparent" not in statement


@pytest.mark.parametrize(
    ("dialect", "told"),
    [
        (sqlite.dialect, True),
        (mysql.dialect, True),
        (postgresql.psycopg.dialect, True),
        (postgresql.asyncpg.dialect, False),
        (type("PSQLPyDialect", (postgresql.psycopg.dialect,), {"driver": "psqlpy"}), False),
        (oracle.dialect, False),
        (mssql.dialect, False),
    ],
    ids=["sqlite", "mysql", "psycopg", "asyncpg", "psqlpy", "oracle", "mssql"],
)
def test_no_trace_is_told_to_what_caches_each_text(tracing, dialect, told):
    comment = Commenter(RequestRecord(Recording(), "http", "/"), {})

    with tracing.provider.get_tracer("application").start_as_current_span("GET"):
        statement = comment("SELECT 1", dialect())

    assert statement.startswith("SELECT 1 /*")
    assert ("traceparent" in statement) is told
