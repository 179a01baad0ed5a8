"""The sink that is there by default: nothing before OpenTelemetry is configured, all of it from then on."""

import sys

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sqltrace import SQLTraceMiddleware
from sqltrace.sinks.automatic import OpenTelemetryWhenConfigured
from tests.telemetry import Routes, server_span, statement_spans


@pytest.fixture
def client(memory_engine):
    app = Starlette(routes=Routes(memory_engine).list)
    app.add_middleware(SQLTraceMiddleware, sinks=[OpenTelemetryWhenConfigured()])
    return TestClient(app)


@pytest.mark.usefixtures("no_faults")
def test_request_after_a_tracer_provider_was_configured_is_told(client, tracing, monkeypatch):
    client.get("/sync/1")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracing.provider)
    client.get("/sync/2")
    client.get("/sync/3")

    spans = tracing.spans()
    assert [span.attributes["url.path"] for span in spans if span.parent is None] == ["/sync/2", "/sync/3"]
    assert len(statement_spans(spans)) == 4


@pytest.mark.usefixtures("no_faults")
def test_meter_provider_alone_is_enough(client, meters, monkeypatch):
    client.get("/sync/1")
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", meters.provider)
    client.get("/sync/2")

    assert [point.count for point in meters.points("sqltrace.request.statements")] == [1]


@pytest.mark.usefixtures("no_faults")
def test_provider_of_the_application_is_one_whatever_its_name(client, tracing, monkeypatch):
    class ProxyTracerProvider(TracerProvider):
        pass

    provider = ProxyTracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(tracing.exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    client.get("/sync/1")

    assert len(statement_spans(tracing.spans())) == 2


def test_sink_that_cannot_be_made_is_reported_once_and_harms_nobody(client, tracing, monkeypatch, caplog):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracing.provider)
    monkeypatch.setitem(sys.modules, "sqltrace.sinks.opentelemetry", None)

    answers = [client.get("/sync/1").text for _ in range(3)]

    assert answers == ["fine"] * 3
    faults = [record.getMessage() for record in caplog.records if record.name == "sqltrace"]
    assert len(faults) == 1
    assert "opentelemetry-api" in faults[0]
    with pytest.raises(ValueError, match="expected 1"):
        server_span(tracing.spans())
