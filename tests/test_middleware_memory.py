"""Nothing is kept of a request that is over."""

import asyncio
import gc
import tracemalloc
import weakref
from contextlib import suppress

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from tests.asgi import BODY, START, call, http_scope, select, sends


class Forgetful:
    """A sink that keeps weak references only."""

    def __init__(self):
        self.recordings = []

    def response_ready(self, record):
        pass

    def request_finished(self, record):
        self.recordings.append(weakref.ref(record.recording))


class Scope(dict):
    """A scope that can be weakly referenced."""


def test_nothing_is_kept_of_a_finished_request(memory_engine):
    async def app(scope, receive, send):
        select(memory_engine)
        if scope["path"] == "/fail":
            raise ValueError
        await sends(START, BODY)(scope, receive, send)

    async def main():
        for path in ("/", "/fail"):
            scope = Scope(http_scope(path))
            scopes.append(weakref.ref(scope))
            with suppress(ValueError):
                await call(middleware, scope)

    scopes, sink = [], Forgetful()
    middleware = SQLTraceMiddleware(app, sinks=[sink])
    gc.disable()
    try:
        asyncio.run(main())
        kept = [reference() for reference in sink.recordings + scopes]
    finally:
        gc.enable()

    assert kept == [None] * 4


def test_application_that_keeps_its_request_does_not_keep_the_recording(memory_engine):
    def endpoint(request):
        select(memory_engine)
        requests.append(request)
        return PlainTextResponse("fine")

    requests, sink = [], Forgetful()
    TestClient(SQLTraceMiddleware(Starlette(routes=[Route("/", endpoint)]), sinks=[sink])).get("/")
    gc.collect()

    assert len(requests) == 1
    assert [reference() for reference in sink.recordings] == [None]


def test_task_that_outlives_its_request_does_not_keep_the_recording(memory_engine):
    async def app(scope, receive, send):
        async def outlive():
            await over.wait()
            select(memory_engine)

        tasks.append(asyncio.create_task(outlive()))
        await sends(START, BODY)(scope, receive, send)

    async def main():
        await call(middleware, http_scope())
        gc.collect()
        alive = [reference() for reference in sink.recordings]
        over.set()
        await tasks[0]
        return alive

    tasks, over, sink, before = [], asyncio.Event(), Forgetful(), sqltrace.missed_statements().late
    middleware = SQLTraceMiddleware(app, sinks=[sink])

    assert asyncio.run(main()) == [None]
    assert sqltrace.missed_statements().late == before + 1


def test_thousands_of_requests_leave_no_growth(memory_engine):
    async def app(scope, receive, send):
        select(memory_engine)
        if scope["path"] == "/fail":
            raise ValueError
        await sends(START, BODY)(scope, receive, send)

    async def requests(count):
        for number in range(count):
            with suppress(ValueError):
                await call(middleware, http_scope("/fail" if number % 5 == 0 else f"/{number}"))

    def traced():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    class Null(Forgetful):
        def request_finished(self, record):
            pass

    middleware = SQLTraceMiddleware(app, sinks=[Null()])
    tracemalloc.start()
    try:
        asyncio.run(requests(500))  # fills what caches there are
        sizes = [traced()]
        for _ in range(2):
            asyncio.run(requests(5_000))
            sizes.append(traced())
    finally:
        tracemalloc.stop()

    # A list of 5,000 references needs twice as much, each time. Once, a table of the interpreter's may be enlarged.
    assert min(sizes[1] - sizes[0], sizes[2] - sizes[1]) < 20_000
