"""What the database itself sees of a request."""

import asyncio
import re
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from sqlalchemy import event, text
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


def test_database_sees_the_route_the_trace_and_the_line(database, tracing, sink):
    if database.driver.system == "sqlite":
        pytest.skip("SQLite has nothing to be asked")
    seen = []

    def work():
        question = text(ITSELF[database.driver.system])
        database.run(lambda connection: seen.append(connection.execute(question, {"one": 1}).scalar_one()))

    commented(work, sink, tracing=tracing)

    span, told = server_span(tracing.spans()), pairs(seen[0])
    assert told["route"] == "/100%/{item}/*'"
    assert re.fullmatch(r"tests/test_opentelemetry_comments.py:\d+", told["call_site"])
    traceparent = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
    assert told.get("traceparent") == (None if database.driver.name == "asyncpg" else traceparent)
    [record] = sink.take(1)
    assert not any("/*" in statement.sql for statement in record.recording.statements)


def test_all_kinds_of_statements_run_with_it(database, tracing):
    def work(connection):
        connection.execute(books.insert(), {"id": 1, "title": "100%"})
        connection.execute(books.insert(), [{"id": number, "title": f"{number}"} for number in range(2, 9)])
        connection.execute(books.update().where(books.c.id == 1).values(title="50%"))
        connection.execute(books.delete().where(books.c.title.like("5%")))
        remaining.append(connection.execute(books.select().where(books.c.id.in_([1, 2, 3]))).all())
        remaining.append(connection.exec_driver_sql("SELECT title FROM books WHERE id = 4").all())

    remaining = []
    commented(lambda: database.run(work), tracing=tracing)

    assert remaining[0] == [(2, "2"), (3, "3")]
    assert len(remaining[1]) == 1


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1 -- why", "SELECT 1 /* mine */", "SELECT 1;", "PRAGMA user_version"],
)
def test_what_a_comment_could_break_is_left_alone(memory_engine, tracing, sql):
    statements = seen_by_sqlite(memory_engine)

    def work():
        with memory_engine.connect() as connection:
            connection.execute(text(sql)).all()

    commented(work, tracing=tracing)

    assert sql in statements


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
        (oracle.dialect, False),
        (mssql.dialect, False),
    ],
    ids=["sqlite", "mysql", "psycopg", "asyncpg", "oracle", "mssql"],
)
def test_no_trace_is_told_to_what_caches_each_text(tracing, dialect, told):
    comment = Commenter(RequestRecord(Recording(), "http", "/"), {})

    with tracing.provider.get_tracer("application").start_as_current_span("GET"):
        statement = comment("SELECT 1", dialect())

    assert statement.startswith("SELECT 1 /*")
    assert ("traceparent" in statement) is told
