"""What the spans of statements say, and which statements have one."""

import asyncio
import sqlite3
import threading
import time
from contextlib import suppress
from contextvars import copy_context

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import StatusCode
from sqlalchemy import NullPool, QueuePool, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.database import Database
from sqltrace.request import RequestRecord
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.opentelemetry.attributes import of_operation, of_request, of_statement
from sqltrace.sinks.opentelemetry.telling import TOLD_ELSEWHERE, Rest, choose
from tests.asgi import BODY, START, Clock, http_scope, run, select, sends, timed
from tests.databases import books
from tests.telemetry import (
    UNSAMPLED,
    Routes,
    Tracing,
    is_below,
    manual,
    names,
    plain,
    server_span,
    statement_spans,
    traced,
)

pytestmark = pytest.mark.usefixtures("no_faults")


def ask(tracing, work, *others, **options):
    """The spans of a request that does this work."""

    async def app(scope, receive, send):
        try:
            await asyncio.to_thread(work)
        finally:
            await send(START)
            await send(BODY)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider, **options)
    run(SQLTraceMiddleware(app, sinks=[sink, *others]), http_scope())
    return tracing.spans()


def test_thousand_equal_statements_are_few_spans_with_the_exact_count_and_sum(memory_engine, tracing, witness):
    spans = ask(tracing, lambda: repeat(memory_engine, 1_000), witness)

    statements = statement_spans(spans)
    assert names(statements) == ["SELECT", "SELECT", "SELECT", "SELECT ×997"]
    attributes, server = statements[-1].attributes, server_span(spans)
    assert attributes["sqltrace.compressed.count"] == 997
    singles = sum(span.end_time - span.start_time for span in statements[:3]) / 1_000_000_000
    [record] = witness.take()
    assert singles + attributes["sqltrace.compressed.sum"] == pytest.approx(record.recording.groups[0].total)
    assert attributes["sqltrace.compressed.rows"] == 997
    assert statements[-1].end_time <= server.end_time


def test_sink_that_has_no_tracer_leaves_the_statements_to_another(memory_engine, tracing):
    async def app(scope, receive, send):
        select(memory_engine)
        await send(START)
        await send(BODY)

    sinks = [OpenTelemetrySink(), OpenTelemetrySink(tracer_provider=tracing.provider)]
    with tracing.provider.get_tracer("app").start_as_current_span("GET /"):
        run(SQLTraceMiddleware(app, sinks=sinks), http_scope())

    assert names(statement_spans(tracing.spans())) == ["SELECT"]


def repeat(engine, count):
    with engine.connect() as connection:
        for number in range(count):
            connection.execute(text("SELECT :number"), {"number": number}).all()


def test_least_and_most_of_the_compressed_are_told(memory_engine, tracing):
    attributes = statement_spans(ask(tracing, lambda: repeat(memory_engine, 20)))[-1].attributes

    mean = attributes["sqltrace.compressed.sum"] / 17
    assert attributes["sqltrace.compressed.min"] <= mean <= attributes["sqltrace.compressed.max"]


def ask_by_clock(tracing, engine, *seconds, first=(), pause=0, max_statements=500, **options):
    """The server span, and those of statements of two rows, each of which takes so many seconds."""
    clock = Clock()

    async def app(scope, receive, send):
        with engine.connect() as connection:
            connection.connection.create_function("wait", 1, clock.advance)
            for query in first:
                with suppress(DBAPIError):
                    connection.execute(text(query)).all()
            for each in seconds:
                connection.execute(text("SELECT wait(:each) FROM (VALUES (1), (2))"), {"each": each}).all()
                clock.advance(pause)
        await send(START)
        await send(BODY)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider, **options)
    run(timed(app, clock, sinks=[sink], max_statements=max_statements), http_scope())
    spans = tracing.spans()
    return server_span(spans), statement_spans(spans)


def placed(span, server):
    """Seconds from the start of the request."""
    return [(time - server.start_time) / 1_000_000_000 for time in (span.start_time, span.end_time)]


def compressed(span):
    start = "sqltrace.compressed."
    return {name.removeprefix(start): value for name, value in span.attributes.items() if name.startswith(start)}


def test_rest_of_a_group_says_what_it_took_and_when(memory_engine, tracing):
    server, statements = ask_by_clock(tracing, memory_engine, 1, 2, 3, 4, 5, 6)

    assert [placed(span, server) for span in statements] == [[0, 2], [2, 6], [6, 12], [12, 42]]
    assert compressed(statements[-1]) == {"count": 3, "sum": 30.0, "min": 8.0, "max": 12.0, "rows": 6}


def test_least_of_a_group_of_which_not_all_were_kept_is_not_known(memory_engine, tracing):
    server, statements = ask_by_clock(tracing, memory_engine, 4, 1, 2, 3, 5, 6, pause=1, max_statements=4)

    assert placed(statements[-1], server) == [17, 47]
    assert compressed(statements[-1]) == {"count": 3, "sum": 28.0, "max": 12.0, "rows": 6}


def test_least_is_not_known_where_the_longest_was_kept_and_another_was_not(memory_engine, tracing):
    *_, rest = ask_by_clock(tracing, memory_engine, 1, 1, 1, 9, 5, 2, max_statements=5)[1]

    assert compressed(rest) == {"count": 3, "sum": 32.0, "max": 18.0, "rows": 6}


def test_rest_of_which_none_was_kept_begins_after_the_last_that_was(memory_engine, tracing):
    server, statements = ask_by_clock(tracing, memory_engine, 4, 1, 2, 3, 5, pause=1, max_statements=3)

    assert placed(statements[-1], server) == [16, 34]
    assert compressed(statements[-1]) == {"count": 2, "sum": 16.0, "max": 10.0, "rows": 4}


def test_rest_lasts_until_the_rows_of_each_of_it_had_been_fetched(memory_engine, tracing):
    clock, query = Clock(), text("SELECT wait(:seconds) FROM (VALUES (1), (2))")

    async def app(scope, receive, send):
        with memory_engine.connect() as connection:
            connection.connection.create_function("wait", 1, clock.advance)
            connection.execute(query, {"seconds": 0}).all()
            read_late = connection.execute(query, {"seconds": 4})
            connection.execute(query, {"seconds": 1}).all()
            read_late.all()
        await send(START)
        await send(BODY)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider, repeats=1)

    run(timed(app, clock, sinks=[sink], max_statements=2), http_scope())

    server, rest = server_span(tracing.spans()), statement_spans(tracing.spans())[-1]
    assert (rest.name, placed(rest, server)) == ("SELECT ×2", [0, 8])


def test_group_of_which_none_was_kept_ends_with_its_last_statement(memory_engine, tracing):
    first = ["SELECT wait(1)", "SELECT wait(1)"]
    server, statements = ask_by_clock(tracing, memory_engine, 1, 2, first=first, pause=5, max_statements=2)

    rest = statements[-1]
    assert placed(rest, server) == [7, 13]
    assert compressed(rest) == {"count": 2, "sum": 6.0, "max": 4.0, "rows": 4}


@pytest.mark.parametrize(("seconds", "place"), [((1, 3), [7, 13]), ((3, 1), [11, 13])], ids=["longer", "shorter"])
def test_one_that_was_not_kept_has_its_own_time(memory_engine, tracing, seconds, place):
    server, statements = ask_by_clock(tracing, memory_engine, *seconds, pause=5, max_statements=1)

    took = float(place[1] - place[0])
    assert names(statements) == ["SELECT", "SELECT"]
    assert placed(statements[-1], server) == place
    assert compressed(statements[-1]) == {"count": 1, "sum": took, "min": took, "max": took, "rows": 2}


def test_rest_that_has_failed_altogether_is_an_error(memory_engine, tracing):
    first = ["SELECT 1"] * 3 + ["SELECT * FROM nowhere"] * 2
    _, [*_, rest, last] = ask_by_clock(tracing, memory_engine, 3, first=first, max_statements=3)

    assert (rest.name, rest.status.status_code) == ("SELECT nowhere ×2", StatusCode.ERROR)
    assert (rest.attributes["error.type"], compressed(rest)["failed"]) == ("sqlite3.OperationalError", 2)
    assert last.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("max_statements", [500, 3], ids=["kept", "not kept"])
def test_failed_statement_is_told_itself_before_costlier_ones(memory_engine, tracing, max_statements):
    first = ["SELECT 1"] * 3 + ["SELECT * FROM nowhere"]
    _, statements = ask_by_clock(tracing, memory_engine, 1, 2, first=first, max_statements=max_statements, max_spans=2)

    assert sorted(names(statements)) == ["(other statements) ×5", "SELECT nowhere"]


def test_rest_of_many_groups_lasts_from_the_first_to_the_last_of_them(memory_engine, tracing):
    first = ["SELECT wait(1)", "SELECT wait(9), 1", "SELECT wait(2), 1, 1"]
    server, statements = ask_by_clock(tracing, memory_engine, first=first, max_spans=2)

    [rest] = [span for span in statements if compressed(span)]
    assert placed(rest, server) == [0, 12]
    assert compressed(rest) == {"count": 2, "sum": 3.0, "min": 1.0, "max": 2.0, "rows": 2}


@pytest.mark.parametrize(
    ("max_spans", "expected"),
    [(2, ["(other statements) ×4", "SELECT"]), (3, ["(other statements) ×2", "SELECT", "SELECT ×2"])],
)
def test_rest_costs_what_its_statements_took_however_far_they_lie_apart(memory_engine, tracing, max_spans, expected):
    first = ["SELECT wait(6), 1", "SELECT wait(3), 1, 1"]
    options = {"pause": 20, "repeats": 1, "max_spans": max_spans}
    _, statements = ask_by_clock(tracing, memory_engine, 1, 1, 1, first=first, **options)

    assert sorted(names(statements)) == expected


def test_cap_keeps_what_is_known_of_groups_that_were_compressed_before(memory_engine, tracing):
    *_, rest = ask_by_clock(tracing, memory_engine, 5, 1, 2, 3, 4, max_spans=1)[1]

    assert (rest.name, compressed(rest)) == (
        "(other statements) ×5",
        {"count": 5, "sum": 30.0, "min": 2.0, "max": 10.0, "rows": 10},
    )


def test_least_beyond_the_cap_is_not_known_where_that_of_a_group_is_not(memory_engine, tracing):
    first = ["SELECT wait(9), 1"]
    *_, rest = ask_by_clock(tracing, memory_engine, 4, 1, 2, 3, 5, first=first, max_statements=4, max_spans=1)[1]

    assert compressed(rest) == {"count": 6, "sum": 39.0, "max": 10.0, "rows": 11}


def test_failures_beyond_the_cap_are_counted(memory_engine, tracing):
    first = [f"SELECT * FROM nowhere{letter}" for letter in "abcd"]
    _, statements = ask_by_clock(tracing, memory_engine, 1, first=first, max_spans=3)

    failed = [span for span in statements if span.status.status_code is StatusCode.ERROR]
    [rest] = [span for span in statements if compressed(span)]
    assert len(failed) == 2
    assert compressed(rest) == {"count": 3, "sum": 2.0, "min": 0.0, "max": 2.0, "rows": 2, "failed": 2}


@pytest.mark.parametrize(
    ("max_spans", "expected"),
    [
        (1, ["(other statements) ×8"]),
        (2, ["(other statements) ×4"] * 2),
        (3, ["SELECT", "(other statements) ×3", "(other statements) ×4"]),
        (8, ["SELECT"] * 8),
    ],
)
def test_work_after_the_response_does_not_exceed_the_cap(memory_engine, tracing, max_spans, expected):
    clock = Clock()

    async def app(scope, receive, send):
        with memory_engine.connect() as connection:
            connection.connection.create_function("wait", 1, clock.advance)
            for number in range(4):
                connection.execute(text(f"SELECT wait(2) AS before{number}")).all()
            await sends(START, BODY)(scope, receive, send)
            clock.advance(0.001)
            for number in range(4):
                connection.execute(text(f"SELECT wait(1) AS after{number}")).all()

    run(
        timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider, max_spans=max_spans)]),
        http_scope(),
    )

    statements = statement_spans(tracing.spans())
    assert names(statements) == expected
    assert sum(compressed(span).get("count", 1) for span in statements) == 8


def test_only_one_beyond_the_cap_of_its_phase_is_told_itself(memory_engine, tracing):
    clock = Clock()

    async def app(scope, receive, send):
        with memory_engine.connect() as connection:
            connection.connection.create_function("wait", 1, clock.advance)
            connection.execute(text("SELECT wait(1)")).all()
            await sends(START, BODY)(scope, receive, send)
            clock.advance(0.001)
            for number in range(2):
                connection.execute(text(f"SELECT wait(2) AS after{number}")).all()

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider, max_spans=2)]), http_scope())

    assert names(statement_spans(tracing.spans())) == ["SELECT", "(other statements) ×2"]


def test_as_many_as_the_cap_are_told_one_by_one(memory_engine, tracing):
    assert names(statement_spans(ask(tracing, lambda: different(memory_engine, 5), max_spans=5))) == ["SELECT"] * 5


def test_one_more_than_the_repeats_is_told_itself(memory_engine, tracing):
    statements = statement_spans(ask(tracing, lambda: repeat(memory_engine, 4)))

    assert [(span.name, compressed(span)) for span in statements] == [("SELECT", {})] * 4


def test_repeats_are_an_option(memory_engine, tracing):
    spans = statement_spans(ask(tracing, lambda: repeat(memory_engine, 9), repeats=1))

    assert names(spans) == ["SELECT", "SELECT ×8"]


def different(engine, count):
    with engine.connect() as connection:
        for number in range(count):
            connection.execute(text(f"SELECT 1 AS column_{number}")).all()


def test_cap_keeps_the_totals(memory_engine, tracing, witness):
    spans = ask(tracing, lambda: different(memory_engine, 30), witness, max_spans=10)

    statements = statement_spans(spans)
    assert len(statements) == 10
    [rest] = [span for span in statements if "sqltrace.compressed.count" in span.attributes]
    assert rest.name == "(other statements) ×21"
    [record] = witness.take()
    assert sum(
        span.attributes.get("sqltrace.compressed.sum", (span.end_time - span.start_time) / 1_000_000_000)
        for span in statements
    ) == pytest.approx(sum(group.total for group in record.recording.groups))


def test_cap_counts_all_of_those_that_were_compressed(memory_engine, tracing):
    def work():
        for _ in range(10):
            different(memory_engine, 5)

    statements = statement_spans(ask(tracing, work, repeats=1, max_spans=3))

    assert len(statements) == 3
    assert sum(span.attributes.get("sqltrace.compressed.count", 1) for span in statements) == 50


def test_statements_that_were_not_kept_are_in_the_counts(memory_engine, tracing):
    def work():
        repeat(memory_engine, 600)
        different(memory_engine, 3)

    statements = statement_spans(ask(tracing, work))

    assert sum(span.attributes.get("sqltrace.compressed.count", 1) for span in statements) == 603


def test_statement_says_where_it_went_and_what_came_back(database, tracing):
    def work(connection):
        connection.execute(books.insert(), {"id": 1, "title": "one"})
        connection.execute(text("SELECT 'secret', title FROM books")).all()

    spans = statement_spans(ask(tracing, lambda: database.run(work)))

    [span] = [span for span in spans if span.name == "SELECT books"]
    attributes, url = span.attributes, database.engine.url
    assert attributes["db.system.name"] == database.driver.system
    assert attributes["db.namespace"] == url.database
    assert attributes.get("server.address") == url.host
    assert "server.port" not in attributes
    assert attributes["db.query.text"] == "SELECT ?, title FROM books"
    assert attributes["db.query.summary"] == "SELECT books"
    assert attributes["db.response.returned_rows"] == 1
    assert attributes["code.function.name"].endswith("work")
    assert attributes["code.file.path"] == __file__
    assert span.end_time - span.start_time >= attributes["sqltrace.fetch"] * 1_000_000_000


def test_statement_whose_line_was_not_looked_for_has_that_of_its_group(memory_engine, tracing):
    statements = statement_spans(ask(tracing, lambda: repeat(memory_engine, 30), repeats=30))

    assert [span.attributes["code.function.name"] for span in statements] == ["repeat"] * 30


def test_statement_that_no_line_of_the_application_runs_has_none(memory_engine, tracing):
    async def app(scope, receive, send):
        thread = threading.Thread(target=copy_context().run, args=(connection.exec_driver_sql, "SELECT 1"))
        thread.start()
        thread.join()
        await send(START)
        await send(BODY)

    with memory_engine.connect() as connection:
        run(SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())
        [span] = statement_spans(tracing.spans())

    assert span.attributes["db.query.summary"] == "SELECT"
    assert {name: value for name, value in span.attributes.items() if name.startswith("code.")} == {}


def test_slowest_that_is_told_itself_is_not_among_the_compressed(memory_engine, tracing):
    def work():
        with memory_engine.connect() as connection:
            connection.connection.create_function("wait", 1, time.sleep)
            for seconds in (0.05, *[0] * 600):  # of which not all are kept
                connection.execute(text("SELECT wait(:seconds)"), {"seconds": seconds}).all()

    *singles, rest = statement_spans(ask(tracing, work))

    assert singles[0].end_time - singles[0].start_time >= 50_000_000
    assert rest.attributes["sqltrace.compressed.count"] == 598
    assert rest.attributes["sqltrace.compressed.max"] < 0.05


def test_failed_statement_says_the_error_of_the_driver(database, tracing):
    def work():
        with pytest.raises(DBAPIError):
            database.run(lambda connection: connection.execute(text("SELECT * FROM no_such_table")))

    [span] = statement_spans(ask(tracing, work))

    assert span.status.status_code is StatusCode.ERROR
    assert not span.attributes["error.type"].startswith("sqlalchemy.")
    assert span.attributes["db.response.status_code"] in ("42P01", "1146", "SQLITE_ERROR")


def test_each_failed_statement_has_a_span(memory_engine, tracing):
    def work():
        with memory_engine.connect() as connection:
            for _ in range(6):
                with pytest.raises(DBAPIError):
                    connection.execute(text("SELECT * FROM no_such_table"))

    spans = statement_spans(ask(tracing, work))

    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 6


def test_one_more_than_the_repeats_beside_failures_is_told_itself(memory_engine, tracing):
    def work():
        with memory_engine.connect() as connection:
            for number in range(5):
                with suppress(DBAPIError):
                    connection.execute(text("SELECT abs(:number)"), {"number": number or -(2**63)})

    statements = statement_spans(ask(tracing, work))

    assert [(span.name, compressed(span)) for span in statements] == [("SELECT", {})] * 5


def test_failed_statement_after_more_than_the_repeats_is_told_itself(memory_engine, tracing):
    def work():
        with memory_engine.connect() as connection:
            for number in (1, 2, 3, 4, 5, 0):
                with suppress(DBAPIError):
                    connection.execute(text("SELECT abs(:number)"), {"number": number or -(2**63)})

    statements = statement_spans(ask(tracing, work))

    failed = [span for span in statements if span.status.status_code is StatusCode.ERROR]
    assert (len(statements), [compressed(span) for span in failed]) == (5, [{}])


def test_failures_that_have_a_span_are_not_told_again_by_the_compressed(memory_engine, tracing):
    def work():
        with memory_engine.connect() as connection:
            for number in [0, *range(1, 8)]:
                with suppress(DBAPIError):
                    connection.execute(text("SELECT abs(:number)"), {"number": number or -(2**63)})

    attributes = statement_spans(ask(tracing, work))[-1].attributes

    assert attributes["sqltrace.compressed.count"] == 4
    assert "sqltrace.compressed.failed" not in attributes


def test_batch_is_told_as_one(database, tracing):
    rows = [{"id": number, "title": f"number {number}"} for number in range(1, 6)]
    insert = text("INSERT INTO books (id, title) VALUES (:id, :title)")

    [span] = statement_spans(ask(tracing, lambda: database.run(lambda connection: connection.execute(insert, rows))))

    assert span.name == "BATCH INSERT books"
    assert span.attributes["db.operation.batch.size"] == 5


@pytest.mark.parametrize(
    ("database", "told"),
    [
        (
            Database("db.example.com", 6543, "shop"),
            {"db.namespace": "shop", "server.address": "db.example.com", "server.port": 6543},
        ),
        (Database("db.example.com", 5432), {"server.address": "db.example.com"}),
        (Database(namespace="shop"), {"db.namespace": "shop"}),
        (None, {}),
    ],
)
def test_port_is_told_where_it_is_not_the_usual_one(database, told):
    assert of_operation("postgresql", None, database) == {"db.system.name": "postgresql"} | told


@pytest.mark.parametrize(
    ("system", "port"),
    [("postgresql", 5432), ("mysql", 3306), ("mariadb", 3306), ("microsoft.sql_server", 1433), ("oracle.db", 1521)],
)
def test_usual_port_is_that_of_the_database(system, port):
    ports = [of_operation(system, None, Database("db", number)).get("server.port") for number in (port, port + 1)]

    assert ports == [None, port + 1]


def test_rest_of_a_group_has_its_times_without_waiting_for_the_loop(memory_engine):
    sqltrace.instrument()
    with sqltrace.record() as recording:
        for _ in range(4):
            select(memory_engine)
    [(group, executions)] = recording.executions()
    for seconds, execution in enumerate(executions, start=1):
        execution.ended, execution.fetch = execution.started + seconds * 1_000_000_000, 0
        execution.loop_wait = 500_000_000
    group.total = 8.0

    [_, told] = choose(recording, repeats=1, most=10)

    assert (told.rest.count, told.rest.total, told.rest.least, told.rest.most) == (3, 7.5, 1.5, 3.5)


def test_rest_of_a_group_is_without_what_another_instrumentation_tells(memory_engine):
    sqltrace.instrument()
    with sqltrace.record() as recording, memory_engine.connect() as connection:
        for number in (0, 0, 1, 2, 3, 4):
            with suppress(DBAPIError):
                connection.execute(text("SELECT abs(:number)"), {"number": number or -(2**63)}).all()
    [(group, executions)] = recording.executions()
    for seconds, execution in enumerate(executions, start=1):
        execution.ended, execution.fetch = execution.started + seconds * 1_000_000_000, 0
    executions[0].span = executions[5].span = TOLD_ELSEWHERE  # one that failed, and the longest
    group.total, group._longest = 21.0, 6_000_000_000

    *_, told = choose(recording, repeats=1, most=10)

    assert told.rest == Rest(count=2, total=9.0, least=4.0, most=5.0, rows=2, failed=0)
    group.count += 1  # one was not kept
    *_, told = choose(recording, repeats=1, most=10)
    assert (told.rest.count, told.rest.least, told.rest.most) == (3, None, 5.0)


def test_times_of_a_statement_are_told_in_seconds(memory_engine):
    sqltrace.instrument()
    with sqltrace.record() as recording:
        select(memory_engine)
        time.sleep(0.07)
    [(group, [execution])] = recording.executions()
    times = {"fetch": 0.5, "objects": 0.25, "loop_wait": 0.125, "gil_wait": 0.0625}
    for name, seconds in times.items():
        setattr(execution, name, round(seconds * 1_000_000_000))
    group.gil_wait = 0.0625

    told = of_statement(group, execution, None, literals=False)

    assert {name: told[f"sqltrace.{name}"] for name in times} == times
    assert of_request(RequestRecord(recording, "http", "/"))["sqltrace.python.gil_wait"] == 0.0625


def test_statement_is_below_the_span_that_was_current(memory_engine, tracing):
    def work():
        with tracing.provider.get_tracer("application").start_as_current_span("loading"):
            select(memory_engine)

    spans = ask(tracing, work)

    [statement], [loading] = statement_spans(spans), [span for span in spans if span.name == "loading"]
    assert statement.parent.span_id == loading.context.span_id
    assert is_below(statement, server_span(spans), spans)


def test_each_statement_is_below_the_span_that_was_current_when_it_ran(memory_engine, tracing):
    def work():
        tracer = tracing.provider.get_tracer("application")
        select(memory_engine)
        for name in ("first", "second"):
            with tracer.start_as_current_span(name):
                select(memory_engine)
        select(memory_engine)

    spans = ask(tracing, work)

    parents = {span.context.span_id: span.name for span in spans}
    assert [parents[span.parent.span_id] for span in statement_spans(spans)] == ["GET", "first", "second", "GET"]


def test_statement_where_no_span_is_current_is_below_that_of_the_server(memory_engine, tracing):
    def work():
        otel_context.attach(Context())
        select(memory_engine)

    spans = ask(tracing, work)

    assert [span.parent.span_id for span in statement_spans(spans)] == [server_span(spans).context.span_id]


def test_what_is_within_a_span_that_is_not_sampled_has_none(small_pool):
    tracing, unsampled = Tracing(sampler=ALWAYS_ON), Tracing(sampler=ALWAYS_OFF)

    def work():
        tracer = unsampled.provider.get_tracer("application")
        with tracer.start_as_current_span("loading"), small_pool.connect() as one, pytest.raises(PoolTimeoutError):
            one.execute(text("SELECT 1"))
            small_pool.connect()

    assert names(ask(tracing, work)) == ["GET"]


def test_work_after_the_response_has_a_span_that_links_to_the_request(memory_engine, tracing):
    TestClient(traced(plain, memory_engine, tracing.provider)).get("/background")

    spans = tracing.spans()
    server, [after] = server_span(spans), [span for span in spans if span.name == "GET /background after response"]
    assert [link.context.span_id for link in after.links] == [server.context.span_id]
    assert after.start_time >= server.end_time
    assert [span.parent.span_id for span in statement_spans(spans)] == [server.context.span_id, after.context.span_id]


def test_span_of_work_after_a_response_without_a_route_has_no_path_in_its_name(memory_engine, tracing):
    async def app(scope, receive, send):
        await send(START)
        await send(BODY)
        select(memory_engine)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider)
    run(SQLTraceMiddleware(app, sinks=[sink]), http_scope("/users/anna", method="BREW"))

    assert sorted(names(tracing.spans())) == ["HTTP", "HTTP after response", "SELECT"]


def test_all_work_after_the_response_has_one_span(memory_engine, tracing):
    async def app(scope, receive, send):
        await send(START)
        await send(BODY)
        select(memory_engine, 2)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider)
    run(SQLTraceMiddleware(app, sinks=[sink]), http_scope())

    spans = tracing.spans()
    [after] = [span for span in spans if span.name.endswith("after response")]
    assert {span.parent.span_id for span in statement_spans(spans)} == {after.context.span_id}


def test_span_of_work_after_the_response_lasts_as_long_as_that(memory_engine, tracing):
    clock = Clock()

    async def app(scope, receive, send):
        clock.advance(2)
        await send(START)
        await send(BODY)
        clock.advance(3)
        select(memory_engine)
        clock.advance(5)

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    spans = tracing.spans()
    server, [after] = server_span(spans), [span for span in spans if span.name.endswith("after response")]
    assert placed(after, server) == [2, 10]


def test_request_that_another_instrumentation_leaves_out_has_no_spans(memory_engine, tracing):
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    excluded = pytest.importorskip("opentelemetry.util.http").ExcludeList(["sync"])
    app = asgi.OpenTelemetryMiddleware(
        Starlette(routes=Routes(memory_engine).list), excluded_urls=excluded, tracer_provider=tracing.provider
    )
    sink = OpenTelemetrySink(tracer_provider=tracing.provider)

    response = TestClient(SQLTraceMiddleware(app, sinks=[sink])).get("/sync/1")

    assert (response.text, tracing.spans()) == ("fine", ())


def test_request_in_a_span_that_somebody_else_does_not_sample_has_no_spans(memory_engine):
    tracing = Tracing(sampler=ALWAYS_OFF)

    response = TestClient(traced(manual, memory_engine, tracing.provider)).get("/sync/1")

    assert (response.text, tracing.spans()) == ("fine", ())


@pytest.mark.parametrize("headers", [UNSAMPLED, {}], ids=["by the caller", "here"])
def test_unsampled_request_has_no_spans(memory_engine, headers):
    tracing = Tracing() if headers else Tracing(sampler=ALWAYS_OFF)

    response = TestClient(traced(plain, memory_engine, tracing.provider)).get("/sync/1", headers=headers)

    assert response.text == "fine"
    assert tracing.spans() == ()


def test_nothing_is_noted_of_the_statements_of_an_unsampled_request(memory_engine, witness):
    tracing = Tracing(sampler=ALWAYS_OFF)
    otel = OpenTelemetrySink(tracer_provider=tracing.provider)

    async def app(scope, receive, send):
        select(memory_engine)
        await send(START)
        await send(BODY)

    run(SQLTraceMiddleware(app, sinks=[otel, witness]), http_scope())

    [record] = witness.take()
    assert [statement.span for statement in record.recording.statements] == [None]


@pytest.fixture
def small_pool(tmp_path):
    """Of one connection, for which nobody waits long."""
    options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    engine = create_engine(f"sqlite:///{tmp_path}/test.db", **options)
    yield engine
    engine.dispose()


def test_wait_for_a_connection_has_a_span(tracing, small_pool):
    def work():
        with pytest.raises(PoolTimeoutError):
            small_pool.connect()

    with sqltrace.record("nightly"), small_pool.connect():
        spans = ask(tracing, work)

    server, [wait] = server_span(spans), [span for span in spans if span.name == "connection"]
    assert is_below(wait, server, spans)
    assert server.attributes["sqltrace.connection.held_by"] == ("nightly",)
    waited = (wait.end_time - wait.start_time) / 1_000_000_000
    assert waited == pytest.approx(server.attributes["sqltrace.time.connection"], abs=0.001)


def test_span_of_a_connection_says_of_which_pool_it_was_and_what_it_waited_for(tracing, small_pool, tmp_path):
    def work():
        with pytest.raises(PoolTimeoutError):
            small_pool.connect()

    with sqltrace.record("nightly"), small_pool.connect():
        spans = ask(tracing, work)

    [wait] = [span for span in spans if span.name == "connection"]
    waited = wait.attributes["sqltrace.connection.wait"]
    assert dict(wait.attributes) == {
        "db.client.connection.pool.name": f"{tmp_path}/test.db",
        "sqltrace.connection.wait": waited,
        "sqltrace.connection.connect": 0.0,
        "error.type": "sqlalchemy.exc.TimeoutError",
    }
    assert 0.05 <= waited <= (wait.end_time - wait.start_time) / 1_000_000_000
    assert wait.status.status_code is StatusCode.ERROR


@pytest.mark.postgresql
def test_connection_that_the_database_refuses_is_a_failed_span_however_short_it_was(tracing, postgres_url):
    engine = create_engine(postgres_url.set(drivername="postgresql+psycopg", database="nowhere"))

    def work():
        with pytest.raises(DBAPIError):
            engine.connect()

    spans = ask(tracing, work)

    [refused] = [span for span in spans if span.name == "connection"]
    assert refused.attributes["error.type"] == "psycopg.OperationalError"
    assert refused.attributes["sqltrace.connection.connect"] > 0
    assert refused.status.status_code is StatusCode.ERROR


@pytest.fixture
def slow_to_connect(clock):
    """An engine that takes 10 ms, by the clock, for each connection."""

    def connect():
        clock.advance(0.01)
        return sqlite3.connect(":memory:")

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def test_connection_that_could_be_opened_is_no_failed_span(tracing, clock, slow_to_connect):
    async def app(scope, receive, send):
        slow_to_connect.connect().close()
        await send(START)
        await send(BODY)

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    [opened] = [span for span in tracing.spans() if span.name == "connection"]
    assert opened.attributes["sqltrace.connection.connect"] == 0.01
    assert (opened.status.status_code, "error.type" in opened.attributes) == (StatusCode.UNSET, False)


def test_wait_for_a_connection_within_a_span_of_the_application_is_below_it(tracing, small_pool):
    def work():
        tracer = tracing.provider.get_tracer("application")
        with tracer.start_as_current_span("loading"), pytest.raises(PoolTimeoutError):
            small_pool.connect()

    with sqltrace.record("nightly"), small_pool.connect():
        spans = ask(tracing, work)

    [loading] = [span for span in spans if span.name == "loading"]
    [wait] = [span for span in spans if span.name == "connection"]
    assert wait.parent.span_id == loading.context.span_id
    assert loading.start_time <= wait.start_time + 1_000_000
    assert wait.end_time <= loading.end_time + 1_000_000


def test_connection_that_is_asked_for_at_the_very_end_of_the_response_is_of_the_response(
    tracing, clock, slow_to_connect
):
    async def app(scope, receive, send):
        slow_to_connect.connect().close()
        await send(START)
        await send(BODY)
        slow_to_connect.connect().close()
        slow_to_connect.connect().close()

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    spans = {span.context.span_id: span.name for span in tracing.spans()}
    above = [spans[span.parent.span_id] for span in tracing.spans() if span.name == "connection"]
    assert above == ["GET", "GET", "GET after response"]


@pytest.mark.parametrize("statements", [1, 20])
def test_statements_that_another_instrumentation_tells_are_not_told_twice(memory_engine, tracing, statements):
    contrib = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
    instrumentor = contrib.SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=memory_engine, tracer_provider=tracing.provider, skip_dep_check=True)
    try:
        spans = ask(tracing, lambda: repeat(memory_engine, statements))
    finally:
        instrumentor.uninstrument()

    told = [span for span in statement_spans(spans) if span.name != "connect"]
    assert len(told) == statements
    assert {span.instrumentation_scope.name for span in told} == {"opentelemetry.instrumentation.sqlalchemy"}
    assert server_span(spans).attributes["sqltrace.statement.count"] == statements


@pytest.mark.parametrize("max_statements", [500, 8])
def test_statements_of_an_engine_that_another_instrumentation_leaves_out_are_told(
    memory_engine, tracing, max_statements
):
    contrib = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
    other = create_engine("sqlite://")

    async def app(scope, receive, send):
        repeat(memory_engine, 1)
        repeat(other, 10)
        repeat(memory_engine, 1)
        await sends(START, BODY)(scope, receive, send)

    instrumentor = contrib.SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=memory_engine, tracer_provider=tracing.provider, skip_dep_check=True)
    sink = OpenTelemetrySink(tracer_provider=tracing.provider)
    try:
        run(SQLTraceMiddleware(app, sinks=[sink], max_statements=max_statements), http_scope())
    finally:
        instrumentor.uninstrument()
        other.dispose()

    *singles, rest = [s for s in statement_spans(tracing.spans()) if s.instrumentation_scope.name == "sqltrace"]
    count = 7 if max_statements == 500 else 8  # of one that is not kept nobody knows whether it has a span
    assert names(singles) == ["SELECT"] * 3
    assert (rest.name, rest.attributes["sqltrace.compressed.rows"]) == (f"SELECT ×{count}", count)


def test_wait_for_a_connection_of_a_request_without_a_span_has_none(tracing, small_pool):
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    excluded = pytest.importorskip("opentelemetry.util.http").ExcludeList(["wait"])

    def wait(request):
        with pytest.raises(PoolTimeoutError):
            small_pool.connect()
        return PlainTextResponse("fine")

    app = asgi.OpenTelemetryMiddleware(
        Starlette(routes=[Route("/wait", wait)]), excluded_urls=excluded, tracer_provider=tracing.provider
    )
    client = TestClient(SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]))
    with small_pool.connect():
        response = client.get("/wait")

    assert (response.text, tracing.spans()) == ("fine", ())
