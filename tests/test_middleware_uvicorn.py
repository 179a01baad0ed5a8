"""The middleware under a real server, with real clients that come and go."""

import asyncio
import contextlib
import http.client
import threading
import time
import weakref

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from sqltrace import SQLTraceMiddleware
from tests.asgi import Witness, abort, connect, serve


@pytest.fixture(params=["asyncio-h11", "asyncio-httptools", "uvloop-h11", "uvloop-httptools"])
def kind(request):
    """The options of uvicorn that choose its event loop and its parser."""
    loop, parser = request.param.split("-")
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop does not run on this platform")
    return {"loop": loop, "http": parser}


def nothing():
    return {}


def get(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


def request_line(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: test", *headers, "", ""]).encode()


def facts(witness):
    [record] = witness.take()
    return record.outcome, record.status, record.error_type


def test_requests_over_one_connection_are_told_one_by_one(kind, witness):
    app = Starlette(routes=[Route("/items/{item}", lambda request: PlainTextResponse("fine"))])
    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            for number in range(3):
                connection.request("HEAD" if number == 2 else "GET", f"/items/{number}")
                connection.getresponse().read()
        records = witness.take(3)

    assert [(record.path, record.route, record.status, record.outcome) for record in records] == [
        (f"/items/{number}", "/items/{item}", 200, "ok") for number in range(3)
    ]
    assert records[2].method == "HEAD"
    assert records[0].client_address == "127.0.0.1"
    assert witness.moments == ["response_ready", "request_finished"] * 3


def test_idle_connection_keeps_nothing_of_its_last_request(kind):
    class Forgetful(Witness):
        def request_finished(self, record):
            references.append(weakref.ref(record.recording, lambda _: gone.set()))

    references, gone = [], threading.Event()
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("fine"))])
    with serve(SQLTraceMiddleware(app, sinks=[Forgetful()]), **kind) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            connection.getresponse().read()
            kept = not gone.wait(10)

    assert not kept


def test_lifespan_runs_and_is_not_told(kind, witness):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        seen.append("start")
        yield
        seen.append("stop")

    seen = []
    with serve(SQLTraceMiddleware(Starlette(lifespan=lifespan), sinks=[witness]), lifespan="on", **kind) as server:
        assert get(server, "/")[0] == 404

    assert seen == ["start", "stop"]
    assert [record.path for record in witness.records] == ["/"]


def test_background_task_is_not_waited_for_by_the_client_and_told_apart(kind, witness):
    release = threading.Event()

    async def work():
        await asyncio.to_thread(release.wait, 30)

    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("fine", background=BackgroundTask(work)))])
    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        answer = get(server, "/")
        told_before = list(witness.moments)
        release.set()
        [record] = witness.take()

    assert answer == (200, b"fine")
    assert told_before == ["response_ready"]
    assert record.recording.after_response > 0
    assert record.outcome == "ok"


@pytest.mark.parametrize("exclude", [[], ["/second"]], ids=["told", "excluded"])
def test_next_request_of_a_connection_is_not_counted_in_background_tasks_of_the_last(
    kind, witness, memory_engine, exclude
):
    release, large = threading.Event(), b"x" * 1_000_000  # it pauses reading, which goes on in the first one's context

    async def work():
        await asyncio.to_thread(release.wait, 30)

    async def first(request):
        await request.body()
        return PlainTextResponse("fine", background=BackgroundTask(work))

    def second(request):
        with memory_engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/first", first, methods=["POST"]), Route("/second", second)])
    with serve(SQLTraceMiddleware(app, sinks=[witness], exclude=exclude), **kind) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            for method, path, body in (("POST", "/first", large), ("GET", "/second", None)):
                connection.request(method, path, body)
                connection.getresponse().read()
        release.set()
        counts = {record.path: record.recording.counts.statements for record in witness.take(1 if exclude else 2)}

    assert counts == {"/first": 0} if exclude else {"/first": 0, "/second": 1}


def test_client_that_leaves_a_stream_is_disconnected(kind, witness):
    async def chunks():
        yield b"first"
        await asyncio.Event().wait()

    app = Starlette(routes=[Route("/", lambda request: StreamingResponse(chunks()))])
    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        client = connect(server, request_line("/"))
        received = b""
        while b"first" not in received:
            received += client.recv(1_000)
        abort(client)
        told = facts(witness)

    assert told == ("disconnected", 200, None)
    assert witness.moments == ["request_finished"]


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
def test_client_that_leaves_a_stream_is_told_once_beside_a_base_http_middleware(kind, witness, outside):
    async def chunks():
        while True:
            yield b"more" * 1_000
            await asyncio.sleep(0.001)

    async def dispatch(request, call_next):
        return await call_next(request)

    base, ours = Middleware(BaseHTTPMiddleware, dispatch=dispatch), Middleware(SQLTraceMiddleware, sinks=[witness])
    routes = [Route("/", lambda request: StreamingResponse(chunks()))]
    app = Starlette(routes=routes, middleware=[base, ours] if outside else [ours, base])
    with serve(app, **kind) as server:
        client = connect(server, request_line("/"))
        client.recv(1_000)
        abort(client)
        outcome, status, _ = facts(witness)

    assert (outcome, status) == ("disconnected", 200)
    assert witness.moments.count("request_finished") == 1


def test_client_that_leaves_while_the_application_listens_is_disconnected(kind, witness):
    async def app(scope, receive, send):
        await receive()
        arrived.set()
        await receive()

    arrived = threading.Event()
    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        client = connect(server, request_line("/"))
        assert arrived.wait(30)
        abort(client)
        told = facts(witness)

    assert told == ("disconnected", None, None)


def test_client_that_leaves_unnoticed_is_no_disconnect(kind, witness):
    """uvicorn says nothing to an application that does not ask, and takes the response as if it were sent."""

    async def endpoint(request):
        arrived.set()
        await asyncio.to_thread(release.wait, 30)
        return PlainTextResponse("too late")

    arrived, release = threading.Event(), threading.Event()
    app = Starlette(routes=[Route("/", endpoint)])
    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        client = connect(server, request_line("/"))
        assert arrived.wait(30)
        abort(client)
        while server.server_state.connections:
            time.sleep(0.005)
        release.set()
        told = facts(witness)

    assert told == ("ok", 200, None)


def test_client_that_leaves_in_its_upload_is_disconnected(kind, witness):
    async def endpoint(request):
        arrived.set()
        await request.body()

    arrived = threading.Event()
    ours = Middleware(SQLTraceMiddleware, sinks=[witness])
    with serve(Starlette(routes=[Route("/", endpoint, methods=["POST"])], middleware=[ours]), **kind) as server:
        client = connect(server, b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\npart")
        assert arrived.wait(30)
        abort(client)
        told = facts(witness)

    assert told == ("disconnected", None, "starlette.requests.ClientDisconnect")


def test_client_that_leaves_in_an_upload_that_fastapi_reads_is_disconnected(kind, witness):
    arrived, app = threading.Event(), FastAPI()
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    @app.post("/")
    def endpoint(item: dict):
        return item

    async def outer(scope, receive, send):
        arrived.set()
        await app(scope, receive, send)

    with serve(outer, **kind) as server:
        head = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        client = connect(server, head + b'{"part"')
        assert arrived.wait(30)
        abort(client)
        outcome, _, _ = facts(witness)

    assert outcome == "disconnected"


def test_server_that_shuts_down_cancels(kind, witness):
    async def endpoint(request):
        arrived.set()
        await asyncio.Event().wait()

    arrived = threading.Event()
    app = Starlette(routes=[Route("/", endpoint)])
    with serve(SQLTraceMiddleware(app, sinks=[witness]), timeout_graceful_shutdown=0, **kind) as server:
        client = connect(server, request_line("/"))
        assert arrived.wait(30)
    client.close()

    assert facts(witness) == ("cancelled", None, "asyncio.exceptions.CancelledError")


def test_exception_is_answered_by_the_server_and_told(kind, witness):
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise LookupError

    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        answer = get(server, "/early")
        with pytest.raises(http.client.IncompleteRead):
            get(server, "/late")
        records = witness.take(2)

    assert answer == (500, b"Internal Server Error")
    assert [(record.outcome, record.status, record.error_type) for record in records] == [
        ("error", 500, "LookupError"),
        ("error", 200, "LookupError"),
    ]


def test_response_that_the_server_refuses_is_an_error(kind, witness):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"too long"})

    with serve(SQLTraceMiddleware(app, sinks=[witness]), **kind) as server:
        with contextlib.suppress(http.client.HTTPException, OSError):
            get(server, "/")
        outcome, status, error_type = facts(witness)

    assert (outcome, status) == ("error", 200)
    assert error_type in ("RuntimeError", "h11._util.LocalProtocolError")


def test_root_path_of_the_server_is_in_path_and_route_and_not_in_the_way_of_exclude(kind, witness):
    sub = FastAPI()
    sub.add_api_route("/items/{item}", nothing)
    app = Starlette(routes=[Mount("/sub/{tenant}", app=sub), Route("/health", lambda request: PlainTextResponse("up"))])
    with serve(SQLTraceMiddleware(app, sinks=[witness], exclude=["/health"]), root_path="/api", **kind) as server:
        assert get(server, "/health") == (200, b"up")
        assert get(server, "/sub/acme/items/5")[0] == 200
        [record] = witness.take()

    assert record.path == "/api/sub/acme/items/5"
    assert record.route == "/api/sub/{tenant}/items/{item}"


def test_concurrent_requests_each_have_their_own_record(kind, witness):
    async def endpoint(request: Request, number: int):
        arrived.append(number)
        if len(arrived) == 50:
            everybody.set()
        await everybody.wait()
        return PlainTextResponse("fine", status_code=200 + number)

    arrived, everybody, app = [], asyncio.Event(), FastAPI()
    app.add_api_route("/{number}", endpoint)
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])
    with serve(app, **kind) as server:
        clients = [threading.Thread(target=get, args=(server, f"/{number}")) for number in range(50)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(30)
        records = witness.take(50)

    assert {record.path: record.status for record in records} == {f"/{number}": 200 + number for number in range(50)}
    assert witness.moments.count("response_ready") == 50
