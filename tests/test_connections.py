import asyncio
import contextvars
import gc
import json
import sqlite3
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import astuple, replace
from functools import partial, wraps
from pathlib import Path

import jsonschema
import pytest
from sqlalchemy import create_engine, event, pool, text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.queue import Queue

import sqltrace
from sqltrace import collector, connection, faults, findings
from sqltrace.capture import connections, internals, pool_wait, transactions
from sqltrace.sinks import ReadableRenderer
from sqltrace.sinks.log_line import log_line
from sqltrace.statement import Failure
from tests import databases, drivers
from tests.asgi import Clock, recorded
from tests.loops import thrice

SLEEP = {"sqlite": "SELECT 1", "postgresql": "SELECT pg_sleep(0.05)", "mysql": "SELECT SLEEP(0.05)"}


class Work:
    """Runs the same synchronous code in threads, or in tasks on an async engine."""

    def __init__(self, driver, file):
        self.url = drivers.url_of(driver, file)
        self.is_async = driver in drivers.ASYNC
        self.sleep = text(SLEEP[self.url.get_backend_name()])
        self._loop = asyncio.Runner() if self.is_async else None
        self._engines = []

    def engine(self, **options):
        options.setdefault("poolclass", pool.AsyncAdaptedQueuePool if self.is_async else pool.QueuePool)
        make = create_async_engine if self.is_async else create_engine
        engine = make(self.url, **options)
        engine = engine.sync_engine if self.is_async else engine
        self._engines.append(engine)
        return engine

    def pause(self, seconds):
        if self.is_async:
            await_only(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)

    def together(self, *bodies):
        if self.is_async:
            return self._loop.run(self._gather(bodies))
        with ThreadPoolExecutor(len(bodies)) as threads:
            return [future.result() for future in [threads.submit(body) for body in bodies]]

    async def _gather(self, bodies):
        return await asyncio.gather(*(greenlet_spawn(body) for body in bodies))

    def run(self, body):
        return self._loop.run(greenlet_spawn(body)) if self.is_async else body()

    def close(self):
        for engine in self._engines:
            self.run(engine.dispose)
        if self.is_async:
            self._loop.close()


def make_work(driver, tmp_path):
    return Work(driver, tmp_path / "connections.db")


@pytest.fixture(autouse=True)
def instrumented():
    sqltrace.instrument()
    yield
    sqltrace.uninstrument()
    faults.forget_faults()


@pytest.fixture(params=databases.drivers(lambda driver: driver.name != "asyncmy"))
def work(request, tmp_path):
    work = make_work(request.param.name, tmp_path)
    yield work
    work.close()


@pytest.fixture(params=databases.drivers(lambda driver: driver.is_async and driver.name != "asyncmy"))
def async_work(request, tmp_path):
    work = make_work(request.param.name, tmp_path)
    yield work
    work.close()


@pytest.fixture
def sqlite(tmp_path):
    work = make_work("sqlite3", tmp_path)
    yield work
    work.close()


def close(measured, truth):
    """Within 10 %, and what a busy machine takes between two readings of the clock."""
    return abs(measured - truth) <= 0.1 * truth + 0.003


def names(wait):
    return {holder.name for holder in wait.holders}


def sql(engine):
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


# Waiting, and for whom


def use_one(work, engine, name, start):
    """A unit of work that holds a connection for some 80 ms; with its own measurements."""
    work.pause(start)
    with sqltrace.record(name) as recording:
        asked = time.perf_counter()
        with engine.connect() as connection:
            taken = time.perf_counter()
            connection.execute(work.sleep)
            idle = time.perf_counter()
            work.pause(0.05)
            committed = time.perf_counter()
            connection.commit()
        closed = time.perf_counter()
    return recording, taken - asked, closed - taken, committed - idle


@thrice
def test_four_units_of_work_share_two_connections(work):
    engine = work.engine(pool_size=2, max_overflow=0)
    work.run(partial(sql, engine))  # the first connection also initialises the dialect
    units = [partial(use_one, work, engine, f"GET /{number}", number * 0.01) for number in range(4)]

    results = work.together(*units)

    waiting = 0
    for recording, waited, held, idle in results:
        use = recording.connections
        assert use.checkouts == 1
        assert close(use.wait + use.connect, waited)
        assert close(recording.time_account.connection, waited)
        assert close(use.held, held)
        assert close(use.idle_in_transaction, idle)
        assert 0 < use.commit < held
        if use.waits and use.waits[0].waited > 0.01:
            (wait,) = use.waits
            waiting += 1
            assert close(wait.waited, waited)
            assert (wait.timed_out, wait.pool_size, wait.in_use, wait.overflow) == (False, 2, 2, 0)
            assert recording.name not in names(wait)
            assert {"GET /0", "GET /1"} <= names(wait)
            assert not any(holder.own for holder in wait.holders)
    assert waiting == 2


def test_pool_timeout_names_the_holders(work):
    engine = work.engine(pool_size=1, max_overflow=0, pool_timeout=0.1)
    held, waited = [], []

    def holder():
        with sqltrace.record("GET /slow"), engine.connect():
            held.append(True)
            while not waited:
                work.pause(0.01)

    def waiter():
        while not held:
            work.pause(0.01)
        started = time.perf_counter()
        with sqltrace.record("GET /victim") as recording, pytest.raises(PoolTimeoutError) as raised:
            engine.connect()
        waited.append(time.perf_counter() - started)
        assert raised.value.code == "3o7r"
        return recording

    _, recording = work.together(holder, waiter)

    use = recording.connections
    (wait,) = use.waits
    assert (use.checkouts, use.failed, use.timeouts, use.held) == (0, 1, 1, 0.0)
    assert (wait.timed_out, wait.self_deadlock, names(wait)) == (True, False, {"GET /slow"})
    assert 0.09 < wait.waited <= recording.time_account.connection <= waited[0]
    assert wait.holders[0].held > 0.09


def test_cancelled_wait_is_measured(async_work):
    engine = async_work.engine(pool_size=1, max_overflow=0)
    recordings = []

    def holder(held, release):
        with sqltrace.record("GET /slow"), engine.connect():
            held.set()
            await_only(release.wait())

    def waiter():
        with sqltrace.record("GET /victim") as recording:
            recordings.append(recording)
            engine.connect()

    async def main():
        held, release = asyncio.Event(), asyncio.Event()
        holding = asyncio.create_task(greenlet_spawn(holder, held, release))
        await held.wait()
        waiting = asyncio.create_task(greenlet_spawn(waiter))
        while not recordings:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        release.set()
        await holding

    async_work._loop.run(main())

    (wait,) = recordings[0].connections.waits
    assert (wait.timed_out, names(wait), wait.waited > 0.09) == (False, {"GET /slow"}, True)


def test_wait_is_told_when_the_holders_let_go_together(async_work):
    engine = async_work.engine(pool_size=2, max_overflow=0)
    async_work.run(partial(sql, engine))

    def holder():
        with sqltrace.record("GET /hog"), engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            async_work.pause(0.1)

    def victim():
        async_work.pause(0.03)
        with sqltrace.record("GET /victim") as recording:
            sql(engine)
        return recording

    *_, recording = async_work.together(holder, holder, victim)

    (wait,) = recording.connections.waits
    assert (wait.in_use, names(wait)) == (2, {"GET /hog"})


def test_time_lost_to_other_threads_is_no_wait_for_a_pool_that_is_not_full(sqlite, monkeypatch):
    monkeypatch.setattr(pool_wait, "_NOTABLE", 0)
    engine = sqlite.engine(pool_size=2)

    with sqltrace.record() as recording:
        sql(engine)

    assert (recording.connections.waits, recording.connections.checkouts) == ([], 1)


@pytest.mark.parametrize("options", [{"pool_size": 0}, {"pool_size": 1, "max_overflow": -1}], ids=str)
def test_pool_without_a_limit_is_never_waited_for(sqlite, monkeypatch, options):
    monkeypatch.setattr(pool_wait, "_NOTABLE", 0)
    engine = sqlite.engine(**options)

    with sqltrace.record() as recording, engine.connect(), engine.connect():
        pass

    assert (recording.connections.waits, recording.connections.checkouts) == ([], 2)


def contended(clock, size, *waits, overflow=0):
    """An engine whose waits for a connection do these things, and then take what has been given back."""
    meanwhile = iter(waits)

    class Contended(Queue):
        def get(self, block=True, timeout=None):
            if block:
                next(meanwhile, lambda: None)()
            return super().get(False)

    class Pool(pool.QueuePool):
        _queue_class = Contended

    return create_engine("sqlite://", poolclass=Pool, pool_size=size, max_overflow=overflow)


@contextmanager
def by_clock(clock, name):
    with recorded(clock) as recording:
        recording.name = name
        yield


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0009, []), (0.001, [(0.001, False)]), (0.009, [(0.009, False)]), (0.01, [(0.01, True)])],
)
def test_wait_is_told_from_a_millisecond_on_and_its_line_from_ten(seconds, told):
    clock = Clock()
    engine = contended(clock, 1, lambda: (clock.advance(seconds), held.close()))
    held = engine.connect()

    with recorded(clock) as recording:
        engine.connect().close()

    assert [(wait.waited, wait.call_site is not None) for wait in recording.connections.waits] == told


def test_those_who_held_a_connection_only_briefly_during_the_wait_are_not_named():
    clock = Clock()

    def meanwhile():
        clock.advance(0.04)
        brief.close()
        clock.advance(0.02)
        longer.close()
        clock.advance(0.94)

    engine = contended(clock, 2, meanwhile)
    with by_clock(clock, "GET /brief"):
        brief = engine.connect()
    with by_clock(clock, "GET /longer"):
        longer = engine.connect()
    clock.advance(10)
    with recorded(clock) as recording:
        engine.connect().close()

    [wait] = recording.connections.waits
    assert [(holder.name, holder.held) for holder in wait.holders] == [("GET /longer", 10.06)]


def test_those_who_held_a_connection_briefly_are_named_where_nobody_else_did():
    clock = Clock()

    def meanwhile():
        clock.advance(0.01)
        held.close()
        other = Context().run(engine.connect)
        clock.advance(0.99)
        Context().run(other.close)

    engine = contended(clock, 1, meanwhile)
    with by_clock(clock, "GET /brief"):
        held = engine.connect()
    with recorded(clock) as recording:
        engine.connect().close()

    [wait] = recording.connections.waits
    assert (wait.waited, names(wait)) == (1.0, {"GET /brief"})


def test_time_of_opening_a_connection_is_part_of_holding_it():
    clock = Clock()
    engine = contended(clock, 1, lambda: (clock.advance(1), held.close()))
    event.listen(engine, "connect", lambda *_: clock.advance(2))
    with by_clock(clock, "GET /slow"):
        held = engine.connect()

    with recorded(clock) as recording:
        engine.connect().close()

    [wait] = recording.connections.waits
    assert [(holder.name, holder.held) for holder in wait.holders] == [("GET /slow", 3.0)]


def test_holder_that_is_the_waiting_one_itself_is_named_before_those_who_held_longer():
    clock = Clock()
    engine = contended(clock, 12, lambda: (clock.advance(1), held[0].close()))
    held = []
    for number in range(11):
        with by_clock(clock, f"GET /{number}"):
            held.append(engine.connect())
        clock.advance(1)

    with recorded(clock) as recording:
        own = engine.connect()
        engine.connect().close()
        own.close()

    [wait] = recording.connections.waits
    assert [(holder.held, holder.own) for holder in wait.holders] == [
        *[(12.0 - number, False) for number in range(9)],
        (1.0, True),
    ]
    for one in held[1:]:
        one.close()


def test_self_deadlock_is_named(work):
    engine = work.engine(pool_size=1, max_overflow=0, pool_timeout=0.05)

    def unit():
        with sqltrace.record("GET /twice") as recording, engine.connect(), pytest.raises(PoolTimeoutError):
            engine.connect()
        return recording

    recording = work.run(unit)

    wait = recording.connections.waits[0]  # on a busy machine getting the first one may be a wait, too
    assert (wait.self_deadlock, wait.holders[0].own, names(wait)) == (True, True, {"GET /twice"})


def test_connection_of_a_recording_around_is_ones_own_and_of_a_sibling_is_not(sqlite):
    engine = sqlite.engine(pool_size=2, max_overflow=0, pool_timeout=0.01)

    with sqltrace.record("outer"):
        with sqltrace.record("sibling"):
            first = engine.connect()
        second = engine.connect()
        with sqltrace.record("inner") as inner, pytest.raises(PoolTimeoutError):
            engine.connect()
        first.close()
        second.close()

    (wait,) = inner.connections.waits
    assert {(holder.name, holder.own) for holder in wait.holders} == {("sibling", False), ("outer", True)}


def test_connection_of_a_recording_inside_is_ones_own(sqlite):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)

    with sqltrace.record("outer") as outer:
        with sqltrace.record("inner"):
            held = engine.connect()
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        held.close()

    (wait,) = outer.connections.waits
    assert (wait.self_deadlock, names(wait)) == (True, {"inner"})


def test_holder_is_called_by_the_name_that_its_recording_got_later(sqlite):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with sqltrace.record("GET /tags/5") as slow:
        held = engine.connect()
    with sqltrace.record() as victim, pytest.raises(PoolTimeoutError):
        engine.connect()

    slow.name = "GET /tags/{tag_id}"

    assert names(victim.connections.waits[0]) == {"GET /tags/{tag_id}"}
    held.close()


def test_overflow_that_is_given_back_during_the_wait_is_told_with_what_was_in_use():
    def give_back():
        clock.advance(0.1)
        for one in held:
            one.close()

    clock = Clock()
    engine = contended(clock, 1, give_back, overflow=2)
    held = [engine.connect() for _ in range(3)]

    with recorded(clock) as recording:
        engine.connect().close()

    (wait,) = recording.connections.waits
    assert (wait.in_use, wait.pool_size, wait.overflow) == (3, 1, 2)


def test_overflow_is_told(sqlite):
    engine = sqlite.engine(pool_size=1, max_overflow=1, pool_timeout=0.01)
    held = [engine.connect(), engine.connect()]

    with sqltrace.record() as recording, pytest.raises(PoolTimeoutError):
        engine.connect()

    (wait,) = recording.connections.waits
    assert (wait.pool_size, wait.overflow, wait.in_use, wait.holders) == (1, 1, 2, ())  # held outside of recordings
    for one in held:
        one.close()


def test_only_the_ten_worst_waits_and_ten_holders_are_kept(sqlite):
    engine = sqlite.engine(pool_size=12, max_overflow=0, pool_timeout=0.001)
    held = []
    for number in range(12):
        with sqltrace.record(str(number)):
            held.append(engine.connect())

    with sqltrace.record() as recording:
        for _ in range(15):
            with pytest.raises(PoolTimeoutError):
                engine.connect()

    use = recording.connections
    assert (use.timeouts, use.failed, len(use.waits)) == (15, 15, 10)
    assert use.waits == sorted(use.waits, key=lambda wait: -wait.waited)
    assert [len(wait.holders) for wait in use.waits] == [10] * 10
    for one in held:
        one.close()


# Engines and pools


def test_disposed_engine_is_still_measured(work):
    engine = work.engine(pool_size=1, max_overflow=0, pool_timeout=0.02)

    def unit():
        with sqltrace.record() as before:
            sql(engine)
        engine.dispose()
        with sqltrace.record("GET /twice") as after, engine.connect(), pytest.raises(PoolTimeoutError):
            engine.connect()
        return before, after

    before, after = work.run(unit)

    assert (before.connections.checkouts, after.connections.checkouts) == (1, 1)
    assert before.connections.connect > 0 < after.connections.connect
    assert names(after.connections.waits[0]) == {"GET /twice"}


def test_variant_of_an_engine_shares_its_pool(sqlite):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    variant = engine.execution_options(isolation_level="AUTOCOMMIT")

    with sqltrace.record("variant") as recording, variant.connect(), pytest.raises(PoolTimeoutError):
        engine.connect()

    assert (recording.connections.checkouts, names(recording.connections.waits[0])) == (1, {"variant"})


@pytest.mark.parametrize(
    "poolclass",
    [pool.QueuePool, pool.NullPool, pool.StaticPool, pool.SingletonThreadPool, pool.AssertionPool],
)
def test_every_pool_is_measured(sqlite, poolclass, clock):
    engine = sqlite.engine(poolclass=poolclass)
    event.listen(engine, "do_connect", lambda *_: clock.advance(0.5))

    with recorded(clock) as recording:
        for _ in range(3):
            with engine.connect() as one:
                one.execute(text("SELECT 1"))
                clock.advance(1)

    use = recording.connections
    assert (use.checkouts, use.failed) == (3, 0)
    assert (use.idle_in_transaction, use.held) == (3.0, 3.0)
    assert use.connect == (1.5 if poolclass is pool.NullPool else 0.5)
    assert held_now(engine) == set()


@pytest.mark.parametrize("poolclass", [pool.StaticPool, pool.SingletonThreadPool])
def test_connection_that_is_handed_out_twice_is_never_left_behind(sqlite, poolclass, clock):
    engine = sqlite.engine(poolclass=poolclass)

    with recorded(clock) as recording:
        with engine.connect() as outer, engine.connect() as inner:
            clock.advance(1)
            assert inner.scalar(text("SELECT 1")) == outer.scalar(text("SELECT 1")) == 1
        assert held_now(engine) == set()

    assert recording.connections.held == 1.0


def test_assertion_pool_in_use_fails_as_before(sqlite):
    engine = sqlite.engine(poolclass=pool.AssertionPool)

    with sqltrace.record() as recording, engine.connect(), pytest.raises(AssertionError, match="already checked out"):
        engine.connect()

    assert (recording.connections.checkouts, recording.connections.failed) == (1, 1)


def test_own_creator_is_measured(tmp_path, clock):
    def creator():
        clock.advance(1)
        return sqlite3.connect(tmp_path / "own.db")

    engine = create_engine("sqlite://", creator=creator, poolclass=pool.QueuePool)

    with recorded(clock) as recording:
        sql(engine)

    use = recording.connections
    assert (use.connect, use.wait) == (1.0, 0.0)
    engine.dispose()


def opening(clock, *seconds):
    """An engine whose connections take so long to open, one after the other; negative where it fails."""
    times = iter(seconds)

    def creator():
        taken = next(times)
        clock.advance(abs(taken))
        if taken < 0:
            raise sqlite3.OperationalError("no")
        return sqlite3.connect(":memory:")

    return create_engine("sqlite://", creator=creator, poolclass=pool.NullPool)


def test_acquisitions_from_a_millisecond_on_are_kept_and_those_that_failed():
    clock = Clock()
    engine = opening(clock, 0.0, 0.0009, -0.0005, *[0.001 * number for number in (1, -2, *range(3, 13))])
    with recorded(clock) as recording:
        for _ in range(15):
            with suppress(OperationalError), engine.connect():
                pass

    lengths = [one.ended - one.started for one in recording.acquisitions()]
    assert lengths == [1_000_000 * number for number in range(12, 0, -1)] + [500_000]


def test_twenty_longest_acquisitions_are_kept():
    clock = Clock()
    engine = opening(clock, 0.0, *[0.001 * number for number in range(1, 31)])
    with recorded(clock) as recording:
        for _ in range(31):
            with engine.connect():
                pass

    lengths = [one.ended - one.started for one in recording.acquisitions()]
    assert lengths == [1_000_000 * number for number in range(30, 10, -1)]


def test_only_engines_that_are_wanted_are_measured(sqlite):
    sqltrace.uninstrument()
    wanted, other = sqlite.engine(), sqlite.engine()
    sqltrace.instrument(wanted)

    with sqltrace.record() as recording:
        sql(wanted)
        sql(other)

    assert recording.connections.checkouts == 1
    assert "do_commit" not in vars(other.dialect)


def test_recording_of_some_engines_measures_those(sqlite):
    wanted, other = sqlite.engine(), sqlite.engine()

    with sqltrace.record() as outer, sqltrace.record(engines=[wanted]) as inner:
        sql(wanted)
        sql(other)

    assert (outer.connections.checkouts, inner.connections.checkouts) == (2, 1)


def test_checkouts_are_counted_in_each_recording_and_not_kept(sqlite, monkeypatch):
    engine = sqlite.engine()
    for module in (connections, transactions):
        monkeypatch.setattr(module, "NEGLIGIBLE", float("inf"))  # stretches of time are counted at such moments, too

    with sqltrace.record() as outer, sqltrace.record() as inner:
        for _ in range(2 * collector.FOLD_AT + 1):
            engine.connect().close()
        kept = [len(recording.collector.checkouts) for recording in (outer, inner)]

    assert max(kept) < collector.FOLD_AT
    assert [recording.connections.checkouts for recording in (outer, inner)] == [2 * collector.FOLD_AT + 1] * 2


# Opening and pinging


def test_ping_of_a_stale_connection_and_the_new_one_are_measured(work):
    engine = work.engine(pool_size=1, max_overflow=0, pool_pre_ping=True)

    def unit():
        with engine.connect() as stale:
            driver_connection = stale.connection.dbapi_connection
        with sqltrace.record() as good:
            sql(engine)
        driver_connection.close()
        with sqltrace.record() as bad:
            sql(engine)
        return good, bad

    good, bad = work.run(unit)

    assert good.connections.ping > 0 == good.connections.connect
    assert bad.connections.ping > 0 < bad.connections.connect
    assert (good.connections.checkouts, bad.connections.checkouts) == (1, 1)
    assert bad.connections.failed == 0


def test_connection_of_the_pool_itself_is_pinged_and_not_measured(sqlite):
    engine = sqlite.engine(pool_pre_ping=True)
    with sqltrace.record():
        sql(engine)

    with sqltrace.record() as recording:
        engine.pool.connect().close()

    assert (recording.connections.checkouts, recording.connections.ping) == (0, 0.0)


def test_connection_that_cannot_be_opened_fails_as_before(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/missing/file.db")

    with sqltrace.record() as recording, pytest.raises(OperationalError, match="unable to open database file"):
        engine.connect()

    use = recording.connections
    assert (use.checkouts, use.failed, use.waits) == (0, 1, [])
    assert use.connect > 0 == use.held


@pytest.mark.parametrize("moment", ["checkin", "reset"])
def test_instrumentation_may_be_switched_within_an_event_of_a_pool(sqlite, moment):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)

    def switch(*_):
        sqltrace.uninstrument()
        sqltrace.instrument()

    event.listen(pool.Pool, moment, switch)
    try:
        for _ in range(3):
            sql(engine)
    finally:
        event.remove(pool.Pool, moment, switch)

    assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("moment", ["do_connect", "connect", "first_connect", "checkout"])
def test_sql_on_another_engine_while_a_connection_is_opened_counts(tmp_path, moment):
    engine = create_engine(f"sqlite:///{tmp_path}/one.db")
    secrets = create_engine(f"sqlite:///{tmp_path}/two.db")
    event.listen(engine, moment, lambda *_: sql(secrets))

    with sqltrace.record() as recording:
        sql(engine)

    assert (recording.statement_count, recording.connections.checkouts) == (2, 2)
    engine.dispose()
    secrets.dispose()


def test_connection_of_an_engine_that_is_not_recorded_counts_once_for_that_which_it_helps_to_open(tmp_path, clock):
    engine = create_engine(f"sqlite:///{tmp_path}/one.db")
    secrets = create_engine(f"sqlite:///{tmp_path}/two.db")
    event.listen(engine, "connect", lambda *_: sql(secrets))
    event.listen(secrets, "connect", lambda *_: clock.advance(1))

    with recorded(clock, dialects=frozenset({engine.dialect})) as recording:
        sql(engine)

    assert (recording.connections.checkouts, recording.connections.connect) == (1, 1.0)
    engine.dispose()
    secrets.dispose()


def test_task_that_is_started_while_a_connection_is_opened_is_recorded(sqlite, tmp_path):
    engine = sqlite.engine()
    secrets = create_engine(f"sqlite:///{tmp_path}/two.db", poolclass=pool.QueuePool)
    contexts = []
    event.listen(engine, "connect", lambda *_: contexts.append(contextvars.copy_context()))
    with sqltrace.record():
        sql(engine)

    def work():
        with sqltrace.record() as recording:
            sql(engine)
            sql(secrets)
        return recording

    recording = contexts[0].run(work)
    secrets.dispose()

    assert (recording.statement_count, recording.connections.checkouts) == (2, 2)


def test_engine_that_is_used_while_another_is_prepared_does_not_wait_for_itself(sqlite, tmp_path):
    """As by a finalizer, which the garbage collector may run at any moment."""
    engine, other = sqlite.engine(), create_engine(f"sqlite:///{tmp_path}/other.db")
    dialect, used = type(engine.dialect), []

    class Begin:
        def __get__(self, instance, owner):
            if not used:
                used.append(True)
                sql(other)
            return dialect.do_begin.__get__(instance)

    engine.dialect.__class__ = type("Looked", (dialect,), {"do_begin": Begin(), "supports_statement_cache": True})
    with sqltrace.record() as recording:
        sql(engine)
        sql(engine)
    other.dispose()

    assert (used, recording.statement_count) == ([True], 3)


def test_two_phase_transaction_on_an_invalidated_connection_fails_as_before(tmp_path, caplog):
    work = make_work("pymysql", tmp_path)

    with sqltrace.record(), work.engine().connect() as one:
        transaction = one.begin_twophase()
        one.execute(text("SELECT 1"))
        one.invalidate()
        with pytest.raises(PendingRollbackError):
            transaction.prepare()
        transaction.rollback()

    assert [record for record in caplog.records if record.name == "sqltrace"] == []
    work.close()


# Holding


def test_leaked_connection_leaves_nothing_behind(sqlite, clock):
    engine = sqlite.engine(pool_size=1, max_overflow=0)

    with recorded(clock) as recording:
        leaked = engine.connect()
        assert len(held_now(engine)) == 1
        clock.advance(1)
        del leaked
        gc.collect()
        assert held_now(engine) == set()
        clock.advance(2)

    assert recording.connections.held == 1.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg's own about the same
@pytest.mark.filterwarnings("ignore:The garbage collector is trying to clean up")
def test_leaked_async_connection_leaves_nothing_behind(async_work):
    engine = async_work.engine(pool_size=1, max_overflow=0)

    def unit():
        with sqltrace.record("leaky") as recording:
            leaked = engine.raw_connection()
            del leaked
            gc.collect()
            return recording

    recording = async_work.run(unit)

    assert held_now(engine) == set()
    assert recording.connections.held < 0.1


@pytest.mark.parametrize("give_up", ["invalidate", "detach"])
def test_connection_that_leaves_the_pool_is_held_no_longer(sqlite, give_up, clock):
    engine = sqlite.engine()

    with recorded(clock) as recording, engine.connect() as one:
        getattr(one, give_up)()
        assert held_now(engine) == set()
        clock.advance(1)
        one.execute(text("SELECT 1"))

    assert recording.connections.checkouts == (2 if give_up == "invalidate" else 1)
    assert recording.connections.held == 0.0


def test_connection_that_outlives_the_recording_is_held_until_its_end(sqlite, clock):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with recorded(clock, name="owner") as recording:
        one = engine.connect()
        clock.advance(1)
        assert recording.connections.held == 1.0
    clock.advance(3)

    assert recording.connections.held == 1.0
    with sqltrace.record() as victim, pytest.raises(PoolTimeoutError):
        engine.connect()
    assert names(victim.connections.waits[0]) == {"owner"}
    one.close()
    assert held_now(engine) == set()


def held_now(engine):
    return connections._pools[id(engine.pool)][1]


def test_nothing_is_kept_alive(sqlite):
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with sqltrace.record() as recording:
        session = Session(engine)
        session.execute(text("SELECT 1"))
        proxy = session.connection().connection
        with pytest.raises(PoolTimeoutError):
            engine.connect()
    alive = [weakref.ref(thing) for thing in (recording, session, proxy)]
    held = session  # checked out still

    del recording, proxy
    gc.collect()
    assert alive[0]() is None
    held.close()
    del held, session
    gc.collect()
    assert [one() for one in alive] == [None, None, None]


def test_entry_of_a_pool_goes_with_it(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/gone.db")
    with sqltrace.record():
        sql(engine)
    known = len(connections._pools)
    engine.dispose()

    del engine
    gc.collect()

    assert len(connections._pools) < known


def checkout_of(clock, taken=True, **measured):
    """A checkout that took a second to come, and is held for two more."""
    checkout = connection.Checkout(clock, (), connection.Occupants())
    clock.advance(1)
    checkout.taken = clock() if taken else None
    for name, value in measured.items():
        setattr(checkout, name, value)
    clock.advance(2)
    return checkout


def test_use_of_connections_is_that_of_all_checkouts_those_that_are_open_included(clock):
    second, totals = 1_000_000_000, connection.ConnectionTotals()
    failed = [connection.FailedCommit(Failure("Error", str(number)), None, False, number) for number in range(12)]
    parts = {name: (number + 1) * second for number, name in enumerate(("wait", "connect", "ping", "begin"))}
    ended = [
        checkout_of(clock, commit=second, rollback=second, rollbacks=2, failed_commits=failed[:6], **parts),
        checkout_of(clock, wait=second, taken=False),
        checkout_of(clock, repeated=True, **parts),
    ]
    for checkout in ended:
        checkout.end()
        totals.add(checkout, clock())
    still_open = checkout_of(clock, commit=second, failed_commits=failed[6:], **parts)

    totals.end_response([still_open], clock())
    totals.responded = 7  # as the eighth failed
    still_open.commit += 3 * second
    clock.advance(5)

    use, again = totals.use([still_open], clock()), totals.use([still_open], clock())
    kept = [replace(one, after_response=one.ended > 7) for one in failed[:10]]
    assert use == again == connection.ConnectionUse(
        checkouts=2, failed=1, wait=3.0, connect=4.0, ping=6.0, begin=8.0, commit=5.0, commit_after_response=3.0,
        rollback=1.0, held=8.0 + 7.0, rollbacks=2, failed_commits=kept,
    )  # fmt: skip
    assert not any(astuple(connection.ConnectionTotals().use([], clock())))


# Transactions


def test_idle_in_transaction_is_between_its_statements(work, clock):
    engine = work.engine(pool_size=1, max_overflow=0)

    def unit():
        with recorded(clock) as recording, engine.connect() as one:
            clock.advance(1)  # connected, no transaction
            one.begin()
            clock.advance(2)  # nothing was sent yet
            one.execute(text("SELECT 1"))
            clock.advance(4)
            event.listen(engine, "do_execute", lambda *_: clock.advance(8))
            one.execute(text("SELECT 1"))
            one.rollback()
            clock.advance(16)
            one.execute(text("SELECT 1"))
            clock.advance(32)
            one.commit()
        return recording

    assert work.run(unit).connections.idle_in_transaction == 4 + 32


def test_setting_an_isolation_level_is_time_of_the_database(clock):
    class Cursor(sqlite3.Cursor):
        def execute(self, sql, *parameters):
            clock.advance("= " in sql)
            return super().execute(sql, *parameters)

    class Connection(sqlite3.Connection):
        def cursor(self):
            return super().cursor(Cursor)

    engine = create_engine("sqlite://", connect_args={"factory": Connection})
    with recorded(clock) as recording:
        with engine.connect() as one:
            one.execution_options(isolation_level="READ UNCOMMITTED")
            clock.advance(4)
        assert clock.now == recording.started + 6_000_000_000  # it is set again as the connection goes back
    engine.dispose()

    assert recording.time_account[:2] == (0, 2)
    assert recording.time_account.python == 4


def test_methods_of_a_dialect_can_be_called_with_keywords_meanwhile(sqlite):
    engine = sqlite.engine()
    with sqltrace.record(), engine.connect() as one:
        connection = one.connection.dbapi_connection
        engine.dialect.set_isolation_level(dbapi_connection=connection, level="READ UNCOMMITTED")
        assert engine.dialect.get_isolation_level(dbapi_connection=connection) == "READ UNCOMMITTED"


@pytest.mark.parametrize("invalid", [False, True])
def test_closing_a_connection_is_time_of_connections(clock, invalid):
    class Connection(sqlite3.Connection):
        def close(self):
            clock.advance(2)
            super().close()

    engine = create_engine("sqlite://", connect_args={"factory": Connection}, poolclass=pool.NullPool)
    with recorded(clock) as recording:
        with engine.connect() as one:
            clock.advance(4)
            if invalid:
                one.invalidate()
        sqltrace.uninstrument()
    engine.connect().close()

    assert recording.time_account[:2] == (2, 0)
    assert recording.time_account.python == 4
    assert not {"do_close", "do_terminate", "set_isolation_level"} & vars(engine.dialect).keys()


def test_autocommit_is_never_idle_in_transaction(work):
    engine = work.engine(isolation_level="AUTOCOMMIT")

    def unit():
        with sqltrace.record() as recording, engine.connect() as one:
            one.execute(text("SELECT 1"))
            work.pause(0.02)
            one.execute(text("SELECT 1"))
        return recording

    use = work.run(unit).connections

    assert use.idle_in_transaction == 0.0
    assert use.held > 0.02


@pytest.mark.parametrize("driver", ["sqlite3", "aiosqlite"])
def test_transaction_that_the_application_begins_itself_may_be_idle(driver, tmp_path, clock):
    work = make_work(driver, tmp_path)
    engine = work.engine()
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))

    def unit():
        with recorded(clock) as recording, engine.begin() as one:
            one.execute(text("SELECT 1"))
            clock.advance(1)
        return recording

    recording = work.run(unit)
    work.close()

    assert recording.connections.idle_in_transaction == 1.0


def test_dialect_that_cannot_tell_of_autocommit_has_transactions(sqlite, monkeypatch, clock):
    engine = sqlite.engine()

    def detect_autocommit_setting(connection):
        raise NotImplementedError  # as of SQLAlchemy's own for any other dialect

    monkeypatch.setattr(engine.dialect, "detect_autocommit_setting", detect_autocommit_setting, raising=False)
    with recorded(clock) as recording, engine.begin() as one:
        one.execute(text("SELECT 1"))
        clock.advance(1)

    assert recording.connections.idle_in_transaction == 1.0


def test_savepoint_is_part_of_its_transaction(work):
    engine = work.engine()
    work.run(partial(sql, engine))

    def unit():
        with sqltrace.record() as recording, engine.begin() as one:
            with one.begin_nested():
                work.pause(0.02)
            inner = one.begin_nested()
            inner.rollback()
        return recording

    recording = work.run(unit)

    assert 0.02 <= recording.connections.idle_in_transaction < 0.08
    assert recording.connections.commit > 0
    assert Counter(statement.sql.split()[0] for statement in recording.statements) == {
        "SAVEPOINT": 2,
        "RELEASE": 1,
        "ROLLBACK": 1,
    }


def test_commit_and_rollback_are_database_time(sqlite, monkeypatch, clock):
    engine = sqlite.engine()
    sql(engine)  # the first connection also initialises the dialect, which rolls back
    for name, seconds in (("do_commit", 1), ("do_rollback", 2)):
        whole = getattr(engine.dialect, name)

        def slow(connection, whole=whole, seconds=seconds):
            clock.advance(seconds)
            whole(connection)

        monkeypatch.setattr(engine.dialect, name, slow)

    with recorded(clock) as recording, engine.connect() as one:
        one.execute(text("SELECT 1"))
        one.commit()

    use = recording.connections
    assert (use.commit, use.rollback) == (1.0, 2.0)  # the latter is the reset on return to the pool
    assert recording.time_account.database == 3.0


def test_begin_that_sends_nothing_takes_no_time():
    engine = create_engine("sqlite://")

    with sqltrace.record() as recording, engine.begin() as one:
        one.execute(text("SELECT 1"))
        time.sleep(0.002)

    assert recording.connections.begin == 0
    assert recording.connections.idle_in_transaction > 0.001


def test_two_phase_transaction_is_measured(tmp_path):
    work = make_work("pymysql", tmp_path)
    engine = work.engine()
    started = time.perf_counter()

    with sqltrace.record() as recording, engine.connect() as one:
        for finish in ("commit", "rollback"):
            transaction = one.begin_twophase()
            one.execute(text("SELECT 1"))
            time.sleep(0.01)
            if finish == "commit":
                transaction.prepare()
            getattr(transaction, finish)()

    use = recording.connections
    assert 0.02 <= use.idle_in_transaction <= time.perf_counter() - started
    assert use.begin > 0 < use.commit
    assert use.rollback > 0
    work.close()


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])  # of asyncpg, SQLAlchemy's methods call one another
def test_two_phase_transaction_that_ends_as_an_ordinary_one_is_measured_once(tmp_path, driver):
    work = make_work(driver, tmp_path)
    engine = work.engine()

    def unit():
        with sqltrace.record() as recording, engine.connect() as one:
            transaction = one.begin_twophase()
            one.execute(text("SELECT 1"))
            work.pause(0.01)
            transaction.rollback()
        return recording.connections

    use = work.run(unit)
    assert 0.01 <= use.idle_in_transaction < 0.06
    assert 0 < use.rollback < use.held
    work.close()


def test_long_transaction_keeps_few_of_its_statements(sqlite):
    engine = sqlite.engine()

    with sqltrace.record() as recording, engine.begin() as one:
        for _ in range(500):
            one.execute(text("SELECT 1"))
        time.sleep(0.02)
        (checkout,) = held_now(engine)
        assert len(checkout._executions) <= 65

    assert 0.02 <= recording.connections.idle_in_transaction < recording.connections.held


# In spite of everything


def test_without_a_recording_nothing_is_noted(sqlite):
    engine = sqlite.engine()

    with engine.connect() as one:
        assert one.connection.record_info == {}

    assert "do_commit" not in vars(engine.dialect)
    assert id(engine.pool) not in connections._pools


def test_nothing_stays_in_the_pool_when_a_connection_is_back(sqlite):
    engine = sqlite.engine()

    with sqltrace.record(), engine.connect() as one:
        info = one.connection.record_info
        assert list(info) == ["sqltrace"]

    assert info == {}


@pytest.mark.parametrize(
    "place",
    [
        (connections, "Checkout"),
        (connections, "_watch"),
        (connection.Checkout, "note"),
        (connection.Checkout, "end"),
        (connection.Checkout, "end_transaction"),
        (pool_wait, "_describe"),
        (transactions, "mark"),
        (internals, "pooled_connection"),
        (transactions, "isinstance"),
    ],
    ids=lambda place: place[1],
)
def test_fault_of_ours_changes_nothing(sqlite, monkeypatch, caplog, place):
    def broken(*arguments):
        raise RuntimeError("ours")

    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.01, isolation_level="SERIALIZABLE")
    monkeypatch.setattr(transactions, "NEGLIGIBLE", -1)
    monkeypatch.setattr(*place, broken, raising=place[1] != "isinstance")

    with sqltrace.record() as recording, engine.begin() as one:
        one.exec_driver_sql("CREATE TABLE t (x INTEGER)")
        one.exec_driver_sql("INSERT INTO t VALUES (1)")
        with pytest.raises(PoolTimeoutError):
            engine.connect()
    with sqltrace.record(), engine.connect() as one:
        rows = one.exec_driver_sql("SELECT x FROM t").all()

    assert (rows, recording.statement_count) == ([(1,)], 2)
    assert len([record for record in caplog.records if record.name == "sqltrace"]) >= 1


def test_uninstrument_puts_everything_back(sqlite):
    sqltrace.uninstrument()
    places = [(Engine, "raw_connection"), internals.waiting(), internals.connecting()]
    engine = sqlite.engine()
    before = [vars(owner)[name] for owner, name in places], dict(vars(engine.dialect))

    for _ in range(2):
        sqltrace.instrument()
        sqltrace.instrument(engine)
    assert [vars(owner)[name] for owner, name in places] != before[0]
    with sqltrace.record() as recording:
        sql(engine)
        left = engine.connect()
    sqltrace.uninstrument()

    after = [vars(owner)[name] for owner, name in places], dict(vars(engine.dialect))
    assert (after[0], after[1].keys() & set(transactions._METHODS)) == (before[0], set())
    assert (connections._pools, recording.connections.checkouts) == ({}, 2)
    left.close()


def test_uninstrument_of_one_engine_puts_its_dialect_back(sqlite):
    sqltrace.uninstrument()
    one, other = sqlite.engine(), sqlite.engine()
    sqltrace.instrument(one, other)
    with sqltrace.record():
        sql(one)
        sql(other)

    sqltrace.uninstrument(one)

    assert ("do_commit" in vars(one.dialect), "do_commit" in vars(other.dialect)) == (False, True)
    with sqltrace.record() as recording:
        sql(one)
        sql(other)
    assert recording.connections.checkouts == 1


def test_uninstrument_of_one_engine_leaves_it_known_who_holds_connections_of_others(sqlite):
    sqltrace.uninstrument()
    one, other = sqlite.engine(), sqlite.engine()
    sqltrace.instrument(one, other)
    with sqltrace.record("holder"), one.connect() as first, other.connect() as second:
        first.execute(text("SELECT 1"))
        second.execute(text("SELECT 1"))

        sqltrace.uninstrument(one)

        watched = [
            (pool, [held.labels[0].name for held in holders]) for pool, holders, _ in connections.watched_pools()
        ]
        assert watched == [(other.pool, ["holder"])]


def test_wrapper_of_somebody_else_stays(sqlite, monkeypatch):
    engine = sqlite.engine()
    called = []
    monkeypatch.setattr(engine.dialect, "do_commit", lambda connection: called.append("before"))
    with sqltrace.record(), engine.begin() as one:
        one.execute(text("SELECT 1"))
    ours = engine.dialect.do_commit

    sqltrace.uninstrument()

    assert ours is not engine.dialect.do_commit
    with engine.begin() as one:
        one.execute(text("SELECT 1"))
    assert called == ["before", "before"]


def test_commits_meet_no_other_method_while_that_of_the_application_is_given_back(sqlite):
    engine = sqlite.engine()
    met = []

    def commit(connection):
        connection.commit()

    class Watched(type(engine.dialect)):
        supports_statement_cache = True

        def __delattr__(self, name):
            super().__delattr__(name)
            met.append(self.do_commit)

    engine.dialect.__class__ = Watched
    engine.dialect.do_commit = commit
    with sqltrace.record(), engine.connect():
        pass
    ours = engine.dialect.do_commit

    sqltrace.uninstrument()

    assert engine.dialect.do_commit is commit
    assert set(met) == {ours, commit}


def test_wrapper_of_somebody_else_around_ours_stays(sqlite, monkeypatch):
    sqltrace.uninstrument()
    monkeypatch.setattr(Engine, "raw_connection", Engine.raw_connection)
    sqltrace.instrument()
    ours, called = Engine.raw_connection, []

    def theirs(engine):
        called.append(engine)
        return ours(engine)

    Engine.raw_connection = theirs
    sqltrace.uninstrument()
    engine = sqlite.engine()
    sql(engine)

    assert (Engine.raw_connection, called) == (theirs, [engine])


def test_wrapper_of_somebody_else_around_ours_stays_on_a_dialect(sqlite):
    engine, called = sqlite.engine(), []
    with sqltrace.record():
        sql(engine)
    ours = engine.dialect.do_rollback

    @wraps(ours)
    def theirs(connection):
        called.append(connection)
        ours(connection)

    engine.dialect.do_rollback = theirs
    sqltrace.uninstrument()
    sql(engine)

    assert (engine.dialect.do_rollback, len(called)) == (theirs, 1)


def test_dialect_that_two_threads_meet_at_once_is_measured_once(sqlite, monkeypatch):
    class Crossing:
        """Both threads have seen that there is something to do, before the first does it."""

        lock, both = threading.Lock(), threading.Barrier(2)

        def __enter__(self):
            self.both.wait(30)
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    engine = sqlite.engine()
    with monkeypatch.context() as changed:
        changed.setattr(transactions, "_lock", Crossing())
        work = partial(transactions.watch, engine.dialect)
        sqlite.together(work, work)

    sqltrace.uninstrument()
    assert set(transactions._METHODS) & vars(engine.dialect).keys() == set()


def test_thread_that_meets_a_dialect_while_another_does_finds_it_measured(sqlite, monkeypatch):
    class Lock:
        lock = threading.RLock()

        def __enter__(self):
            if not self.lock.acquire(blocking=False):
                waits_or_is_through.set()
                self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    def meet():
        transactions.watch(engine.dialect)
        missing.append(set(transactions._METHODS) - vars(engine.dialect).keys())
        waits_or_is_through.set()

    def replace(*arguments):
        if other.ident is None:
            other.start()
            waits_or_is_through.wait(30)
        original(*arguments)

    engine, original, missing = sqlite.engine(), transactions._replace, []
    other, waits_or_is_through = threading.Thread(target=meet), threading.Event()
    with monkeypatch.context() as changed:
        changed.setattr(transactions, "_lock", Lock())
        changed.setattr(transactions, "_replace", replace)
        transactions.watch(engine.dialect)
        other.join()

    assert missing == [set()]


def test_connection_that_comes_back_after_its_measuring_has_ended_changes_nothing(sqlite):
    engine = sqlite.engine()
    with sqltrace.record() as recording:
        one = engine.connect()
    sqltrace.uninstrument()
    held = recording.connections.held

    sqltrace.instrument()
    time.sleep(0.01)
    one.close()

    assert (recording.connections.held, recording.connections.checkouts) == (held, 1)


class TestChangedSQLAlchemy:
    """Where SQLAlchemy has changed inside, the number is `None`, and the rest goes on."""

    @pytest.fixture(autouse=True)
    def anew(self):
        sqltrace.uninstrument()
        connections.work.cache_clear()
        yield
        sqltrace.uninstrument()
        connections.work.cache_clear()
        connection.unmeasurable_times.clear()
        collector.unmeasurable.discard("connection")

    @pytest.mark.parametrize(
        ("reader", "answer", "unknown"),
        [
            ("waiting", None, {"wait"}),
            ("connecting", None, {"connect"}),
            ("knows_pooled_connection", False, {"idle_in_transaction"}),
            ("asks_for_raw_connection", False, set(connection.TIMES)),
        ],
    )
    def test_number_is_none_and_one_warning_says_so(self, sqlite, monkeypatch, caplog, reader, answer, unknown):
        monkeypatch.setattr(internals, reader, lambda: answer)
        engine = sqlite.engine()
        sqltrace.instrument()
        sqltrace.instrument(engine)

        with sqltrace.record() as recording:
            sql(engine)

        use = recording.connections
        assert {name for name in connection.TIMES if getattr(use, name) is None} == unknown
        assert (recording.time_account.connection is None) == ("held" in unknown)
        assert sqltrace.diagnose(recording, [findings.idle_in_transaction]) == []
        assert (sqltrace.capabilities()["connections"], recording.statement_count) == (False, 1)
        assert ["connections" in record.message for record in caplog.records if record.name == "sqltrace"] == [True]
        line = log_line(sqltrace.RequestRecord(recording, protocol="http", path="/"))
        assert ("connection.wait_ms" in line) == ("wait" not in unknown)

    def test_each_private_attribute_is_missed(self, monkeypatch):
        for owner, name, reader in (
            (pool.QueuePool, "_do_get", internals.waiting),
            (pool._ConnectionRecord, "_ConnectionRecord__connect", internals.connecting),
            (Engine, "raw_connection", internals.asks_for_raw_connection),
        ):
            assert reader()
            with monkeypatch.context() as changed:
                changed.delattr(owner, name)
                assert not reader()

    @pytest.mark.parametrize(
        ("owner", "name", "changed", "reader"),
        [
            (pool.AsyncAdaptedQueuePool, "_do_get", lambda self: None, internals.waiting),
            (pool, "_ConnectionRecord", None, internals.connecting),
            (Connection, "__init__", lambda self, engine: None, internals.asks_for_raw_connection),
            (DefaultExecutionContext, "create_default_cursor", None, internals.knows_pooled_connection),
        ],
    )
    def test_each_other_way_of_doing_it_is_noticed(self, monkeypatch, owner, name, changed, reader):
        assert reader()
        monkeypatch.setattr(owner, name, changed, raising=name in vars(owner))

        assert not reader()


# Told


def test_log_line_tells_of_connections(sqlite):
    schema = json.loads((Path(sqltrace.__file__).parent / "log_line.schema.json").read_text(encoding="utf-8"))
    engine = sqlite.engine(pool_size=1, max_overflow=0, pool_timeout=0.02)
    with sqltrace.record("GET /slow"):
        slow = engine.connect()
    with sqltrace.record("GET /victim") as recording:
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        slow.close()
        sql(engine)

    line = {"event": "request"} | log_line(sqltrace.RequestRecord(recording, protocol="http", path="/victim"))

    jsonschema.validate(line, schema)
    (wait,) = line["connection.waits"]
    assert (line["connection.checkouts"], line["connection.wait_ms"] >= 20) == (1, True)
    assert {name: wait[name] for name in ("timed_out", "pool_size", "in_use")} == {
        "timed_out": True,
        "pool_size": 1,
        "in_use": 1,
    }
    assert [holder["name"] for holder in wait["held_by"]] == ["GET /slow"]
    rendered = ReadableRenderer(colors=False, width=200)(None, "info", dict(line))
    assert "ms for a connection in vain; pool 1/1 in use, held by GET /slow (" in rendered


def test_readable_line_of_a_wait():
    from sqltrace.sinks import readable

    wait = {
        "waited_ms": 122.04,
        "timed_out": False,
        "pool_size": 2,
        "in_use": 2,
        "held_by": [
            {"name": "GET /slow", "held_ms": 80.1},
            {"name": "GET /report", "held_ms": 71.0},
            {"name": "GET /slow", "held_ms": 41.9},
        ],
    }

    assert readable._wait(wait) == (
        "waited 122.0 ms for a connection; pool 2/2 in use,"
        " held by GET /slow (up to 80.1 ms each), GET /report (71.0 ms)"
    )


def test_results_and_exceptions_are_unchanged(work):
    engine = work.engine()

    def unit():
        with engine.connect() as one:
            rows = one.execute(text("SELECT 1, 'a'")).all()
            with pytest.raises((OperationalError, ProgrammingError)) as raised:
                one.execute(text("SELECT * FROM missing"))
        return rows, type(raised.value), str(raised.value), engine.pool.checkedout()

    plain = work.run(unit)
    with sqltrace.record():
        recorded = work.run(unit)

    assert recorded == plain


def test_threads_take_and_give_back_at_once(sqlite):
    engine = sqlite.engine(pool_size=3, max_overflow=0)
    barrier = threading.Barrier(6)

    def unit():
        barrier.wait()
        with sqltrace.record() as recording:
            for _ in range(200):
                sql(engine)
        return recording.connections

    uses = sqlite.together(*[unit] * 6)

    assert [(use.checkouts, use.failed) for use in uses] == [(200, 0)] * 6
    assert held_now(engine) == set()


def test_what_sqlalchemy_asks_of_a_database_that_it_meets_is_part_of_connecting(work):
    engine = work.engine()

    def unit():
        with sqltrace.record() as recording, engine.connect() as connection:
            before = recording.time_account
            connection.execute(text("SELECT 1"))
        return recording, before

    recording, before = work.run(unit)

    assert [statement.sql for statement in recording.statements] == ["SELECT 1"]
    assert before.database == 0 < before.connection
    assert recording.connections.connect > 0
