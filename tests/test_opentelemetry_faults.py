"""What goes wrong in an exporter or a provider does not reach the response."""

import threading
from functools import partial

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from starlette.testclient import TestClient

from tests.telemetry import STACKS, plain, statement_spans, traced


class Raising(SpanExporter):
    def export(self, spans):
        raise OSError("the collector is down")


class Stuck(SpanExporter):
    """Exports when it is let."""

    def __init__(self):
        self.go = threading.Event()

    def export(self, spans):
        self.go.wait(30)
        return SpanExportResult.SUCCESS


class RaisingProcessor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        if self.moment == "start":
            raise RuntimeError("no")

    def on_end(self, span):
        if self.moment == "end":
            raise RuntimeError("no")

    def __init__(self, moment):
        self.moment = moment


def fetch(provider, engine, stack=plain, **options):
    return TestClient(traced(stack, engine, provider, **options)).get("/sync/1").text


def test_exporter_that_raises_does_not_reach_the_response(memory_engine):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Raising()))

    assert fetch(provider, memory_engine) == "fine"


def test_exporter_that_is_stuck_holds_nobody_up(memory_engine):
    exporter, provider = Stuck(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=1))

    assert [fetch(provider, memory_engine) for _ in range(3)] == ["fine"] * 3
    exporter.go.set()
    provider.shutdown()


@pytest.mark.parametrize("moment", ["start", "end"])
def test_processor_that_raises_does_not_reach_the_response(memory_engine, caplog, moment):
    provider = TracerProvider()
    provider.add_span_processor(RaisingProcessor(moment))
    app = traced(plain, memory_engine, provider)

    assert [TestClient(app).get("/sync/1").text for _ in range(3)] == ["fine"] * 3
    assert len([record for record in caplog.records if record.name == "sqltrace"]) == 1


@pytest.mark.parametrize("stack", [plain, STACKS[1]])
def test_provider_that_is_shut_down_while_serving_does_not_reach_the_response(memory_engine, tracing, stack):
    app = traced(stack, memory_engine, tracing.provider)
    client = TestClient(app)

    assert client.get("/sync/1").text == "fine"
    told = len(statement_spans(tracing.spans()))
    tracing.provider.shutdown()
    assert client.get("/sync/1").text == "fine"
    assert told == 2


@pytest.mark.usefixtures("no_faults")
def test_disabled_sdk_is_nothing(memory_engine, monkeypatch, witness):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    provider = TracerProvider()

    assert fetch(provider, memory_engine) == "fine"


@pytest.mark.parametrize("headers", [{"traceparent": "00-nonsense"}, {"traceparent": "\xff"}, {"baggage": "=;,=="}])
@pytest.mark.usefixtures("no_faults")
def test_headers_that_make_no_sense_are_passed_over(memory_engine, tracing, headers):
    app = traced(plain, memory_engine, tracing.provider)

    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert TestClient(app).get("/sync/1", headers=encoded).text == "fine"
    assert len(statement_spans(tracing.spans())) == 2


def test_metrics_that_are_shut_down_while_serving_do_not_reach_the_response(memory_engine, meters):
    client = TestClient(traced(plain, memory_engine, None, meter_provider=meters.provider))
    answers = [client.get("/sync/1").text]
    meters.provider.shutdown()
    answers.append(client.get("/sync/1").text)

    assert answers == ["fine"] * 2


def test_disabled_sdk_measures_nothing_and_harms_nobody(memory_engine, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])

    assert TestClient(traced(plain, memory_engine, None, meter_provider=provider)).get("/sync/1").text == "fine"
    assert reader.get_metrics_data() is None


def broken(*arguments, **options):
    raise RuntimeError("ours")


@pytest.mark.parametrize(
    "place",
    [
        "comments.find_call_site",
        "metrics.Unkept",
        "pool_metrics.pool_states",
        "sink.get_current",
        "sink.sys",
        "unkept.system_name",
    ],
)
def test_fault_of_ours_does_not_reach_the_response(memory_engine, tracing, meters, monkeypatch, caplog, place):
    client = TestClient(
        traced(
            partial(plain, max_statements=1),
            memory_engine,
            tracing.provider,
            meter_provider=meters.provider,
            sql_comments=True,
        )
    )
    monkeypatch.setattr(f"sqltrace.sinks.opentelemetry.{place}", broken)
    answers = [client.get(path).text for path in ("/sync/1", "/many/600")]
    points = meters.points("sqltrace.request.statements")
    monkeypatch.undo()

    assert answers == ["fine"] * 2
    assert [point.sum for point in points] == [2, 600]
    assert len([record for record in caplog.records if record.name == "sqltrace"]) == 1
