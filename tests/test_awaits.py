"""Where a request's own task waited for what is no SQL, no pool and no event loop."""

import asyncio
import os
import sys
import time
import types
from contextlib import contextmanager
from functools import partial, wraps
from typing import Annotated
from unittest.mock import MagicMock

import pytest
import starlette
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import sqltrace
from sqltrace.awaits import Awaits, site_of_function
from sqltrace.callsite import CallSite
from sqltrace.collector import mark
from sqltrace.findings import idle_in_transaction
from sqltrace.intervals import Coverage
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.log_line import log_line
from tests.asgi import http_scope
from tests.loops import ObservedMiddleware, block, get, observed, run_by_clock, thrice
from tests.test_log_line import VALIDATOR
from tests.test_readable import render

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("no_faults")]


def awaited(endpoint, run=run_by_clock, **options):
    """By function: where the request has waited, and for how long."""
    app, records = observed(Starlette(routes=[Route("/", endpoint)], **options))
    run(get(app, "/"))
    return records.record, {site.function.rpartition(".")[2]: round(time, 3) for site, time in records.record.awaited}


async def price(seconds=0.3):
    await asyncio.sleep(seconds)


def ok():
    return PlainTextResponse("ok")


def test_line_that_waited_for_another_service_is_told():
    async def endpoint(request):
        block(0.2)
        await price()
        return ok()

    record, waited = awaited(endpoint)
    [(site, _)] = record.awaited

    assert waited == {"price": 0.3}
    assert str(site) == f"tests/test_awaits.py:{price.__code__.co_firstlineno + 1} in price"
    assert record.recording.time_account.python == 0.5


def test_waits_at_a_line_add_up_and_the_longest_three_are_told():
    async def first():
        await asyncio.sleep(0.1)

    async def second():
        await asyncio.sleep(0.2)

    async def third():
        await asyncio.sleep(0.15)

    async def endpoint(request):
        for _ in range(3):
            await first()
        await second()
        await third()
        await price(0.05)
        return ok()

    _, waited = awaited(endpoint)

    assert list(waited.items()) == [("first", 0.3), ("second", 0.2), ("third", 0.15)]


@pytest.mark.parametrize(("seconds", "told"), [(0.019, {}), (0.02, {"price": 0.02})])
def test_short_wait_is_not_told(seconds, told):
    async def endpoint(request):
        await price(seconds)
        return ok()

    assert awaited(endpoint)[1] == told


def test_time_for_which_others_held_the_loop_is_not_told():
    async def endpoint(request):
        if request.url.path == "/guilty":
            await asyncio.sleep(0.05)
            block(0.4)
        else:
            await price(0.1)
        return ok()

    app, records = observed(Starlette(routes=[Route("/{name}", endpoint)]))

    async def main():
        await asyncio.gather(get(app, "/innocent"), get(app, "/guilty"))

    run_by_clock(main())
    record = records.of("/innocent")
    account = record.recording.time_account

    assert account.loop_wait == pytest.approx(0.4)
    assert [time for _, time in record.awaited] == [pytest.approx(account.python)] == [pytest.approx(0.05)]


@thrice
def test_statement_is_not_told_though_the_task_waited_for_it(postgres_url):
    engine = create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"))

    async def endpoint(request):
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(0.1)"))
            await price(0.1)
        return ok()

    async def main(request):
        response = await request
        await engine.dispose()
        return response

    record, waited = awaited(endpoint, lambda request: asyncio.run(main(request)))

    assert list(waited) == ["price"]
    assert sum(waited.values()) <= record.recording.time_account.python < record.duration - 0.1


def test_work_in_a_thread_is_told_at_the_line_that_awaits_it():
    async def endpoint(request):
        await run_in_threadpool(time.sleep, 0.05)
        return ok()

    _, waited = awaited(endpoint, asyncio.run)

    assert list(waited) == ["endpoint"]


def test_function_that_a_thread_works_on_for_the_framework_is_told():
    app = FastAPI()

    def connect():
        time.sleep(0.04)
        yield "connection"

    def user():
        time.sleep(0.05)

    @app.get("/")
    def endpoint(connection: Annotated[str, Depends(connect)], user: Annotated[None, Depends(user)]):
        time.sleep(0.06)

    middleware, records = observed(app)
    asyncio.run(get(middleware, "/"))
    sites = [site for site, _ in records.record.awaited]

    assert sorted(site.function.rpartition(".")[2] for site in sites) == ["connect", "endpoint", "user"]
    assert connect.__code__.co_firstlineno in [site.line for site in sites]


class Report:
    def make(self):
        pass

    def __call__(self):
        pass


@contextmanager
def opened():
    yield


@wraps(os.getcwd)
def decorated():
    pass


def decorating(function):
    return wraps(function)(lambda *arguments: function(*arguments))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (partial(partial(decorating, 1), 2), "decorating"),
        (Report().make, "Report.make"),
        (opened().__enter__, "opened"),
        (decorating(opened), "opened"),
        (Report(), None),
        (int, None),
        (time.sleep, None),
        (partial(os.path.join, "a"), None),
        (partial(os.path.join, function=decorating, arguments={}), "decorating"),
        (decorated, None),
        (MagicMock(), None),
        (None, None),
    ],
)
def test_first_line_is_told_of_functions_of_the_application(function, name):
    site = site_of_function(function)

    assert (site and site.function) == name
    assert site is None or site.file == __file__


def test_function_of_an_installed_application_is_second_best(tmp_path):
    names = {}
    exec(compile("def make():\n    pass\n", str(tmp_path / "site-packages" / "shop" / "api.py"), "exec"), names)

    assert site_of_function(names["make"]).function == "make"
    assert site_of_function(partial(names["make"], decorating)).function == "decorating"


def test_middleware_that_waits_for_the_application_inside_is_not_told():
    class Outer:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)

    async def endpoint(request):
        return ok()

    app, records = observed(Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(Outer)]))

    async def main():
        await app(http_scope("/"), None, lambda message: asyncio.sleep(0.3))

    run_by_clock(main())

    assert records.record.duration == 0.6
    assert records.record.awaited == []


def test_middleware_that_waits_itself_is_told():
    async def dispatch(request, call_next):
        await price(0.1)
        return await call_next(request)  # no wait of its own

    async def endpoint(request):
        await asyncio.sleep(0.2)
        return ok()

    app, records = observed(
        Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])
    )

    run_by_clock(get(app, "/"))
    lines = [site.function.rpartition(".")[2] for site, _ in records.records[0].awaited]

    assert lines == ["endpoint", "price"]


def test_body_that_is_streamed_is_told():
    async def body():
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield b"chunk"

    async def endpoint(request):
        return StreamingResponse(body())

    _, waited = awaited(endpoint)

    assert waited == {"body": 0.3}


def test_background_task_is_not_told():
    async def endpoint(request):
        await price(0.1)
        return PlainTextResponse("ok", background=BackgroundTask(price, 1))

    assert awaited(endpoint)[1] == {"price": 0.1}


def test_thousands_of_waits_add_up_in_bounded_memory():
    async def mix():
        await asyncio.sleep(0.03)

    async def endpoint(request):
        for _ in range(70):
            await mix()
        for _ in range(1_000):
            await price(0.025)
        return ok()

    record, waited = awaited(endpoint)

    assert waited == {"price": 25.0, "mix": 2.1}
    assert len(record.recording.awaits.kept) <= 128


def test_lines_are_remembered_in_a_bounded_way():
    awaits, frame = Awaits(), sys._getframe()
    awaits.kept = [(900 - number, 900, CallSite("app.py", number, "f")) for number in range(128, 0, -1)]

    awaits.note([frame], 0, 1_000)

    assert sorted(end - start for start, end, _ in awaits.kept) == [*range(65, 129), 1_000]
    assert len(awaits.by_line(Coverage())) == 129


def test_short_waits_add_up_at_the_first_64_lines():
    awaits, sites = Awaits(), [CallSite("app.py", line, "price") for line in range(100)]
    for site in (*sites, *sites):
        awaits.kept = [(1_000, 1_001, site)] * 64 + [(1_000, 1_010, sites[0])] * 65
        awaits._keep_longest()

    assert awaits.by_line(Coverage()) == [(sites[0], 128 + 650), *[(site, 128) for site in sites[1:64]]]


@pytest.mark.parametrize(
    ("start", "end", "others", "lines"),
    [
        (15, 40, (1, 2), {"b": 10, "a": 5}),
        (15, 62, (1, 2), {"b": 20, "a": 7}),
        (15, 62, (35, 61), {"a": 6, "b": 5}),
        (20, 30, (1, 2), {}),
        (12, 18, (1, 2), {"a": 6}),
    ],
)
def test_part_of_a_wait_that_lies_in_a_stretch_is_told_of_it(start, end, others, lines):
    awaits, covered = Awaits(), Coverage()
    first, second = CallSite("app.py", 1, "a"), CallSite("app.py", 2, "b")
    awaits.kept = [(10, 20, first), (30, 50, second), (60, 65, first)]
    covered.add(*others)

    told = awaits.within(start, end, covered)

    assert [(site.function, waited) for site, waited in told] == [*lines.items()]


def test_time_of_what_is_forgotten_is_not_told(clock):
    recording = sqltrace.Recording(clock=clock)
    share = recording.observe_loop()
    share.awaits = Awaits()
    waits = [(clock.now + second * 1_000_000_000, clock.now + (second + 1) * 1_000_000_000) for second in (0, 6)]
    share.awaits.kept = [(*wait, CallSite("app.py", 1, "f")) for wait in waits]
    for number in range(5_000):
        mark(recording.collector, None, "database", clock.now + number * 1_000_000, clock.now + number * 1_000_000 + 1)
    clock.advance(10)
    recording.end()

    assert sqltrace.RequestRecord(recording, "http", "/").awaited == [(CallSite("app.py", 1, "f"), 1.0)]


@pytest.mark.parametrize("part", ["connection", "database", "objects", "loop_wait"])
def test_time_that_counts_as_something_else_is_not_told(clock, part):
    recording = sqltrace.Recording(clock=clock)
    share = recording.observe_loop()
    share.observed, share.awaits = True, Awaits()
    share.awaits.kept = [(clock.now, clock.now + 1_000_000_000, CallSite("app.py", 1, "f"))]
    mark(recording.collector, None, part, clock.now + 250_000_000, clock.now + 500_000_000)
    clock.advance(1)
    recording.end()

    assert sqltrace.RequestRecord(recording, "http", "/").awaited == [(CallSite("app.py", 1, "f"), 0.75)]


def test_middleware_that_waits_while_the_body_does_is_told():
    async def dispatch(request, call_next):
        response = await call_next(request)
        await price(0.3)
        return response

    async def body():
        yield b"first"
        await asyncio.sleep(0.5)
        yield b"last"

    async def endpoint(request):
        return StreamingResponse(body())

    app, records = observed(
        Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])
    )
    for _ in range(2):
        run_by_clock(get(app, "/"))
    record = records.records[1]

    assert {site.function.rpartition(".")[2]: time for site, time in record.awaited} == {"body": 0.5, "price": 0.3}
    assert record.recording.time_account.python == pytest.approx(0.8)


def test_library_that_is_called_as_an_object_is_no_application():
    source = "class Adapter:\n    async def __call__(self):\n        await sleep(0.3)\n"
    adapter = types.ModuleType("asgiref.sync")
    adapter.sleep = asyncio.sleep
    exec(compile(source, starlette.__file__, "exec"), vars(adapter))

    async def endpoint(request):
        await adapter.Adapter()()
        return ok()

    assert awaited(endpoint)[1] == {"endpoint": 0.3}


def test_idle_transaction_says_what_was_awaited_meanwhile():
    engine = create_engine("sqlite://", poolclass=StaticPool)

    async def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            await price(1)
        return ok()

    record, _ = awaited(endpoint)
    engine.dispose()
    [finding] = sqltrace.diagnose(record.recording, [idle_in_transaction])

    assert finding.message.endswith(
        f"and its locks, awaiting at tests/test_awaits.py:{price.__code__.co_firstlineno + 1} in price."
    )


def test_idle_transaction_that_waited_for_the_loop_names_what_it_waited_for_itself():
    engine = create_engine("sqlite://", poolclass=StaticPool)

    async def pause():
        await asyncio.sleep(0.1)

    async def endpoint(request):
        if request.url.path == "/guilty":
            await asyncio.sleep(0.85)
            block(2)
            return ok()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            await price(0.8)
            await pause()
        return ok()

    app, records = observed(Starlette(routes=[Route("/{name}", endpoint)]))

    async def main():
        await asyncio.gather(get(app, "/idle"), get(app, "/guilty"))

    run_by_clock(main())
    engine.dispose()
    [finding] = sqltrace.diagnose(records["/idle"], [idle_in_transaction])

    assert finding.message.endswith(" in price.")


def test_idle_transaction_that_computes_awaits_nothing():
    engine = create_engine("sqlite://", poolclass=StaticPool)

    async def endpoint(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            block(1)
            await price(0.1)
        return ok()

    record, _ = awaited(endpoint)
    engine.dispose()
    [finding] = sqltrace.diagnose(record.recording, [idle_in_transaction])

    assert finding.message.endswith("and its locks.")


def test_log_line_and_server_span_have_it(tracing):
    async def endpoint(request):
        await price()
        return ok()

    record, _ = awaited(endpoint)
    line = log_line(record)
    app = ObservedMiddleware(
        Starlette(routes=[Route("/", endpoint)]), sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]
    )
    run_by_clock(get(app, "/"))
    [span] = tracing.spans()
    site = f"tests/test_awaits.py:{price.__code__.co_firstlineno + 1} in price"

    VALIDATOR.validate({"event": "request", "level": "info", **line})
    assert line["python.awaited"] == [{"call_site": site, "ms": 300.0}]
    assert span.attributes["sqltrace.python.awaited_at"] == (site,)


@pytest.mark.parametrize(("waited", "seen"), [(400.0, True), (2.0, False)])
def test_terminal_has_what_can_be_seen_of_it(waited, seen):
    awaits = [{"call_site": "app/weather.py:12 in forecast", "ms": waited}]

    printed = render(width=200, duration_ms=500.0, **{"python.awaited": awaits})

    assert (f"awaited {waited} ms at app/weather.py:12 in forecast" in printed) is seen
    assert "python_awaited" not in printed


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("suspended.suspended_frames", {}),
        ("awaits.site_awaited", {}),
        ("thread_waits.ThreadUses.note", {"price": 0.3}),
        ("watchdog.ref", {"price": 0.3}),
    ],
)
def test_fault_of_ours_does_not_reach_the_application(monkeypatch, caplog, broken, told):
    def break_down(*arguments):
        raise ArithmeticError("ours")

    async def endpoint(request):
        await price()
        return ok()

    monkeypatch.setattr(f"sqltrace.{broken}", break_down)
    sqltrace.faults.forget_faults()
    record, waited = awaited(endpoint)

    assert (record.outcome, record.status, waited) == ("ok", 200, told)
    assert sum("observing the event loop failed" in record.message for record in caplog.records) == 1
    sqltrace.faults.forget_faults()
    caplog.clear()
