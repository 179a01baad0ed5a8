"""Websockets under a real server."""

import asyncio
from contextlib import suppress

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from sqltrace import SQLTraceMiddleware
from tests.asgi import abort, serve


@pytest.fixture(params=["asyncio", "uvloop"])
def kind(request):
    """The options of uvicorn that choose its event loop and its implementation of websockets."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop does not run on this platform")
    return {"loop": request.param, "ws": "websockets-sansio"}


@pytest.fixture
def app(witness):
    app = FastAPI()
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    @app.websocket("/echo/{room}")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    @app.websocket("/polite/{room}")
    async def polite(websocket: WebSocket):
        await websocket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text(await websocket.receive_text())

    @app.websocket("/close")
    async def close(websocket: WebSocket):
        await websocket.accept()
        await websocket.close(4000)

    @app.websocket("/refuse")
    async def refuse(websocket: WebSocket):
        await websocket.close()

    @app.websocket("/deny")
    async def deny(websocket: WebSocket):
        await websocket.send_denial_response(PlainTextResponse("who are you", status_code=401))

    @app.websocket("/fail")
    async def fail(websocket: WebSocket):
        await websocket.accept()
        raise LookupError

    return app


def url(server, path):
    return f"ws://127.0.0.1:{server.port}{path}"


def facts(witness):
    [record] = witness.take()
    return record.route, record.outcome, record.status


@pytest.mark.parametrize("path", ["/echo", "/polite"])
@pytest.mark.parametrize(("code", "outcome"), [(1000, "ok"), (4001, "ok"), (1011, "disconnected")])
def test_client_that_closes_counts_by_its_code(kind, witness, app, path, code, outcome):
    with serve(app, **kind) as server, connect(url(server, f"{path}/5")) as client:
        client.send("hello")
        assert client.recv() == "hello"
        client.close(code)
        told = facts(witness)

    assert told == (path + "/{room}", outcome, 101)
    assert witness.moments == ["response_ready", "request_finished"]


def test_client_that_aborts_ends_the_request(kind, witness, app):
    with serve(app, **kind) as server, connect(url(server, "/echo/5")) as client:
        client.send("hello")
        assert client.recv() == "hello"
        abort(client.socket)
        told = facts(witness)

    # uvicorn gives a lost connection the code 1005, like a close without a code: the two cannot be told apart.
    assert told == ("/echo/{room}", "ok", 101)
    assert witness.moments == ["response_ready", "request_finished"]


def test_client_that_aborts_while_the_application_sends_is_disconnected(kind, witness, app):
    @app.websocket("/talk")
    async def talk(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text("hello")
            await asyncio.sleep(0.001)

    with serve(app, **kind) as server, connect(url(server, "/talk")) as client:
        assert client.recv() == "hello"
        abort(client.socket)
        told = facts(witness)

    assert told == ("/talk", "disconnected", 101)


def test_application_that_closes_is_ok(kind, witness, app):
    with serve(app, **kind) as server, connect(url(server, "/close")) as client:
        with pytest.raises(ConnectionClosed):
            client.recv()
        told = facts(witness)

    assert told == ("/close", "ok", 101)


@pytest.mark.parametrize(("path", "status"), [("/refuse", 403), ("/deny", 401), ("/missing", 403)])
def test_refused_handshake_is_told_with_its_status(kind, witness, app, path, status):
    with serve(app, **kind) as server:
        with pytest.raises(InvalidStatus) as raised, connect(url(server, path)):
            pass
        told = facts(witness)

    assert raised.value.response.status_code == status
    assert told == (None if path == "/missing" else path, "ok", status)


def test_exception_is_told(kind, witness, app):
    with serve(app, **kind) as server, connect(url(server, "/fail")) as client:
        with pytest.raises(ConnectionClosed):
            client.recv()
        [record] = witness.take()

    assert (record.route, record.outcome, record.status) == ("/fail", "error", 101)
    assert record.error_type == "LookupError"


def test_server_that_shuts_down_ends_the_request(kind, witness, app):
    with serve(app, **kind) as server, connect(url(server, "/polite/5")) as client:
        client.send("hello")
        assert client.recv() == "hello"
        server.should_exit = True
        told = facts(witness)

    assert told == ("/polite/{room}", "disconnected", 101)
