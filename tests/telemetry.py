"""Applications that are traced, each in another way, and what is asked of their spans."""

import importlib
import inspect
import pkgutil
import re

import fastapi
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from sqltrace import SQLTraceMiddleware
from sqltrace.sinks import OpenTelemetrySink

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INCOMING = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}

native = pytest.mark.skipif(
    tuple(int(part) for part in fastapi.__version__.split(".")[:2]) < (0, 143),
    reason="FastAPI makes spans of its own since 0.142",
)


class Tracing(SpanProcessor):
    """A provider with an exporter in memory, that counts the spans which were begun and not ended."""

    def __init__(self, **options):
        self.unfinished = 0
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(self)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def on_start(self, span, parent_context=None):
        self.unfinished += 1

    def on_end(self, span):
        self.unfinished -= 1

    def spans(self):
        return self.exporter.get_finished_spans()


class Meters:
    """A provider whose points can be asked for by the name of their metric."""

    def __init__(self, **options):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider(metric_readers=[self.reader], **options)

    def metrics(self):
        data = self.reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else []
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name):
        metric = self.metrics().get(name)
        return list(metric.data.data_points) if metric is not None else []


def metric_names():
    """Names of metrics by the conventions."""
    package = pytest.importorskip("opentelemetry.semconv._incubating.metrics")
    stable = pytest.importorskip("opentelemetry.semconv.metrics")
    names = set()
    for place in (package, stable):
        modules = [
            place,
            *(importlib.import_module(f"{place.__name__}.{i.name}") for i in pkgutil.iter_modules(place.__path__)),
        ]
        for module in modules:
            names |= {value for key, value in vars(module).items() if key.isupper() and isinstance(value, str)}
    return names


def attribute_names():
    """Names of attributes by the conventions, and those that are deprecated."""
    known, deprecated = set(), set()
    for package in ("opentelemetry.semconv._incubating.attributes", "opentelemetry.semconv.attributes"):
        for info in pkgutil.iter_modules(pytest.importorskip(package).__path__):
            module = importlib.import_module(f"{package}.{info.name}")
            source = inspect.getsource(module)
            for constant, name in vars(module).items():
                if constant.isupper() and isinstance(name, str):
                    known.add(name)
                    text = re.search(rf'^{constant}: Final = .*\n(?:"""\n(.*\n)*?""")?', source, re.MULTILINE)
                    if text is not None and "Deprecated: " in text[0]:
                        deprecated.add(name)
    return known, deprecated


REQUIRED = {
    SpanKind.SERVER: {"http.request.method", "url.path", "url.scheme"},
    SpanKind.CLIENT: {"db.system.name", "db.query.summary"},
    SpanKind.INTERNAL: set(),
}


class Routes:
    """The same endpoints for every framework. Each runs two statements."""

    def __init__(self, engine):
        self.engine = engine
        self.list = [
            Route("/sync/{item}", self.sync),
            Route("/async", self.asynchronous),
            Route("/stream", self.stream),
            Route("/fail", self.fail),
            Route("/background", self.background),
            Route("/many/{count}", self.many),
            WebSocketRoute("/socket", self.socket),
        ]
        self.list.append(Mount("/sub/{tenant}", routes=[Route("/items/{item}", self.sync)]))

    def run(self, *numbers):
        with self.engine.connect() as connection:
            for number in numbers:
                connection.execute(text(f"SELECT {number} AS n{number}")).all()

    def sync(self, request):
        self.run(1, 2)
        return PlainTextResponse("fine")

    async def asynchronous(self, request):
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1 AS n1"))
            await connection.execute(text("SELECT 2 AS n2"))
        await engine.dispose()
        return PlainTextResponse("fine")

    async def stream(self, request):
        async def chunks():
            for number in (1, 2):
                self.run(number)
                yield f"{number}"

        return StreamingResponse(chunks())

    def fail(self, request):
        self.run(1, 2)
        raise ValueError("no")

    def background(self, request):
        self.run(1)
        return PlainTextResponse("fine", background=BackgroundTask(self.run, 2))

    def many(self, request):
        with self.engine.connect() as connection:
            for number in range(int(request.path_params["count"])):
                connection.execute(text("SELECT :number AS n"), {"number": number}).all()
        return PlainTextResponse("fine")

    async def socket(self, websocket):
        await websocket.accept()
        self.run(1)
        await websocket.receive_text()
        self.run(2)
        await websocket.send_text("fine")
        await websocket.close()


def plain(routes, sink, provider, **options):
    app = Starlette(routes=routes)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink], **options)
    return app


def native_fastapi(routes, sink, provider):
    app = FastAPI(routes=routes, telemetry={"tracer_provider": provider, "metrics": False, "logs": False})
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    return app


def around_native_fastapi(routes, sink, provider):
    app = FastAPI(routes=routes, telemetry={"tracer_provider": provider, "metrics": False, "logs": False})
    return SQLTraceMiddleware(app, sinks=[sink])


def contrib_asgi(routes, sink, provider):
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    return asgi.OpenTelemetryMiddleware(plain(routes, sink, provider), tracer_provider=provider)


def around_contrib_asgi(routes, sink, provider):
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    app = asgi.OpenTelemetryMiddleware(Starlette(routes=routes), tracer_provider=provider)
    return SQLTraceMiddleware(app, sinks=[sink])


def outside_added_contrib_asgi(routes, sink, provider):
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    app = Starlette(routes=routes)
    app.add_middleware(asgi.OpenTelemetryMiddleware, tracer_provider=provider)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    return app


def contrib_fastapi(routes, sink, provider):
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.fastapi")
    app = FastAPI(routes=routes)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    instrumentation.FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


def logfire_fastapi(routes, sink, provider):
    logfire = pytest.importorskip("logfire")
    # An instance of its own: the global one would be everybody's.
    configured = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        inspect_arguments=False,
        distributed_tracing=True,
        additional_span_processors=[provider._active_span_processor],
        metrics=False,
    )
    app = FastAPI(routes=routes)
    app.add_middleware(SQLTraceMiddleware, sinks=[sink])
    configured.instrument_fastapi(app)
    return app


def around_contrib_starlette(routes, sink, provider):
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.starlette")
    app = Starlette(routes=routes)
    instrumentation.StarletteInstrumentor.instrument_app(app, tracer_provider=provider)
    return SQLTraceMiddleware(app, sinks=[sink])


def manual(routes, sink, provider):
    app = plain(routes, sink, provider)

    async def spanned(scope, receive, send):
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)
        from opentelemetry import propagate

        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        context = propagate.extract(headers)
        with provider.get_tracer("manual").start_as_current_span("by hand", context=context, kind=SpanKind.SERVER):
            await app(scope, receive, send)

    return spanned


STACKS = [
    plain,
    pytest.param(native_fastapi, marks=native),
    pytest.param(around_native_fastapi, marks=native),
    contrib_asgi,
    around_contrib_asgi,
    outside_added_contrib_asgi,
    contrib_fastapi,
    logfire_fastapi,
    around_contrib_starlette,
    manual,
]


def traced(stack, engine, provider, **options):
    return stack(Routes(engine).list, OpenTelemetrySink(tracer_provider=provider, **options), provider)


def server_span(spans):
    [span] = [span for span in spans if span.kind is SpanKind.SERVER]
    return span


def statement_spans(spans):
    return [span for span in spans if span.kind is SpanKind.CLIENT]


def is_below(span, ancestor, spans):
    """Whether the parents of a span lead to the other, in the same trace."""
    by_id = {other.context.span_id: other for other in spans}
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        if span is ancestor:
            return span.context.trace_id == ancestor.context.trace_id
    return False


def names(spans):
    return [span.name for span in spans]
