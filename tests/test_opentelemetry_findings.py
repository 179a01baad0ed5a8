"""Findings in traces and logs."""

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sqltrace import SQLTraceMiddleware
from sqltrace.finding import Finding
from sqltrace.sinks import OpenTelemetrySink
from tests.asgi import BODY, START, http_scope, run, select, sends
from tests.telemetry import Routes, native, server_span, statement_spans

pytestmark = pytest.mark.usefixtures("no_faults")

FOUND = Finding("too_much", "It is too much.", 0.25, "app.py:1 in load", "A.b", "SELECT a at app.py:2 in f", "Do less.")
ATTRIBUTES = {
    "sqltrace.finding.kind": "too_much",
    "sqltrace.finding.cost": 0.25,
    "sqltrace.finding.call_site": "app.py:1 in load",
    "sqltrace.finding.loaded_for": "SELECT a at app.py:2 in f",
    "sqltrace.finding.fix": "Do less.",
    "sqltrace.relationship": "A.b",
}


def too_much(recording):
    return [FOUND] if recording.statement_count else []


def ask(engine, tracing, statements=1, **options):
    async def app(scope, receive, send):
        if statements:
            select(engine, statements)
        await sends(START, BODY)(scope, receive, send)

    sink = OpenTelemetrySink(tracer_provider=tracing.provider, **options)
    run(SQLTraceMiddleware(app, sinks=[sink], rules=[too_much]), http_scope())
    return tracing.spans()


def test_findings_are_events_of_the_server_span(memory_engine, tracing):
    span = server_span(ask(memory_engine, tracing))

    assert span.attributes["sqltrace.finding.kinds"] == ("too_much",)
    [event] = span.events
    assert (event.name, dict(event.attributes)) == (
        "sqltrace.finding",
        ATTRIBUTES | {"sqltrace.finding.message": "It is too much."},
    )


def test_findings_are_log_records_where_logs_are_configured(memory_engine, tracing, logs):
    provider, exporter = logs
    span = server_span(ask(memory_engine, tracing, logger_provider=provider))

    [data] = exporter.get_finished_logs()
    record = data.log_record
    assert (record.event_name, record.severity_text, record.body) == ("sqltrace.finding", "WARN", "It is too much.")
    assert dict(record.attributes) == ATTRIBUTES | {"http.request.method": "GET"}
    assert (record.trace_id, record.span_id) == (span.context.trace_id, span.context.span_id)
    assert (span.events, span.attributes["sqltrace.finding.kinds"]) == ((), ("too_much",))


@native
@pytest.mark.parametrize("place", ["inside", "around"])
def test_findings_are_told_on_the_span_of_fastapi(memory_engine, tracing, place):
    telemetry = {"tracer_provider": tracing.provider, "metrics": False, "logs": False}
    app = FastAPI(routes=Routes(memory_engine).list, telemetry=telemetry)
    options = {"sinks": [OpenTelemetrySink(tracer_provider=tracing.provider)], "rules": [too_much]}
    if place == "inside":
        app.add_middleware(SQLTraceMiddleware, **options)
    TestClient(app if place == "inside" else SQLTraceMiddleware(app, **options)).get("/sync/1")

    span = server_span(tracing.spans())
    assert span.attributes["sqltrace.finding.kinds"] == ("too_much",)
    assert [event.name for event in span.events] == ["sqltrace.finding"]


@native
def test_finding_that_is_logged_after_the_span_of_fastapi_is_in_its_trace(memory_engine, tracing, logs):
    provider, exporter = logs
    telemetry = {"tracer_provider": tracing.provider, "metrics": False, "logs": False}
    app = FastAPI(routes=Routes(memory_engine).list, telemetry=telemetry)
    sink = OpenTelemetrySink(tracer_provider=tracing.provider, logger_provider=provider)
    TestClient(SQLTraceMiddleware(app, sinks=[sink], rules=[too_much])).get("/sync/1")

    span, [data] = server_span(tracing.spans()), exporter.get_finished_logs()
    told = data.log_record.trace_id, data.log_record.span_id
    assert told == (span.context.trace_id, span.context.span_id)


def test_finding_that_is_logged_says_of_which_route(memory_engine, tracing, logs):
    provider, exporter = logs
    app = Starlette(routes=Routes(memory_engine).list)
    sink = OpenTelemetrySink(tracer_provider=tracing.provider, logger_provider=provider)
    TestClient(SQLTraceMiddleware(app, sinks=[sink], rules=[too_much])).get("/sync/1")

    [data] = exporter.get_finished_logs()
    route = {"http.request.method": "GET", "http.route": "/sync/{item}"}
    assert dict(data.log_record.attributes) == ATTRIBUTES | route


def test_statements_of_requests_with_a_finding_are_kept_always(memory_engine, tracing):
    assert len(statement_spans(ask(memory_engine, tracing, keep=0.0))) == 1


def test_nothing_is_told_where_nothing_was_found(memory_engine, tracing):
    span = server_span(ask(memory_engine, tracing, statements=0))

    assert "sqltrace.finding.kinds" not in span.attributes
    assert span.events == ()


def test_log_line_of_a_request_with_a_finding_is_a_warning(memory_engine, tracing, logs):
    provider, exporter = logs
    ask(memory_engine, tracing, logger_provider=provider, log_line=True)

    severities = {data.log_record.event_name: data.log_record.severity_text for data in exporter.get_finished_logs()}
    assert severities == {"sqltrace.finding": "WARN", "sqltrace.request": "WARN"}


def test_findings_of_a_request_that_is_not_traced_are_in_its_line_only(memory_engine, logs):
    provider, exporter = logs

    async def app(scope, receive, send):
        select(memory_engine)
        await sends(START, BODY)(scope, receive, send)

    sink = OpenTelemetrySink(logger_provider=provider, log_line=True)
    run(SQLTraceMiddleware(app, sinks=[sink], rules=[too_much]), http_scope())

    [data] = exporter.get_finished_logs()
    assert data.log_record.event_name == "sqltrace.request"
    assert [finding["kind"] for finding in data.log_record.attributes["findings"]] == ["too_much"]
