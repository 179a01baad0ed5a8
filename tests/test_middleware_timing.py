"""When a response begins and ends, by a clock that the test moves."""

import asyncio
from contextlib import suppress

import fastapi
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.asgi import BODY, CHUNK, START, http_scope, run, sends, timed, websocket_scope

FASTAPI = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


@pytest.fixture
def select():
    """Runs one statement."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    def select(name="x"):
        with engine.connect() as connection:
            connection.execute(text(f"SELECT 1 AS {name}"))

    yield select
    engine.dispose()


TRAILING_START = {**START, "trailers": True}
PATHSEND = {"type": "http.response.pathsend", "path": "/tmp/file"}
ZEROCOPY = {"type": "http.response.zerocopysend", "file": 3}
TRAILERS = {"type": "http.response.trailers", "headers": []}
MORE_TRAILERS = {**TRAILERS, "more_trailers": True}
PUSH = {"type": "http.response.push", "path": "/style.css", "headers": []}
DEBUG = {"type": "http.response.debug", "info": {}}
HINT = {"type": "http.response.early_hint", "links": []}


@pytest.mark.parametrize(
    ("before", "last"),
    [
        ([START], BODY),
        ([START], {"type": "http.response.body"}),
        ([START, CHUNK, CHUNK], BODY),
        ([START], PATHSEND),
        ([START], ZEROCOPY),
        ([START, {**ZEROCOPY, "more_body": True}], ZEROCOPY),
        ([START, {**ZEROCOPY, "more_body": True}], BODY),
        ([TRAILING_START, CHUNK, BODY], TRAILERS),
        ([TRAILING_START, BODY, MORE_TRAILERS], TRAILERS),
        ([TRAILING_START, PATHSEND], TRAILERS),
        ([HINT, PUSH, DEBUG, START, PUSH], BODY),
    ],
    ids=[
        "body", "bare body", "chunks", "pathsend", "zerocopysend", "more zerocopysend", "zerocopysend and body",
        "trailers", "more trailers", "pathsend and trailers", "extras",
    ],
)  # fmt: skip
def test_response_ends_with_its_last_message_and_is_told_before_that_goes_out(clock, witness, before, last):
    async def app(scope, receive, send):
        for message in [*before, last]:
            clock.advance(1)
            await send(message)
        clock.advance(5)

    told_when_sent = []

    async def send(message):
        told_when_sent.append(list(witness.moments))
        clock.advance(0.25)

    run(timed(app, clock, sinks=[witness]), http_scope(), send=send)

    assert told_when_sent == [[]] * len(before) + [["response_ready"]]
    assert witness.moments == ["response_ready", "request_finished"]
    assert witness.record.duration == 1.25 * (len(before) + 1)
    assert witness.record.recording.after_response == 5
    assert (witness.record.outcome, witness.record.status) == ("ok", 200)


def test_first_byte_is_the_start_of_the_response(clock, witness):
    async def app(scope, receive, send):
        clock.advance(1)
        await send(PUSH)
        clock.advance(2)
        await send(START)
        clock.advance(4)
        await send(BODY)

    run(timed(app, clock, sinks=[witness]), http_scope())

    assert witness.record.time_to_first_byte == 3
    assert witness.record.duration == 7


def test_only_the_first_start_counts(clock, witness):
    async def app(scope, receive, send):
        await send(START)
        clock.advance(1)
        await send({**START, "status": 500})
        await send(BODY)

    run(timed(app, clock, sinks=[witness]), http_scope())

    assert (witness.record.status, witness.record.time_to_first_byte) == (200, 0)


def test_streaming_response_lasts_until_its_generator_is_empty(clock, witness, select):
    async def chunks():
        for name in "abc":
            select(name)
            clock.advance(1)
            yield name

    app = Starlette(routes=[Route("/", lambda request: StreamingResponse(chunks()))])

    TestClient(timed(app, clock, sinks=[witness])).get("/")

    assert witness.record.time_to_first_byte == 0
    assert witness.record.duration == 3
    assert {statement.phase for statement in witness.record.recording.statements} == {"response"}


def test_background_task_is_after_the_response(clock, witness, select):
    def work():
        clock.advance(10)
        select("late")

    def endpoint(request):
        select("early")
        clock.advance(1)
        return PlainTextResponse("done", background=BackgroundTask(work))

    app = Starlette(routes=[Route("/", endpoint)])

    TestClient(timed(app, clock, sinks=[witness])).get("/")

    assert (witness.record.duration, witness.record.recording.after_response) == (1, 10)
    phases = {statement.sql: statement.phase for statement in witness.record.recording.statements}
    assert phases == {"SELECT 1 AS early": "response", "SELECT 1 AS late": "after_response"}


@pytest.mark.skipif(FASTAPI < (0, 118), reason="FastAPI 0.106 to 0.117 runs the exits before it sends the response")
def test_exit_of_a_dependency_is_after_the_response(clock, witness, select):
    def dependency():
        select("entry")
        yield
        clock.advance(10)
        select("exit_sync")

    async def async_dependency():
        yield
        clock.advance(10)
        select("exit_async")

    app = FastAPI()

    @app.get("/", dependencies=[Depends(dependency), Depends(async_dependency)])
    def endpoint():
        clock.advance(1)

    TestClient(timed(app, clock, sinks=[witness])).get("/")

    assert (witness.record.duration, witness.record.recording.after_response) == (1, 20)
    after = [statement.sql for statement in witness.record.recording.statements if statement.phase == "after_response"]
    assert after == ["SELECT 1 AS exit_async", "SELECT 1 AS exit_sync"]


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
def test_background_task_is_after_the_response_beside_a_base_http_middleware(clock, witness, select, outside):
    async def dispatch(request, call_next):
        return await call_next(request)

    def work():
        clock.advance(10)
        select()

    def endpoint(request):
        clock.advance(1)
        return PlainTextResponse("done", background=BackgroundTask(work))

    base, ours = Middleware(BaseHTTPMiddleware, dispatch=dispatch), Middleware(timed, clock=clock, sinks=[witness])
    app = Starlette(routes=[Route("/", endpoint)], middleware=[base, ours] if outside else [ours, base])

    TestClient(app).get("/")

    assert (witness.record.duration, witness.record.recording.after_response) == (1, 10)
    assert witness.record.recording.after_response_count == 1


def test_time_that_the_server_takes_for_the_last_chunk_is_in_the_duration(clock, witness):
    async def slow_client(message):
        clock.advance(3)

    run(timed(sends(START, BODY), clock, sinks=[witness]), http_scope(), send=slow_client)

    assert witness.record.duration == 6


@pytest.mark.parametrize("failing", [START, CHUNK, BODY], ids=["start", "chunk", "last"])
def test_duration_without_an_end_lasts_until_the_application_returns(clock, witness, failing):
    async def app(scope, receive, send):
        with suppress(RuntimeError):
            await sends(START, CHUNK, BODY)(scope, receive, send)
        clock.advance(2)

    async def send(message):
        clock.advance(1)
        if message is failing:
            raise RuntimeError("the server is at its end")

    run(timed(app, clock, sinks=[witness]), http_scope(), send=send)

    # The last message ends the response also when it fails: nobody waits any more.
    assert witness.record.duration == {id(START): 3, id(CHUNK): 4, id(BODY): 3}[id(failing)]
    assert witness.moments.count("request_finished") == 1


def test_application_that_sends_after_the_end_changes_nothing(clock, witness):
    async def app(scope, receive, send):
        await sends(START, BODY)(scope, receive, send)
        clock.advance(1)
        await sends({**START, "status": 500}, CHUNK, BODY, TRAILERS)(scope, receive, send)

    sent = run(timed(app, clock, sinks=[witness]), http_scope())

    assert len(sent) == 6
    assert witness.moments == ["response_ready", "request_finished"]
    assert (witness.record.duration, witness.record.status, witness.record.outcome) == (0, 200, "ok")


def test_task_that_sends_when_the_request_is_over_is_let_through_and_changes_nothing(clock, witness):
    async def app(scope, receive, send):
        async def outlive():
            await over.wait()
            clock.advance(1)
            await send({**START, "status": 500})
            await send(BODY)
            received.append(await receive())

        await sends(START, CHUNK)(scope, receive, send)
        tasks.append(asyncio.create_task(outlive()))

    async def main():
        await middleware(http_scope(), receive, send)
        over.set()
        await tasks[0]

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    tasks, sent, received, over, middleware = [], [], [], asyncio.Event(), timed(app, clock, sinks=[witness])
    asyncio.run(main())

    assert len(sent) == 4
    assert received == [{"type": "http.disconnect"}]
    assert witness.moments == ["request_finished"]
    assert (witness.record.duration, witness.record.status) == (0, 200)


ACCEPT, CLOSE = {"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}
CONNECT, TEXT = {"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}
REPLY = {"type": "websocket.send", "text": "hello"}
DENIAL_START = {"type": "websocket.http.response.start", "status": 401, "headers": []}
DENIAL_BODY = {"type": "websocket.http.response.body", "body": b"no"}


@pytest.mark.parametrize(
    ("messages", "status", "first_byte", "duration"),
    [
        ([ACCEPT, REPLY, CLOSE], 101, 1, 3),
        ([ACCEPT, REPLY], 101, 1, 12),
        ([CLOSE], 403, 1, 1),
        ([DENIAL_START, {**DENIAL_BODY, "more_body": True}, DENIAL_BODY], 401, 1, 3),
    ],
    ids=["closed", "left open", "refused", "denied"],
)
def test_websocket_lasts_until_it_is_closed(clock, witness, messages, status, first_byte, duration):
    async def app(scope, receive, send):
        for message in messages:
            clock.advance(1)
            await send(message)
        clock.advance(10)

    run(timed(app, clock, sinks=[witness]), websocket_scope())

    record = witness.record
    assert (record.status, record.outcome, record.method) == (status, "ok", None)
    assert (record.time_to_first_byte, record.duration) == (first_byte, duration)


def test_websocket_ends_when_the_client_closes_it(clock, witness, select):
    async def app(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await receive()
        select("early")
        clock.advance(2)
        await receive()
        clock.advance(5)
        select("late")

    run(
        timed(app, clock, sinks=[witness]),
        websocket_scope(),
        [CONNECT, TEXT, {"type": "websocket.disconnect", "code": 1000}],
    )

    assert witness.moments == ["response_ready", "request_finished"]
    assert (witness.record.duration, witness.record.outcome) == (2, "ok")
    assert [statement.phase for statement in witness.record.recording.statements] == ["response", "after_response"]
