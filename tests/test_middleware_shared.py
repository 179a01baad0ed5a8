"""Several middlewares around one request, and one middleware around many."""

import asyncio
import threading

import anyio.lowlevel
import httpx2 as httpx
import pytest
import trio.lowlevel
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from tests.asgi import BODY, START, Witness, call, http_scope, run, select, sends


def test_installed_twice_the_outermost_tells():
    outer, inner = Witness(), Witness()
    app = SQLTraceMiddleware(SQLTraceMiddleware(sends(START, BODY), sinks=[inner]), sinks=[outer])

    run(app, http_scope())
    run(app, http_scope())

    assert outer.moments == ["response_ready", "request_finished"] * 2
    assert inner.moments == []


@pytest.mark.parametrize("make_app", [Starlette, FastAPI])
def test_in_a_mounted_application_the_outermost_tells(make_app, memory_engine):
    def endpoint(request: Request):
        select(memory_engine, 2)
        return PlainTextResponse("fine")

    outer, inner = Witness(), Witness()
    sub, app = make_app(), make_app()
    sub.add_route("/items/{item}", endpoint)
    sub.add_middleware(SQLTraceMiddleware, sinks=[inner])
    app.mount("/sub", sub)
    app.add_middleware(SQLTraceMiddleware, sinks=[outer])

    TestClient(app).get("/sub/items/5")

    assert inner.moments == []
    assert outer.record.route == "/sub/items/{item}"
    assert outer.record.recording.statement_count == 2


def test_mounted_application_tells_where_no_middleware_is_further_out():
    inner = Witness()
    sub = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("fine"))],
        middleware=[Middleware(SQLTraceMiddleware, sinks=[inner])],
    )

    TestClient(Starlette(routes=[Mount("/sub", app=sub)])).get("/sub/")

    assert inner.moments == ["response_ready", "request_finished"]


def test_scope_that_is_used_again_is_recorded_again(witness):
    middleware, scope = SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope()
    before = dict(scope)

    run(middleware, scope)
    run(middleware, scope)

    assert len(witness.records) == 2
    assert scope == before


def test_every_sink_is_told_in_order():
    told = []

    class Sink:
        def __init__(self, name):
            self.name = name

        def response_ready(self, record):
            told.append((self.name, "response_ready", record))

        def request_finished(self, record):
            told.append((self.name, "request_finished", record))

    run(SQLTraceMiddleware(sends(START, BODY), sinks=[Sink("a"), Sink("b")]), http_scope())

    record = told[0][2]
    assert told == [(name, moment, record) for moment in ("response_ready", "request_finished") for name in "ab"]


def test_in_process_call_has_its_own_record_and_counts_in_both(memory_engine):
    inner_witness, outer_witness = Witness(), Witness()

    def inner(request):
        select(memory_engine, 2)
        return PlainTextResponse("inner")

    async def outer(request):
        select(memory_engine, 3)
        transport = httpx.ASGITransport(app=inner_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://inner") as client:
            answer = await client.get("/inner")
        return PlainTextResponse(answer.text)

    inner_app = SQLTraceMiddleware(Starlette(routes=[Route("/inner", inner)]), sinks=[inner_witness])
    outer_app = SQLTraceMiddleware(Starlette(routes=[Route("/outer", outer)]), sinks=[outer_witness])

    assert TestClient(outer_app).get("/outer").text == "inner"
    assert (inner_witness.record.route, inner_witness.record.recording.statement_count) == ("/inner", 2)
    assert (outer_witness.record.route, outer_witness.record.recording.statement_count) == ("/outer", 5)


def test_application_that_calls_itself_has_a_record_for_each_call(witness, memory_engine):
    async def endpoint(request):
        select(memory_engine)
        depth = int(request.path_params["depth"])
        if depth:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://self") as client:
                await client.get(f"/{depth - 1}")
        return PlainTextResponse("fine")

    app = SQLTraceMiddleware(Starlette(routes=[Route("/{depth}", endpoint)]), sinks=[witness])
    TestClient(app).get("/2")

    counts = {record.path: record.recording.statement_count for record in witness.records}
    assert counts == {"/2": 3, "/1": 2, "/0": 1}


def test_recording_is_current_inside_and_only_inside(witness):
    async def app(scope, receive, send):
        inside.append(sqltrace.current_recording())
        await sends(START, BODY)(scope, receive, send)

    async def main():
        with sqltrace.record("test") as outer:
            await call(middleware, http_scope())
            inside.append(sqltrace.current_recording() is outer)
        inside.append(sqltrace.current_recording())

    inside, middleware = [], SQLTraceMiddleware(app, sinks=[witness])
    asyncio.run(main())

    assert inside == [witness.record.recording, True, None]


def test_statement_of_a_sink_is_not_in_the_request_it_is_told_of(memory_engine):
    class Saving(Witness):
        def request_finished(self, record):
            super().request_finished(record)
            select(memory_engine)

    saving = Saving()
    with sqltrace.record("test") as around:
        run(SQLTraceMiddleware(sends(START, BODY), sinks=[saving]), http_scope())

    assert saving.record.recording.statement_count == 0
    assert saving.record.recording.late_count == 0
    assert around.statement_count == 1


def test_concurrent_requests_do_not_mix(witness, memory_engine):
    async def app(scope, receive, send):
        number = int(scope["path"].removeprefix("/"))
        arrived.append(number)
        if len(arrived) == 100:
            everybody.set()
        await everybody.wait()
        select(memory_engine, number)
        await asyncio.sleep(0)
        await sends({**START, "status": 200 + number}, BODY)(scope, receive, send)

    async def main():
        await asyncio.gather(*(call(middleware, http_scope(f"/{number}")) for number in range(100)))

    arrived, everybody = [], asyncio.Event()
    middleware = SQLTraceMiddleware(app, sinks=[witness], max_statements=10)
    before = dict(vars(middleware))
    asyncio.run(main())

    told = {record.path: (record.status, record.recording.statement_count) for record in witness.records}
    assert told == {f"/{number}": (200 + number, number) for number in range(100)}
    assert vars(middleware) == before


def test_one_middleware_serves_several_event_loops(witness, memory_engine):
    async def app(scope, receive, send):
        await asyncio.to_thread(select, memory_engine, 3)
        await sends(START, BODY)(scope, receive, send)

    def serve_one(number):
        meeting.wait(10)
        run(middleware, http_scope(f"/{number}"))

    middleware, meeting = SQLTraceMiddleware(app, sinks=[witness]), threading.Barrier(8)
    threads = [threading.Thread(target=serve_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(record.path for record in witness.records) == [f"/{number}" for number in range(8)]
    assert [record.recording.statement_count for record in witness.records] == [3] * 8


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_application_runs_on_either_backend(witness, memory_engine, backend):
    async def waiting(request):
        await anyio.lowlevel.checkpoint()
        return PlainTextResponse("waited")

    def thread(request):
        select(memory_engine, 2)
        return PlainTextResponse("threaded")

    app = Starlette(routes=[Route("/thread", thread), Route("/wait", waiting)])

    with TestClient(SQLTraceMiddleware(app, sinks=[witness]), backend=backend) as client:
        answers = [client.get("/thread").text, client.get("/wait").text]

    assert answers == ["threaded", "waited"]
    assert [(record.route, record.outcome) for record in witness.records] == [("/thread", "ok"), ("/wait", "ok")]
    assert [record.recording.statement_count for record in witness.records] == [2, 0]


def test_request_without_sql_runs_on_plain_trio(witness):
    async def app(scope, receive, send):
        await trio.lowlevel.checkpoint()
        await sends(START, BODY)(scope, receive, send)

    sent = trio.run(call, SQLTraceMiddleware(app, sinks=[witness]), http_scope())

    assert sent == [START, BODY]
    assert witness.record.outcome == "ok"
