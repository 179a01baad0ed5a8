"""When the measurements of a request are recorded, and on which thread."""

import asyncio
import threading
from contextlib import suppress

import pytest
import trio
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.sdk.metrics import ExemplarFilter
from sqlalchemy import NullPool, create_engine

from sqltrace import SQLTraceMiddleware
from sqltrace.sinks import OpenTelemetrySink
from sqltrace.sinks.opentelemetry.attributes import POOL_NAME
from tests.asgi import BODY, START, call, http_scope, sends
from tests.telemetry import INCOMING, TRACE_ID, Meters


class Watch(ExemplarFilter):
    """Knows on which threads is recorded what has an attribute: by default, the statements."""

    def __init__(self, attribute="db.system.name", fault=None):
        self.threads, self.attribute, self.fault = set(), attribute, fault

    def should_sample(self, value, time_unix_nano, attributes, context):
        if self.attribute in attributes:
            self.threads.add(threading.get_ident())
            if self.fault is not None:
                raise self.fault
        return False


def many(engine, meters, count, **options):
    """A middleware around an application that runs so many statements."""

    async def app(scope, receive, send):
        with engine.connect() as connection:
            for _ in range(count):
                connection.exec_driver_sql("SELECT 1").all()
        await sends(START, BODY)(scope, receive, send)

    return SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(meter_provider=meters.provider)], **options)


def counts(meters):
    return [
        (point.count, sum(point.bucket_counts))
        for name in ("db.client.operation.duration", "db.client.response.returned_rows")
        for point in meters.points(name)
    ]


@pytest.mark.usefixtures("no_faults")
@pytest.mark.parametrize("max_statements", [1_000, 10], ids=["kept", "not kept"])
@pytest.mark.parametrize(("count", "on_the_loop"), [(250, True), (251, False)])
def test_many_statements_are_not_recorded_on_the_event_loop(memory_engine, count, on_the_loop, max_statements):
    watch = Watch()
    meters = Meters(exemplar_filter=watch)
    asyncio.run(call(many(memory_engine, meters, count, max_statements=max_statements), http_scope()))

    assert counts(meters) == [(count, count)] * 2
    assert (watch.threads == {threading.get_ident()}) is on_the_loop
    assert len(watch.threads) == 1
    meters.provider.shutdown()


@pytest.mark.usefixtures("no_faults")
def test_many_uses_of_a_pool_are_not_recorded_on_the_event_loop(tmp_path):
    async def app(scope, receive, send):
        for _ in range(200):
            engine.connect().close()
        await sends(START, BODY)(scope, receive, send)

    engine, watch = create_engine(f"sqlite:///{tmp_path}/test.db", poolclass=NullPool), Watch(POOL_NAME)
    meters = Meters(exemplar_filter=watch)
    sink = OpenTelemetrySink(meter_provider=meters.provider)
    asyncio.run(call(SQLTraceMiddleware(app, sinks=[sink]), http_scope()))
    threads = set(watch.threads)  # more come as pools are looked at

    assert [point.count for point in meters.points("db.client.connection.use_time")] == [200]
    assert len(threads - {threading.get_ident()}) == len(threads) == 1
    meters.provider.shutdown()


@pytest.mark.usefixtures("no_faults")
def test_statements_of_an_ordinary_request_are_recorded_when_it_is_over(memory_engine, meters):
    async def main():
        await call(many(memory_engine, meters, 100), http_scope())
        return counts(meters)

    assert asyncio.run(main()) == [(100, 100)] * 2


async def shut_down_first(app):
    await asyncio.get_running_loop().shutdown_default_executor()
    await call(app, http_scope())


@pytest.mark.usefixtures("no_faults")
@pytest.mark.parametrize(
    "serve",
    [lambda app: asyncio.run(shut_down_first(app)), lambda app: trio.run(call, app, http_scope())],
    ids=["asyncio without its executor", "trio"],
)
def test_many_statements_are_recorded_at_once_where_there_is_no_thread_for_them(memory_engine, serve):
    watch = Watch()
    meters = Meters(exemplar_filter=watch)
    serve(many(memory_engine, meters, 300))

    assert counts(meters) == [(300, 300)] * 2
    assert watch.threads == {threading.get_ident()}
    meters.provider.shutdown()


@pytest.mark.usefixtures("no_faults")
def test_exemplars_of_many_statements_lead_to_the_trace_that_the_request_came_in(memory_engine, meters):
    async def main():
        token = otel_context.attach(propagate.extract(INCOMING))
        try:
            await call(many(memory_engine, meters, 300), http_scope())
        finally:
            otel_context.detach(token)

    asyncio.run(main())

    [point] = meters.points("db.client.operation.duration")
    assert {f"{exemplar.trace_id:032x}" for exemplar in point.exemplars} == {TRACE_ID}


def test_fault_while_recording_many_statements_is_reported_once(memory_engine, caplog):
    watch = Watch(fault=RuntimeError("no"))
    meters = Meters(exemplar_filter=watch)
    sent = [asyncio.run(call(many(memory_engine, meters, 300), http_scope())) for _ in range(2)]
    with suppress(RuntimeError):
        meters.provider.shutdown()

    assert sent == [[START, BODY]] * 2
    faults = [record.getMessage() for record in caplog.records if record.name in ("sqltrace", "asyncio")]
    assert faults == ["measuring many statements failed and is skipped; the application is not affected"]
