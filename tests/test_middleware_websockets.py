"""How a websocket ended."""

import pytest
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from sqltrace import SQLTraceMiddleware
from tests.asgi import run, sends, websocket_scope

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}


def facts(witness):
    record = witness.record
    return record.outcome, record.status, record.error_type


def raises(error, *messages):
    """An application that sends the messages, then raises."""

    async def app(scope, receive, send):
        await sends(*messages)(scope, receive, send)
        raise error

    return app


class PaymentError(Exception):
    pass


class ClientDisconnectedError(OSError):
    """What a server of its own kind raises from send()."""


def test_websocket_that_the_application_closes_is_ok(witness):
    async def app(websocket):
        await websocket.accept()
        await websocket.close(4000)

    client = TestClient(SQLTraceMiddleware(Starlette(routes=[WebSocketRoute("/", app)]), sinks=[witness]))
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/") as websocket:
        websocket.receive_text()

    assert facts(witness) == ("ok", 101, None)
    assert witness.moments == ["response_ready", "request_finished"]


def websocket_app(endpoint):
    app = FastAPI()
    app.websocket("/")(endpoint)
    return app


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1000, ("ok", 101, None)),
        (1001, ("ok", 101, None)),
        (1005, ("ok", 101, None)),
        (3000, ("ok", 101, None)),
        (4999, ("ok", 101, None)),
        (1006, ("disconnected", 101, "starlette.websockets.WebSocketDisconnect")),
        (1011, ("disconnected", 101, "starlette.websockets.WebSocketDisconnect")),
    ],
)
def test_websocket_that_the_client_closes_counts_by_its_code(witness, code, expected):
    async def echo(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    ends = {"type": "websocket.disconnect", "code": code, "reason": ""}
    middleware = SQLTraceMiddleware(websocket_app(echo), sinks=[witness])
    with pytest.raises(WebSocketDisconnect):
        run(middleware, websocket_scope(), [CONNECT, {"type": "websocket.receive", "text": "hello"}, ends])

    assert facts(witness) == expected
    assert witness.moments == ["response_ready", "request_finished"]


def test_websocket_whose_end_the_application_handles_counts_by_its_code(witness):
    async def app(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await receive()

    middleware = SQLTraceMiddleware(app, sinks=[witness])
    for end in ({"code": 1006}, {"code": None}, {}, {"code": 1001}):
        run(middleware, websocket_scope(), [CONNECT, {"type": "websocket.disconnect", **end}])

    assert [record.outcome for record in witness.records] == ["disconnected", "ok", "ok", "ok"]


def test_websocket_send_to_a_lost_client_is_disconnected(witness):
    async def talk(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text("hello")

    sent = []

    async def send(message):
        sent.append(message)
        if len(sent) > 2:
            raise ClientDisconnectedError

    with pytest.raises((WebSocketDisconnect, ClientDisconnectedError)):
        run(SQLTraceMiddleware(websocket_app(talk), sinks=[witness]), websocket_scope(), [CONNECT], send=send)

    assert facts(witness)[:2] == ("disconnected", 101)


def test_refused_websocket_is_told_as_403(witness):
    async def refuse(websocket: WebSocket):
        await websocket.close(1008)

    client = TestClient(SQLTraceMiddleware(websocket_app(refuse), sinks=[witness]))
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass

    assert facts(witness) == ("ok", 403, None)


def test_denied_websocket_has_the_status_of_the_answer(witness):
    async def deny(websocket: WebSocket):
        await websocket.send_denial_response(PlainTextResponse("who are you", status_code=401))

    client = TestClient(SQLTraceMiddleware(websocket_app(deny), sinks=[witness]))
    with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/"):
        pass

    assert facts(witness) == ("ok", 401, None)
    assert witness.moments == ["response_ready", "request_finished"]


@pytest.mark.parametrize(("messages", "status"), [([], 500), ([ACCEPT], 101)], ids=["in the handshake", "open"])
def test_exception_of_a_websocket_is_an_error(witness, messages, status):
    with pytest.raises(PaymentError):
        run(SQLTraceMiddleware(raises(PaymentError(), *messages), sinks=[witness]), websocket_scope(), [CONNECT])

    assert facts(witness) == ("error", status, f"{__name__}.PaymentError")


def test_websocket_that_is_neither_accepted_nor_refused_is_an_error(witness):
    run(SQLTraceMiddleware(sends(), sinks=[witness]), websocket_scope())

    assert facts(witness) == ("error", 500, "incomplete_response")


def test_websocket_that_the_application_leaves_open_is_ok(witness):
    """Servers close it then."""
    run(SQLTraceMiddleware(sends(ACCEPT), sinks=[witness]), websocket_scope())

    assert facts(witness) == ("ok", 101, None)
