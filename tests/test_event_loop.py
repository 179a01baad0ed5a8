import asyncio
import contextvars
import gc
import sys
import threading
import time
import tracemalloc
import types
import weakref
from contextlib import suppress

import pytest
import trio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import sqltrace
from sqltrace.child_tasks import waits_for_own
from sqltrace.event_loop import stepped
from sqltrace.findings import blocked_loop
from sqltrace.label import Label
from sqltrace.loop_log import UNKNOWN, LoopLog
from sqltrace.recording import Recording
from sqltrace.sinks.log_line import log_line
from sqltrace.suspended import Suspension
from tests.asgi import Clock, Witness
from tests.loops import (
    CLOCKED,
    RUNNERS,
    ObservedMiddleware,
    block,
    get,
    observed,
    respond,
    run_by_clock,
    thrice,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=CLOCKED)
def run(request):
    return request.param


@pytest.fixture(params=RUNNERS)
def run_with_threads(request):
    return request.param


def share():
    return Recording().observe_loop()


def routes(**endpoints):
    return observed(Starlette(routes=[Route(f"/{name}/{{number}}", endpoint) for name, endpoint in endpoints.items()]))


def ok(request=None):
    return PlainTextResponse("ok")


def beside_a_parent(run, child, *, begins, waits):
    """Recordings of a request that awaits `child` in a task from `begins` seconds on, and of one that only waits."""

    async def parent(request):
        await asyncio.sleep(begins)
        await asyncio.create_task(child())
        return ok()

    async def victim(request):
        await asyncio.sleep(waits)
        return ok()

    app, records = routes(parent=parent, victim=victim)

    async def main():
        await asyncio.gather(get(app, "/parent/1"), get(app, "/victim/1"))

    run(main())
    return records["/parent/1"], records["/victim/1"]


@types.coroutine
def trap(value):
    return (yield value)


class TestSteppedPasses:
    def test_values_in_both_directions(self):
        async def application():
            return [await trap("first"), await trap("second")]

        steps = stepped(application(), share())

        assert steps.send(None) == "first"
        assert steps.send(1) == "second"
        with pytest.raises(StopIteration) as stop:
            steps.send(2)
        assert stop.value.value == [1, 2]

    def test_thrown_exception_itself_and_what_becomes_of_it(self):
        thrown = ValueError()

        async def application():
            try:
                await trap(None)
            except ValueError as error:
                assert error is thrown
                assert error.__context__ is None
                await trap("caught")
                raise

        steps = stepped(application(), share())
        steps.send(None)

        assert steps.throw(thrown) == "caught"
        with pytest.raises(ValueError) as raised:
            steps.send(None)
        assert raised.value is thrown

    def test_closing(self):
        told = []

        async def application():
            try:
                await trap(None)
            except GeneratorExit:
                told.append("closed")
                raise
            finally:
                told.append("finally")

        steps = stepped(application(), share())
        steps.send(None)
        steps.close()

        assert told == ["closed", "finally"]

    def test_refusal_to_close(self):
        async def application():
            try:
                await trap(None)
            except GeneratorExit:
                await trap("no")

        steps = stepped(application(), share())
        steps.send(None)

        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            steps.close()

    @pytest.mark.parametrize("sends", [True, False], ids=["generator", "plain iterator"])
    def test_awaitables_that_are_no_coroutines(self, sends):
        async def waiting():
            await trap("yielded")

        class Waiting:
            def __await__(self):
                return waiting().__await__() if sends else iter(["yielded"])

        steps = stepped(Waiting(), share())

        assert steps.send(None) == "yielded"
        with pytest.raises(StopIteration):
            steps.send(None)

    def test_exceptions_without_keeping_the_application_alive(self):
        class Thing:
            pass

        seen = []

        async def application():
            thing = Thing()
            seen.append(weakref.ref(thing))
            raise ValueError

        gc.disable()
        try:
            with pytest.raises(ValueError):
                stepped(application(), share()).send(None)
            assert seen[0]() is None
        finally:
            gc.enable()

    def test_thrown_exceptions_without_keeping_them_alive(self):
        class Thrown(Exception):
            pass

        thrown = Thrown()
        alive = weakref.ref(thrown)
        steps = stepped(trap(None), share())
        steps.send(None)

        gc.disable()
        try:
            with suppress(Thrown):
                steps.throw(thrown)
            del thrown
            assert alive() is None
        finally:
            gc.enable()

    def test_results_that_the_application_lets_go_of(self, run):
        class Result:
            pass

        async def application():
            future = asyncio.get_running_loop().create_future()
            result = Result()
            asyncio.get_running_loop().call_soon(future.set_result, result)
            alive = weakref.ref(result)
            del result
            await future
            del future
            await asyncio.sleep(0.001)
            return alive()

        async def main():
            return await stepped(application(), share())

        assert run(main()) is None


class TestSteppedOnALoop:
    def test_task_and_context_stay_the_same(self, run):
        variable = contextvars.ContextVar("variable")

        async def application():
            variable.set("inside")
            await asyncio.sleep(0)
            return asyncio.current_task()

        async def main():
            task = await stepped(application(), share())
            return task is asyncio.current_task(), variable.get()

        assert run(main()) == (True, "inside")

    def test_timeout_cancels_inside(self, run):
        async def application():
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)

        async def main():
            with pytest.raises(TimeoutError):
                await stepped(application(), share())
            return asyncio.current_task().cancelling()

        assert run(main()) == 0

    def test_timeout_cancels_from_outside(self, run):
        told = []

        async def application():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                told.append("cleaned up")
                raise

        async def main():
            async with asyncio.timeout(0.01):
                await stepped(application(), share())

        with pytest.raises(TimeoutError):
            run(main())
        assert told == ["cleaned up"]

    def test_task_group_cancels_siblings(self, run):
        told = []

        async def sibling():
            try:
                await asyncio.sleep(10)
            finally:
                told.append("cancelled")

        async def failing():
            await asyncio.sleep(0)
            raise ValueError

        async def application():
            async with asyncio.TaskGroup() as group:
                group.create_task(sibling())
                group.create_task(failing())

        async def main():
            await stepped(application(), share())

        with pytest.raises(ExceptionGroup):
            run(main())
        assert told == ["cancelled"]

    def test_async_generators_are_closed_where_they_are_left(self, run):
        told = []

        async def numbers():
            try:
                for number in range(3):
                    await asyncio.sleep(0)
                    yield number
            finally:
                await asyncio.sleep(0)
                told.append("closed")

        async def application():
            generator = numbers()
            async for number in generator:
                told.append(number)
                if number == 1:
                    break
            await generator.aclose()

        async def main():
            await stepped(application(), share())

        run(main())
        assert told == [0, 1, "closed"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    def test_eager_tasks(self, run):
        async def application():
            before = asyncio.current_task()
            child = asyncio.create_task(asyncio.sleep(0.001, "slept"))
            return before is asyncio.current_task(), await child

        async def main():
            def factory(loop, coroutine, *, eager_start=None, **options):  # uvloop hands on what Python 3.13 refuses
                return asyncio.eager_task_factory(loop, coroutine, **options)

            asyncio.get_running_loop().set_task_factory(factory)
            return await asyncio.create_task(stepped_coroutine())

        async def stepped_coroutine():
            return await stepped(application(), share())

        assert run(main()) == (True, "slept")

    def test_trio(self):
        async def app(scope, receive, send):
            with trio.move_on_after(0.01):
                await trio.sleep(10)
            block(0.02)
            await respond(send)

        app, records = observed(app)
        trio.run(get, app, "/")

        assert records["/"].held_loop >= 0.02
        assert records["/"].time_account.loop_wait is None
        assert records["/"].waited_for == []


class TestHeld:
    def test_is_the_time_of_the_steps(self):
        blocked = []

        async def app(scope, receive, send):
            blocked.append(block(0.03))
            await asyncio.sleep(0.1)
            blocked.append(block(0.05))
            await respond(send)

        app, records = observed(app)
        run_by_clock(get(app, "/"))

        assert records["/"].held_loop == pytest.approx(sum(blocked))
        assert records["/"].longest_hold == pytest.approx(max(blocked))

    def test_includes_the_running_step(self):
        async def app(scope, receive, send):
            block(0.02)
            assert sqltrace.current_recording().held_loop >= 0.02
            assert sqltrace.current_recording().longest_hold >= 0.02
            await respond(send)

        run_by_clock(get(observed(app)[0], "/"))

    def test_is_unknown_outside_requests(self):
        with sqltrace.record() as recording:
            pass

        assert (recording.held_loop, recording.longest_hold, recording.waited_for) == (None, None, [])

    @thrice
    def test_includes_synchronous_sql_of_child_tasks(self, run):
        engine = create_engine("sqlite://")

        async def child():
            with engine.connect() as connection:
                connection.connection.create_function("block", 0, lambda: block(0.05))
                connection.execute(text("SELECT block()"))

        parent, victim = beside_a_parent(run, child, begins=0.01, waits=0.03)
        engine.dispose()
        assert parent.held_loop >= 0.05
        assert parent.counts.on_loop == 1
        assert parent.time_account.loop_wait < 0.005
        assert victim.waited_for[0][0] == "GET /parent/{number}"

    def test_is_not_held_by_synchronous_sql_on_a_loop_that_a_thread_runs(self, run_with_threads):
        engine = create_engine("sqlite://", connect_args={"check_same_thread": False})

        async def ask():
            with engine.connect() as connection:
                connection.connection.create_function("block", 0, lambda: time.sleep(0.15))
                connection.execute(text("SELECT block()"))

        async def threaded(request):
            await asyncio.to_thread(asyncio.run, ask())
            return ok()

        app, records = routes(threaded=threaded)
        run_with_threads(get(app, "/threaded/1"))

        engine.dispose()
        assert (records["/threaded/1"].statement_count, records["/threaded/1"].counts.on_loop) == (1, 0)
        assert sqltrace.diagnose(records["/threaded/1"], [blocked_loop]) == []


class TestLoopWait:
    @thrice
    def test_innocent_request_tells_who_held_the_loop(self, run):
        blocked = []

        async def guilty(request):
            await asyncio.sleep(0.01)
            blocked.append(block(0.2))
            await asyncio.sleep(0.01)
            return ok()

        async def innocent(request):
            await asyncio.sleep(0.02)
            return ok()

        app, records = routes(guilty=guilty, innocent=innocent)

        async def main():
            await asyncio.gather(get(app, "/guilty/1"), get(app, "/innocent/1"))

        run(main())
        innocent = records["/innocent/1"]
        [(name, waited)] = innocent.waited_for
        assert name == "GET /guilty/{number}"
        assert waited == pytest.approx(blocked[0], abs=0.03)
        assert innocent.time_account.loop_wait == pytest.approx(blocked[0], abs=0.03)
        assert innocent.loop_wait_estimated
        assert records["/guilty/1"].time_account.loop_wait < 0.005
        assert records["/guilty/1"].waited_for == []

    def test_line_tells_it(self):
        async def guilty(request):
            await asyncio.sleep(0.01)
            block(0.1)
            return ok()

        async def innocent(request):
            block(0.002)
            await asyncio.sleep(0.02)
            block(0.001)
            return ok()

        app, records = routes(guilty=guilty, innocent=innocent)

        async def main():
            await asyncio.gather(get(app, "/guilty/1"), get(app, "/innocent/1"))

        run_by_clock(main())
        line = log_line(records.of("/innocent/1"))
        assert line["time.loop_wait_estimated"] is True
        assert line["loop.waited_for"][0]["name"] == "GET /guilty/{number}"
        assert (line["loop.held_ms"], line["loop.longest_hold_ms"]) == (3.0, 2.0)
        assert line["time.loop_wait_ms"] == 100.0  # at most: nobody knows that its timer was set for 22 ms
        printed = sqltrace.sinks.ReadableRenderer(colors=False)(None, "", line)
        assert "held by GET /guilty/{number} (" in printed
        assert " ms loop wait + " in printed
        assert "loop.waited_for" not in log_line(records.of("/guilty/1"))

    @pytest.mark.parametrize(
        "look",
        [
            lambda recording: [name for name, _ in recording.waited_for] == ["GET /guilty/{number}"],
            lambda recording: recording.loop_wait_estimated,
            lambda recording: recording.time_account.loop_wait > 0.05,
            lambda recording: recording.stretches("loop_wait").total() > 50_000_000,
        ],
        ids=["waited_for", "loop_wait_estimated", "time_account", "stretches"],
    )
    def test_request_itself_is_told_of_it_in_the_step_that_began_late(self, look):
        seen = []

        async def guilty(request):
            await asyncio.sleep(0.01)
            block(0.1)
            return ok()

        async def innocent(request):
            await asyncio.sleep(0.02)
            seen.append(look(sqltrace.current_recording()))
            return ok()

        app, _ = routes(guilty=guilty, innocent=innocent)

        async def main():
            await asyncio.gather(get(app, "/guilty/1"), get(app, "/innocent/1"))

        run_by_clock(main())
        assert seen == [True]

    @pytest.mark.parametrize(("waited", "told"), [(900_000, False), (1_000_000, True)])
    def test_line_names_who_was_waited_for_from_a_millisecond_on(self, waited, told):
        clock = Clock()
        recording, log, now = Recording(clock=clock), LoopLog(clock), clock.now
        share = recording.observe_loop()
        share.observed, share.log = True, log
        log.add(now, now + waited, Label("GET /other"))
        share.estimate(now, now + waited)
        clock.advance(1)
        recording.end()

        line = log_line(sqltrace.RequestRecord(recording, "http", "/"))

        assert (line["time.loop_wait_ms"], "loop.waited_for" in line) == (waited / 1_000_000, told)

    def test_line_does_not_call_a_wait_an_estimate_that_came_after_the_response(self):
        async def app(scope, receive, send):
            await respond(send)
            await asyncio.sleep(0.02)

        async def other():
            await asyncio.sleep(0.01)
            block(0.1)

        app, records = observed(app)

        async def main():
            await asyncio.gather(get(app, "/"), other())

        run_by_clock(main())
        line = log_line(records.of("/"))
        assert records["/"].loop_wait_estimated
        assert (line["time.loop_wait_ms"], "time.loop_wait_estimated" in line) == (0.0, False)

    @thrice
    def test_background_task_is_told_as_such(self, run):
        async def victim(request):
            await asyncio.sleep(0.05)
            return ok()

        async def background():
            await asyncio.sleep(0.03)
            block(0.2)

        app, records = routes(victim=victim)

        async def main():
            await asyncio.gather(get(app, "/victim/1"), background())

        run(main())
        [(name, waited)] = records["/victim/1"].waited_for
        assert name.startswith("(another task")  # with its line, if somebody has seen it
        assert 0.16 < waited < 0.24

    def test_loop_that_is_late_again_right_after_a_beat_has_not_rested_in_between(self):
        """What servers do for requests that have come in meanwhile is a pause between holds, and no rest."""
        arriving = []

        def arrive():
            block(0.009)
            loop = asyncio.get_running_loop()
            arriving.extend(loop.create_task(get(app, f"/arrives/{number}")) for number in range(3))

        async def victim(request):
            await asyncio.sleep(0.02)
            return ok()

        async def guilty(request):
            block(0.3)
            return ok()

        async def second(request):
            asyncio.get_running_loop().call_soon(arrive)
            block(0.03)
            return ok()

        async def arrives(request):
            block(0.015)
            return ok()

        app, records = routes(victim=victim, guilty=guilty, second=second, arrives=arrives)

        async def main():
            waiting = asyncio.create_task(get(app, "/victim/1"))
            await asyncio.sleep(0.01)
            await asyncio.gather(waiting, get(app, "/guilty/1"), get(app, "/second/1"))
            await asyncio.gather(*arriving)

        run_by_clock(main())
        assert records["/victim/1"].time_account.loop_wait > 0.3
        assert records["/victim/1"].waited_for[0] == ("GET /guilty/{number}", pytest.approx(0.3, abs=0.02))

    def test_what_a_child_task_computes_before_its_synchronous_sql_is_waited_for(self):
        engine = create_engine("sqlite://")
        held = []

        async def child():
            held.append(block(0.3))
            with engine.connect() as connection:
                connection.connection.create_function("block", 0, lambda: held.append(block(0.02)))
                connection.execute(text("SELECT block()"))

        _, recording = beside_a_parent(run_by_clock, child, begins=0.03, waits=0.05)
        engine.dispose()
        assert recording.time_account.loop_wait == pytest.approx(sum(held) - 0.02, abs=0.021)
        [(unknown, _), (parent, _)] = recording.waited_for
        # The watchdog, whose time is the real one, may have seen a line of it.
        assert unknown.startswith("(another task")
        assert parent == "GET /parent/{number}"
        assert sum(waited for _, waited in recording.waited_for) == pytest.approx(recording.time_account.loop_wait)

    def test_sink_that_holds_the_loop_is_told_as_such(self):
        async def victim(request):
            await asyncio.sleep(0.1)
            return ok()

        async def done(request):
            await asyncio.sleep(0.05)
            return ok()

        class Slow(Witness):
            def request_finished(self, record):
                super().request_finished(record)
                if record.path.startswith("/done"):
                    block(0.4)

        records = Slow()
        app = Starlette(routes=[Route("/victim/{number}", victim), Route("/done/{number}", done)])
        observer = ObservedMiddleware(app, sinks=[records])

        async def main():
            await asyncio.gather(get(observer, "/victim/1"), get(observer, "/done/1"))

        run_by_clock(main())
        [finding] = records.of("/victim/1").findings
        assert records["/victim/1"].waited_for == [("(sinks of sqltrace)", pytest.approx(0.35, abs=0.051))]
        assert finding.fix == "nothing here: a sink that hands what it is told to a thread"

    def test_hold_soon_after_another_is_seen_from_where_it_began(self):
        async def victim(request):
            await asyncio.sleep(0.05)
            await asyncio.sleep(0.004)
            return ok()

        async def background():
            await asyncio.sleep(0.03)
            block(0.1)
            await asyncio.sleep(0.001)
            block(0.1)

        app, records = routes(victim=victim)

        async def main():
            await asyncio.gather(get(app, "/victim/1"), background())

        run_by_clock(main())
        assert records["/victim/1"].time_account.loop_wait == pytest.approx(0.19, abs=0.004)

    def test_request_that_waits_often_keeps_few_of_its_waits(self):
        kept = []

        async def victim(request):
            for _ in range(100):
                await asyncio.sleep(0.002)
            share = sqltrace.current_recording().collector.loop
            kept.extend((len(share.suspensions), len(share._estimates)))
            return ok()

        async def background():
            for _ in range(100):
                await asyncio.sleep(0.001)
                block(0.05)

        app, records = routes(victim=victim)

        async def main():
            await asyncio.gather(get(app, "/victim/1"), background())

        run_by_clock(main())
        assert kept == [64, 8]
        assert records["/victim/1"].time_account.loop_wait > 1

    def test_request_that_sleeps_has_none(self):
        async def sleeper(request):
            await asyncio.sleep(0.1)
            return ok()

        app, records = routes(sleeper=sleeper)
        run_by_clock(get(app, "/sleeper/1"))

        assert records["/sleeper/1"].time_account.loop_wait == 0

    def test_hold_that_is_over_before_the_request_is_ready_is_none(self):
        async def guilty(request):
            await asyncio.sleep(0.01)
            block(0.05)
            return ok()

        async def sleeper(request):
            await asyncio.sleep(0.15)
            return ok()

        app, records = routes(guilty=guilty, sleeper=sleeper)

        async def main():
            await asyncio.gather(get(app, "/guilty/1"), get(app, "/sleeper/1"))

        run_by_clock(main())
        assert records["/sleeper/1"].time_account.loop_wait == 0

    def test_busy_loop_counts_two_turns_at_most(self):
        async def busy(request):
            for _ in range(40):
                block(0.005)
                await asyncio.sleep(0)
            return ok()

        async def calls_a_service(request):
            await asyncio.sleep(0.15)
            return ok()

        app, records = routes(busy=busy, calls=calls_a_service)

        async def main():
            await asyncio.gather(get(app, "/calls/1"), get(app, "/busy/1"))

        run_by_clock(main())
        assert records["/calls/1"].time_account.loop_wait < 0.06

    @pytest.mark.parametrize("how", ["gather", "task", "group", "wait", "middleware", "stream"])
    def test_own_child_tasks_are_not_waited_for(self, how):
        async def child():
            await asyncio.sleep(0.03)
            block(0.1)
            return ok()

        async def chunks():
            await asyncio.sleep(0.03)
            block(0.1)
            yield "done"

        async def endpoint(request):
            if how == "gather":
                await asyncio.gather(child(), child())
            elif how == "task":
                await asyncio.create_task(child())
            elif how == "wait":
                await asyncio.wait([asyncio.create_task(child())])
            elif how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(child())
            elif how == "stream":
                return StreamingResponse(chunks())
            return await child()

        async def dispatch(request, call_next):
            return await call_next(request)

        middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)] if how == "middleware" else []
        app, records = observed(Starlette(routes=[Route("/", endpoint)], middleware=middleware))
        run_by_clock(get(app, "/"))

        assert records["/"].time_account.loop_wait < 0.05

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks do not tell their context")
    def test_own_child_task_beside_the_wait_is_not_waited_for(self):
        async def child():
            await asyncio.sleep(0.03)
            block(0.1)
            await asyncio.sleep(0.2)

        async def endpoint(request):
            task = asyncio.create_task(child())
            await asyncio.sleep(0.05)
            task.cancel()
            return ok()

        app, records = routes(endpoint=endpoint)
        run_by_clock(get(app, "/endpoint/1"))

        assert records["/endpoint/1"].time_account.loop_wait < 0.05

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks do not tell their context")
    def test_tasks_are_counted_again_only_for_who_has_run_since(self):
        now = iter([100, 200])

        async def main():
            with sqltrace.record() as recording:
                log = LoopLog(lambda: next(now))
                log.enter(asyncio.get_running_loop())
                nothing = Suspension(asyncio.Future(), None)
                answers = [waits_for_own(nothing, recording.collector, log, 50)]
                task = asyncio.create_task(asyncio.sleep(60))
                answers += [waits_for_own(nothing, recording.collector, log, left) for left in (99, 101, 150)]
                task.cancel()
                return answers

        assert asyncio.run(main()) == [False, False, True, True]

    @thrice
    def test_own_sql_in_a_thread_is_not_waiting(self, run_with_threads, tmp_path):
        engine = create_engine(f"sqlite:///{tmp_path}/thread.db")

        def threaded(request):
            with engine.connect() as connection:
                connection.connection.create_function("wait", 0, lambda: block(0.15))
                connection.execute(text("SELECT wait()")).all()
            return ok()

        async def guilty(request):
            await asyncio.sleep(0.03)
            block(0.2)
            return ok()

        app, records = routes(threaded=threaded, guilty=guilty)

        async def main():
            await asyncio.gather(get(app, "/threaded/1"), get(app, "/guilty/1"))

        run_with_threads(main())
        engine.dispose()
        account = records["/threaded/1"].time_account
        assert account.loop_wait == pytest.approx(0.08, abs=0.04)  # not 0.2: SQL ran for 0.15
        assert account.database == pytest.approx(0.15, abs=0.04)

    @thrice
    def test_statement_of_a_driver_without_a_socket_has_its_part_of_it(self, run_with_threads, tmp_path):
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/wait.db")
        begun = asyncio.Event()

        async def innocent(request):
            async with engine.connect() as connection:
                raw = await connection.get_raw_connection()
                await raw.driver_connection.create_function("wait", 0, lambda: block(0.03))
                begun.set()
                await connection.execute(text("SELECT wait()"))
            return ok()

        async def guilty(request):
            await begun.wait()
            await asyncio.sleep(0.01)
            block(0.2)
            return ok()

        app, records = routes(guilty=guilty, innocent=innocent)

        async def main():
            await asyncio.gather(get(app, "/innocent/1"), get(app, "/guilty/1"))
            await engine.dispose()

        run_with_threads(main())
        [statement] = records["/innocent/1"].statements
        assert statement.loop_wait > 0.15
        assert statement.execute < 0.1

    @thrice
    def test_inner_recording_has_it_too(self, run_with_threads):
        async def guilty(request):
            await asyncio.sleep(0.01)
            block(0.1)
            return ok()

        inner = []

        async def innocent(request):
            with sqltrace.record() as recording:
                await asyncio.sleep(0.02)
                await asyncio.sleep(0)
            inner.append(recording)
            return ok()

        app, _ = routes(guilty=guilty, innocent=innocent)

        async def main():
            await asyncio.gather(get(app, "/guilty/1"), get(app, "/innocent/1"))

        run_with_threads(main())
        assert inner[0].time_account.loop_wait > 0.05
        assert inner[0].loop_wait_estimated

    def test_only_the_worst_are_named(self):
        recording = Recording()
        share = recording.observe_loop()
        now = time.perf_counter_ns()

        async def application():
            for number in range(200):
                share.log.add(now + number, now + number + 1 + number, Recording(f"GET /{number}")._label)
            share.blame(now, now + 1_000)
            assert len(share._waited_for) <= 64

        asyncio.run(_await(stepped(application(), share)))

        assert [name for name, _ in recording.waited_for] == [f"GET /{number}" for number in range(199, 194, -1)]

    def test_waits_at_once_are_told_once(self):
        log, ms = LoopLog(lambda: 0), 1_000_000
        waiting = share()
        waiting.log = log
        log.add(0, 500 * ms, Label("GET /guilty"))

        for since, until in ((20, 500), (0, 480), (10, 300)):
            assert waiting.blame(since * ms, until * ms) == (until - since) * ms

        assert [(label.name, waited) for label, waited in waiting.holders()] == [("GET /guilty", 0.5)]

    def test_what_comes_after_the_response_names_nobody(self):
        async def late(scope, receive, send):
            await respond(send)
            await asyncio.sleep(0.02)

        async def guilty(scope, receive, send):
            await asyncio.sleep(0.01)
            block(0.1)
            await respond(send)

        async def either(scope, receive, send):
            await (late if scope["path"] == "/late" else guilty)(scope, receive, send)

        app, records = observed(either)

        async def main():
            await asyncio.gather(get(app, "/late"), get(app, "/guilty"))

        run_by_clock(main())
        assert records["/late"].waited_for == []
        assert records["/late"].time_account.loop_wait == 0


async def _await(awaitable):
    return await awaitable


def test_waiting_for_the_loop_is_known_of_a_recording_within_a_request_and_else_not(run):
    async def app(scope, receive, send):
        with sqltrace.record() as inner:
            await asyncio.sleep(0)
        recordings.append(inner)
        await respond(send)

    async def main():
        with sqltrace.record() as alone:
            await asyncio.sleep(0)
        recordings.append(alone)
        await get(observed(app)[0], "/")

    recordings = []
    run(main())

    assert [recording.time_account.loop_wait is None for recording in recordings] == [True, False]


@pytest.mark.parametrize("run", RUNNERS)
def test_what_was_waited_for_the_loop_before_a_recording_within_a_request_is_not_in_it(run):
    async def victim(scope, receive, send):
        await asyncio.sleep(0.01)
        with sqltrace.record() as inner:
            pass
        recordings.append(inner)
        await respond(send)

    async def guilty(scope, receive, send):
        block(0.05)
        await respond(send)

    async def main():
        await asyncio.gather(get(app, "/victim"), get(app, "/guilty"))

    async def either(scope, receive, send):
        await (victim if scope["path"] == "/victim" else guilty)(scope, receive, send)

    recordings = []
    app, records = observed(either)
    run(main())

    [inner] = recordings
    assert inner.time_account.loop_wait == 0
    assert sum(part or 0 for part in inner.time_account) == pytest.approx(inner.duration)
    assert records["/victim"].time_account.loop_wait > 0.03


@thrice
def test_parts_add_up_on_a_mix_of_requests(run_with_threads, tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/mix.db")
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/mix.db")
    count = text(
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 30000) SELECT x FROM c WHERE x > 29000"
    )

    async def query():
        async with async_engine.connect() as connection:
            await connection.execute(count)

    def synchronous():
        with engine.connect() as connection:
            connection.execute(count).all()

    async def gathered(request):
        await asyncio.gather(query(), query(), asyncio.to_thread(synchronous))
        return ok()

    def threaded(request):
        synchronous()
        return ok()

    async def streaming(request):
        async def chunks():
            for _ in range(3):
                await query()
                block(0.01)
                yield "chunk"

        return StreamingResponse(chunks())

    async def blocking(request):
        synchronous()
        block(0.05)
        return ok()

    async def sleeping(request):
        await asyncio.sleep(0.02)
        return ok()

    app, records = routes(
        sleeping=sleeping, gathered=gathered, threaded=threaded, streaming=streaming, blocking=blocking
    )

    async def main():
        names = ("sleeping", "gathered", "threaded", "streaming", "blocking")
        await asyncio.gather(*(get(app, f"/{name}/{number}") for number in range(3) for name in names))
        await async_engine.dispose()

    run_with_threads(main())
    engine.dispose()
    for record in records.records:
        account, duration = record.recording.time_account, record.duration
        parts = (account.connection, account.database, account.objects, account.loop_wait, account.python)
        assert sum(parts) == pytest.approx(duration, rel=0.02, abs=0.001), record.path
        assert min(parts) >= 0


class TestNothingRemains:
    def test_in_the_share_of_a_request(self):
        left = Recording().observe_loop(lambda: None)

        async def main():
            await stepped(asyncio.sleep(0), left)

        run_by_clock(main())

        assert (left.log, left.label.name_route, left.collector.loop) == (None, None, None)
        assert (left.thread, left.began, left.suspended) == (0, 0, None)

    def test_of_a_request_that_a_task_inside_outlives(self):
        left = share()

        async def application():
            inside = asyncio.create_task(stepped_inside())
            await asyncio.sleep(0)
            return inside

        async def stepped_inside():
            await stepped(asyncio.sleep(1), left, within=True)

        async def main():
            await (await stepped(application(), left))

        run_by_clock(main())

        assert left.suspended is None

    def test_on_the_loop(self):
        async def app(scope, receive, send):
            await asyncio.sleep(0.03)
            await respond(send)

        app, _ = observed(app)

        async def main():
            await asyncio.gather(*(get(app, f"/{number}") for number in range(3)))
            return [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]

        assert asyncio.run(main()) == []

    def test_heartbeat_keeps_nothing_of_the_first_request_alive(self, run):
        seen = []

        async def app(scope, receive, send):
            if scope["path"] == "/first":
                seen.append(weakref.ref(sqltrace.current_recording()))
            else:
                await asyncio.sleep(0.06)
            await respond(send)

        app, records = observed(app)

        async def main():
            first = asyncio.create_task(get(app, "/first"))
            second = asyncio.create_task(get(app, "/second"))
            await first
            records.take()
            del first
            await asyncio.sleep(0.03)
            gc.collect()
            alive = seen[0]()
            await second
            return alive

        assert run(main()) is None

    def test_loop_may_close_around_a_request(self, run):
        async def app(scope, receive, send):
            await asyncio.Event().wait()

        app, records = observed(app)

        async def main():
            task = asyncio.create_task(get(app, "/"))
            await asyncio.sleep(0.03)
            assert not task.done()

        run(main())
        run(main())

        assert records.of("/").outcome == "cancelled"

    def test_requests_on_two_loops_at_once(self):
        async def app(scope, receive, send):
            await asyncio.sleep(0.02)
            if scope["path"] == "/blocking":
                block(0.1)
            await respond(send)

        app, records = observed(app)
        other = threading.Thread(target=asyncio.run, args=(get(app, "/blocking"),))
        other.start()
        asyncio.run(get(app, "/free"))
        other.join()

        assert not any(name.startswith("GET") for name, _ in records["/free"].waited_for)

    def test_twenty_thousand_requests_leave_no_growth(self, run):
        async def app(scope, receive, send):
            await asyncio.sleep(0)
            await respond(send)

        class Nobody:
            def response_ready(self, record):
                pass

            def request_finished(self, record):
                pass

        app = sqltrace.SQLTraceMiddleware(app, sinks=[Nobody()])

        async def many(count):
            for _ in range(count):
                await get(app, "/")

        async def main():
            await many(500)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await many(20_000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            return grown

        assert run(main()) < 100_000


@pytest.mark.parametrize("method", ["enter", "leave", "watch"])
def test_fault_before_and_after_the_application_does_not_reach_it(monkeypatch, caplog, method):
    def broken(*arguments):
        raise RuntimeError("ours")

    async def app(scope, receive, send):
        await asyncio.sleep(0)
        await respond(send)

    monkeypatch.setattr("sqltrace.loop_log.LoopLog." + ("_arm" if method == "watch" else method), broken)
    sqltrace.faults.forget_faults()
    app, records = observed(app)
    asyncio.run(get(app, "/"))

    assert records.of("/").outcome == "ok"
    assert any("observing the event loop failed" in record.message for record in caplog.records)


def test_application_that_cannot_be_awaited_raises_what_python_says_of_it():
    app, records = observed(lambda scope, receive, send: None)

    with pytest.raises(TypeError, match=r"NoneType.* (used in 'await' expression|be awaited)"):
        asyncio.run(get(app, "/"))

    assert records.of("/").error_type == "TypeError"


def test_fault_of_ours_does_not_reach_the_application(monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("ours")

    async def app(scope, receive, send):
        await asyncio.sleep(0.01)
        block(0.01)
        await respond(send)

    monkeypatch.setattr("sqltrace.loop_log.LoopLog.tail", broken)
    monkeypatch.setattr("sqltrace.loop_log.LoopLog.add", broken)
    sqltrace.faults.forget_faults()
    app, records = observed(app)
    asyncio.run(get(app, "/"))

    assert records.of("/").outcome == "ok"
    assert sum("observing the event loop failed" in record.message for record in caplog.records) == 1


def test_hold_within_another_is_waited_for_once():
    log, ms = LoopLog(lambda: 0), 1_000_000
    log.add(5 * ms, 9 * ms, Label("child"))
    log.add(2 * ms, 10 * ms, Label("other"))

    assert log.tail(0, 10 * ms, Label("mine"), lambda: True) == [(2 * ms, 10 * ms)]


@pytest.mark.parametrize(
    ("pause", "waits"),
    [(1_000_000, [(0, 41_000_000)]), (1_500_000, [(21_500_000, 41_500_000), (0, 20_000_000)])],
    ids=["of the loop itself", "in which others may have run"],
)
def test_pause_between_two_holds_is_waited_for_if_it_is_the_loops_own(pause, waits):
    log, hold = LoopLog(lambda: 0), 20_000_000
    log.add(0, hold, Label("first"))
    log.add(hold + pause, 2 * hold + pause, Label("second"))

    assert log.tail(-1, 2 * hold + pause, Label("mine"), lambda: True) == waits


def test_wait_behind_many_is_one_stretch_as_long_as_there_is_no_rest_between_them():
    log, ms = LoopLog(lambda: 0), 1_000_000
    for number in range(4, 100):
        log.add(number * ms, number * ms + ms, Label(f"request {number}"))

    assert log.tail(20 * ms, 100 * ms, Label("mine"), lambda: True) == [(20 * ms, 100 * ms)]


class TestWaitBehindHundreds:
    """200 requests hold the loop for 10 ms each, one after the other from 0 to 2 s."""

    MS = 1_000_000
    END = 2_000 * MS

    def log(self, *, rest=0, labels=None):
        log, started = LoopLog(lambda: 0), 0
        for number in range(200):
            log.add(
                started,
                started + 10 * self.MS - (rest if number == 99 else 0),
                (labels or {}).get(number) or Label(f"GET /{number % 4}"),
            )
            started += 10 * self.MS
        return log

    def wait(self, log, own=None, since=0, counts=True):
        return log.tail(since, self.END, own or Label("mine"), lambda: counts)

    def held(self, holders):
        """Milliseconds by name."""
        held = {}
        for label, length in holders:
            held[label.name] = held.get(label.name, 0) + length / self.MS
        return held

    def test_goes_back_to_where_the_request_was_suspended(self):
        assert self.wait(self.log(), since=345 * self.MS) == [(345 * self.MS, self.END)]

    def test_goes_back_no_further_than_a_rest(self):
        assert self.wait(self.log(rest=5 * self.MS)) == [(1_000 * self.MS, self.END)]

    def test_goes_back_no_further_than_the_last_turn_but_two_of_another(self):
        often = Label("GET /often")

        assert self.wait(self.log(labels={90: often, 120: often, 190: often})) == [(910 * self.MS, self.END)]

    def test_goes_back_no_further_than_a_hold_of_its_own(self):
        own = Label("GET /own")

        assert self.wait(self.log(labels={70: own}), own) == [(710 * self.MS, self.END)]

    @pytest.mark.parametrize("counts, start", [(True, 0), (False, 610)])
    def test_goes_back_behind_what_is_unknown_only_if_that_counts(self, counts, start):
        assert self.wait(self.log(labels={60: UNKNOWN}), counts=counts) == [(start * self.MS, self.END)]

    def test_tells_by_name_who_held_the_loop_and_how_long(self):
        held = self.held(self.log(labels={3: UNKNOWN}).holders(0, self.END))

        assert held == {"GET /0": 500, "GET /1": 500, "GET /2": 500, "GET /3": 490, UNKNOWN.name: 10}

    def test_that_ends_within_what_is_looked_at_one_by_one_is_told_from_where_it_began(self):
        assert self.wait(self.log(), since=1_605 * self.MS) == [(1_605 * self.MS, self.END)]

    def test_rest_before_the_outer_of_two_holds_is_none(self):
        log = LoopLog(lambda: 0)
        for number in range(100):  # another application within a request tells its step first
            started = number * 20 * self.MS
            log.add(started + 5 * self.MS, started + 10 * self.MS, Label("inner"))
            log.add(started, started + 20 * self.MS, Label("outer"))

        assert self.wait(log) == [(0, self.END)]

    def test_one_long_hold_among_many_short_ones_is_told_whole(self):
        log, now = LoopLog(lambda: 0), 0
        for length, name in [(5, "GET /poll")] * 30 + [(1_000, "GET /guilty")] + [(2, "GET /small")] * 60:
            now += 20_000 * self.MS if name == "GET /poll" else 0
            log.add(now, now + length * self.MS, Label(name))
            now += length * self.MS

        [(since, until)] = log.tail(now - 1_120 * self.MS, now, Label("mine"), lambda: True)

        assert self.held(log.holders(since, until)) == {"GET /guilty": 1_000, "GET /small": 120}

    def test_who_held_the_loop_before_it_is_not_told(self):
        log = LoopLog(lambda: 0)
        log.add(0, 500 * self.MS, Label("GET /before"))
        for number in range(80):
            log.add((500 + 2 * number) * self.MS, (502 + 2 * number) * self.MS, Label("GET /small"))

        assert {label.name for label, _ in log.holders(500 * self.MS, 660 * self.MS)} == {"GET /small"}

    @pytest.mark.parametrize(("since", "until"), [(5, 315), (5, 155), (165, 315)])
    def test_parts_of_several_holds_long_ago_are_told_by_their_share(self, since, until):
        held = self.held(self.log().holders(since * self.MS, until * self.MS))

        assert sum(held.values()) == pytest.approx(until - since, rel=0.05)

    def test_looks_at_a_few_of_them_one_by_one(self):
        log = self.log()

        assert log.recent < 64
        assert sum(len(held) for *_, held in log.sums) <= 4 * 6

    def test_keeps_few_names_of_requests_without_a_route(self):
        log = LoopLog(lambda: 0)
        for number in range(10_000):
            log.add(number * 2 * self.MS, (number * 2 + 1) * self.MS, Label(f"GET /{number}"))

        assert len(log._names) <= 256
        assert len(log.sums) <= 64
        assert len(log.holds) <= 512


def test_nothing_is_kept_of_requests_when_the_last_has_left():
    log, loop = LoopLog(lambda: 0), asyncio.new_event_loop()
    log.enter(loop)
    for number in range(200):
        log.add(number, number + 1, Label(f"GET /{number}"))
    log.leave()
    loop.close()

    assert (log.loop, len(log.holds), len(log.sums), log._names, log.task_counts) == (None, 0, 0, {}, {})


def test_loop_that_nobody_is_on_is_not_watched():
    log = LoopLog(lambda: 0)

    log.watch()

    assert log.beat is None
