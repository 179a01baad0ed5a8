"""What metrics say of connection pools."""

import asyncio
import gc
import threading
import time
from collections import deque
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware, connection
from sqltrace.capture.pools import pool_states
from sqltrace.database import Database
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.opentelemetry import pool_metrics
from tests.telemetry import metric_names

pytestmark = pytest.mark.usefixtures("no_faults")

NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


@pytest.fixture
def engines(tmp_path):
    with ExitStack() as stack:

        def make(name="shop", **options):
            options = {"poolclass": QueuePool, **options}
            engine = create_engine(f"sqlite:///{tmp_path}/{name}.db", **options)
            stack.callback(engine.dispose)
            return engine

        yield make


def client_of(engine, meters, meanwhile=lambda: None, *, sinks=()):
    def use(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1")).all()
            meanwhile()
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", use)])
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetrySink(meter_provider=meters.provider), *sinks])
    return TestClient(app, raise_server_exceptions=False)


def values(meters, name):
    return {
        (point.attributes[NAME], point.attributes.get(STATE)): point.value
        for point in meters.points(f"db.client.connection.{name}")
    }


def test_pool_is_told_as_it_is_at_that_moment(engines, meters):
    seen = {}
    engine = engines(pool_size=3, max_overflow=2, pool_logging_name="shop")
    client = client_of(engine, meters, lambda: seen.update(values(meters, "count")))
    client.get("/")

    assert seen == {("shop", "used"): 1, ("shop", "idle"): 0}
    assert values(meters, "count") == {("shop", "used"): 0, ("shop", "idle"): 1}
    assert values(meters, "max") == {("shop", None): 5}
    assert values(meters, "idle.max") == {("shop", None): 3}
    assert values(meters, "idle.min") == {("shop", None): 0}
    assert values(meters, "pending_requests") == {("shop", None): 0}


def test_pool_without_limit_has_no_maximum(engines, meters):
    client_of(engines(pool_size=2, max_overflow=-1, pool_logging_name="shop"), meters).get("/")

    assert values(meters, "max") == {}
    assert values(meters, "idle.max") == {("shop", None): 2}


def test_pool_that_keeps_nothing_tells_what_is_used(engines, meters):
    seen = {}
    client = client_of(
        engines(poolclass=NullPool, pool_logging_name="none"), meters, lambda: seen.update(values(meters, "count"))
    )
    client.get("/")

    assert seen == {("none", "used"): 1}
    assert values(meters, "max") == values(meters, "idle.max") == values(meters, "idle.min") == {}


def test_pools_of_one_name_count_as_one(engines, meters):
    held = [engines("b", pool_size=2, max_overflow=0, pool_logging_name="both") for _ in range(2)]
    for engine in held:
        client_of(engine, meters).get("/")

    assert values(meters, "max") == {("both", None): 4}


def test_pool_that_a_disposed_engine_left_counts_until_its_connections_are_closed_and_no_more_may_open(engines, meters):
    engine = engines(pool_size=2, max_overflow=1, pool_logging_name="shop")
    client = client_of(engine, meters)
    with sqltrace.record():
        held = engine.connect()
        engine.dispose()  # and leaves alone what is in use
        client.get("/")

        assert values(meters, "count") == {("shop", "used"): 1, ("shop", "idle"): 1}
        assert (values(meters, "max"), values(meters, "idle.max")) == ({("shop", None): 3}, {("shop", None): 2})
        held.close()  # which keeps the old pool in memory

    assert values(meters, "count") == {("shop", "used"): 0, ("shop", "idle"): 1}
    assert held.closed


@pytest.mark.parametrize("allocations", range(1, 12))
def test_engine_that_the_garbage_collector_takes_meanwhile_disturbs_no_look_at_the_pools(engines, allocations):
    sqltrace.instrument()
    kept = [engines(poolclass=NullPool, pool_logging_name=f"kept {number}") for number in range(5)]
    with sqltrace.record():
        for engine in kept:
            engine.connect().close()
        gc.collect(1)
        gc.disable()
        create_engine("sqlite://", poolclass=NullPool).connect().close()
    thresholds = gc.get_threshold()
    gc.set_threshold(gc.get_count()[0] + allocations, *thresholds[1:])  # the collection begins within
    gc.enable()
    try:
        names = {state.name for state in pool_states()}
    finally:
        gc.set_threshold(*thresholds)

    assert names.issuperset(f"kept {number}" for number in range(5))


def test_pool_without_a_name_is_called_by_its_database(engines, meters, tmp_path):
    client_of(engines(), meters).get("/")

    assert {name for name, _ in values(meters, "max")} == {f"{tmp_path}/shop.db"}
    assert str(Database("db.example.com", 5432, "shop")) == "db.example.com:5432/shop"
    assert str(Database("db.example.com", None, "shop")) == "db.example.com/shop"
    assert str(Database()) == ""


@pytest.mark.postgresql
def test_pool_whose_url_tells_no_database_is_called_by_the_dialect(meters, postgres_url):
    url = postgres_url.set(drivername="postgresql").render_as_string(hide_password=False)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    client_of(engine, meters).get("/")

    assert {name for name, _ in values(meters, "max")} == {"postgresql"}
    engine.dispose()


def test_pools_of_a_sync_and_an_async_engine_on_one_database_are_told_apart(engines, meters, tmp_path):
    async def use():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db", pool_size=2, max_overflow=0)
        with sqltrace.record():
            async with engine.connect():
                found = values(meters, "count"), values(meters, "max")
        await engine.dispose()
        return found

    client_of(engines(pool_size=3, max_overflow=0), meters).get("/")
    counts, most = asyncio.run(use())

    one, other = f"{tmp_path}/shop.db", f"{tmp_path}/shop.db (async)"
    assert counts == {(one, "used"): 0, (one, "idle"): 1, (other, "used"): 1, (other, "idle"): 0}
    assert most == {(one, None): 3, (other, None): 2}


def test_those_who_wait_for_the_pool_are_pending(engines, meters):
    engine = engines(pool_size=1, max_overflow=0, pool_logging_name="shop")
    client = client_of(engine, meters)
    client.get("/")
    with engine.connect():
        waiting = threading.Thread(target=client.get, args=("/",))
        waiting.start()
        deadline = time.monotonic() + 20
        while values(meters, "pending_requests") != {("shop", None): 1}:
            assert time.monotonic() < deadline
    waiting.join()

    assert values(meters, "pending_requests") == {("shop", None): 0}


def test_wait_that_a_connection_ended_is_no_timeout(engines, meters, witness):
    engine = engines(pool_size=1, max_overflow=0, pool_logging_name="shop")
    client = client_of(engine, meters, sinks=[witness])
    with engine.connect():
        waiting = threading.Thread(target=client.get, args=("/",))
        waiting.start()
        while not any(pool.waiting for pool in pool_states()):
            pass
        longer = time.monotonic() + 0.005
        while time.monotonic() < longer:
            pass
    waiting.join()

    [record] = witness.take()
    assert [wait.timed_out for wait in record.recording.connections.waits] == [False]
    assert values(meters, "timeouts") == {}


def test_pool_timeouts_are_counted(engines, meters):
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="shop")
    client = client_of(engine, meters)
    client.get("/")
    with engine.connect():
        client.get("/")
    client.get("/")

    assert values(meters, "timeouts") == {("shop", None): 1}
    [point] = meters.points("db.client.connection.wait_time")
    assert point.count == 2


def test_times_of_uses_are_measured(engines, meters):
    client = client_of(engines(pool_logging_name="shop"), meters)
    for _ in range(3):
        client.get("/")

    points = {name: meters.points(f"db.client.connection.{name}") for name in ("create_time", "wait_time", "use_time")}
    counts = {name: [(dict(point.attributes), point.count) for point in found] for name, found in points.items()}
    assert counts == {
        "create_time": [({NAME: "shop"}, 1)],
        "wait_time": [({NAME: "shop"}, 3)],
        "use_time": [({NAME: "shop"}, 3)],
    }
    assert all(point.sum > 0 for found in points.values() for point in found)


def test_times_of_uses_are_those_of_the_recording(engines, meters, witness):
    client_of(engines(), meters, sinks=[witness]).get("/")

    [record] = witness.take()
    use = record.recording.connections
    names = ("create_time", "wait_time", "use_time")
    created, waited, used = [meters.points(f"db.client.connection.{name}")[0].sum for name in names]
    assert (created, used) == (pytest.approx(use.connect), pytest.approx(use.held))
    assert use.wait + use.connect <= waited < record.recording.duration


def test_checkout_of_a_job_is_measured_with_the_next_request(engines, meters):
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=0.01, pool_logging_name="shop")
    client = client_of(engine, meters)
    client.get("/")
    with sqltrace.record("job"), engine.connect(), pytest.raises(PoolTimeoutError):
        engine.connect()
    client.get("/")

    assert values(meters, "timeouts") == {("shop", None): 1}
    [point] = meters.points("db.client.connection.use_time")
    assert point.count == 3


def test_checkouts_without_a_request_do_not_fill_the_memory(engines, meters, monkeypatch):
    monkeypatch.setattr(pool_metrics, "_MAX_ENDED", 5)
    engine = engines(pool_logging_name="shop")
    client = client_of(engine, meters)
    client.get("/")
    for _ in range(20):
        with sqltrace.record("job"), engine.connect():
            pass
    client.get("/")

    [point] = meters.points("db.client.connection.use_time")
    assert point.count == 1 + 5


def test_metrics_that_are_gone_are_told_of_no_checkout(engines, meters):
    gc.collect()
    before = list(connection.watchers)

    client_of(engines(), meters).get("/")
    gc.collect()

    assert connection.watchers == before


def test_checkout_that_another_thread_has_just_measured_is_passed_over(engines, meters, monkeypatch):
    class Late(deque):
        def popleft(self):
            self.clear()
            raise IndexError

    monkeypatch.setattr(pool_metrics, "deque", Late)
    response = client_of(engines(pool_logging_name="shop"), meters).get("/")

    assert (response.text, meters.points("db.client.connection.use_time")) == ("fine", [])


def test_names_and_units_are_those_of_the_conventions(engines, meters):
    engine = engines(pool_size=1, max_overflow=0, pool_timeout=0.01)
    client = client_of(engine, meters)
    client.get("/")
    with engine.connect():
        client.get("/")
    client.get("/")

    units = {
        name.removeprefix("db.client.connection."): metric.unit
        for name, metric in meters.metrics().items()
        if name.startswith("db.client.connection.")
    }
    times = dict.fromkeys(("create_time", "wait_time", "use_time"), "s")
    connections = dict.fromkeys(("count", "max", "idle.max", "idle.min"), "{connection}")
    assert units == {**times, **connections, "pending_requests": "{request}", "timeouts": "{timeout}"}
    assert {f"db.client.connection.{name}" for name in units} <= metric_names()
