"""`idle_in_transaction`, `pool_wait`, and rollbacks: what a transaction waits for, and who can do something about it."""

import asyncio
import sqlite3
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import QueuePool, StaticPool
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import sqltrace
from sqltrace import connection as connections
from sqltrace.capture import flushes
from sqltrace.collector import mark
from sqltrace.connection import Checkout, Holder, Occupants, PoolWait
from sqltrace.findings import idle_in_transaction, pool_wait, slow_statement
from sqltrace.label import Label
from tests.asgi import Clock, memory_engine, recorded
from tests.loops import block, get, observed, run_by_clock, thrice

pytestmark = pytest.mark.usefixtures("no_faults")


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[int | None]
    b: Mapped[int | None]


@pytest.fixture
def engine():
    engine = memory_engine()
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@contextmanager
def listening(target, name, listener):
    event.listen(target, name, listener)
    yield
    event.remove(target, name, listener)


def line_of(text):
    with open(__file__, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if text in line and "line_of" not in line)


def test_time_that_a_flush_takes_after_its_statements_is_not_idle(clock, engine):
    with (
        listening(Job, "after_insert", lambda *_: clock.advance(0.1)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        session.add_all([Job() for _ in range(10)])
        session.commit()

    assert recording.connections.idle_in_transaction == 0
    assert sqltrace.diagnose(recording) == []


def test_time_between_the_statements_of_a_long_flush_is_not_idle(clock, engine):
    with (
        listening(engine, "before_cursor_execute", lambda *_: clock.advance(0.02)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        session.execute(text("SELECT 1"))
        session.add_all([Job(a=1) if number % 2 else Job(b=1) for number in range(100)])
        session.commit()

    assert recording.statement_count == 101
    assert recording.connections.idle_in_transaction <= 0.02 * 2
    assert sqltrace.diagnose(recording) == []


def test_time_of_the_statements_of_a_long_flush_counts_once(clock, engine):
    with engine.connect() as connection:
        connection.connection.create_function("wait", 1, clock.advance)
    with (
        listening(engine, "before_cursor_execute", lambda *_: clock.advance(0.02)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        session.execute(text("SELECT 1"))
        clock.advance(0.3)
        session.add_all([Job(a=func.wait(0.01)) for _ in range(100)])
        session.flush()
        clock.advance(0.3)
        session.commit()

    assert recording.statement_count == 101
    assert recording.connections.idle_in_transaction == pytest.approx(0.62, abs=0.03)


def beside_a_hold(victim):
    """The recording of a request to this endpoint, while another one holds the event loop for 600 ms."""

    async def guilty(request):
        block(0.6)
        return PlainTextResponse("ok")

    app, records = observed(Starlette(routes=[Route("/victim", victim), Route("/guilty", guilty)]))

    async def main():
        await asyncio.gather(get(app, "/victim"), get(app, "/guilty"))

    run_by_clock(main())
    return records["/victim"]


@pytest.mark.parametrize("close", ["itself", "in a child task"])
def test_transactions_that_stay_open_as_another_request_holds_the_loop_are_not_idle(tmp_path, close):
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")

    async def victim(request):
        connections = [engine.connect() for _ in range(4)]
        for connection in connections:
            connection.execute(text("SELECT 1"))

        async def give_back():
            for connection in connections:
                connection.close()

        if close == "itself":
            await asyncio.sleep(0.01)
            await give_back()
        else:
            await asyncio.shield(asyncio.create_task(give_back()))
        return PlainTextResponse("ok")

    recording = beside_a_hold(victim)
    engine.dispose()

    assert recording.connections.idle_in_transaction == pytest.approx(4 * 0.6)
    assert sqltrace.diagnose(recording, [idle_in_transaction]) == []


def test_transaction_that_makes_objects_and_stays_open_as_another_request_holds_the_loop_is_not_idle(tmp_path):
    class Connection(sqlite3.Connection):
        def rollback(self):
            block(0.01)
            super().rollback()

    engine = create_engine(f"sqlite:///{tmp_path}/app.db", connect_args={"factory": Connection})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Job())
        session.commit()

    async def victim(request):
        session = Session(engine)
        session.scalars(select(Job)).all()

        async def give_back():
            session.close()

        await asyncio.create_task(give_back())
        return PlainTextResponse("ok")

    with listening(Job, "load", lambda job, context: block(0.6)):
        recording = beside_a_hold(victim)
    engine.dispose()

    assert recording.connections.idle_in_transaction == pytest.approx(1.2)
    assert sqltrace.diagnose(recording, [idle_in_transaction]) == []


def test_transaction_of_rows_that_are_read_from_the_server_piece_by_piece_is_not_idle(clock, engine):
    with Session(engine) as session:
        session.add_all([Job() for _ in range(3)])
        session.commit()
    with recorded(clock) as recording, engine.connect().execution_options(stream_results=True) as connection:
        for _ in connection.execute(select(Job.id)):
            clock.advance(0.3)  # of a slow client

    assert recording.connections.idle_in_transaction > 0.6
    assert sqltrace.diagnose(recording, [idle_in_transaction]) == []


@pytest.mark.postgresql
@thrice
def test_wait_for_a_pool_while_another_request_holds_the_loop_is_not_the_pools(postgres_url):
    async def main():
        engine = create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0)

        async def holder(request):
            async with engine.connect():
                await asyncio.sleep(0.05)
                block(0.5)
            return PlainTextResponse("ok")

        async def victim(request):
            async with engine.connect():
                return PlainTextResponse("ok")

        app, records = observed(Starlette(routes=[Route("/holder", holder), Route("/victim", victim)]))
        async with engine.connect():
            pass
        await asyncio.gather(get(app, "/holder"), get(app, "/victim"))
        await engine.dispose()
        return records["/victim"]

    victim = asyncio.run(main())

    assert victim.connections.wait > 0.4
    assert sqltrace.diagnose(victim, [pool_wait]) == []


def test_what_a_flush_does_before_its_transaction_begins_is_not_taken_off_what_is_idle_later(clock, engine):
    with (
        recorded(clock) as recording,
        listening(Session, "before_flush", lambda *_: clock.advance(1)),
        Session(engine) as session,
    ):
        session.add(Job())
        session.flush()
        clock.advance(2)
        session.commit()

    assert recording.connections.idle_in_transaction == 2


def test_flushes_of_a_long_transaction_do_not_fill_the_memory(clock, engine):
    with (
        listening(Job, "after_insert", lambda *_: clock.advance(0.1)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        for _ in range(50):
            session.add(Job())
            session.flush()
        [checkout] = recording.collector.checkouts
        assert len(checkout._flushes) <= 20

    assert recording.connections.idle_in_transaction == 0


def test_flush_without_a_transaction_is_never_idle(clock, engine):
    with (
        listening(Job, "after_insert", lambda *_: clock.advance(1)),
        recorded(clock) as recording,
        Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session,
    ):
        session.add(Job())
        session.commit()

    assert recording.connections.idle_in_transaction == 0


def test_flush_outside_of_a_recording_is_not_measured(engine):
    sqltrace.instrument()
    with Session(engine) as session:
        session.add(Job())
        session.rollback()
        session.add(Job())
        session.flush()

        assert session.scalars(select(Job)).all()


@pytest.mark.parametrize("name", ["orm_internals.connections_of", "checkout_of"])
def test_fault_of_ours_changes_no_flush(monkeypatch, caplog, engine, name):
    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(f"sqltrace.capture.flushes.{name}", broken)
    with sqltrace.record() as recording, Session(engine) as session:
        session.execute(text("SELECT 1"))
        session.add(Job(id=7))
        session.flush()
        found = session.get(Job, 7) is not None
        session.rollback()

    reported = [record for record in caplog.records if record.name == "sqltrace"]
    caplog.clear()
    assert (found, recording.statement_count) == (True, 3)
    assert {record.getMessage().partition(" failed")[0] for record in reported} == {
        "measuring a flush",
        "counting a rollback",
    }


def test_what_is_done_before_and_after_a_flush_is_idle(clock, engine):
    with (
        listening(Job, "after_insert", lambda *_: clock.advance(1)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        session.execute(text("SELECT 1"))
        clock.advance(0.2)
        session.add(Job())
        session.flush()  # and then the longest
        clock.advance(0.4)
        session.commit()

    [finding] = sqltrace.diagnose(recording)

    assert recording.connections.idle_in_transaction == pytest.approx(0.6)
    assert (finding.kind, finding.cost) == ("idle_in_transaction", pytest.approx(0.6))
    assert finding.call_site.startswith(f"tests/test_findings_connections.py:{line_of('# and then the longest')} in ")


@pytest.mark.parametrize(("pause", "told"), [(0.3, []), (0.6, [0.6])])
def test_time_between_the_batches_of_an_insert_is_not_reported(clock, engine, pause, told):
    many = insert(Job).returning(Job.id)
    with (
        listening(engine, "before_cursor_execute", lambda *_: clock.advance(0.04)),
        recorded(clock) as recording,
        engine.begin() as connection,
    ):
        for _ in range(2):
            rows = connection.execute(many, [{"a": 1}] * 40, execution_options={"insertmanyvalues_page_size": 2})
            assert len(rows.all()) == 40
        clock.advance(pause)

    findings = sqltrace.diagnose(recording, [idle_in_transaction])

    assert recording.statement_count == 40
    assert recording.connections.idle_in_transaction == pytest.approx(39 * 0.04 + pause)
    assert [finding.cost for finding in findings] == pytest.approx(told)


@pytest.mark.parametrize(("long", "told"), [(0.3, [0.54]), (0.25, [])])
def test_short_pauses_count_beside_a_long_one(clock, engine, long, told):
    with recorded(clock) as recording, engine.begin() as connection:
        for pause in (long, *[0.04] * 6):
            connection.execute(text("SELECT 1"))
            clock.advance(pause)

    findings = sqltrace.diagnose(recording, [idle_in_transaction])

    assert [finding.cost for finding in findings] == pytest.approx(told)


def test_nothing_is_told_of_transactions_where_connections_cannot_be_measured(monkeypatch, clock, engine):
    monkeypatch.setattr(connections, "unmeasurable_times", {*connections.TIMES})
    with recorded(clock) as recording, engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        clock.advance(0.6)

    assert recording.connections.idle_in_transaction is None
    assert sqltrace.diagnose(recording, [idle_in_transaction]) == []


@pytest.mark.parametrize(("waited", "told"), [(0.3, []), (0.6, [0.6])])
def test_time_in_which_two_transactions_are_idle_at_once_counts_once(clock, waited, told):
    reader, writer = (
        create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}) for _ in range(2)
    )
    with recorded(clock) as recording, reader.connect() as one, writer.connect() as other:
        one.execute(text("SELECT 1"))
        other.execute(text("SELECT 1"))
        clock.advance(waited)
        other.commit()
        one.commit()
    reader.dispose()
    writer.dispose()

    findings = sqltrace.diagnose(recording, [idle_in_transaction])

    assert recording.connections.idle_in_transaction == pytest.approx(2 * waited)
    assert [finding.cost for finding in findings] == pytest.approx(told)
    assert all("not counting" not in finding.message for finding in findings)


def test_request_that_still_holds_a_connection_is_called_by_its_route(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", pool_size=1, max_overflow=0, pool_timeout=0.01)
    holds, answered = threading.Event(), threading.Event()

    def hold(request):
        with engine.connect():
            holds.set()
            assert answered.wait(30)
        return PlainTextResponse("ok")

    def ask(request):
        assert holds.wait(30)
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        return PlainTextResponse("ok")

    app, records = observed(Starlette(routes=[Route("/hold/{number}", hold), Route("/ask", ask)]))

    async def main():
        holding = asyncio.create_task(get(app, "/hold/1"))
        await get(app, "/ask")
        findings = sqltrace.diagnose(records["/ask"], [pool_wait])
        answered.set()
        await holding
        return findings

    [finding] = run_by_clock(main())
    engine.dispose()

    assert ", held by GET /hold/{number} (" in finding.message


def test_flush_that_failed_is_rolled_back_as_ever(clock, engine):
    def fail(*_):
        clock.advance(1)
        raise LookupError

    with listening(Job, "after_insert", fail), recorded(clock) as recording, Session(engine) as session:
        session.add(Job())
        with pytest.raises(LookupError):
            session.commit()
        session.rollback()

    assert recording.connections.rollbacks == 1


def test_flush_of_an_async_session_is_not_idle(clock):
    async def main():
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        with recorded(clock) as recording:
            async with AsyncSession(engine) as session:
                session.add_all([Job() for _ in range(10)])
                await session.commit()
        await engine.dispose()
        return recording

    with listening(Job, "after_insert", lambda *_: clock.advance(0.1)):
        recording = asyncio.run(main())

    assert recording.connections.idle_in_transaction == 0


def test_sessions_that_are_not_known_are_left_alone(monkeypatch, clock, engine):
    monkeypatch.setattr(flushes, "work", lambda: False)
    with (
        listening(Job, "after_insert", lambda *_: clock.advance(0.1)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        session.add_all([Job() for _ in range(10)])
        session.commit()

    assert recording.connections.idle_in_transaction == pytest.approx(1)


def test_commit_is_awaited_where_the_idle_session_is_an_async_one(tmp_path):
    file = tmp_path / "app.db"
    sync = create_engine(f"sqlite:///{file}")

    async def main(idle_async):
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        with sqltrace.record() as recording:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(0.6 if idle_async else 0)
            with Session(sync) as session:
                session.execute(text("SELECT 1"))
                time.sleep(0 if idle_async else 0.6)
        await engine.dispose()
        return sqltrace.diagnose(recording, [idle_in_transaction])

    [of_async] = asyncio.run(main(idle_async=True))
    [of_sync] = asyncio.run(main(idle_async=False))
    sync.dispose()

    assert of_async.fix.startswith("await session.commit() before")
    assert of_sync.fix.startswith("session.commit() before")
    assert of_sync.call_site.endswith("main")


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_transaction_is_over_as_a_statement_of_it_is_cancelled(postgres_url, driver):
    async def main():
        engine = create_async_engine(postgres_url.set(drivername=f"postgresql+{driver}"))
        # To close a connection in the middle of a statement may take seconds.
        event.listen(engine.sync_engine, "invalidate", lambda *_: time.sleep(0.6))
        async with sqltrace.record() as recording, engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connection.execute(text("SELECT pg_sleep(5)"))
            assert connection.invalidated
        await engine.dispose()
        return recording

    recording = asyncio.run(main())

    assert recording.connections.idle_in_transaction < 0.1
    assert sqltrace.diagnose(recording) == []


def test_transaction_that_waits_for_another_connection_of_the_pool_is_told_once(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.6
    )
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(PoolTimeoutError):
            engine.connect()  # in vain
    engine.dispose()

    [finding] = sqltrace.diagnose(recording)

    assert finding.kind == "pool_wait"
    assert finding.call_site.startswith(f"tests/test_findings_connections.py:{line_of('# in vain')} in ")


def test_transaction_that_waits_longer_than_for_the_pool_is_told_of_the_rest(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.3
    )
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        time.sleep(0.6)
    engine.dispose()

    [finding] = sqltrace.diagnose(recording, [idle_in_transaction])

    assert 0.6 <= finding.cost < 0.85


@pytest.mark.postgresql
def test_transaction_whose_lock_a_slow_statement_of_the_same_request_waits_for_is_told_once(postgres_url):
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS idle_jobs"))
        connection.execute(text("CREATE TABLE idle_jobs AS SELECT 1 AS id"))
    lock = text("SELECT id FROM idle_jobs FOR UPDATE")
    with sqltrace.record() as recording, engine.connect() as one, engine.connect() as other:
        one.execute(lock)
        timer = threading.Timer(0.7, one.rollback)
        timer.start()
        other.execute(lock)
        timer.join()
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE idle_jobs"))
    engine.dispose()

    assert [finding.kind for finding in sqltrace.diagnose(recording, [slow_statement, idle_in_transaction])] == [
        "slow_statement"
    ]


def test_pool_of_an_async_engine_is_mended_there_also_if_it_gave_no_connection(tmp_path):
    async def main():
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{tmp_path}/app.db", pool_size=1, max_overflow=0, pool_timeout=0.05
        )
        async with engine.connect():
            with sqltrace.record() as recording, pytest.raises(PoolTimeoutError):
                async with AsyncSession(engine) as session:
                    await session.execute(text("SELECT 1"))  # no connection
        await engine.dispose()
        return recording

    [finding] = sqltrace.diagnose(asyncio.run(main()), [pool_wait])

    assert finding.fix.startswith(
        "create_async_engine(…, pool_size=6, max_overflow=0) for 6 connections at most instead of 1, or "
    )
    assert finding.call_site.startswith(f"tests/test_findings_connections.py:{line_of('# no connection')} in ")


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({}, "create_engine(…, pool_size=15, max_overflow=10) for 25 connections at most instead of 15, or "),
        (
            {"pool_size": 3, "max_overflow": 2},
            "create_engine(…, pool_size=10, max_overflow=2) for 12 connections at most instead of 5, or ",
        ),
        (
            {"pool_size": 1, "max_overflow": 5},
            "create_engine(…, pool_size=6, max_overflow=5) for 11 connections at most instead of 6, or ",
        ),
        (
            {"pool_size": 2, "max_overflow": 0},
            "create_engine(…, pool_size=7, max_overflow=0) for 7 connections at most instead of 2, or ",
        ),
    ],
    ids=["default", "overflow", "overflow of five", "none"],
)
def test_larger_pool_keeps_what_was_in_use_and_its_overflow(tmp_path, options, fix):
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", poolclass=QueuePool, pool_timeout=0.01, **options)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        for _ in range(engine.pool.size() + options.get("max_overflow", 10)):
            stack.enter_context(engine.connect())
        with sqltrace.record() as recording, pytest.raises(PoolTimeoutError):
            engine.connect()

    [finding] = sqltrace.diagnose(recording, [pool_wait])

    assert finding.fix.startswith(fix)


def test_pool_whose_overflow_is_not_known_is_made_larger_than_what_was_in_use():
    [finding] = sqltrace.diagnose(waited(wait_of(0.5)), [pool_wait])

    assert finding.fix.startswith("create_engine(…, pool_size=10), or give ")


def idle(clock, engine, *transactions):
    """Seconds of the idle stretches that a recording tells of these pauses in transactions of one connection."""
    with recorded(clock) as recording, engine.connect() as connection:
        for pauses in transactions:
            for seconds in pauses:
                connection.execute(text("SELECT 1"))
                clock.advance(seconds)
            connection.commit()
    return [(one.end - one.start) / 1_000_000_000 for one in recording.connections.idle_stretches]


def test_ten_longest_pauses_of_a_connection_are_told_the_longest_first(clock, engine):
    assert idle(clock, engine, [5.0], *[[0.1 + number / 100] for number in range(40)]) == pytest.approx(
        [5.0, *[0.49 - number / 100 for number in range(9)]]
    )


def test_ten_longest_pauses_of_a_transaction_are_told_the_longest_first(clock, engine):
    assert idle(clock, engine, [5.0, *[0.1] * 40]) == pytest.approx([5.0, *[0.1] * 9])


def test_pauses_of_50_ms_are_told(clock, engine):
    assert idle(clock, engine, [0.05]) == [0.05]
    assert idle(clock, engine, [0.049] * 100) == []


def test_pauses_end_and_begin_with_a_flush(clock, engine):
    with (
        listening(Job, "before_insert", lambda *_: clock.advance(0.1)),
        listening(Job, "after_insert", lambda *_: clock.advance(0.1)),
        recorded(clock) as recording,
        Session(engine) as session,
    ):
        for pause in (0.2, 0.3):
            session.execute(text("SELECT 1"))
            clock.advance(pause)
        session.add(Job())
        session.flush()
        for pause in (0.4, 0.5):
            clock.advance(pause)
            session.execute(text("SELECT 1"))

    stretches = recording.connections.idle_stretches
    assert [(one.end - one.start) / 1_000_000_000 for one in stretches] == [0.5, 0.4, 0.3, 0.2]


def test_pause_begins_when_the_rows_before_it_had_been_fetched(clock, engine):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.connection.create_function("wait", 1, clock.advance)
        connection.execute(text("SELECT wait(1) FROM (VALUES (1), (2))")).all()
        fetched = clock.now
        clock.advance(0.5)
        connection.commit()

    [stretch] = recording.connections.idle_stretches
    assert (stretch.start, stretch.end) == (fetched, clock.now)


def waited(*waits, at_once=False, after_response=False, loop_busy=0.0):
    """A recording that did nothing but wait for connections, one after the other or all together."""
    clock = Clock()
    with recorded(clock) as recording:
        if after_response:
            recording.end_response()
        for wait in waits:
            checkout = Checkout(clock, (recording.collector.label,), Occupants())
            if not (at_once and recording.collector.checkouts):
                clock.advance(wait.waited)
            checkout.pool_wait = replace(wait, ended=clock())
            checkout.end()
            recording.collector.checkouts.append(checkout)
        mark(recording.collector, None, "loop_wait", recording.started, recording.started + round(loop_busy * 1e9))
    return recording


def wait_of(seconds, *holders, timed_out=False):
    return PoolWait(seconds, timed_out, pool_size=5, in_use=5, overflow=0, holders=holders)


@pytest.mark.parametrize(
    ("waits", "found"),
    [
        ([wait_of(0.1)], 1),
        ([wait_of(0.099)], 0),
        ([wait_of(0.06), wait_of(0.06)], 1),
        ([wait_of(0.002), wait_of(0.001, timed_out=True)], 1),
    ],
    ids=["long", "short", "together", "timed out"],
)
def test_wait_for_the_pool_is_told_from_a_tenth_of_a_second_on_and_if_it_timed_out(waits, found):
    assert len(sqltrace.diagnose(waited(*waits), [pool_wait])) == found


@pytest.mark.parametrize(("seconds", "found"), [(0.38, 1), (0.42, 0)])
def test_wait_for_the_pool_while_the_loop_was_busy_is_not_counted(seconds, found):
    assert len(sqltrace.diagnose(waited(wait_of(0.5), loop_busy=seconds), [pool_wait])) == found


@pytest.mark.parametrize(
    ("count", "in_vain", "message"),
    [
        (2, 0, "2 waits for a connection, some at once, took 500.0 ms, 5 in use of a pool of 5."),
        (9, 2, "9 waits for a connection, some at once, 2 in vain, took 500.0 ms, 5 in use of a pool of 5."),
        (11, 0, "the 10 longest waits for a connection, some at once, took 500.0 ms, 5 in use of a pool of 5."),
    ],
)
def test_waits_for_the_pool_at_once_are_told_with_their_number_and_how_many_were_in_vain(count, in_vain, message):
    at_once = [wait_of(0.5, timed_out=number < in_vain) for number in range(count)]

    [finding] = sqltrace.diagnose(waited(*at_once, at_once=True), [pool_wait])

    assert (finding.message, finding.cost) == (message, 0.5)


@pytest.mark.parametrize(("count", "last"), [(4, " and others"), (3, "")])
def test_three_of_those_that_held_the_connections_are_named(count, last):
    holders = [Holder(Label(f"GET /{number}"), 1.0 - number / 10) for number in range(count)]

    [finding] = sqltrace.diagnose(waited(wait_of(0.5, *holders)), [pool_wait])

    named = "held by GET /0 (1.00 s), GET /1 (900.0 ms), GET /2 (800.0 ms)"
    if not last:
        named = " and ".join(named.rsplit(", ", 1))
    assert finding.message.endswith(f"{named}{last}.")


def test_requests_of_one_route_that_held_the_connections_are_named_once():
    holders = [Holder(Label(f"GET /{number % 2}"), 1.0 - number / 10) for number in range(3)]

    [finding] = sqltrace.diagnose(waited(wait_of(0.5, *holders)), [pool_wait])

    assert finding.message.endswith("held by GET /0 (up to 1.00 s each) and GET /1 (900.0 ms).")


@pytest.mark.parametrize(
    ("held", "fix"),
    [(1, "one session for the whole request"), (2, "one session for the"), (3, "fewer threads at once")],
    ids=["one", "one within the other", "each of its tasks one"],
)
def test_wait_for_a_connection_that_is_held_by_the_one_that_waits_is_told_before_longer_ones(held, fix):
    own = wait_of(0.2, *[Holder(Label("GET /"), 0.2, own=True)] * held, timed_out=True)

    [finding] = sqltrace.diagnose(waited(wait_of(0.5), own), [pool_wait])

    assert finding.fix.startswith(fix)


def test_pool_that_others_use_too_is_not_used_up_by_the_tasks_of_the_request():
    holders = Holder(Label("GET /"), 0.2, own=True), Holder(Label("GET /report"), 0.2)

    [finding] = sqltrace.diagnose(waited(wait_of(0.5, *holders)), [pool_wait])

    assert finding.fix == "create_engine(…, pool_size=10), or give connections back sooner in GET /: commit or close"


@pytest.mark.parametrize(("pool_size", "max_overflow", "limit"), [(5, 10, 7), (5, None, 2), (1, 0, 1)])
def test_tasks_that_use_up_the_pool_are_told_to_be_half_as_many_as_it_has_connections(pool_size, max_overflow, limit):
    wait = wait_of(0.5, *[Holder(Label("GET /"), 0.2, own=True)] * 3)
    wait = replace(wait, is_async=True, pool_size=pool_size, max_overflow=max_overflow)

    [finding] = sqltrace.diagnose(waited(wait), [pool_wait])

    assert finding.fix.startswith(f"limit = asyncio.Semaphore({limit})  # ")


def test_waits_one_after_the_other_after_the_response_were_not_at_once():
    [finding] = sqltrace.diagnose(waited(wait_of(0.5), wait_of(0.2), after_response=True), [pool_wait])

    assert finding.message == "700.0 ms spent waiting for a connection, 5 in use of a pool of 5."


def ask(session):
    session.scalars(select(Job).where(Job.id == 1)).all()


def retried_in_new_sessions(engine):
    for _ in range(4):
        with Session(engine) as session:
            ask(session)
            session.rollback()


def retried_in_one_session(engine):
    with Session(engine) as session:
        for _ in range(4):
            ask(session)
            session.rollback()


def retried_on_one_connection(engine):
    with engine.connect() as connection:
        for _ in range(5):
            connection.execute(select(Job).where(Job.id == 1)).all()
            connection.rollback()


def asked_in_new_sessions(engine):
    for _ in range(4):
        with Session(engine) as session:
            ask(session)


def asked_and_rolled_back_at_the_end(engine):
    with Session(engine) as session:
        for _ in range(5):
            ask(session)
        session.rollback()


@pytest.mark.parametrize(
    ("work", "rollbacks", "found"),
    [
        (retried_in_new_sessions, 4, []),
        (retried_in_one_session, 4, []),
        (retried_on_one_connection, 4, []),
        (asked_in_new_sessions, 0, ["repeated_statement"]),
        (asked_and_rolled_back_at_the_end, 1, ["repeated_statement"]),
    ],
)
def test_query_that_is_repeated_after_a_rollback_is_a_retry(engine, work, rollbacks, found):
    with sqltrace.record() as recording:
        work(engine)

    assert recording.connections.rollbacks == rollbacks
    assert [finding.kind for finding in sqltrace.diagnose(recording)] == found


def test_equal_queries_at_different_lines_are_told_as_such(engine):
    with sqltrace.record() as recording, Session(engine) as session:
        session.scalars(select(Job).where(Job.id == 1)).all()
        session.scalars(select(Job).where(Job.id == 1)).all()
        session.scalars(select(Job).where(Job.id == 1)).all()
        session.scalars(select(Job).where(Job.id == 1)).all()

    [finding] = sqltrace.diagnose(recording)

    assert finding.message.startswith("SELECT jobs ran 4 times with the same parameters, at different lines, in ")


def test_long_transaction_is_idle_only_between_its_statements_and_so_is_the_next(clock, engine):
    wait = text("SELECT wait(1)")
    with recorded(clock) as recording, engine.connect() as connection:
        connection.connection.driver_connection.create_function("wait", 1, clock.advance)
        for _ in range(100):  # more than are kept one by one
            connection.execute(wait).all()
        connection.commit()
        connection.execute(wait).all()
        clock.advance(5)
        connection.execute(wait).all()
        connection.commit()

    assert recording.connections.idle_in_transaction == pytest.approx(5)


def test_rollback_of_the_transaction_after_a_commit_that_failed_is_measured(clock):
    class Failing(sqlite3.Connection):
        def commit(self):
            raise sqlite3.OperationalError("disk I/O error")

        def rollback(self):
            clock.advance(2)
            super().rollback()

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"factory": Failing})
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("CREATE TABLE things (id INTEGER)"))
        with suppress(OperationalError):
            connection.commit()
        connection.rollback()  # which SQLAlchemy keeps to itself
        connection.execute(text("SELECT 1"))
        connection.rollback()
    engine.dispose()

    assert recording.connections.rollback >= 2
