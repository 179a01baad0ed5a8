"""Waits for the threads that `def` endpoints and dependencies share: for how long, and who used them meanwhile."""

import asyncio
import gc
import threading
import weakref
from contextlib import suppress

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import sqltrace
from sqltrace.recording import Recording
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.log_line import log_line
from sqltrace.suspended import suspended_frames
from sqltrace.thread_waits import ThreadWaits, awaited_threads
from tests.asgi import Clock, Witness, timed
from tests.loops import RUNNERS, get
from tests.test_log_line import VALIDATOR
from tests.test_readable import render

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=RUNNERS)
def run(request):
    return request.param


class Hall:
    """
    An application with few threads, by a clock of its own.

    ``/use/{user}`` uses a thread until `let_go`, ``/quick`` for a moment.
    """

    def __init__(self, threads=1, **options):
        self.threads = threads
        self.clock, self.witness = Clock(), Witness()
        self.gates = {}
        self.requests = []
        self.started = 0
        routes = [Route("/use/{user}", self.use), Route("/quick", self.quick)]
        self.serve(Starlette(routes=[*routes, *options.pop("routes", ())], **options))

    def serve(self, app, *sinks):
        self.app = timed(app, self.clock, sinks=[self.witness, *sinks])

    def use(self, request):
        return self.occupy(request.path_params["user"])

    def occupy(self, user):
        gate = self.gates.setdefault(user, threading.Event())
        self.started += 1
        assert gate.wait(30)
        return PlainTextResponse("used")

    def quick(self, request):
        return PlainTextResponse("quick")

    async def open(self):
        self.limiter = anyio.to_thread.current_default_thread_limiter()
        self.limiter.total_tokens = self.threads

    async def request(self, path):
        """Begun, and as far as it gets: to a thread, or to the queue for one."""
        started, waiting = self.started, self.limiter.statistics().tasks_waiting
        task = asyncio.create_task(get(self.app, path))
        self.requests.append(task)
        while self.started == started and self.limiter.statistics().tasks_waiting == waiting and not task.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return task

    async def let_go(self, user):
        started, waiting = self.started, self.limiter.statistics().tasks_waiting
        self.gates[user].set()
        while self.limiter.statistics().tasks_waiting == waiting and waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return started

    async def close(self):
        for gate in self.gates.values():
            gate.set()
        await asyncio.gather(*self.requests, return_exceptions=True)

    def waited(self, path="/quick"):
        return self.witness[path].thread_wait


def in_hall(hall, run, scenario):
    async def main():
        await hall.open()
        await scenario()
        await hall.close()

    run(main())


def test_wait_for_a_thread_is_measured_with_who_used_them(run):
    hall = Hall(threads=2)

    async def scenario():
        await hall.request("/use/first")
        await hall.request("/use/second")
        await hall.request("/quick")
        hall.clock.advance(2)

    in_hall(hall, run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(2.0, 2, (("GET /use/{user}", 2.0),))
    assert hall.witness["/quick"].time_account.python == 2.0
    assert hall.waited("/use/first") is None


def test_users_are_told_by_the_threads_that_they_used_on_average():
    hall = Hall(routes=[Route("/report", lambda request: hall.occupy("report"))])

    async def scenario():
        await hall.request("/report")
        await hall.request("/use/next")
        await hall.request("/quick")
        hall.clock.advance(3)
        await hall.let_go("report")
        hall.clock.advance(1)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited("/use/next") == sqltrace.ThreadWait(3.0, 1, (("GET /report", 1.0),))
    assert hall.waited() == sqltrace.ThreadWait(4.0, 1, (("GET /report", 0.75), ("GET /use/{user}", 0.25)))


def test_those_who_still_work_when_the_wait_ends_are_counted():
    hall = Hall(threads=3)

    async def scenario():
        for user in ("short", "long", "longest"):
            await hall.request(f"/use/{user}")
        hall.clock.advance(1)
        await hall.request("/quick")
        hall.clock.advance(1)
        await hall.let_go("short")

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(1.0, 3, (("GET /use/{user}", 3.0),))


def test_wait_that_ends_in_vain_is_measured():
    hall = Hall()

    async def scenario():
        await hall.request("/use/one")
        waiting = await hall.request("/quick")
        hall.clock.advance(0.5)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    in_hall(hall, asyncio.run, scenario)

    assert hall.witness.of("/quick").outcome == "cancelled"
    assert hall.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_dependencies_wait_for_the_same_threads():
    hall, app = Hall(), FastAPI()

    def connect():
        return "connection"

    @app.get("/use/{user}")
    def use(user: str):
        hall.occupy(user)

    @app.get("/quick")
    async def quick(connection: str = Depends(connect)):
        return connection

    hall.serve(app)

    async def scenario():
        await hall.request("/use/one")
        await hall.request("/quick")
        hall.clock.advance(0.5)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_requests_inside_of_base_http_middleware_are_seen():
    async def dispatch(request, call_next):
        return await call_next(request)

    hall = Hall(middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])

    async def scenario():
        await hall.request("/quick")  # Starlette builds its middleware with the first request, or in a lifespan
        await hall.request("/use/one")
        await hall.request("/quick")
        hall.clock.advance(0.5)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_chunks_of_a_synchronous_stream_wait_for_threads():
    hall = Hall(routes=[Route("/stream", lambda request: StreamingResponse(iter(["chunk"])))])

    async def scenario():
        hall.limiter.total_tokens = 2
        await hall.request("/use/one")
        hall.limiter.total_tokens = 1
        await hall.request("/stream")
        hall.clock.advance(0.5)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited("/stream").waited == 0.5


@pytest.mark.parametrize("uses", ["another limiter", "a semaphore", "a thread", "a lock of asyncio"])
def test_any_other_wait_is_none_for_a_thread(uses):
    hall = Hall(threads=5)
    limiter, ready = anyio.CapacityLimiter(1), asyncio.Event()

    async def endpoint(request):
        hall.started += 1
        if uses == "another limiter":
            await anyio.to_thread.run_sync(int, limiter=limiter)
        elif uses == "a semaphore":
            await limiter.acquire()
            limiter.release()
        elif uses == "a thread":
            await anyio.to_thread.run_sync(hall.occupy, "another")
        else:
            await ready.wait()
        return PlainTextResponse("done")

    hall.serve(Starlette(routes=[Route("/other", endpoint)]))

    async def scenario():
        limiter.acquire_on_behalf_of_nowait(hall)
        await hall.request("/other")
        hall.clock.advance(0.5)
        limiter.release_on_behalf_of(hall)
        ready.set()

    in_hall(hall, asyncio.run, scenario)

    assert hall.witness["/other"].duration == 0.5
    assert hall.waited("/other") is None


def test_background_task_uses_threads_and_its_own_wait_is_none_of_the_response():
    def endpoint(request):
        return PlainTextResponse("done", background=BackgroundTask(hall.occupy, request.path_params["name"]))

    hall = Hall(routes=[Route("/task/{name}", endpoint)])

    async def scenario():
        await hall.request("/task/first")
        await hall.request("/task/second")
        hall.clock.advance(0.5)
        await hall.let_go("first")
        await hall.request("/quick")
        hall.clock.advance(0.25)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited("/task/first") is None
    assert hall.waited("/task/second") == sqltrace.ThreadWait(0.5, 1, (("GET /task/{name}", 1.0),))
    assert hall.waited() == sqltrace.ThreadWait(0.25, 1, (("GET /task/{name}", 1.0),))


def test_waits_of_one_request_add_up():
    def connect():
        return "connection"

    hall, app = Hall(), FastAPI()

    @app.get("/use/{user}")
    def use(user: str):
        hall.occupy(user)

    @app.get("/quick")
    def quick(connection: str = Depends(connect)):
        return connection

    hall.serve(app)

    async def scenario():
        await hall.request("/use/first")
        await hall.request("/quick")  # for the dependency
        await hall.request("/use/second")
        hall.clock.advance(0.5)
        await hall.let_go("first")  # the dependency has run, and the endpoint is behind the second
        hall.clock.advance(0.25)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(0.75, 1, (("GET /use/{user}", 1.0),))


def test_of_requests_that_wait_at_once_each_has_its_own_wait():
    hall = Hall()

    async def scenario():
        await hall.request("/use/one")
        hall.witness.records.clear()
        for _ in range(4):
            await hall.request("/quick")
            hall.clock.advance(0.25)

    in_hall(hall, asyncio.run, scenario)
    waits = sorted(record.recording.thread_wait.waited for record in hall.witness.records if record.path == "/quick")

    assert waits == [0.25, 0.5, 0.75, 1.0]


def test_users_of_another_loop_are_not_counted():
    here, there = Hall(), Hall()
    there.clock = here.clock
    there.serve(Starlette(routes=[Route("/there/{user}", there.use)]))
    ready, done = threading.Event(), threading.Event()

    async def elsewhere():
        await there.open()
        await there.request("/there/one")
        ready.set()
        await asyncio.to_thread(done.wait, 30)
        await there.close()

    async def scenario():
        await asyncio.to_thread(ready.wait, 30)
        await here.request("/use/one")
        await here.request("/quick")
        here.clock.advance(0.5)
        await here.let_go("one")

    other = threading.Thread(target=asyncio.run, args=(elsewhere(),))
    other.start()
    try:
        in_hall(here, asyncio.run, scenario)
    finally:
        done.set()
        other.join()

    assert here.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_requests_of_one_route_are_counted_together_however_many():
    hall = Hall(threads=70)

    async def scenario():
        for number in range(hall.threads):
            await hall.request(f"/use/{number}")
        await hall.request("/quick")
        hall.clock.advance(0.5)

    in_hall(hall, asyncio.run, scenario)

    assert hall.waited() == sqltrace.ThreadWait(0.5, 70, (("GET /use/{user}", 70.0),))


def test_task_that_lets_others_go_first_does_not_use_a_thread_yet():
    async def main():
        running = anyio.to_thread.run_sync(int)
        running.send(None)
        try:
            return awaited_threads([*suspended_frames(running)])
        finally:
            running.close()

    assert asyncio.run(main()) is None


def test_many_users_are_remembered_in_a_bounded_way():
    waits = ThreadWaits()

    for _ in range(50):
        waits.add(1_000_000_000, 40, {Recording(f"GET /{number}").observe_loop().label: 9.0 for number in range(50)})

    assert len(waits.used) == 64
    assert len(waits.in_all().users) == 5


def test_requests_are_not_kept_alive():
    hall = Hall()

    async def scenario():
        await hall.request("/use/one")
        await hall.request("/quick")
        hall.clock.advance(0.5)
        await hall.let_go("one")
        kept = [weakref.ref(record.recording) for record in hall.witness.records]
        hall.witness.records.clear()
        hall.requests.clear()
        gc.collect()
        assert len(kept) == 2
        assert [reference() for reference in kept] == [None, None]

    in_hall(hall, asyncio.run, scenario)


class TestFinding:
    def found(self, waited, name="GET /quick", users=(("GET /report", 30.25), ("GET /quick", 9.5))):
        clock = Clock()
        recording = Recording(name, clock=clock)
        waits = recording.observe_loop().thread_waits = ThreadWaits()
        labels = {Recording(user).observe_loop().label: number for user, number in users}
        waits.add(round(waited * 1_000_000_000), 40, labels)
        clock.advance(waited)
        recording.end()
        return sqltrace.diagnose(recording)

    def test_leaves_out_who_used_next_to_none(self):
        [finding] = self.found(0.5, users=(("GET /report", 39.9), ("GET /health", 0.05), ("GET /ready", 0.049)))

        assert "used by GET /report (39.9) and GET /health (0.1) on average." in finding.message

    @pytest.mark.parametrize(("waited", "kinds"), [(0.099, []), (0.1, ["thread_wait"])])
    def test_is_told_from_a_tenth_of_a_second(self, waited, kinds):
        assert [finding.kind for finding in self.found(waited)] == kinds

    def test_says_who_used_the_threads_and_how_to_have_more(self):
        [finding] = self.found(0.5)

        assert finding.cost == 0.5
        assert finding.message == (
            "500.0 ms spent waiting for one of the 40 threads that def endpoints and dependencies share, used by"
            " GET /report (30.2) and others of GET /quick (9.5) on average."
        )
        assert finding.fix == (
            "see what GET /report waits for in them; or, in the lifespan and with a pool as large,"
            " anyio.to_thread.current_default_thread_limiter().total_tokens = 80"
        )

    def test_of_its_own_route_does_not_send_the_reader_in_a_circle(self):
        [finding] = self.found(0.5, name="GET /report")

        assert "used by others of GET /report (30.2)" in finding.message
        assert finding.fix.startswith("see what others of this route wait for; or, ")

    def test_without_known_users_has_a_fix_all_the_same(self):
        [finding] = self.found(0.5, users=())

        assert finding.message.endswith("dependencies share.")
        assert finding.fix.startswith("async def for what waits long; or, ")


class TestIsTold:
    @pytest.fixture
    def hall(self):
        """Of which /quick has waited."""
        hall = Hall(threads=2)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        hall.serve(hall.app.app, OpenTelemetrySink(tracer_provider=provider))

        async def scenario():
            await hall.request("/use/first")
            await hall.request("/use/second")
            await hall.request("/quick")
            hall.clock.advance(0.5)

        in_hall(hall, asyncio.run, scenario)
        yield hall
        provider.shutdown()

    def test_in_the_log_line(self, hall):
        line = log_line(hall.witness.of("/quick"))

        VALIDATOR.validate({"event": "request", "level": "warning", **line})
        assert line["threads.wait_ms"] == 500.0
        assert line["threads.count"] == 2
        assert line["threads.used_by"] == [{"name": "GET /use/{user}", "threads": 2.0}]
        assert not [key for key in log_line(hall.witness.of("/use/first")) if key.startswith("threads.")]

    def test_by_the_server_span(self, hall):
        told = {span.attributes["url.path"]: span.attributes for span in self.exporter.get_finished_spans()}

        assert told["/quick"]["sqltrace.threads.wait"] == 0.5
        assert told["/quick"]["sqltrace.threads.used_by"] == ("GET /use/{user}",)
        assert "sqltrace.threads.wait" not in told["/use/first"]

    @pytest.mark.parametrize(("waited", "seen"), [(400.0, True), (1.0, False)])
    def test_in_the_terminal_where_it_is_a_part_that_can_be_seen(self, waited, seen):
        users = [{"name": "GET /report", "threads": 30.2}, {"name": "GET /use/{user}", "threads": 9.5}]
        wait = {"threads.wait_ms": waited, "threads.count": 40, "threads.used_by": users}

        printed = render(width=200, duration_ms=500.0, **wait)

        told = f"waited {waited} ms for one of the 40 threads, used by GET /report (30.2), GET /use/{{user}} (9.5)"
        assert (told in printed) is seen
        assert "threads." not in printed
