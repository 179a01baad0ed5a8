"""How a request ended, and that its exceptions pass through unchanged."""

import asyncio
import traceback
from http import HTTPStatus

import pytest
import trio
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sqltrace import SQLTraceMiddleware
from sqltrace.request import outcome_of
from tests.asgi import BODY, CHUNK, START, Witness, call, http_scope, run, sends

GONE = {"type": "http.disconnect"}


def facts(witness):
    record = witness.record
    return record.outcome, record.status, record.error_type


def raises(error, *messages):
    """An application that sends the messages, then raises."""

    async def app(scope, receive, send):
        await sends(*messages)(scope, receive, send)
        raise error

    return app


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


class PaymentError(Exception):
    pass


@pytest.mark.parametrize(
    ("messages", "status", "told"),
    [
        ([], 500, ["request_finished"]),
        ([START], 200, ["request_finished"]),
        ([START, CHUNK], 200, ["request_finished"]),
        ([START, BODY], 200, ["response_ready", "request_finished"]),
    ],
    ids=["before the start", "after the start", "in the body", "after the end"],
)
def test_exception_is_an_error_whenever_it_comes(witness, messages, status, told):
    middleware = SQLTraceMiddleware(raises(PaymentError(), *messages), sinks=[witness])

    with pytest.raises(PaymentError):
        run(middleware, http_scope())

    assert facts(witness) == ("error", status, f"{__name__}.PaymentError")
    assert witness.moments == told


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        PaymentError("with", "arguments"),
        BaseExceptionGroup("several", [ValueError("one"), KeyboardInterrupt()]),
        ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [OSError(5)])]),
        asyncio.CancelledError("shutdown"),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exception_passes_through_as_it_was_raised(witness, error):
    cause, context = LookupError("cause"), RuntimeError("context")
    error.__cause__, error.__context__ = cause, context
    error.add_note("a note")
    arguments = error.args

    class Failing(Witness):
        def request_finished(self, record):
            super().request_finished(record)
            raise ArithmeticError("a sink of no help")

    failing = Failing()
    coroutine = SQLTraceMiddleware(raises(error), sinks=[failing])(http_scope(), None, None)
    with pytest.raises(type(error)) as raised:
        coroutine.send(None)

    assert raised.value is error
    assert (error.__cause__, error.__context__, error.__suppress_context__) == (cause, context, True)
    assert (error.args, error.__notes__) == (arguments, ["a note"])
    assert frames(error)[-2:] == ["stepped", "app"]
    assert failing.moments == ["request_finished"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(KeyboardInterrupt(), "error"), (SystemExit(1), "error"), (GeneratorExit(), "cancelled")],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_exception_that_ends_the_process_is_told_first(witness, error, outcome):
    coroutine = SQLTraceMiddleware(raises(error), sinks=[witness])(http_scope(), None, None)

    with pytest.raises(type(error)):
        coroutine.send(None)

    assert witness.record.outcome == outcome
    assert witness.record.error_type == type(error).__name__


def test_coroutine_that_is_closed_is_cancelled(witness):
    async def app(scope, receive, send):
        await asyncio.sleep(0)

    coroutine = SQLTraceMiddleware(app, sinks=[witness])(http_scope(), None, None)
    coroutine.send(None)
    coroutine.close()

    assert facts(witness) == ("cancelled", None, "GeneratorExit")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda request: PlainTextResponse("fine"), ("ok", 200, None)),
        (lambda request: PlainTextResponse("gone", status_code=410), ("ok", 410, None)),
        (lambda request: Response(status_code=304), ("ok", 304, None)),
        (lambda request: PlainTextResponse("down", status_code=503), ("error", 503, "503")),
    ],
    ids=["200", "410", "304", "503"],
)
def test_status_says_whether_a_response_is_an_error(witness, answer, expected):
    app = Starlette(routes=[Route("/", answer)])

    TestClient(SQLTraceMiddleware(app, sinks=[witness])).get("/")

    assert facts(witness) == expected


def test_status_is_a_plain_number(witness):
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("made", status_code=HTTPStatus.CREATED))])

    TestClient(SQLTraceMiddleware(app, sinks=[witness])).get("/")

    assert repr(witness.record.status) == "201"


@pytest.mark.parametrize(("status", "outcome", "error_type"), [(404, "ok", None), (500, "error", "500")])
def test_http_exception_counts_by_its_status(witness, status, outcome, error_type):
    app = FastAPI()
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    @app.get("/")
    def endpoint():
        raise HTTPException(status)

    TestClient(app).get("/")

    assert facts(witness) == (outcome, status, error_type)


@pytest.mark.parametrize("path", ["/sync", "/async", "/dependency"])
def test_exception_of_an_endpoint_is_an_error_and_the_server_answers_500(witness, path):
    app = FastAPI()
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])

    def fail():
        raise PaymentError

    @app.get("/async")
    async def endpoint():
        raise PaymentError

    app.get("/sync")(fail)
    app.get("/dependency", dependencies=[Depends(fail)])(lambda: None)

    response = TestClient(app, raise_server_exceptions=False).get(path)

    assert response.status_code == 500
    assert facts(witness) == ("error", 500, f"{__name__}.PaymentError")
    assert witness.record.route == path


def test_exception_that_the_application_handles_counts_by_the_answer(witness):
    app = FastAPI()
    app.add_middleware(SQLTraceMiddleware, sinks=[witness])
    app.add_exception_handler(PaymentError, lambda request, error: PlainTextResponse("pay", status_code=402))

    @app.get("/")
    def endpoint():
        raise PaymentError

    assert TestClient(app).get("/").status_code == 402
    assert facts(witness) == ("ok", 402, None)


def test_exception_in_a_background_task_is_an_error_with_the_status_that_was_sent(witness):
    def work():
        raise PaymentError

    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("fine", background=BackgroundTask(work)))])

    TestClient(SQLTraceMiddleware(app, sinks=[witness]), raise_server_exceptions=False).get("/")

    assert facts(witness) == ("error", 200, f"{__name__}.PaymentError")


@pytest.mark.parametrize(("messages", "status"), [([], 500), ([START, CHUNK], 200)], ids=["nothing", "half"])
def test_response_left_unfinished_is_an_error(witness, messages, status):
    run(SQLTraceMiddleware(sends(*messages), sinks=[witness]), http_scope())

    assert facts(witness) == ("error", status, "incomplete_response")
    assert witness.moments == ["request_finished"]


def cancelled_request(witness, *messages, received=()):
    """The server cancels a request that has sent the messages and read what was received."""

    async def app(scope, receive, send):
        await sends(*messages)(scope, receive, send)
        for _ in received:
            await receive()
        running.set()
        await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(call(SQLTraceMiddleware(app, sinks=[witness]), http_scope(), received))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    running = asyncio.Event()
    asyncio.run(main())
    return facts(witness)


def test_cancelled_task_is_told_as_cancelled(witness):
    assert cancelled_request(witness) == ("cancelled", None, "asyncio.exceptions.CancelledError")
    assert witness.moments == ["request_finished"]


def test_cancelled_task_keeps_the_status_that_was_sent(witness):
    assert cancelled_request(witness, START, CHUNK) == ("cancelled", 200, "asyncio.exceptions.CancelledError")


def test_task_that_is_cancelled_because_the_client_left_is_disconnected(witness):
    expected = ("disconnected", 200, "asyncio.exceptions.CancelledError")

    assert cancelled_request(witness, START, received=[GONE]) == expected


def test_client_that_leaves_when_it_has_everything_is_no_disconnect(witness):
    async def app(scope, receive, send):
        await sends(START, BODY)(scope, receive, send)
        await receive()

    run(SQLTraceMiddleware(app, sinks=[witness]), http_scope(), [GONE])

    assert facts(witness) == ("ok", 200, None)


def test_timeout_outside_is_a_cancellation_and_stays_a_timeout(witness):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def main():
        async with asyncio.timeout(0.01):
            await SQLTraceMiddleware(app, sinks=[witness])(http_scope(), None, None)

    with pytest.raises(TimeoutError):
        asyncio.run(main())

    assert witness.record.outcome == "cancelled"


def test_timeout_inside_is_an_error(witness):
    async def app(scope, receive, send):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run(SQLTraceMiddleware(app, sinks=[witness]), http_scope())

    assert facts(witness) == ("error", 500, "TimeoutError")


def test_cancelled_task_is_told_as_cancelled_under_trio(witness):
    async def app(scope, receive, send):
        cancel.cancel()
        await trio.sleep_forever()

    async def main():
        with cancel:
            await SQLTraceMiddleware(app, sinks=[witness])(http_scope(), None, None)

    cancel = trio.CancelScope()
    trio.run(main)

    assert facts(witness) == ("cancelled", None, "trio.Cancelled")


class ClientDisconnectedError(OSError):
    """What a server of its own kind raises from send()."""


@pytest.mark.parametrize("swallowed", [True, False], ids=["swallowed", "raised"])
def test_server_that_raises_os_error_from_send_has_lost_the_client(witness, swallowed):
    error = ClientDisconnectedError()

    async def app(scope, receive, send):
        try:
            await sends(START, BODY)(scope, receive, send)
        except OSError:
            if not swallowed:
                raise

    async def send(message):
        raise error

    middleware = SQLTraceMiddleware(app, sinks=[witness])
    if swallowed:
        run(middleware, http_scope(), send=send)
    else:
        with pytest.raises(ClientDisconnectedError) as raised:
            run(middleware, http_scope(), send=send)
        assert raised.value is error

    assert facts(witness)[0] == "disconnected"


def test_server_that_raises_anything_else_from_send_is_an_error(witness):
    async def send(message):
        raise RuntimeError("Response content longer than Content-Length")

    with pytest.raises(RuntimeError, match="Content-Length"):
        run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope(), send=send)

    assert facts(witness) == ("error", 200, "RuntimeError")
    assert witness.moments == ["request_finished"]


def test_os_error_of_the_application_is_an_error(witness):
    with pytest.raises(FileNotFoundError):
        run(SQLTraceMiddleware(raises(FileNotFoundError()), sinks=[witness]), http_scope())

    assert facts(witness) == ("error", 500, "FileNotFoundError")


def test_bug_that_shows_when_the_client_has_left_is_an_error(witness):
    async def app(scope, receive, send):
        await receive()
        raise PaymentError

    with pytest.raises(PaymentError):
        run(SQLTraceMiddleware(app, sinks=[witness]), http_scope(), [GONE])

    assert witness.record.outcome == "error"


def test_upload_that_breaks_off_is_disconnected(witness):
    async def app(scope, receive, send):
        await Request(scope, receive).body()

    part = {"type": "http.request", "body": b"part", "more_body": True}
    with pytest.raises(ClientDisconnect):
        run(SQLTraceMiddleware(app, sinks=[witness]), http_scope(method="POST"), [part, GONE])

    assert facts(witness) == ("disconnected", None, "starlette.requests.ClientDisconnect")


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_stream_that_the_client_leaves_is_disconnected(witness, spec_version):
    """Until version 2.4 of ASGI Starlette listens for the end of the client, since then send() raises."""

    async def chunks():
        yield b"first"
        left.set()
        await asyncio.Event().wait() if spec_version == "2.3" else None
        yield b"second"

    async def app(scope, receive, send):
        await StreamingResponse(chunks())(scope, receive, send)

    async def receive():
        await left.wait()
        return GONE

    async def send(message):
        if left.is_set():
            raise ClientDisconnectedError

    async def main():
        scope = http_scope(asgi={"version": "3.0", "spec_version": spec_version})
        await SQLTraceMiddleware(app, sinks=[witness])(scope, receive, send)

    left = asyncio.Event()
    if spec_version == "2.3":
        asyncio.run(main())
    else:
        with pytest.raises((ClientDisconnect, ExceptionGroup)):  # the group comes from old Starlette
            asyncio.run(main())

    assert facts(witness)[:2] == ("disconnected", 200)
    assert witness.moments == ["request_finished"]


@pytest.mark.parametrize("outside", [True, False], ids=["outside", "inside"])
def test_base_http_middleware_that_answers_itself_hides_nothing(witness, outside):
    async def dispatch(request, call_next):
        if outside:
            await call_next(request)  # and throws the response away
        return PlainTextResponse("short cut", status_code=418)

    base, ours = Middleware(BaseHTTPMiddleware, dispatch=dispatch), Middleware(SQLTraceMiddleware, sinks=[witness])
    routes = [Route("/", lambda request: StreamingResponse(iter(["a", "b"])))]
    app = Starlette(routes=routes, middleware=[base, ours] if outside else [ours, base])

    assert TestClient(app).get("/").status_code == 418
    assert witness.moments.count("request_finished") == 1
    assert witness.record.status == (200 if outside else 418)


class Cancelled(BaseException):
    """As trio's."""


OrderCancelled = type("Cancelled", (Exception,), {})


@pytest.mark.parametrize(
    ("errors", "disconnected", "outcome"),
    [
        ([asyncio.CancelledError(), asyncio.CancelledError()], False, "cancelled"),
        ([asyncio.CancelledError(), Cancelled()], True, "disconnected"),
        ([WebSocketDisconnect(1000)], False, "ok"),
        ([WebSocketDisconnect(1000), asyncio.CancelledError()], False, "cancelled"),
        ([WebSocketDisconnect(1006), asyncio.CancelledError()], False, "disconnected"),
        ([WebSocketDisconnect(1006), ValueError()], False, "error"),
        ([BaseExceptionGroup("", [ValueError()]), asyncio.CancelledError()], True, "error"),
        ([OrderCancelled()], False, "error"),
        ([OSError()], True, "disconnected"),
        ([OSError()], False, "error"),
    ],
)
def test_group_is_as_bad_as_the_worst_in_it(errors, disconnected, outcome):
    assert outcome_of(BaseExceptionGroup("several", errors), disconnected=disconnected) == outcome
