"""Requests that run beside, within and after each other."""

import asyncio
import gc
import weakref

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.sinks import OpenTelemetrySink
from tests.asgi import BODY, START, Witness, call, connect, http_scope, run, select, sends, serve
from tests.telemetry import is_below, plain, server_span, statement_spans, traced

pytestmark = pytest.mark.usefixtures("no_faults")


def traced_app(app, tracing, *others):
    return SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider), *others])


def test_requests_at_the_same_time_have_a_trace_each(tracing, tmp_path):
    async def main():
        async def app(scope, receive, send):
            async with engine.connect() as connection:
                for _ in range(2):
                    await connection.execute(text("SELECT 1"))
            await call(sends(START, BODY), scope, send=send)

        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db", poolclass=NullPool)
        wrapped = traced_app(app, tracing)
        await asyncio.gather(*[call(wrapped, http_scope(f"/{number}")) for number in range(10)])
        await engine.dispose()

    asyncio.run(main())

    by_trace = {}
    for span in tracing.spans():
        by_trace.setdefault(span.context.trace_id, []).append(span)
    assert len(by_trace) == 10
    for spans in by_trace.values():
        server = server_span(spans)
        assert [is_below(span, server, spans) for span in statement_spans(spans)] == [True, True]


def test_request_to_itself_is_told_once(memory_engine, tracing, witness):
    async def app(scope, receive, send):
        select(memory_engine)
        if scope["path"] == "/outer":
            await call(wrapped, http_scope("/inner"))
        await call(sends(START, BODY), scope, send=send)

    wrapped = traced_app(app, tracing, witness)
    run(wrapped, http_scope("/outer"))

    spans = tracing.spans()
    assert len(statement_spans(spans)) == 2
    assert server_span(spans).attributes["sqltrace.statement.count"] == 2
    assert [record.path for record in witness.take(2)] == ["/inner", "/outer"]


def test_request_within_another_whose_span_is_not_current_has_one_of_its_own(tracing):
    async def app(scope, receive, send):
        if scope["path"] == "/outer":
            token = otel_context.attach(Context())
            await call(wrapped, http_scope("/inner"))
            otel_context.detach(token)
        await call(sends(START, BODY), scope, send=send)

    wrapped = traced_app(app, tracing)
    run(wrapped, http_scope("/outer"))

    assert [span.attributes["url.path"] for span in tracing.spans()] == ["/inner", "/outer"]
    assert tracing.unfinished == 0


def test_statements_in_a_recording_of_the_application_are_told(memory_engine, tracing):
    async def app(scope, receive, send):
        with tracing.provider.get_tracer("application").start_as_current_span("import"), sqltrace.record("import"):
            select(memory_engine)
        await call(sends(START, BODY), scope, send=send)

    run(traced_app(app, tracing), http_scope())

    [importing] = [span for span in tracing.spans() if span.name == "import"]
    assert [span.parent.span_id for span in statement_spans(tracing.spans())] == [importing.context.span_id]


def test_request_that_ends_in_another_context_leaves_that_as_it_is(tracing):
    """As a server does that is shut down, or an asynchronous generator that is collected."""

    async def app(scope, receive, send):
        await asyncio.sleep(0)

    coroutine = traced_app(app, tracing)(http_scope(), None, None)
    import contextvars

    contextvars.copy_context().run(coroutine.send, None)
    before = otel_context.get_current()
    with pytest.raises(StopIteration):
        coroutine.send(None)

    assert otel_context.get_current() is before
    assert server_span(tracing.spans()).attributes["error.type"] == "incomplete_response"


def test_task_that_outlives_its_request_is_told_nowhere_and_keeps_nothing(memory_engine, tracing):
    async def main():
        async def app(scope, receive, send):
            tasks.append(asyncio.create_task(outlive()))
            await call(sends(START, BODY), scope, send=send)

        async def outlive():
            await go.wait()
            select(memory_engine)

        go, tasks, witness = asyncio.Event(), [], Witness()
        await traced_app(app, tracing, witness)(http_scope(), None, nothing)
        recording = weakref.ref(witness.records.pop().recording)
        gc.collect()
        assert recording() is None
        go.set()
        await tasks[0]

    async def nothing(message):
        pass

    asyncio.run(main())

    assert statement_spans(tracing.spans()) == []
    assert tracing.unfinished == 0


def test_span_of_the_server_is_current_in_threads_and_background_work(memory_engine, tracing):
    from starlette.testclient import TestClient

    app = traced(plain, memory_engine, tracing.provider)
    TestClient(app).get("/sync/1")

    server = server_span(tracing.spans())
    assert {span.parent.span_id for span in statement_spans(tracing.spans())} == {server.context.span_id}


def test_client_that_goes_away_is_no_error(memory_engine, tracing):
    import threading

    gone = threading.Event()

    async def app(scope, receive, send):
        select(memory_engine)
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    with serve(traced_app(app, tracing)) as server:
        connect(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").close()
        assert gone.wait(30)

    span = server_span(tracing.spans())
    assert (span.attributes["sqltrace.outcome"], span.status.is_unset) == ("disconnected", True)
    assert "error.type" not in span.attributes


def test_span_that_is_not_of_a_server_is_enriched_too(tracing):
    """As by a middleware of one's own that begins a span and says nothing of its kind."""

    async def app(scope, receive, send):
        with tracing.provider.get_tracer("by hand").start_as_current_span("request"):
            await traced_app(sends(START, BODY), tracing)(scope, receive, send)

    run(app, http_scope())

    [span] = tracing.spans()
    assert (span.kind, span.attributes["sqltrace.statement.count"]) == (SpanKind.INTERNAL, 0)
    assert trace.get_current_span() is trace.INVALID_SPAN
