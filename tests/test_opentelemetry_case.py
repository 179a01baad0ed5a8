"""The case, as OpenTelemetry tells it: guilty and mended, sync and async."""

import asyncio

import httpx2
import pytest
from opentelemetry.trace import SpanKind

import sqltrace
from example_app.app import create_app
from example_app.data import SIZES, TAG_IDS, USER_ID, generate, refresh_token, seed_database
from example_app.database import open_sqlite
from sqltrace.sinks import OpenTelemetrySink
from tests.telemetry import REQUIRED, Meters, Tracing, attribute_names, is_below, metric_names

SEED = 303
GUILTY_ROUTE = "/guilty/async/api/tags/{tag_id}/contents/all"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Spans and metrics of one visit to the example."""
    database = open_sqlite(tmp_path_factory.mktemp("case") / "example.sqlite")
    database.create_tables()
    for _ in seed_database(database.sync_engine, generate(SIZES["small"], seed=SEED)):
        pass
    tracing, meters = Tracing(), Meters()
    app = create_app(database)
    app.user_middleware.clear()
    sink = OpenTelemetrySink(tracer_provider=tracing.provider, meter_provider=meters.provider)
    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=[sink])
    asyncio.run(visit(app, database))
    yield tracing.spans(), meters.metrics(), tracing.unfinished
    database.sync_engine.dispose()


async def visit(app, database):
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://example", timeout=120) as client:
        for flavour in ("guilty/async", "guilty/sync", "mended/async", "mended/sync"):
            await client.get(f"/{flavour}/api/tags/{TAG_IDS[0]}/contents/all")
            body = {"refresh_token": refresh_token(USER_ID, SEED)}
            await client.post(f"/{flavour}/api/users/token/refresh", json=body)
    await database.async_engine.dispose()


def server_spans(spans):
    return [span for span in spans if span.kind is SpanKind.SERVER]


def test_each_request_is_one_trace(told):
    spans, _, unfinished = told
    servers = server_spans(spans)
    below = [span for span in spans if span.kind is not SpanKind.SERVER]

    assert (len(servers), unfinished) == (8, 0)
    assert len({span.context.trace_id for span in servers}) == 8
    assert below
    assert all(any(is_below(span, server, spans) for server in servers) for span in below)


def test_guilty_request_carries_the_finding_and_its_account(told):
    [guilty] = [span for span in server_spans(told[0]) if span.attributes["http.route"] == GUILTY_ROUTE]

    assert {"eager_join", "cartesian_product"} & set(guilty.attributes["sqltrace.finding.kinds"])
    parts = [guilty.attributes[f"sqltrace.time.{part}"] for part in ("connection", "database", "objects", "python")]
    duration = (guilty.end_time - guilty.start_time) / 1e9
    assert sum(parts) + guilty.attributes["sqltrace.time.loop_wait"] == pytest.approx(duration, rel=0.02, abs=0.005)


def test_guilty_statement_has_its_relationship_and_the_rows_that_it_made(told):
    loads = [span for span in told[0] if span.attributes.get("sqltrace.relationship") == "Tag.articles"]
    widest = max(loads, key=lambda span: span.attributes["db.response.returned_rows"])

    assert widest.attributes["sqltrace.origin"] == "selectin"
    assert widest.attributes["db.response.returned_rows"] > 100
    assert widest.attributes["sqltrace.objects"] > 0


def test_names_of_all_attributes_are_of_the_conventions_or_ours(told):
    spans, metrics, _ = told
    known, deprecated = attribute_names()
    names = {name for span in spans for name in span.attributes}
    names |= {name for metric in metrics.values() for point in metric.data.data_points for name in point.attributes}

    assert {name for name in names if not name.startswith("sqltrace.")} <= known - deprecated
    missing = {span.name: REQUIRED[span.kind] - set(span.attributes) for span in spans}
    assert {name: absent for name, absent in missing.items() if absent} == {}


def test_names_of_all_metrics_are_of_the_conventions_or_ours(told):
    _, metrics, _ = told

    assert {name for name in metrics if not name.startswith("sqltrace.")} <= metric_names()
    assert {"db.client.operation.duration", "db.client.connection.count", "sqltrace.request.objects"} <= set(metrics)
    assert all("db.system.name" in p.attributes for p in metrics["db.client.operation.duration"].data.data_points)


def test_metrics_count_the_statements_of_the_spans(told):
    spans, metrics, _ = told
    statements = sum(span.attributes["sqltrace.statement.count"] for span in server_spans(spans))

    assert sum(point.sum for point in metrics["sqltrace.request.statements"].data.data_points) == statements
    assert sum(point.count for point in metrics["db.client.operation.duration"].data.data_points) >= statements
