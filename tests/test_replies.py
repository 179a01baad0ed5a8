import asyncio
import operator
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import psycopg2.extensions
import pytest
from sqlalchemy import create_engine, event, func, select, text, union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import sqltrace
from sqltrace.capture import internals, replies
from sqltrace.findings import gil_wait, slow_statement
from sqltrace.findings.costs import waited_for_gil
from sqltrace.recording import Recording
from tests.asgi import recorded
from tests.databases import drivers
from tests.loops import RUNNERS, block, get, observed, thrice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a reply came in")

OVER_TCP = drivers(lambda driver: driver.is_async and driver.system != "sqlite")
SYNC_OVER_TCP = drivers(lambda driver: not driver.is_async and driver.system != "sqlite")
OF_POSTGRESQL = drivers(lambda driver: driver.is_async and driver.system == "postgresql")
ASYNCPG = drivers(lambda driver: driver.name == "asyncpg")
PSYCOPG = drivers(lambda driver: driver.name == "psycopg_async")


@pytest.fixture(params=RUNNERS)
def run(request):
    return request.param


def sleep(driver, seconds):
    return text(f"SELECT {'pg_sleep' if driver.system == 'postgresql' else 'SLEEP'}({seconds})")


def numbers(driver, count):
    if driver.system == "postgresql":
        return text(f"SELECT i, i, i, i, i, i, i, i FROM generate_series(1, {count}) AS i")
    return text(f"SELECT seq, seq, seq, seq, seq, seq, seq, seq FROM seq_1_to_{count}")


def measure(run, driver, work, *, prepare=None, blocked=0.2, after=0.01):
    """
    A request that works on a connection that is open, and that knows `prepare`,
    beside one that blocks the loop. Its recording, and how long was blocked.
    """
    took = [0.0]

    async def main():
        engine = create_async_engine(driver.url())
        begun = asyncio.Event()

        async def victim(request):
            async with engine.connect() as connection:
                if prepare is not None:
                    await connection.execute(prepare)
                begun.set()
                with sqltrace.record() as recording:
                    await work(connection)
                recordings.append(recording)
            return PlainTextResponse("ok")

        async def guilty(request):
            await begun.wait()
            if blocked:
                await asyncio.sleep(after)
                took[0] = block(blocked)
            return PlainTextResponse("ok")

        recordings = []
        routes = [Route("/guilty/{number}", guilty), Route("/victim", victim)]
        app, records = observed(Starlette(routes=routes))
        await asyncio.gather(get(app, "/victim"), get(app, "/guilty/1"))
        await engine.dispose()
        return recordings[0], records["/victim"]

    inner, outer = run(main())
    return inner, outer, took[0]


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_query_of_20_ms_beside_a_request_that_blocks_200(run, driver):
    query = sleep(driver, 0.02)

    async def work(connection):
        await connection.execute(query)

    inner, outer, blocked = measure(run, driver, work, prepare=query)

    [statement] = inner.statements
    account = inner.time_account
    assert statement.execute == pytest.approx(0.03, abs=0.02)
    assert account.database == pytest.approx(0.03, abs=0.02)
    assert account.loop_wait == pytest.approx(statement.loop_wait, abs=0.001)
    assert statement.loop_wait == pytest.approx(inner.duration - 0.03, abs=0.03)
    assert blocked - 0.05 < statement.loop_wait < blocked + 0.02
    [(name, waited), *_] = outer.waited_for
    assert name == "GET /guilty/{number}"
    assert waited == pytest.approx(statement.loop_wait, abs=0.02)
    assert not inner.loop_wait_estimated


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_slow_statement_is_told_also_where_the_request_has_waited_for_the_loop_before_it(run, driver):
    query = sleep(driver, 0.3)

    async def work(connection):
        await asyncio.sleep(0.02)
        await connection.execute(query)

    _, outer, _ = measure(run, driver, work, prepare=text("SELECT 1"))

    assert outer.time_account.loop_wait > 0.1
    assert [finding.kind for finding in sqltrace.diagnose(outer, [partial(slow_statement, slow=0.25)])] == [
        "slow_statement"
    ]


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_group_tells_the_time_of_the_database_and_the_wait_for_the_loop_apart(run, driver):
    query = sleep(driver, 0.02)

    async def work(connection):
        (await connection.execute(query)).all()

    inner, _, _ = measure(run, driver, work, prepare=query)

    [statement], [group] = inner.statements, inner.groups
    assert statement.loop_wait > 0.1
    assert group.loop_wait == pytest.approx(statement.loop_wait)
    assert (group.total, group.max) == (pytest.approx(statement.duration), pytest.approx(statement.duration))


@pytest.mark.parametrize("driver", OVER_TCP)
def test_connection_on_which_nothing_came_in_was_not_the_one_that_was_waited_for(run, driver):
    async def main():
        engine = create_async_engine(driver.url())
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0.05)
            with sqltrace.record() as recording:
                ended = recording.collector.clock()
                proxy = await connection.get_raw_connection()
                wait = replies.loop_wait(recording.collector, proxy, engine.dialect, ended - 20_000_000, ended, 0)
        await engine.dispose()
        return wait

    assert run(main()) is None


@pytest.mark.parametrize(("age", "waited"), [(200, 200), (203, 200), (190, 190), (210, None)])
def test_reply_may_be_a_tick_of_the_kernel_older_than_the_question(monkeypatch, age, waited):
    ms, now = 1_000_000, 1_000_000_000
    monkeypatch.setattr(replies, "_age", lambda _: age * ms)  # as the kernel says, which is not asked
    collector = Recording(clock=lambda: now).collector

    wait = replies.loop_wait(collector, None, None, now - 200 * ms, now, 0)

    assert wait == (waited and waited * ms)


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_reply_that_comes_after_the_block_was_not_waited_for(run, driver):
    query = sleep(driver, 0.2)

    async def work(connection):
        await connection.execute(query)

    inner, _, _ = measure(run, driver, work, prepare=query, blocked=0.1)

    assert inner.statements[0].execute == pytest.approx(0.21, abs=0.03)
    assert inner.time_account.loop_wait < 0.02


def numbers_after(driver, count, seconds):
    """As `numbers`, and the server takes its time before it begins to answer."""
    if driver.system == "postgresql":
        return text(
            f"SELECT i, i, i, i, i, i, i, i FROM generate_series(1, {count}) AS i, (SELECT pg_sleep({seconds})) z"
        )
    return text(
        f"SELECT seq, seq, seq, seq, seq, seq, seq, s FROM seq_1_to_{count}, (SELECT SLEEP({seconds}) AS s) AS z ORDER BY 1"
    )


@pytest.mark.parametrize("rows", [100, 1_000])
@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_reply_of_many_rows_waits_for_the_loop_as_one_of_few_does(run, driver, rows):
    query = numbers_after(driver, rows, 0.02)

    async def work(connection):
        assert len((await connection.execute(query)).all()) == rows

    inner, outer, blocked = measure(run, driver, work, prepare=query)

    account = inner.time_account
    assert blocked - 0.08 < account.loop_wait < blocked + 0.02
    assert account.database < 0.12
    assert outer.waited_for[0][0] == "GET /guilty/{number}"
    assert outer.waited_for[0][1] < blocked + 0.02


@pytest.mark.parametrize("driver", OF_POSTGRESQL)
@thrice
def test_first_row_of_a_server_side_cursor_waits_for_the_loop_as_a_reply_does(run, driver):
    query = sleep(driver, 0.05)

    async def work(connection):
        async with connection.stream(query) as result:
            assert len([row async for row in result]) == 1

    inner, _, blocked = measure(run, driver, work, prepare=query, after=0.03)

    [statement] = inner.statements
    assert statement.duration == pytest.approx(0.06, abs=0.02)
    assert inner.time_account.database == pytest.approx(0.06, abs=0.02)
    assert blocked - 0.05 < inner.time_account.loop_wait < blocked + 0.02
    assert not inner.loop_wait_estimated


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_fetch_that_is_cancelled_amid_its_reply_has_not_waited_for_the_loop(run, driver):
    rows = text("SELECT repeat('x', 9000), CASE i WHEN 150 THEN pg_sleep(2) END FROM generate_series(1, 300) AS i")

    async def work(connection):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.4), connection.stream(rows) as result:
                await result.fetchone()
                await result.fetchmany(250)

    inner, _, _ = measure(run, driver, work, prepare=text("SELECT 1"), blocked=0)

    assert inner.failed_count == 1
    assert inner.time_account.loop_wait < 0.1
    assert inner.time_account.database > 0.3


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_query_that_is_cancelled_had_no_reply_soon_after_another_one_had(run, driver):
    quick, slow = sleep(driver, 0), sleep(driver, 5)

    async def work(connection):
        await connection.execute(quick)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await connection.execute(slow)

    inner, outer, _ = measure(run, driver, work, prepare=text("SELECT 1"), blocked=0.02, after=0.1)

    assert inner.failed_count == 1
    for recording in (inner, outer):
        assert recording.time_account.loop_wait < 0.1
        assert recording.time_account.database > 0.2


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_commit_that_is_cancelled_had_no_reply(run, driver):
    """It was waiting for a deferred constraint, soon after the statements before it had their replies."""
    statements = (
        "CREATE TEMPORARY TABLE checked (id INTEGER)",
        "CREATE FUNCTION pg_temp.wait() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON checked DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION pg_temp.wait()",
        "INSERT INTO checked VALUES (1)",
    )

    async def work(connection):
        for statement in statements:
            await connection.exec_driver_sql(statement)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await connection.commit()

    inner, outer, _ = measure(run, driver, work, blocked=0.02, after=0.15)

    for recording in (inner, outer):
        assert recording.time_account.loop_wait < 0.1
        assert recording.time_account.database > 0.2


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_transaction_that_ends_late_has_waited_for_the_loop(run, driver):
    async def work(connection):
        await connection.execute(text("SELECT 1"))
        asyncio.get_running_loop().call_soon(block, 0.1)  # as soon as the rollback is under way
        await connection.rollback()

    inner, _, _ = measure(run, driver, work, prepare=text("SELECT 1"), blocked=0)

    assert inner.time_account.loop_wait > 0.08
    assert inner.time_account.database < 0.08
    assert inner.connections.rollback < 0.08


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_commit_that_waits_for_the_loop_is_no_slow_one(run, driver):
    async def work(connection):
        await connection.execute(text("SELECT 1"))
        asyncio.get_running_loop().call_soon(block, 0.6)
        await connection.commit()

    inner, _, _ = measure(run, driver, work, prepare=text("SELECT 1"), blocked=0)

    assert inner.connections.commit < 0.3 < inner.time_account.loop_wait
    assert not [finding for finding in sqltrace.diagnose(inner) if finding.kind == "slow_statement"]


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_driver_that_reads_a_large_reply_does_not_wait(run, driver):
    query = numbers(driver, 40_000)

    async def work(connection):
        await connection.execute(query)

    inner, _, _ = measure(run, driver, work, prepare=query, blocked=0)

    assert inner.time_account.loop_wait <= inner.duration / 10 + 0.01


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_driver_that_decodes_a_large_document_does_not_wait(run, driver):
    document = "SELECT json_agg(json_build_object('a', i, 'b', 'x')) FROM generate_series(1, 100000) AS i"

    async def work(connection):
        await connection.execute(text(document))

    inner, _, _ = measure(run, driver, work, prepare=text(document), blocked=0)

    assert inner.time_account.loop_wait <= inner.duration / 10


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_driver_that_reads_a_large_reply_in_a_child_task_does_not_wait(run, driver):
    query = numbers(driver, 40_000)

    async def work(connection):
        await asyncio.create_task(connection.execute(query))

    inner, _, _ = measure(run, driver, work, prepare=query, blocked=0)

    assert inner.time_account.loop_wait <= inner.duration / 10 + 0.01


@pytest.mark.parametrize("driver", OVER_TCP)
@thrice
def test_child_task_waits_too(run, driver):
    query = sleep(driver, 0.02)

    async def work(connection):
        await asyncio.gather(connection.execute(query), asyncio.sleep(0))

    inner, outer, blocked = measure(run, driver, work, prepare=query)

    assert inner.statements[0].execute == pytest.approx(0.03, abs=0.02)
    assert blocked - 0.05 < inner.time_account.loop_wait < blocked + 0.01
    assert outer.waited_for[0][0] == "GET /guilty/{number}"


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_request_does_not_wait_for_what_its_own_child_task_holds(run, driver):
    query = sleep(driver, 0.02)
    engine = create_engine("sqlite://")

    async def child():
        with engine.connect() as connection:
            connection.connection.create_function("block", 0, lambda: block(0.2))
            connection.execute(text("SELECT block()"))

    async def work(connection):
        task = asyncio.create_task(child())
        await connection.execute(query)
        await task

    inner, outer, _ = measure(run, driver, work, prepare=query, blocked=0)

    engine.dispose()
    assert inner.time_account.loop_wait < 0.05
    assert outer.held_loop > 0.2


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_child_tasks_of_the_only_request_wait_for_nobody_else(run, driver):
    query = sleep(driver, 0.02)

    async def main():
        engine = create_async_engine(driver.url())

        async def resolve():
            await asyncio.sleep(0.01)
            block(0.2)

        async def alone(request):
            async with engine.connect() as connection:
                await connection.execute(query)
                await asyncio.gather(connection.execute(query), resolve())
            return PlainTextResponse("ok")

        app, records = observed(Starlette(routes=[Route("/", alone)]))
        await get(app, "/")
        await engine.dispose()
        return records["/"]

    recording = run(main())

    account = recording.time_account
    assert recording.statements[-1].execute == pytest.approx(0.03, abs=0.02)
    assert account.loop_wait < 0.02
    assert account.python > 0.16
    assert recording.waited_for == []


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_nobody_on_the_loop_of_the_request_holds_one_that_it_runs_in_a_thread(run, driver):
    query = sleep(driver, 0.02)

    async def ask():
        engine = create_async_engine(driver.url())
        async with engine.connect() as connection:
            await connection.execute(query)
            asyncio.get_running_loop().call_later(0.01, block, 0.3)
            await connection.execute(query)
        await engine.dispose()

    async def main():
        async def threaded(request):
            await asyncio.to_thread(asyncio.run, ask())
            return PlainTextResponse("ok")

        async def beside(request):
            for _ in range(20):
                block(0.01)
                await asyncio.sleep(0)
            return PlainTextResponse("ok")

        app, records = observed(Starlette(routes=[Route("/beside", beside), Route("/threaded", threaded)]))
        waiting = asyncio.create_task(get(app, "/threaded"))
        await asyncio.sleep(0.15)
        await get(app, "/beside")
        await waiting
        return records["/threaded"]

    recording = run(main())

    account = recording.time_account
    assert recording.statements[-1].execute == pytest.approx(0.03, abs=0.02)
    assert account.loop_wait < 0.05
    assert account.python > 0.25
    assert sum(waited for _, waited in recording.waited_for) < 0.05


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_wait_between_two_round_trips_is_an_estimate(run, driver):
    query = sleep(driver, 0.02)

    async def work(connection):
        await connection.execute(query)

    inner, _, blocked = measure(run, driver, work, after=0)

    assert inner.loop_wait_estimated
    assert inner.statements[0].loop_wait == pytest.approx(blocked, abs=0.05)
    assert inner.time_account.database == pytest.approx(0.03, abs=0.03)


def check_wait_behind_a_fast_round_trip(run, driver):
    query = sleep(driver, 0.02)

    async def work(connection):
        await connection.rollback()
        asyncio.get_running_loop().call_soon(block, 0.3)  # as soon as BEGIN, which comes first, is under way
        await connection.execute(query)

    inner, _, _ = measure(run, driver, work, prepare=query, blocked=0)

    assert inner.statements[0].loop_wait == pytest.approx(0.3, abs=0.05)
    assert inner.time_account.database == pytest.approx(0.03, abs=0.03)


@pytest.mark.parametrize("driver", PSYCOPG)
@thrice
def test_wait_after_a_fast_round_trip_is_an_estimate_where_the_driver_wakes_up_by_itself(run, driver):
    check_wait_behind_a_fast_round_trip(run, driver)


@pytest.mark.parametrize("driver", OF_POSTGRESQL)
@thrice
def test_wait_behind_a_fast_round_trip_is_known_from_its_reply(run, driver, monkeypatch):
    # As on a busy loop: between what held it, short steps of many make a rest.
    monkeypatch.setattr("sqltrace.loop_log.LoopLog.tail", lambda *_: [])

    check_wait_behind_a_fast_round_trip(run, driver)


@pytest.mark.parametrize("driver", OF_POSTGRESQL)
@thrice
def test_request_that_sleeps_has_not_waited_since_its_latest_reply(run, driver, monkeypatch):
    monkeypatch.setattr("sqltrace.loop_log.LoopLog.tail", lambda *_: [])

    async def work(connection):
        await connection.execute(text("SELECT 1"))
        asyncio.get_running_loop().call_soon(block, 0.1)
        await asyncio.sleep(0.2)

    inner, _, _ = measure(run, driver, work, prepare=text("SELECT 1"), blocked=0)

    assert inner.time_account.loop_wait < 0.05


@pytest.mark.parametrize("driver", drivers(lambda driver: driver.name == "aiosqlite"))
@thrice
def test_aiosqlite_has_an_estimate_only(run, driver):
    async def work(connection):
        await connection.execute(
            text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 5000) SELECT count(*) FROM c")
        )

    inner, outer, blocked = measure(run, driver, work, after=0)

    assert inner.loop_wait_estimated
    assert inner.time_account.loop_wait == pytest.approx(blocked, abs=0.05)
    assert sum(statement.loop_wait or 0.0 for statement in inner.statements) <= inner.time_account.loop_wait + 0.001
    assert outer.waited_for[0][0] == "GET /guilty/{number}"


@pytest.mark.parametrize("driver", OF_POSTGRESQL)
@thrice
def test_error_that_lay_ready_while_others_held_the_loop_is_no_time_of_the_database(run, driver):
    query = text("SELECT 1 / length(CAST(pg_sleep(0.02) AS text))")

    async def work(connection):
        with pytest.raises(DBAPIError, match="zero"):
            await connection.execute(query)

    inner, _, blocked = measure(run, driver, work, prepare=sleep(driver, 0.001))

    [statement] = inner.statements
    assert statement.failed
    assert blocked - 0.05 < statement.loop_wait < blocked + 0.02
    assert statement.execute == pytest.approx(0.03, abs=0.025)


def test_rows_that_a_driver_cannot_count_are_none_that_are_known():
    cursor = SimpleNamespace(rowcount=None, description=[("id",)])  # PEP 249 has -1, and may have None in the future

    assert replies.value_count(SimpleNamespace(cursor=cursor)) == 0


def test_system_without_sockets_is_unknown(monkeypatch):
    def refuse(*arguments):
        raise OSError

    monkeypatch.setattr(socket, "socket", refuse)
    assert not replies.work()


def test_other_sockets_and_systems_are_unknown(monkeypatch):
    left, right = socket.socketpair()
    with left, right:
        assert replies.received_before(left.fileno()) is None
        left.sendall(b"still open")
        assert right.recv(100) == b"still open"
    monkeypatch.setattr(replies, "_TCP_INFO", None)
    assert replies.received_before(0) is None
    assert not replies.work()


@pytest.mark.parametrize(
    "connection",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(_transport=SimpleNamespace(get_extra_info=lambda _: None)),
        SimpleNamespace(fileno=lambda: -1),
        SimpleNamespace(fileno="renamed"),
    ],
    ids=["none", "nothing known", "no socket", "closed", "not a method"],
)
def test_driver_that_has_changed_is_unknown(connection):
    assert internals.driver_descriptor(SimpleNamespace(driver_connection=connection)) is None


@pytest.mark.parametrize("driver", ASYNCPG)
@thrice
def test_reply_that_lay_ready_is_told_where_the_loop_cannot_be_observed(run, driver, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr("sqltrace.loop_log.LoopLog.enter", broken)
    query = sleep(driver, 0.02)
    recording, _, blocked = measure(run, driver, lambda connection: connection.execute(query), prepare=query)

    [statement] = recording.statements
    assert blocked - 0.05 < statement.loop_wait < blocked + 0.02
    assert "observing the event loop failed" in caplog.text
    sqltrace.faults.forget_faults()


def test_synchronous_statement_on_a_loop_outside_of_requests_is_recorded():
    async def main():
        engine = create_engine("sqlite://")
        with sqltrace.record() as recording, engine.connect() as connection:
            connection.connection.create_function("hold", 0, lambda: block(0.02))
            connection.execute(text("SELECT hold()"))
        engine.dispose()
        return recording

    [group] = asyncio.run(main()).groups

    assert (group.on_loop, group.total >= 0.02) == (1, True)


class Computer:
    """A thread that keeps the interpreter's lock for a while, some time after it was told to."""

    def __init__(self, *, after=0.02, rounds=30_000_000):
        self._told = threading.Event()
        self._after, self._rounds = after, rounds
        self._thread = threading.Thread(target=self._compute)

    def _compute(self):
        self._told.wait()
        time.sleep(self._after)
        operator.contains(range(self._rounds), object())  # without bytecode: no other thread goes on

    def __enter__(self):
        self._thread.start()
        return self._told.set

    def __exit__(self, *_):
        self._told.set()
        self._thread.join()


class Wrapped(psycopg2.extensions.cursor):
    """As one whose span is exported before it lets its caller go on."""

    def execute(self, *arguments):
        super().execute(*arguments)
        time.sleep(0.05)


def run_and_sleep(cursor, statement, parameters, context):
    cursor.execute(statement, parameters)
    time.sleep(0.05)
    return True


def told_of(driver, query):
    engine = create_engine(driver.url())
    with engine.connect() as connection, sqltrace.record() as recording:
        connection.execute(query).all()
    engine.dispose()
    [statement] = recording.statements
    return statement


class TestThreads:
    @pytest.mark.parametrize("by", ["cursor", "listener"])
    def test_what_is_wrapped_around_the_driver_is_no_wait_for_the_interpreter(self, by, postgres_url):
        options = {"connect_args": {"cursor_factory": Wrapped}} if by == "cursor" else {}
        engine = create_engine(postgres_url.set(drivername="postgresql+psycopg2"), **options)
        sqltrace.instrument(engine)
        if by == "listener":
            event.listen(engine, "do_execute", run_and_sleep)
        with engine.connect() as connection, sqltrace.record() as recording:
            connection.execute(text("SELECT 1")).all()
        engine.dispose()

        [statement] = recording.statements
        assert (statement.gil_wait, statement.execute >= 0.05) == (0, True)

    def test_statement_of_a_pipeline_has_no_reply_yet(self, postgres_url):
        """It returns once its parameters are made: what came in last is the reply to another one."""
        engine = create_engine(postgres_url.set(drivername="postgresql+psycopg"))
        with engine.connect() as connection, sqltrace.record() as recording:
            driver = connection.connection.driver_connection
            with driver.pipeline():
                driver.execute("SELECT 1").fetchall()
                connection.execute(text("SELECT CAST(:numbers AS int[])"), {"numbers": list(range(100_000))})
        engine.dispose()

        [statement] = recording.statements
        assert (statement.gil_wait, statement.execute > 0.01) == (0, True)

    @thrice
    @pytest.mark.parametrize("driver", SYNC_OVER_TCP)
    def test_statement_ends_when_its_reply_comes_however_long_others_have_the_interpreter(self, driver):
        engine = create_engine(driver.url())
        with engine.connect() as connection, Computer() as compute, sqltrace.record() as recording:
            compute()
            connection.execute(sleep(driver, 0.1)).all()
        engine.dispose()

        [statement], [group], account = recording.statements, recording.groups, recording.time_account
        assert statement.gil_wait > 0.1, statement
        assert statement.execute == pytest.approx(0.1, abs=0.08), statement
        assert (group.total, group.gil_wait) == pytest.approx((statement.duration, statement.gil_wait))
        assert account.database == pytest.approx(statement.duration, abs=0.02)
        assert account.python >= statement.gil_wait
        assert sum(account[:3]) + account.python == pytest.approx(recording.duration, abs=0.001)

    @thrice
    @pytest.mark.parametrize("driver", SYNC_OVER_TCP)
    def test_request_is_told_that_it_waited_for_the_interpreter(self, driver):
        engine = create_engine(driver.url())

        def endpoint(request):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                with Computer() as compute:
                    compute()
                    connection.execute(sleep(driver, 0.1)).all()
            return PlainTextResponse("ok")

        app, records = observed(Starlette(routes=[Route("/", endpoint)]))
        asyncio.run(get(app, "/"))
        engine.dispose()

        [finding] = sqltrace.diagnose(records["/"], [partial(gil_wait, wait=0.1)])
        assert finding.call_site.startswith("tests/test_replies.py:"), finding
        assert records["/"].time_account.python > finding.cost > 0.1, records["/"].time_account

    @thrice
    def test_what_another_request_had_both_loop_and_interpreter_for_counts_once(self, postgres_url):
        """It is told to have held the loop: to wait for the interpreter was to wait for the same."""
        engine = create_engine(postgres_url)
        with engine.connect() as connection:

            def victim(request):
                connection.execute(text("SELECT pg_sleep(0.05)")).all()
                return PlainTextResponse("ok")

            async def guilty(request):
                await asyncio.sleep(0.03)
                operator.contains(range(15_000_000), object())
                return PlainTextResponse("ok")

            async def main():
                await asyncio.gather(get(app, "/victim"), get(app, "/guilty"))

            app, records = observed(Starlette(routes=[Route("/victim", victim), Route("/guilty", guilty)]))
            asyncio.run(main())
        engine.dispose()

        recording = records["/victim"]
        assert recording.groups[0].gil_wait > 0.05, recording.groups
        assert waited_for_gil(recording) <= recording.time_account.python
        assert "gil_wait" not in [finding.kind for finding in sqltrace.diagnose(recording)]

    @thrice
    def test_commit_ends_when_its_reply_comes(self, postgres_url):
        engine = create_engine(postgres_url)
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS slow_commits"))
            connection.execute(text("CREATE TABLE slow_commits (id INTEGER)"))
            connection.execute(text(SLOW_COMMIT))
            connection.execute(text(SLOW_TRIGGER))
        with Computer() as compute, sqltrace.record() as recording, engine.begin() as connection:
            connection.execute(text("INSERT INTO slow_commits VALUES (1)"))
            compute()
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE slow_commits"))
        engine.dispose()

        assert recording.connections.commit == pytest.approx(0.1, abs=0.08)
        assert recording.time_account.python > 0.1

    @thrice
    @pytest.mark.parametrize("driver", SYNC_OVER_TCP)
    def test_reading_a_large_reply_is_the_drivers_own_work(self, driver):
        assert told_of(driver, numbers(driver, 20_000)).gil_wait == 0

    @thrice
    @pytest.mark.parametrize("driver", SYNC_OVER_TCP)
    def test_statement_that_waits_for_the_database_only_does_not_wait_for_the_interpreter(self, driver):
        assert told_of(driver, sleep(driver, 0.05)).gil_wait == 0


@pytest.mark.parametrize("driver", SYNC_OVER_TCP)
def test_connection_works_on_where_new_sockets_have_a_timeout(driver):
    """A socket object made for a descriptor would make it non-blocking, under a driver that relies on its blocking."""
    engine = create_engine(driver.url())
    with engine.connect() as connection, sqltrace.record() as recording:
        socket.setdefaulttimeout(30)
        try:
            for _ in range(2):
                connection.execute(sleep(driver, 0.02)).all()
        finally:
            socket.setdefaulttimeout(None)
    engine.dispose()

    assert recording.statement_count == 2


def test_socket_is_asked_without_being_changed():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.settimeout(None)
        socket.setdefaulttimeout(30)
        try:
            assert replies.received_before(client.fileno()) is not None
        finally:
            socket.setdefaulttimeout(None)

        assert os.get_blocking(client.fileno())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_socket_stays_open_where_asking_is_interrupted(monkeypatch):
    """As by an exception of a signal handler: a socket object that nobody has any more closes its descriptor."""

    class Interrupted(socket.socket):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            raise KeyboardInterrupt

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        monkeypatch.setattr(socket, "socket", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            replies.received_before(client.fileno())

        assert os.fstat(client.fileno())


def test_descriptor_that_is_no_socket_any_more_is_no_fault(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert replies.received_before(file.fileno()) is None
        descriptor = os.dup(file.fileno())
        os.close(descriptor)
        assert replies.received_before(descriptor) is None


def test_stream_that_waits_for_the_interpreter_counts_its_first_row_once(monkeypatch, clock, memory_engine):
    """Its rows are asked for after the wait, not right when the reply to its beginning came."""
    monkeypatch.setattr(replies, "came_at", lambda collector, connection, started, ended: started)
    numbers = union_all(select(func.wait(0.1)), select(func.wait(0.4)), select(func.wait(0.1)))

    with recorded(clock) as recording, memory_engine.connect() as connection:
        connection.connection.driver_connection.create_function("wait", 1, clock.advance)
        connection.execution_options(stream_results=True).execute(numbers).all()

    [statement] = recording.statements
    assert statement.gil_wait == pytest.approx(0.1)
    assert statement.duration == pytest.approx(0.5)
    assert recording.time_account.database == pytest.approx(0.5)


def test_statement_is_told_with_the_time_it_took_where_we_fail_to_ask_for_its_reply(monkeypatch, caplog, memory_engine):
    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(replies, "SLOW", -1)
    monkeypatch.setattr(replies, "came_at", broken)

    with sqltrace.record() as recording, memory_engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1

    assert [(statement.sql, statement.rows, statement.execute > 0) for statement in recording.statements] == [
        ("SELECT 1", 1, True)
    ]
    assert "telling when a reply came failed and is skipped; the application is not affected" in caplog.messages


SLOW_COMMIT = """
CREATE OR REPLACE FUNCTION sqltrace_slow() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$
"""
SLOW_TRIGGER = """
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow_commits DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION sqltrace_slow()
"""
