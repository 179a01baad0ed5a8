"""The OpenTelemetry span that a request is told with."""

import subprocess
import sys
import textwrap

import fastapi
import pytest
from fastapi import APIRouter, FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from sqltrace import SQLTraceMiddleware
from tests.asgi import BODY, START, Witness, http_scope, run, sends

native = pytest.mark.skipif(
    tuple(int(part) for part in fastapi.__version__.split(".")[:2]) < (0, 143),
    reason="FastAPI makes spans of its own since 0.142",
)
INCOMING = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def nothing():
    return {}


def ids(span):
    return format_trace_id(span.context.trace_id), format_span_id(span.context.span_id)


def told(witness):
    return witness.record.trace_id, witness.record.span_id


def server_span(exporter):
    [span] = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    return span


def in_span(app, provider):
    """A middleware that begins a span, as instrumentations do."""

    async def spanned(scope, receive, send):
        with provider.get_tracer("test").start_as_current_span("request", kind=SpanKind.SERVER):
            await app(scope, receive, send)

    return spanned


def fastapi_app(provider):
    app = FastAPI(telemetry={"tracer_provider": provider, "metrics": False, "logs": False})

    @app.get("/items/{item}")
    def endpoint(item: int):
        return {}

    return app


@native
def test_native_span_of_fastapi_is_told(witness, provider, exporter):
    app = fastapi_app(provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    TestClient(app).get("/items/5", headers=INCOMING)

    assert told(witness) == ids(server_span(exporter))
    assert witness.record.trace_id == "0af7651916cd43dd8448eb211c80319c"


@native
def test_native_span_of_fastapi_is_told_by_a_middleware_around_it(witness, provider, exporter):
    TestClient(SQLTraceMiddleware(fastapi_app(provider), sinks=[witness])).get("/items/5")

    assert told(witness) == ids(server_span(exporter))


@native
def test_native_span_of_a_request_that_fails_is_told(witness, provider, exporter):
    app = fastapi_app(provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    @app.get("/fail")
    def fail():
        raise ValueError

    TestClient(app, raise_server_exceptions=False).get("/fail")

    span = server_span(exporter)
    assert told(witness) == ids(span)
    assert witness.record.error_type == span.attributes["error.type"]


@native
@pytest.mark.parametrize("path", ["/items/5", "/api/tags/1", "/sub/acme/items/5", "/plain/a/b", "/sub/acme/docs"])
def test_route_is_the_one_of_the_native_span(witness, provider, exporter, path):
    app, router = fastapi_app(provider), APIRouter()
    router.add_api_route("/tags/{tag}", nothing)
    app.include_router(router, prefix="/api")
    app.mount("/sub/{tenant}", fastapi_app(provider))
    app.mount("/plain", PlainTextResponse("plain"))
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    TestClient(app, root_path="/root").get("/root" + path)

    assert witness.record.route == server_span(exporter).attributes["http.route"]


def test_span_begun_further_out_is_told(witness, provider, exporter):
    run(in_span(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), provider), http_scope())

    assert told(witness) == ids(server_span(exporter))


def test_span_begun_further_in_is_told(witness, provider, exporter):
    run(SQLTraceMiddleware(in_span(sends(START, BODY), provider), sinks=[witness]), http_scope())

    assert told(witness) == ids(server_span(exporter))


def test_span_that_the_request_came_in_with_is_told_rather_than_one_begun_inside(witness, provider, exporter):
    async def app(scope, receive, send):
        with provider.get_tracer("test").start_as_current_span("rendering"):
            await sends(START, BODY)(scope, receive, send)

    run(in_span(SQLTraceMiddleware(app, sinks=[witness]), provider), http_scope())

    assert len(exporter.get_finished_spans()) == 2
    assert told(witness) == ids(server_span(exporter))


def test_span_is_known_when_the_response_is_ready(provider):
    class Early(Witness):
        def response_ready(self, record):
            known.append((record.trace_id, record.route))

    known, app = [], Starlette(routes=[Mount("/a", routes=[Route("/{b}", lambda request: PlainTextResponse("fine"))])])
    TestClient(in_span(SQLTraceMiddleware(app, sinks=[Early()]), provider)).get("/a/1")

    [(trace_id, route)] = known
    assert len(trace_id) == 32
    assert route == "/a/{b}"


def test_span_that_is_not_sampled_is_told(witness, exporter):
    provider = TracerProvider(sampler=ALWAYS_OFF)

    run(in_span(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), provider), http_scope())

    assert witness.record.trace_id is not None


def test_nothing_is_told_without_a_span(witness, provider):
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope())

    assert told(witness) == (None, None)


def test_tracing_that_is_broken_does_not_reach_the_response(witness, monkeypatch, caplog):
    def get_current_span():
        raise RuntimeError("no tracing today")

    monkeypatch.setattr(trace, "get_current_span", get_current_span)
    sent = run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope())

    assert sent == [START, BODY]
    assert witness.record.outcome == "ok"
    assert [record.getMessage() for record in caplog.records] == [
        "reading the current span failed and is skipped; the application is not affected"
    ]


def test_opentelemetry_is_not_imported_for_it():
    code = """
        import asyncio, sys
        from sqltrace import SQLTraceMiddleware

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body"})

        async def send(message):
            sent.append(message)

        sent = []
        asyncio.run(SQLTraceMiddleware(app)({"type": "http", "path": "/", "method": "GET"}, None, send))
        print(len(sent), [name for name in sys.modules if name.startswith("opentelemetry")], file=sys.stderr)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stderr == "2 []\n"
