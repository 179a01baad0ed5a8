"""What metrics say: all statements, the time account of each route, and what nobody else has measured."""

import asyncio
import gc
import sys
import threading
import time
from contextlib import suppress

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.collector import FOLD_AT, Execution, unmeasurable
from sqltrace.finding import Finding
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.opentelemetry import metrics as ours
from tests.asgi import BODY, START, Clock, Witness, http_scope, run, sends, timed
from tests.loops import block, get, thrice
from tests.telemetry import STACKS, Meters, Routes, metric_names, native

pytestmark = pytest.mark.usefixtures("no_faults")


def client_of(engine, meters, *, sinks=(), **options):
    app = Starlette(routes=Routes(engine).list)
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider), *sinks], **options)
    return TestClient(app, raise_server_exceptions=False)


def test_every_statement_is_measured(memory_engine, meters):
    client = client_of(memory_engine, meters)
    for _ in range(3):
        client.get("/sync/1")

    points = {point.attributes["db.query.summary"]: point for point in meters.points("db.client.operation.duration")}
    assert {summary: point.count for summary, point in points.items()} == {"SELECT": 6}
    [point] = points.values()
    assert dict(point.attributes) == {
        "db.system.name": "sqlite",
        "db.namespace": ":memory:",
        "db.query.summary": "SELECT",
    }
    assert [(point.count, point.sum) for point in meters.points("db.client.response.returned_rows")] == [(6, 6)]


def test_provider_is_asked_for_a_meter_once(memory_engine, meters, monkeypatch):
    asked, get_meter = [], meters.provider.get_meter
    monkeypatch.setattr(meters.provider, "get_meter", lambda *args, **kwargs: asked.append(args) or get_meter(*args))
    client = client_of(memory_engine, meters)
    for _ in range(3):
        client.get("/sync/1")

    assert [name for name, *_ in asked] == ["sqltrace"]


def test_provider_is_asked_for_a_meter_once_by_several_threads(meters, monkeypatch):
    asked, get_meter = [], meters.provider.get_meter

    def ask(*args, **kwargs):
        asked.append(args)
        time.sleep(0.05)
        return get_meter(*args)

    monkeypatch.setattr(meters.provider, "get_meter", ask)
    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[OpenTelemetrySink(meter_provider=meters.provider)])
    threads = [threading.Thread(target=run, args=(middleware, http_scope())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(asked) == 1
    assert [point.count for point in meters.points("sqltrace.request.statements")] == [2]


@pytest.mark.parametrize("max_statements", [500, 1])
def test_each_of_two_providers_measures_all(memory_engine, meters, max_statements):
    both = [meters, Meters()]
    app = Starlette(routes=Routes(memory_engine).list)
    sinks = [OpenTelemetrySink(meter_provider=each.provider) for each in both]
    app.add_middleware(SQLTraceMiddleware, sinks=sinks, max_statements=max_statements)
    TestClient(app).get("/many/20")

    for name in ("http.server.request.duration", "sqltrace.request.statements", "db.client.operation.duration"):
        assert [sum(point.count for point in each.points(name)) for each in both] == [20 if "db." in name else 1] * 2
    both[1].provider.shutdown()


def test_provider_of_two_sinks_measures_once(meters, tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    app = Starlette(routes=Routes(engine).list)
    sinks = [OpenTelemetrySink(meter_provider=meters.provider) for _ in range(2)]
    app.add_middleware(SQLTraceMiddleware, sinks=sinks)
    TestClient(app).get("/sync/1")
    engine.dispose()

    for name in ("http.server.request.duration", "db.client.connection.use_time"):
        assert [point.count for point in meters.points(name)] == [1]


def test_sum_of_durations_is_that_of_the_recordings(memory_engine, meters):
    witness = Witness()
    client_of(memory_engine, meters, sinks=[witness]).get("/many/30")

    [record] = witness.records
    [point] = meters.points("db.client.operation.duration")
    assert point.count == 30
    assert point.sum == pytest.approx(sum(group.total for group in record.recording.groups))


def test_statements_beyond_those_that_are_kept_are_measured_too(memory_engine, meters):
    witness = Witness()
    client_of(memory_engine, meters, sinks=[witness], max_statements=10).get("/many/2000")

    [record] = witness.records
    [point] = meters.points("db.client.operation.duration")
    assert len(record.recording.statements) == 10
    assert point.count == 2000
    assert point.sum == pytest.approx(sum(group.total for group in record.recording.groups), rel=0.02)
    assert sum(point.bucket_counts) == 2000
    [rows] = meters.points("db.client.response.returned_rows")
    assert (rows.count, rows.sum) == (2000, 2000)


def test_time_account_is_measured_for_each_route(memory_engine, meters):
    witness = Witness()
    client = client_of(memory_engine, meters, sinks=[witness])
    for item in (1, 2):
        client.get(f"/sync/{item}")

    for part in ("connection", "database", "objects", "loop_wait", "python"):
        [point] = meters.points(f"sqltrace.request.{part}")
        assert dict(point.attributes) == {"http.route": "/sync/{item}", "http.request.method": "GET"}
        assert point.count == 2
        assert point.sum == pytest.approx(sum(getattr(r.recording.time_account, part) for r in witness.records))
    assert [(p.count, p.sum) for p in meters.points("sqltrace.request.statements")] == [(2, 4)]
    assert [(p.count, p.sum) for p in meters.points("sqltrace.request.rows")] == [(2, 4)]


def test_part_of_the_time_that_is_not_known_has_no_points(memory_engine, meters):
    unmeasurable.add("objects")
    try:
        client_of(memory_engine, meters).get("/sync/1")
    finally:
        unmeasurable.discard("objects")

    assert meters.points("sqltrace.request.objects") == []
    assert [point.count for point in meters.points("sqltrace.request.database")] == [1]


def test_findings_are_counted_by_kind(memory_engine, meters):
    def many(recording):
        return [Finding("many", "too many", 0.1)] if recording.statement_count > 10 else []

    client = client_of(memory_engine, meters, rules=[many])
    for path in ("/many/40", "/many/20", "/sync/1"):
        client.get(path)

    [point] = meters.points("sqltrace.findings")
    assert point.value == 2
    assert dict(point.attributes) == {
        "sqltrace.finding.kind": "many",
        "http.route": "/many/{count}",
        "http.request.method": "GET",
    }


def test_statement_that_failed_has_an_error_type(memory_engine, meters):
    def fail(request):
        with memory_engine.connect() as connection:
            connection.execute(text("SELECT * FROM nowhere"))

    app = Starlette(routes=[Route("/", fail)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)])
    TestClient(app, raise_server_exceptions=False).get("/")

    [point] = meters.points("db.client.operation.duration")
    assert point.attributes["error.type"] == "sqlite3.OperationalError"
    [point] = meters.points("http.server.request.duration")
    assert point.attributes["http.response.status_code"] == 500
    assert point.attributes["error.type"] == "sqlalchemy.exc.OperationalError"


def test_duration_of_requests_is_measured_where_nobody_else_does(memory_engine, meters):
    client = client_of(memory_engine, meters)
    client.get("/sync/1")
    client.get("/nowhere")
    client.request("BREW", "/sync/1")

    found = {
        (p.attributes.get("http.route"), p.attributes["http.request.method"], p.attributes["http.response.status_code"])
        for p in meters.points("http.server.request.duration")
    }
    assert found == {("/sync/{item}", "GET", 200), (None, "GET", 404), ("/sync/{item}", "_OTHER", 405)}


def test_duration_of_a_request_is_in_seconds_and_says_how_it_came(meters):
    clock = Clock()

    async def app(scope, receive, send):
        clock.advance(2)
        await send(START)
        await send(BODY)

    sink = OpenTelemetrySink(meter_provider=meters.provider)
    run(timed(app, clock, sinks=[sink]), http_scope(scheme="https", http_version="2"))

    [point] = meters.points("http.server.request.duration")
    assert (point.count, point.sum) == (1, 2.0)
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.scheme": "https",
        "network.protocol.version": "2",
    }


def test_statements_after_the_response_are_none_of_the_request(memory_engine, meters):
    client_of(memory_engine, meters).get("/background")

    assert [point.sum for point in meters.points("sqltrace.request.statements")] == [1]
    assert [point.count for point in meters.points("db.client.operation.duration")] == [2]


def test_websocket_is_no_http_request(memory_engine, meters):
    with client_of(memory_engine, meters).websocket_connect("/socket") as websocket:
        websocket.send_text("hello")
        websocket.receive_text()

    assert meters.points("http.server.request.duration") == []
    [point] = meters.points("sqltrace.request.statements")
    assert (point.sum, dict(point.attributes)) == (2, {"http.route": "/socket"})


def test_event_stream_whose_times_are_those_of_all_its_life_is_in_no_mean_of_requests(meters):
    events = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    run(SQLTraceMiddleware(sends(events, BODY), sinks=[sink]), http_scope())

    [http] = meters.points("http.server.request.duration")
    assert http.attributes["http.request.method"] == "GET"
    for part in ("statements", "rows", "python"):
        [point] = meters.points(f"sqltrace.request.{part}")
        assert dict(point.attributes) == {}


@native
@pytest.mark.parametrize("inside", [True, False])
def test_fastapi_that_measures_requests_is_not_repeated(memory_engine, meters, inside):
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    telemetry = {"meter_provider": meters.provider, "tracing": False, "logs": False}
    app = FastAPI(routes=Routes(memory_engine).list, telemetry=telemetry)
    if inside:
        app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    TestClient(app if inside else SQLTraceMiddleware(app, sinks=[sink])).get("/sync/1")

    assert sum(point.count for point in meters.points("http.server.request.duration")) == 1
    assert [point.count for point in meters.points("sqltrace.request.statements")] == [1]


@native
def test_request_that_fastapi_was_told_to_leave_out_is_left_out(memory_engine, meters):
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    telemetry = {"meter_provider": meters.provider, "logs": False, "exclude": lambda scope: True}
    app = FastAPI(routes=Routes(memory_engine).list, telemetry=telemetry)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    TestClient(app).get("/sync/1")

    assert meters.points("http.server.request.duration") == []


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("wanted", ["", "http", "database, http/dup"])
@pytest.mark.parametrize("stack", STACKS)
def test_contrib_measures_requests_only_by_its_new_names(memory_engine, meters, tracing, stack, wanted, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", wanted)
    sink = OpenTelemetrySink(meter_provider=meters.provider, tracer_provider=tracing.provider)
    client = TestClient(stack(Routes(memory_engine).list, sink, tracing.provider))
    client.get("/sync/1")

    contrib = stack.__name__ == "logfire_fastapi" or "contrib" in stack.__name__
    expected = 0 if contrib and wanted else 1
    assert len(meters.points("http.server.request.duration")) == expected


def test_exemplars_lead_to_the_trace(memory_engine, meters, tracing):
    sink = OpenTelemetrySink(meter_provider=meters.provider, tracer_provider=tracing.provider)
    app = Starlette(routes=Routes(memory_engine).list)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    TestClient(app).get("/sync/1")

    trace_ids = {span.context.trace_id for span in tracing.spans()}
    metrics = meters.metrics()
    for name in ("sqltrace.request.statements", "db.client.operation.duration", "http.server.request.duration"):
        [point] = metrics[name].data.data_points
        assert {exemplar.trace_id for exemplar in point.exemplars} == trace_ids


@native
def test_exemplars_of_statements_beyond_those_that_are_kept_lead_to_the_trace(memory_engine, meters, tracing):
    def work(request):
        with memory_engine.connect() as connection:
            for query in ("SELECT 1", "SELECT * FROM sqlite_master"):
                connection.execute(text(query)).all()
        return PlainTextResponse("fine")

    sink = OpenTelemetrySink(meter_provider=meters.provider, tracer_provider=tracing.provider)
    telemetry = {"tracer_provider": tracing.provider, "metrics": False, "logs": False}
    app = FastAPI(routes=[Route("/", work)], telemetry=telemetry)
    TestClient(SQLTraceMiddleware(app, sinks=[sink], max_statements=1)).get("/")

    trace_ids = {span.context.trace_id for span in tracing.spans()}
    points = meters.points("db.client.operation.duration")
    assert [{exemplar.trace_id for exemplar in point.exemplars} for point in points] == [trace_ids] * 2


def test_names_units_and_buckets_are_those_of_the_conventions(memory_engine, meters):
    client_of(memory_engine, meters).get("/many/40")
    units = {
        "db.client.operation.duration": ("s", [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]),
        "db.client.response.returned_rows": (
            "{row}",
            [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
        ),
        "http.server.request.duration": (
            "s",
            [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10],
        ),
    }

    found, known = meters.metrics(), metric_names()
    assert len(known) > 100
    theirs = {name for name in found if not name.startswith("sqltrace.")}
    assert {"db.client.operation.duration", "http.server.request.duration"} <= theirs <= known
    for name, (unit, buckets) in units.items():
        assert found[name].unit == unit
        assert list(found[name].data.data_points[0].explicit_bounds) == buckets


def test_buckets_of_rows_tell_how_many_a_request_of_the_case_fetched(memory_engine, meters):
    client_of(memory_engine, meters).get("/many/40")

    [point] = meters.points("sqltrace.request.rows")
    assert sorted(point.explicit_bounds)[-2] > 29_883


def test_summaries_beyond_the_limit_are_left_out(memory_engine, meters, monkeypatch):
    monkeypatch.setattr(ours, "_MAX_SUMMARIES", 1)

    def different(request):
        with memory_engine.connect() as connection:
            for name in ("a", "b", "c"):
                connection.execute(text(f"SELECT 1 FROM (SELECT 1) AS {name}, sqlite_master AS m{name}"))
                connection.execute(text(f"CREATE TEMP TABLE t{name} (x INTEGER)"))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", different)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)])
    TestClient(app).get("/")

    points = meters.points("db.client.operation.duration")
    assert sum(point.count for point in points) == 6
    assert len({point.attributes.get("db.query.summary") for point in points}) == 2


def test_statements_beyond_those_that_are_told_apart_are_measured_together(memory_engine, meters):
    def different(request):
        with memory_engine.connect() as connection:
            for number in range(250):
                connection.execute(text(f"CREATE TEMP TABLE t{number} (x INTEGER)"))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", different)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)], max_statements=10)
    TestClient(app).get("/")

    points = {point.attributes["db.query.summary"]: point for point in meters.points("db.client.operation.duration")}
    assert sum(point.count for point in points.values()) == 250
    assert points["(other statements)"].count == 250 - 10 - 200


def test_result_that_is_never_read_to_its_end_is_measured_once(memory_engine, meters):
    def abandon(request):
        with memory_engine.connect() as connection:
            results = [connection.execute(text("SELECT 1 UNION SELECT 2")) for _ in range(1500)]
            for result in results:
                result.fetchone()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", abandon)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)], max_statements=10)
    TestClient(app).get("/")

    [point] = meters.points("db.client.operation.duration")
    assert point.count == 1500


def test_what_is_beyond_those_that_are_told_apart_is_one_whether_it_failed_or_not(memory_engine, meters):
    def different(request):
        with memory_engine.connect() as connection:
            for number in range(220):
                connection.execute(text(f"CREATE TEMP TABLE t{number} (x INTEGER)"))
                with pytest.raises(DBAPIError):
                    connection.execute(text(f"DROP TABLE nowhere{number}"))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", different)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)], max_statements=1)
    TestClient(app).get("/")

    points = meters.points("db.client.operation.duration")
    [others] = [point for point in points if point.attributes["db.query.summary"] == "(other statements)"]
    assert (others.count, others.attributes.get("error.type")) == (440 - 1 - 200, None)


def test_results_left_open_do_not_fill_the_memory_of_metrics(memory_engine, meters):
    alive = []

    def abandon(request):
        recording = sqltrace.current_recording()
        with memory_engine.connect() as connection:
            left_open = [connection.execute(text("SELECT 1 UNION SELECT 2")) for _ in range(6 * FOLD_AT)]
            recording.fold()
            del left_open
            gc.collect()
        alive.extend(one.collector is recording.collector for one in gc.get_objects() if isinstance(one, Execution))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", abandon)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider)], max_statements=1)
    TestClient(app).get("/")

    assert sum(alive) < 5 * FOLD_AT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a reply came in")
@pytest.mark.parametrize("max_statements", [500, 1])
@pytest.mark.postgresql
@thrice
def test_wait_for_the_event_loop_is_not_the_duration_of_a_statement(postgres_url, max_statements):
    meters, witness, begun = Meters(), Witness(), asyncio.Event()

    async def victim(request):
        engine = create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            begun.set()
            await connection.execute(text("SELECT pg_sleep(0.02)"))
        await engine.dispose()
        return PlainTextResponse("fine")

    async def guilty(request):
        await begun.wait()
        await asyncio.sleep(0.01)
        block(0.2)
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/victim", victim), Route("/guilty", guilty)])
    sinks = [OpenTelemetrySink(meter_provider=meters.provider), witness]
    app.add_middleware(SQLTraceMiddleware, sinks=sinks, max_statements=max_statements)

    async def main():
        await asyncio.gather(get(app, "/victim"), get(app, "/guilty"))

    asyncio.run(main())

    groups = [group for record in witness.records for group in record.recording.groups]
    assert sum(group.loop_wait for group in groups) > 0.1
    measured = sum(point.sum for point in meters.points("db.client.operation.duration"))
    meters.provider.shutdown()
    assert measured == pytest.approx(sum(group.total for group in groups))


@pytest.mark.parametrize("max_statements", [500, 1])
def test_batch_is_measured_apart_from_single_statements(memory_engine, meters, max_statements):
    insert = text("INSERT INTO numbers VALUES (:number)")

    def fill(request):
        with memory_engine.connect() as connection:
            connection.execute(text("CREATE TEMP TABLE numbers (number INTEGER)"))
            connection.execute(insert, {"number": 1})
            connection.execute(insert, [{"number": 2}])
            connection.execute(insert, [{"number": 3}, {"number": 4}])
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", fill)])
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink], max_statements=max_statements)
    TestClient(app).get("/")

    points = {point.attributes["db.query.summary"]: point for point in meters.points("db.client.operation.duration")}
    assert {summary: point.count for summary, point in points.items() if "INSERT" in summary} == {
        "INSERT numbers": 2,
        "BATCH INSERT numbers": 1,
    }


@pytest.mark.parametrize("max_statements", [500, 1])
def test_statements_that_failed_are_measured_apart_from_equal_ones_that_did_not(memory_engine, meters, max_statements):
    def fail(request):
        with memory_engine.connect() as connection:
            for number in (1, -(2**63), 2):
                with suppress(DBAPIError):
                    connection.execute(text("SELECT abs(:number)"), {"number": number}).all()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", fail)])
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink], max_statements=max_statements)
    TestClient(app).get("/")

    points = meters.points("db.client.operation.duration")
    assert {point.attributes.get("error.type"): point.count for point in points} == {
        None: 2,
        "sqlite3.OperationalError": 1,
    }


def test_at_most_a_thousand_summaries_are_told_apart(memory_engine, meters):
    def different(request):
        with memory_engine.connect() as connection:
            for number in range(1_010):
                connection.execute(text(f"DROP TABLE IF EXISTS t{number}"))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", different)])
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink], max_statements=2_000)
    TestClient(app).get("/")

    points = {
        point.attributes.get("db.query.summary"): point for point in meters.points("db.client.operation.duration")
    }
    assert (len(points), points[None].count) == (1_001, 10)
