"""Waits for the threads that `def` endpoints and dependencies share: for how long, and who used them meanwhile."""

import asyncio
import gc
import math
import sys
import threading
import time
import traceback
import weakref
from contextlib import suppress
from types import SimpleNamespace

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
from sqltrace.loop_log import log_of
from sqltrace.recording import Recording
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.log_line import log_line
from sqltrace.thread_waits import ThreadUses, ThreadWaits
from tests.asgi import Clock, Witness, timed
from tests.loops import RUNNERS, get
from tests.test_log_line import VALIDATOR
from tests.test_readable import render

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=RUNNERS)
def run(request):
    return request.param


class FewThreads:
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
        self.routes = [Route("/use/{user}", self.use), Route("/quick", self.quick)]
        self.serve(Starlette(routes=[*self.routes, *options.pop("routes", ())], **options))

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
        waiting = self.limiter.statistics().tasks_waiting
        self.gates[user].set()
        while waiting and self.limiter.statistics().tasks_waiting == waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    async def close(self):
        for gate in self.gates.values():
            gate.set()
        await asyncio.gather(*self.requests, return_exceptions=True)

    def waited(self, path="/quick"):
        return self.witness[path].thread_wait


def in_time(few, run, scenario):
    async def main():
        async with asyncio.timeout(30):
            await few.open()
            await scenario()
            await few.close()

    run(main())


def wait_behind_one(few, path):
    """For half a second."""

    async def scenario():
        await few.request("/use/one")
        await few.request(path)
        few.clock.advance(0.5)

    in_time(few, asyncio.run, scenario)


def test_wait_for_a_thread_is_measured_with_who_used_them(run):
    few = FewThreads(threads=2)

    async def scenario():
        await few.request("/use/first")
        await few.request("/use/second")
        await few.request("/quick")
        few.clock.advance(2)

    in_time(few, run, scenario)

    assert few.waited() == sqltrace.ThreadWait(2.0, 2, (("GET /use/{user}", 2.0),))
    assert few.witness["/quick"].time_account.python == 2.0
    assert few.waited("/use/first") is None


def test_users_are_told_by_the_threads_that_they_used_on_average():
    few = FewThreads(routes=[Route("/report", lambda request: few.occupy("report"))])

    async def scenario():
        await few.request("/report")
        await few.request("/use/next")
        await few.request("/quick")
        few.clock.advance(3)
        await few.let_go("report")
        few.clock.advance(1)

    in_time(few, asyncio.run, scenario)

    assert few.waited("/use/next") == sqltrace.ThreadWait(3.0, 1, (("GET /report", 1.0),))
    assert few.waited() == sqltrace.ThreadWait(4.0, 1, (("GET /report", 0.75), ("GET /use/{user}", 0.25)))


def test_those_who_still_work_when_the_wait_ends_are_counted():
    few = FewThreads(threads=3)

    async def scenario():
        for user in ("short", "long", "longest"):
            await few.request(f"/use/{user}")
        few.clock.advance(1)
        await few.request("/quick")
        few.clock.advance(1)
        await few.let_go("short")

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(1.0, 3, (("GET /use/{user}", 3.0),))


def test_wait_that_ends_in_vain_is_measured():
    few = FewThreads()

    async def scenario():
        await few.request("/use/one")
        waiting = await few.request("/quick")
        few.clock.advance(0.5)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    in_time(few, asyncio.run, scenario)

    assert few.witness.of("/quick").outcome == "cancelled"
    assert few.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_dependencies_wait_for_the_same_threads():
    few, app = FewThreads(), FastAPI()

    def connect():
        return "connection"

    @app.get("/use/{user}")
    def use(user: str):
        few.occupy(user)

    @app.get("/quick")
    async def quick(connection: str = Depends(connect)):
        return connection

    few.serve(app)

    wait_behind_one(few, "/quick")

    assert few.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_requests_inside_of_base_http_middleware_are_seen():
    async def dispatch(request, call_next):
        return await call_next(request)

    few = FewThreads(middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])

    async def scenario():
        await few.request("/quick")  # Starlette builds its middleware with the first request, or in a lifespan
        await few.request("/use/one")
        await few.request("/quick")
        few.clock.advance(0.5)

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_chunks_of_a_synchronous_stream_wait_for_threads():
    few = FewThreads(routes=[Route("/stream", lambda request: StreamingResponse(iter(["chunk"])))])

    async def scenario():
        few.limiter.total_tokens = 2
        await few.request("/use/one")
        few.limiter.total_tokens = 1
        await few.request("/stream")
        few.clock.advance(0.5)

    in_time(few, asyncio.run, scenario)

    assert few.waited("/stream").waited == 0.5


@pytest.mark.parametrize("uses", ["another limiter", "a semaphore", "a thread", "a lock of asyncio"])
def test_any_other_wait_is_none_for_a_thread(uses):
    few = FewThreads(threads=5)
    limiter, ready = anyio.CapacityLimiter(1), asyncio.Event()

    async def endpoint(request):
        few.started += 1
        if uses == "another limiter":
            await anyio.to_thread.run_sync(int, limiter=limiter)
        elif uses == "a semaphore":
            await limiter.acquire()
            limiter.release()
        elif uses == "a thread":
            await anyio.to_thread.run_sync(few.occupy, "another")
        else:
            await ready.wait()
        return PlainTextResponse("done")

    few.serve(Starlette(routes=[Route("/other", endpoint)]))

    async def scenario():
        limiter.acquire_on_behalf_of_nowait(few)
        await few.request("/other")
        few.clock.advance(0.5)
        limiter.release_on_behalf_of(few)
        ready.set()

    in_time(few, asyncio.run, scenario)

    assert few.witness["/other"].duration == 0.5
    assert few.waited("/other") is None


def test_background_task_uses_threads_and_its_own_wait_is_none_of_the_response():
    def endpoint(request):
        return PlainTextResponse("done", background=BackgroundTask(few.occupy, request.path_params["name"]))

    few = FewThreads(routes=[Route("/task/{name}", endpoint)])

    async def scenario():
        await few.request("/task/first")
        await few.request("/task/second")
        few.clock.advance(0.5)
        await few.let_go("first")
        await few.request("/quick")
        few.clock.advance(0.25)

    in_time(few, asyncio.run, scenario)

    assert few.waited("/task/first") is None
    assert few.waited("/task/second") == sqltrace.ThreadWait(0.5, 1, (("GET /task/{name}", 1.0),))
    assert few.waited() == sqltrace.ThreadWait(0.25, 1, (("GET /task/{name}", 1.0),))


def test_waits_of_one_request_add_up():
    def connect():
        return "connection"

    few, app = FewThreads(), FastAPI()

    @app.get("/use/{user}")
    def use(user: str):
        few.occupy(user)

    @app.get("/quick")
    def quick(connection: str = Depends(connect)):
        return connection

    few.serve(app)

    async def scenario():
        await few.request("/use/first")
        await few.request("/quick")  # for the dependency
        await few.request("/use/second")
        few.clock.advance(0.5)
        await few.let_go("first")  # the dependency has run, and the endpoint is behind the second
        few.clock.advance(0.25)

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(0.75, 1, (("GET /use/{user}", 1.0),))


def test_of_requests_that_wait_at_once_each_has_its_own_wait():
    few = FewThreads()

    async def scenario():
        await few.request("/use/one")
        few.witness.records.clear()
        for _ in range(4):
            await few.request("/quick")
            few.clock.advance(0.25)

    in_time(few, asyncio.run, scenario)
    waits = sorted(record.recording.thread_wait.waited for record in few.witness.records if record.path == "/quick")

    assert waits == [0.25, 0.5, 0.75, 1.0]


def test_users_of_another_loop_are_not_counted():
    here, there = FewThreads(), FewThreads()
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
        in_time(here, asyncio.run, scenario)
    finally:
        done.set()
        other.join()

    assert here.waited() == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_requests_of_one_route_are_counted_together_however_many():
    few = FewThreads(threads=70)

    async def scenario():
        for number in range(few.threads):
            await few.request(f"/use/{number}")
        await few.request("/quick")
        few.clock.advance(0.5)

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(0.5, 70, (("GET /use/{user}", 70.0),))


def test_time_for_which_others_held_the_loop_at_the_end_of_a_wait_is_not_told():
    few, ready = FewThreads(), asyncio.Event()

    async def block(request):
        few.started += 1
        await ready.wait()
        few.clock.advance(0.25)
        return PlainTextResponse("blocked")

    few.serve(Starlette(routes=[*few.routes, Route("/block", block)]))

    async def scenario():
        await few.request("/use/one")
        await few.request("/quick")
        await few.request("/block")
        few.clock.advance(0.5)
        ready.set()
        await asyncio.sleep(0.01)
        await few.let_go("one")

    in_time(few, asyncio.run, scenario)

    assert few.waited().waited == 0.5
    assert few.witness["/quick"].time_account.loop_wait == 0.25


def test_function_of_the_application_that_has_a_name_of_anyio_uses_none_of_its_threads():
    few = FewThreads(threads=2)

    async def run_sync_in_worker_thread(function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    async def own(request):
        return await run_sync_in_worker_thread(few.occupy, "own")

    few.serve(Starlette(routes=[*few.routes, Route("/own", own)]))

    async def scenario():
        await few.request("/own")
        await few.request("/use/first")
        await few.request("/use/second")
        await few.request("/quick")
        few.clock.advance(0.5)

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(0.5, 2, (("GET /use/{user}", 2.0),))


def test_default_limiter_is_that_of_all_however_it_was_given():
    few = FewThreads()

    async def explicit(request):
        await anyio.to_thread.run_sync(int, limiter=anyio.to_thread.current_default_thread_limiter())
        return PlainTextResponse("done")

    few.serve(Starlette(routes=[*few.routes, Route("/explicit", explicit)]))

    wait_behind_one(few, "/explicit")

    assert few.waited("/explicit") == sqltrace.ThreadWait(0.5, 1, (("GET /use/{user}", 1.0),))


def test_number_of_threads_that_became_infinite_is_none():
    few = FewThreads()

    async def scenario():
        await few.request("/use/one")
        await few.request("/quick")
        few.clock.advance(0.5)
        few.limiter.total_tokens = math.inf
        await asyncio.sleep(0.01)

    in_time(few, asyncio.run, scenario)

    assert few.waited() == sqltrace.ThreadWait(0.5, None, (("GET /use/{user}", 1.0),))
    assert "threads.count" not in log_line(few.witness.of("/quick"))
    assert "for one of the many threads" in few.witness.of("/quick").findings[0].message


def test_where_more_uses_have_ended_than_are_kept_the_average_is_of_those_that_are():
    uses, second = ThreadUses(), 1_000_000_000

    async def main():
        for number in range(4_000):
            end = number * second // 1_000
            uses._ended.append((end - second // 25, end, "GET /report"))
        return uses._users(anyio.to_thread.current_default_thread_limiter(), 0, 4 * second, list)

    assert asyncio.run(main()) == {"GET /report": pytest.approx(40, rel=0.05)}


@pytest.mark.parametrize(
    ("ended", "running", "used"),
    [
        ([(1, 5, "a"), (10, 20, "b"), (14, 32, "a")], [], {"a": 0.9, "b": 0.4}),
        ([(1, 12, "a")], [(2, "a"), (28, "b"), (32, "c"), (40, "c")], {"a": 1.0, "b": 0.2, "c": 0.0}),
        ([(number, number + 1, "a") for number in range(-600, 32)], [], {"a": 1.0}),
        ([(number // 20 - 10, number // 20 - 9, "a") for number in range(820)], [], {"a": 19.0}),
        ([(12, 32, "a")] * 512, [], {"a": 512.0}),
    ],
    ids=["ended", "at work", "more than are kept", "more than are kept since", "all at once"],
)
def test_use_of_threads_in_a_stretch_is_an_average_of_what_lies_in_it(ended, running, used):
    uses = ThreadUses()
    uses._ended.extend(ended)
    uses._running = dict(enumerate(running))

    assert uses._add_up(12, 32) == pytest.approx(used)


def test_those_who_wait_at_once_have_one_answer_and_threads_are_looked_at_every_20_ms():
    uses, looks, limiter = ThreadUses(), [], SimpleNamespace(statistics=lambda: SimpleNamespace(borrowers=[]))

    def users(since, now):
        answer = uses._users(limiter, since * 1_000_000, now * 1_000_000, lambda: looks.append(now) or [])
        uses._ended.append((0, 200_000_000, f"GET /{now}"))
        return sorted(answer)

    assert [users(10, 100), users(18, 101), users(1, 101), users(21, 119)] == [[], [], [], ["GET /100", "GET /101"]]
    assert len(users(21, 120)) == 3
    assert looks == [100, 120]


def test_loop_without_requests_forgets_who_used_its_threads():
    few = FewThreads()

    async def scenario():
        await few.request("/use/one")
        log = log_of(asyncio.get_running_loop(), few.clock)
        few.clock.advance(0.5)
        await few.let_go("one")
        await asyncio.gather(*few.requests)
        assert (log.active, log.thread_uses) == (0, None)

    in_time(few, asyncio.run, scenario)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="reading the variables of a frame copies them no longer")
def test_arguments_of_a_thread_are_not_kept_with_a_traceback_whose_frames_are_cleared():
    class Argument:
        pass

    kept = []

    def fail(argument):
        time.sleep(0.03)
        raise ValueError

    async def endpoint(request):
        argument = Argument()
        kept.append(weakref.ref(argument))
        try:
            await anyio.to_thread.run_sync(fail, argument)
        except ValueError as error:
            del argument
            traceback.clear_frames(error.__traceback__)
            kept.append(error)
        return PlainTextResponse("failed")

    few = FewThreads()
    few.clock = time.perf_counter_ns
    few.serve(Starlette(routes=[Route("/fail", endpoint)]))

    asyncio.run(get(few.app, "/fail"))

    assert isinstance(kept[1], ValueError)
    assert kept[0]() is None


def test_many_users_are_remembered_in_a_bounded_way():
    waits = ThreadWaits()

    for number in range(1_000):
        waits.add(1_000_000_000, 40, {"GET /report": 30.0, f"GET /{number}": 10.0})

    assert len(waits.used) <= 65
    assert waits.in_all().users == (("GET /report", 30.0),)


def test_requests_are_not_kept_alive():
    few = FewThreads()

    async def scenario():
        await few.request("/use/one")
        await few.request("/quick")
        few.clock.advance(0.5)
        await few.let_go("one")
        kept = [weakref.ref(record.recording) for record in few.witness.records]
        few.witness.records.clear()
        few.requests.clear()
        gc.collect()
        assert len(kept) == 2
        assert [reference() for reference in kept] == [None, None]

    in_time(few, asyncio.run, scenario)


class TestFinding:
    def found(self, waited, name="GET /quick", users=(("GET /report", 30.25), ("GET /quick", 9.5)), threads=40):
        clock = Clock()
        recording = Recording(name, clock=clock)
        waits = recording.observe_loop().thread_waits = ThreadWaits()
        waits.add(round(waited * 1_000_000_000), threads, dict(users))
        clock.advance(waited)
        recording.end()
        return sqltrace.diagnose(recording)

    def test_calls_a_thread_that_is_alone_so(self):
        [finding] = self.found(0.5, users=(), threads=1)

        assert (
            finding.message == "500.0 ms spent waiting for the only thread that def endpoints and dependencies share."
        )

    def test_leaves_out_who_used_next_to_none(self):
        [finding] = self.found(0.5, users=(("GET /report", 39.9), ("GET /health", 0.05), ("GET /ready", 0.049)))

        assert "used by GET /report (39.9) and GET /health (0.1) on average." in finding.message

    def test_names_the_three_that_used_most(self):
        users = ("GET /report", 30.0), ("GET /c", 2.0), ("GET /b", 3.0), ("GET /a", 4.0)

        [finding] = self.found(0.5, users=users)

        assert "used by GET /report (30.0), GET /a (4.0) and GET /b (3.0) on average." in finding.message

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
    def few(self):
        """Of which /quick has waited."""
        few = FewThreads(threads=2)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        few.serve(few.app.app, OpenTelemetrySink(tracer_provider=provider))

        async def scenario():
            await few.request("/use/first")
            await few.request("/use/second")
            await few.request("/quick")
            few.clock.advance(0.5)

        in_time(few, asyncio.run, scenario)
        yield few
        provider.shutdown()

    def test_in_the_log_line(self, few):
        line = log_line(few.witness.of("/quick"))

        VALIDATOR.validate({"event": "request", "level": "warning", **line})
        assert line["threads.wait_ms"] == 500.0
        assert line["threads.count"] == 2
        assert line["threads.used_by"] == [{"name": "GET /use/{user}", "threads": 2.0}]
        assert not [key for key in log_line(few.witness.of("/use/first")) if key.startswith("threads.")]

    def test_by_the_server_span(self, few):
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
