"""Applications inside of `BaseHTTPMiddleware`, which runs them in a task of their own."""

import asyncio
import gc
import inspect
import weakref

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from tests.asgi import Witness, call, websocket_scope
from tests.loops import ObservedMiddleware, block, get, observed, respond, run_by_clock

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("no_faults")]


async def passes(request, call_next):
    return await call_next(request)


def below(*middleware, **endpoints):
    """Endpoints inside of an ``@app.middleware("http")`` and more, and all of it observed."""
    records = Witness()
    routes = [Route(f"/{name}", endpoint) for name, endpoint in endpoints.items()]
    middleware = Middleware(BaseHTTPMiddleware, dispatch=passes), *middleware
    return Starlette(routes=routes, middleware=[Middleware(ObservedMiddleware, sinks=[records]), *middleware]), records


async def innocent(request):
    for _ in range(5):
        await asyncio.sleep(0.03)
    return PlainTextResponse("ok")


async def ask_both(app):
    """First `innocent`, and while it sleeps the guilty one."""
    waiting = asyncio.create_task(get(app, "/innocent"))
    await asyncio.sleep(0.05)
    await get(app, "/guilty")
    await waiting


def test_who_held_the_loop_and_who_waited_for_it_are_told():
    held = []

    async def guilty(request):
        held.append(block(0.3))
        return PlainTextResponse("ok")

    app, records = below(guilty=guilty, innocent=innocent)
    run_by_clock(ask_both(app))

    assert records["/guilty"].longest_hold == pytest.approx(held[0])
    assert records["/innocent"].time_account.loop_wait == pytest.approx(held[0], rel=0.3)
    assert records["/innocent"].waited_for[0][0] == "GET /guilty"


def test_body_that_is_streamed_in_a_task_of_its_own_holds_the_loop_as_the_request():
    held = []

    async def chunks():
        yield "first"
        held.append(block(0.3))
        yield "last"

    async def guilty(request):
        return StreamingResponse(chunks())

    app, records = observed(Starlette(routes=[Route("/guilty", guilty), Route("/innocent", innocent)]))
    run_by_clock(ask_both(app))

    assert records["/guilty"].longest_hold == pytest.approx(held[0])
    assert records["/guilty"].time_account.loop_wait < 0.1
    assert records["/innocent"].waited_for[0][0] == "GET /guilty"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_streamed_body_counts_once_and_arrives_whole(spec_version):
    async def chunks():
        for chunk in ("one ", "two"):
            block(0.1)
            yield chunk

    app, records = observed(StreamingResponse(chunks()))
    sent = run_by_clock(get(app, "/", asgi={"version": "3.0", "spec_version": spec_version}))

    assert b"".join(message.get("body", b"") for message in sent) == b"one two"
    assert records["/"].held_loop == pytest.approx(0.2)


@pytest.mark.parametrize("count", [1, 3])
def test_each_step_counts_once(count):
    held = []

    async def endpoint(request):
        for _ in range(3):
            held.append(block(0.05))
            await asyncio.sleep(0)
        return PlainTextResponse("ok")

    app, records = below(*[Middleware(BaseHTTPMiddleware, dispatch=passes)] * (count - 1), endpoint=endpoint)
    run_by_clock(get(app, "/endpoint"))

    assert records["/endpoint"].held_loop == pytest.approx(sum(held))


def test_inner_tasks_are_observed_also_after_uninstrument():
    held = []

    async def chunks():
        held.append(block(0.1))
        yield "all"

    async def endpoint(request):
        held.append(block(0.1))
        return StreamingResponse(chunks())

    app, records = below(endpoint=endpoint)
    run_by_clock(get(app, "/endpoint"))  # the middleware is made by now
    held.clear()
    sqltrace.uninstrument()
    run_by_clock(get(app, "/endpoint"))

    assert records["/endpoint"].held_loop == pytest.approx(sum(held)) == pytest.approx(0.2)


def test_application_that_runs_in_the_task_of_the_request_counts_once():
    class Sometimes(BaseHTTPMiddleware):
        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)

    held = []

    async def app(scope, receive, send):
        held.append(block(0.1))
        await asyncio.sleep(0)
        await respond(send)

    observer, records = observed(Sometimes(app))
    run_by_clock(get(observer, "/"))

    assert records["/"].held_loop == pytest.approx(held[0])


def test_what_the_middleware_does_itself_counts_too():
    held = []

    async def dispatch(request, call_next):
        held.append(block(0.1))
        response = await call_next(request)
        held.append(block(0.1))
        return response

    async def endpoint(request):
        held.append(block(0.1))
        return PlainTextResponse("ok")

    app, records = below(Middleware(BaseHTTPMiddleware, dispatch=dispatch), endpoint=endpoint)
    run_by_clock(get(app, "/endpoint"))

    assert records["/endpoint"].held_loop == pytest.approx(sum(held))


def test_application_that_builds_its_middleware_when_it_is_first_called_is_observed_from_then_on():
    held = []

    async def endpoint(request):
        held.append(block(0.1))
        return PlainTextResponse("ok")

    app, records = observed(
        Starlette(
            routes=[Route("/", endpoint)],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)],
        )
    )
    with TestClient(app) as client:  # which runs the lifespan
        client.get("/")

    assert records["/"].held_loop >= held[0]


def test_mounted_application_inside_of_its_own_middleware_holds_the_loop_as_the_request():
    held = []

    async def guilty(request):
        held.append(block(0.3))
        return PlainTextResponse("ok")

    mounted = Starlette(
        routes=[Route("/guilty", guilty)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)],
    )
    app, records = observed(Starlette(routes=[Mount("/api", mounted), Route("/innocent", innocent)]))

    async def main():
        waiting = asyncio.create_task(get(app, "/innocent"))
        await asyncio.sleep(0.05)
        await get(app, "/api/guilty")
        await waiting

    run_by_clock(main())

    assert records["/api/guilty"].longest_hold == pytest.approx(held[0])
    assert records["/innocent"].waited_for[0][0] == "GET /api/guilty"


def test_mounted_application_that_has_not_routed_a_request_yet_is_not_its_route():
    told = []

    async def guilty(request):
        await asyncio.sleep(1)
        return PlainTextResponse("ok")

    async def dispatch(request, call_next):
        block(0.3)
        return await call_next(request)

    async def waiting(request):
        await asyncio.sleep(0.1)
        return PlainTextResponse("ok")

    mounted = Starlette(
        routes=[Route("/guilty", guilty)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
    )
    app, records = observed(Starlette(routes=[Mount("/api", mounted), Route("/waiting", waiting)]))

    async def main():
        guilty = asyncio.create_task(get(app, "/api/guilty"))
        await get(app, "/waiting")
        told.extend(records["/waiting"].waited_for)
        await guilty

    run_by_clock(main())

    assert [name for name, _ in told] == ["GET /api/guilty"]
    assert records.of("/api/guilty").route == "/api/guilty"


def test_middleware_of_starlette_remains_a_coroutine_function():
    """By which uvicorn tells an application of ASGI 3."""
    below()

    assert inspect.iscoroutinefunction(BaseHTTPMiddleware.__call__)


def test_websocket_passes_through():
    async def echo(websocket):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    app, _ = observed(
        Starlette(
            routes=[WebSocketRoute("/", echo)],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)],
        )
    )
    with TestClient(app).websocket_connect("/") as client:
        client.send_text("said")
        assert client.receive_text() == "said"


def test_websocket_which_passes_through_waits_for_what_no_request_has_held():
    """It runs in no task inside, for which it would have to wait."""
    held = []

    async def socket(websocket):
        await websocket.accept()
        for _ in range(5):
            await asyncio.sleep(0.03)
        await websocket.close()

    async def main():
        waiting = asyncio.create_task(call(app, websocket_scope("/"), [{"type": "websocket.connect"}]))
        await asyncio.sleep(0.07)
        held.append(block(0.3))
        await waiting

    app, records = observed(
        Starlette(routes=[WebSocketRoute("/", socket)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)])
    )
    run_by_clock(main())

    assert records["/"].time_account.loop_wait == pytest.approx(held[0], rel=0.3)


def test_exception_of_the_endpoint_reaches_the_middleware_as_it_is():
    raised, caught = ValueError("the endpoint's"), []

    async def endpoint(request):
        raise raised

    async def dispatch(request, call_next):
        try:
            return await call_next(request)
        except ValueError as error:
            caught.append(error)
            return PlainTextResponse("caught")

    app, _ = observed(
        Starlette(
            routes=[Route("/", endpoint)],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
        )
    )

    assert TestClient(app).get("/").text == "caught"
    assert caught == [raised]


def test_application_inside_keeps_its_attributes_and_is_observed_once():
    async def app(scope, receive, send):
        await respond(send)

    app.setting = "the application's own"
    base = BaseHTTPMiddleware(app, dispatch=passes)
    twice = SQLTraceMiddleware(SQLTraceMiddleware(base, sinks=[]), sinks=[])
    for _ in range(2):
        asyncio.run(get(twice, "/"))

    assert base.app.setting == "the application's own"
    assert base.app.app is app


def test_middleware_that_cannot_be_changed_is_left_alone(caplog):
    class Frozen(BaseHTTPMiddleware):
        def __setattr__(self, name, value):
            if name == "app" and hasattr(self, "app"):
                raise AttributeError("frozen")
            super().__setattr__(name, value)

    async def app(scope, receive, send):
        await respond(send)

    base = Frozen(app, dispatch=passes)
    observer, records = observed(base)
    asyncio.run(get(observer, "/"))

    assert base.app is app
    assert records["/"].held_loop is not None
    assert "frozen" in caplog.text
    caplog.clear()


def test_task_that_outlives_its_request_keeps_nothing_of_it():
    class Thing:
        pass

    async def main():
        things, goes_on = [], asyncio.Event()

        async def app(scope, receive, send):
            thing = Thing()
            things.append(weakref.ref(thing))
            await respond(send)
            await goes_on.wait()

        async def dispatch(request, call_next):
            await call_next(request)
            return PlainTextResponse("another response")

        observer, records = observed(BaseHTTPMiddleware(app, dispatch=dispatch))
        request = asyncio.create_task(get(observer, "/"))
        await asyncio.sleep(0.05)
        goes_on.set()
        await request
        gc.collect()
        assert things[0]() is None
        assert records["/"].ended

    asyncio.run(main())


def test_recording_within_the_middleware_leaves_the_loop_to_the_request():
    held = []

    async def dispatch(request, call_next):
        with sqltrace.record():
            return await call_next(request)

    async def endpoint(request):
        held.append(block(0.1))
        return PlainTextResponse("ok")

    app, records = below(Middleware(BaseHTTPMiddleware, dispatch=dispatch), endpoint=endpoint)
    run_by_clock(get(app, "/endpoint"))

    assert records["/endpoint"].held_loop == pytest.approx(held[0])


def test_fault_of_ours_leaves_the_application_inside_the_same(monkeypatch, caplog):
    def broken(self):
        raise RuntimeError("ours")

    async def endpoint(request):
        return PlainTextResponse("the same")

    app, _ = below(endpoint=endpoint)
    monkeypatch.setattr("sqltrace.event_loop.LoopShare.on_its_loop", broken)

    assert TestClient(app).get("/endpoint").text == "the same"
    assert "observing the event loop failed" in caplog.text
    caplog.clear()
