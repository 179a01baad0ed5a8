"""The sink's options, what it adds to the server span, and when it does nothing."""

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import suppress
from functools import partial

import pytest
from fastapi import FastAPI
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.collector import mark, mark_estimate
from sqltrace.sinks import OpenTelemetrySink, Sink, StartingSink
from sqltrace.sinks.opentelemetry.server_span import redact_query
from tests.asgi import BODY, START, Clock, call, http_scope, run, select, sends, timed, websocket_scope
from tests.loops import ObservedMiddleware, block, run_by_clock
from tests.telemetry import INCOMING, PARENT_ID, TRACE_ID, native, plain, server_span, statement_spans, traced

pytestmark = pytest.mark.usefixtures("no_faults")


def answer(tracing, app, scope=None, **options):
    """The server span of a request to this application."""
    run(
        SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider, **options)]),
        scope or http_scope(),
    )
    return server_span(tracing.spans())


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"keep": "all"}, TypeError, "keep must be a number, got 'all'"),
        ({"keep": 1.5}, ValueError, "keep must be from 0 to 1, got 1.5"),
        ({"slow": -1}, ValueError, "slow must be at least 0, got -1"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1, got 0"),
        ({"max_spans": 2.5}, TypeError, "max_spans must be an int, got 2.5"),
        ({"keep": float("nan")}, ValueError, "keep must be from 0 to 1, got nan"),
        ({"url_query": "x"}, TypeError, "url_query must be True or False, got 'x'"),
        ({"literals": "x"}, TypeError, "literals must be True or False, got 'x'"),
        ({"log_line": "x"}, TypeError, "log_line must be True or False, got 'x'"),
        ({"sql_comments": "x"}, TypeError, "sql_comments must be True or False, got 'x'"),
        ({"tracer_provider": 5}, TypeError, "tracer_provider must have a method get_tracer(), got 5"),
        ({"logger_provider": 5}, TypeError, "logger_provider must have a method get_logger(), got 5"),
        ({"meter_provider": 5}, TypeError, "meter_provider must have a method get_meter(), got 5"),
        (
            {"tracer_provider": TracerProvider},
            TypeError,
            "tracer_provider must be an object, got the class TracerProvider: write TracerProvider()",
        ),
    ],
)
def test_wrong_option_says_what_was_got_and_what_is_wanted(option, error, message):
    with pytest.raises(error) as raised:
        OpenTelemetrySink(**option)

    assert str(raised.value) == message


def test_sink_is_one_with_a_start():
    assert isinstance(OpenTelemetrySink(), StartingSink)
    assert isinstance(OpenTelemetrySink(), Sink)


def test_server_span_says_what_the_conventions_ask(memory_engine, tracing):
    TestClient(traced(plain, memory_engine, tracing.provider)).get(
        "/sync/5?a=1&sig=secret", headers={"host": "shop.test:8080"}
    )

    span = server_span(tracing.spans())
    assert span.name == "GET /sync/{item}"
    assert {name: value for name, value in span.attributes.items() if not name.startswith("sqltrace.")} == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/sync/{item}",
        "url.scheme": "http",
        "url.path": "/sync/5",
        "url.query": "a=REDACTED&sig=REDACTED",
        "server.address": "shop.test",
        "server.port": 8080,
        "client.address": "testclient",
        "user_agent.original": "testclient",
        "network.protocol.version": "1.1",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_parts_of_the_time_account_add_up_to_the_duration_of_the_span(memory_engine, tracing):
    TestClient(traced(plain, memory_engine, tracing.provider)).get("/many/50")

    span = server_span(tracing.spans())
    parts = [value for name, value in span.attributes.items() if name.startswith("sqltrace.time.")]
    assert sum(parts) == pytest.approx((span.end_time - span.start_time) / 1e9, abs=0.01)


def test_server_span_says_what_the_request_did(memory_engine, tracing):
    clock = Clock()

    async def app(scope, receive, send):
        with memory_engine.connect() as connection:
            connection.connection.create_function("wait", 1, clock.advance)
            for _ in range(2):
                connection.execute(text("SELECT wait(1) FROM (VALUES (1), (2), (3))")).all()
            clock.advance(0.5)
            with suppress(DBAPIError):
                connection.execute(text("SELECT * FROM nowhere"))
            connection.commit()
            clock.advance(0.25)
        await asyncio.sleep(0)
        clock.advance(0.125)
        await sends(START, BODY)(scope, receive, send)
        await asyncio.sleep(0)
        clock.advance(0.001)
        select(memory_engine)

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    span = server_span(tracing.spans())
    assert {name: value for name, value in span.attributes.items() if name.startswith("sqltrace.")} == {
        "sqltrace.time.connection": 0.0,
        "sqltrace.time.database": 6.0,
        "sqltrace.time.objects": 0.0,
        "sqltrace.time.loop_wait": 0.0,
        "sqltrace.time.python": 0.875,
        "sqltrace.loop.held": 6.876,
        "sqltrace.loop.longest_hold": 6.75,
        "sqltrace.connection.wait": 0.0,
        "sqltrace.connection.held": 6.75,
        "sqltrace.connection.commit": 0.0,
        "sqltrace.connection.idle_in_transaction": 0.5,
        "sqltrace.statement.count": 3,
        "sqltrace.statement.distinct": 2,
        "sqltrace.statement.failed": 1,
        "sqltrace.statement.on_loop": 3,
        "sqltrace.rows": 6,
        "sqltrace.finding.kinds": ("slow_statement", "blocked_loop", "idle_in_transaction"),
    }


def test_server_span_says_what_of_its_commits_was_after_the_response(tracing):
    class Slow(sqlite3.Connection):
        def commit(self):
            clock.advance(0.25)
            super().commit()

    async def app(scope, receive, send):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            connection.commit()
            await sends(START, BODY)(scope, receive, send)
            for _ in range(2):
                connection.execute(text("SELECT 1"))
                connection.commit()

    clock = Clock()
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"factory": Slow})
    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())
    engine.dispose()

    attributes = server_span(tracing.spans()).attributes
    assert attributes["sqltrace.connection.commit"] == 0.75
    assert attributes["sqltrace.connection.commit_after_response"] == 0.5


@pytest.mark.parametrize("note", [mark_estimate, partial(mark, dialect=None, part="loop_wait")])
def test_server_span_says_whether_a_wait_for_the_loop_is_an_estimate(tracing, note):
    clock = Clock()

    async def app(scope, receive, send):
        began = clock()
        clock.advance(0.25)
        note(sqltrace.current_recording().collector, start=began, end=clock())
        await sends(START, BODY)(scope, receive, send)

    run(timed(app, clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    attributes = server_span(tracing.spans()).attributes
    assert attributes["sqltrace.time.loop_wait"] == 0.25
    assert attributes.get("sqltrace.time.loop_wait_estimated") is (True if note is mark_estimate else None)


def test_server_span_says_who_held_the_loop_that_was_waited_for(tracing):
    async def app(scope, receive, send):
        await asyncio.sleep(0.01 if scope["path"] == "/guilty" else 0.02)
        if scope["path"] == "/guilty":
            block(0.1)
        await sends(START, BODY)(scope, receive, send)

    async def main():
        await asyncio.gather(*(call(middleware, http_scope(path)) for path in ("/guilty", "/innocent")))

    middleware = ObservedMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)])
    run_by_clock(main())

    told = {span.attributes["url.path"]: span.attributes for span in tracing.spans()}
    assert told["/innocent"]["sqltrace.loop.waited_for"] == ("GET /guilty",)
    assert "sqltrace.loop.waited_for" not in told["/guilty"]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("email=ada@example.com&token=s3cr3t", "email=REDACTED&token=REDACTED"),
        ("a=1&a=&b=2=3", "a=REDACTED&a=REDACTED&b=REDACTED"),
        ("ada@example.com&a=1;b=s3cr3t", "REDACTED&a=REDACTED"),
        ("a%5B%5D=1&&b=2", "a%5B%5D=REDACTED&&b=REDACTED"),
    ],
)
def test_value_of_a_parameter_is_not_told(memory_engine, tracing, query, told):
    TestClient(traced(plain, memory_engine, tracing.provider)).get(f"/sync/5?{query}")

    assert server_span(tracing.spans()).attributes["url.query"] == told


def test_values_of_parameters_are_told_on_request_but_for_signatures(memory_engine, tracing):
    app = traced(plain, memory_engine, tracing.provider, url_query=True)
    TestClient(app).get("/sync/5?email=ada&sig=s3cr3t")

    assert server_span(tracing.spans()).attributes["url.query"] == "email=ada&sig=REDACTED"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("", ""),
        ("flag", "flag"),
        ("a=1&X-Amz-Signature=abc&b=", "a=1&X-Amz-Signature=REDACTED&b="),
        ("%73ig=abc", "%73ig=REDACTED"),
        ("SIG=abc&sig", "SIG=abc&sig"),
    ],
)
def test_signatures_are_taken_out_of_the_query(query, told):
    assert redact_query(query, values=True) == told


def test_unknown_method_is_told_apart(tracing):
    span = answer(tracing, sends(START, BODY), http_scope(method="BREW"))

    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "BREW"


def test_host_that_is_none_is_left_out(tracing):
    span = answer(tracing, sends(START, BODY), http_scope(headers=[(b"host", b"[::1")]))

    assert "server.address" not in span.attributes


@pytest.mark.parametrize(
    ("scope", "scheme", "port"),
    [
        (http_scope(scheme="http"), "http", 80),
        (http_scope(scheme="https"), "https", 443),
        (http_scope(), "http", 80),
        (websocket_scope(scheme="ws"), "ws", 80),
        (websocket_scope(scheme="wss"), "wss", 443),
        (websocket_scope(), "ws", 80),
    ],
)
def test_port_that_the_host_does_not_say_is_that_of_the_scheme(tracing, scope, scheme, port):
    messages = (START, BODY) if scope["type"] == "http" else ({"type": "websocket.accept"}, {"type": "websocket.close"})
    span = answer(tracing, sends(*messages), {**scope, "headers": [(b"host", b"shop.test")]})

    told = [span.attributes[name] for name in ("url.scheme", "server.address", "server.port")]
    assert told == [scheme, "shop.test", port]


def test_request_without_a_host_tells_where_the_server_listens(tracing):
    span = answer(tracing, sends(START, BODY), http_scope(server=("10.0.0.1", 8000)))

    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("10.0.0.1", 8000)


def test_websocket_is_a_server_span(tracing):
    span = answer(tracing, sends({"type": "websocket.accept"}, {"type": "websocket.close"}), websocket_scope("/chat"))

    assert span.name == "WS"
    assert span.kind is SpanKind.SERVER
    assert [name for name in span.attributes if name.startswith("http.request.")] == []


@pytest.mark.parametrize(("status", "expected"), [(404, StatusCode.UNSET), (503, StatusCode.ERROR)])
def test_only_faults_of_the_server_are_errors(tracing, status, expected):
    span = answer(tracing, sends({**START, "status": status}, BODY))

    assert span.status.status_code is expected
    assert span.attributes.get("error.type") == ("503" if status == 503 else None)


def test_exception_is_the_type_of_the_error(tracing):
    async def app(scope, receive, send):
        raise KeyError("x")

    with pytest.raises(KeyError):
        answer(tracing, app)

    span = server_span(tracing.spans())
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "KeyError")


def test_request_whose_client_went_away_before_the_answer_has_no_status(tracing):
    async def app(scope, receive, send):
        await receive()

    async def receive():
        return {"type": "http.disconnect"}

    middleware = SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)])
    asyncio.run(middleware(http_scope(), receive, None))

    span = server_span(tracing.spans())
    assert (span.attributes["sqltrace.outcome"], span.status.is_unset) == ("disconnected", True)
    assert "http.response.status_code" not in span.attributes


def test_application_that_refers_to_itself_is_traced(tracing):
    class App:
        def __init__(self):
            self.app = self

        async def __call__(self, scope, receive, send):
            await sends(START, BODY)(scope, receive, send)

    assert answer(tracing, App()).attributes["http.response.status_code"] == 200


@native
def test_request_that_fastapi_was_told_to_leave_out_has_no_span(tracing):
    app = FastAPI(telemetry={"tracer_provider": tracing.provider, "metrics": False, "exclude": lambda scope: True})
    sink = OpenTelemetrySink(tracer_provider=tracing.provider)
    TestClient(SQLTraceMiddleware(app, sinks=[sink])).get("/")

    assert tracing.spans() == ()


def test_propagator_that_looks_through_all_headers_finds_its_own(tracing, monkeypatch):
    class Propagator(TraceContextTextMapPropagator):
        def extract(self, carrier, context=None, getter=None):
            found = {name[2:]: getter.get(carrier, name) for name in getter.keys(carrier) if name.startswith("x-")}
            return super().extract(found, context)

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Propagator())
    span = answer(
        tracing, sends(START, BODY), http_scope(headers=[(b"X-Traceparent", INCOMING["traceparent"].encode())])
    )

    assert f"{span.context.trace_id:032x}" == TRACE_ID


def test_headers_that_can_be_read_once_are_left_to_the_application(tracing):
    async def app(scope, receive, send):
        seen.extend(scope["headers"])
        await sends(START, BODY)(scope, receive, send)

    seen, headers = [], [(b"traceparent", INCOMING["traceparent"].encode()), (b"host", b"shop.test")]
    span = answer(tracing, app, http_scope(headers=iter(headers)))

    assert seen == headers
    assert (f"{span.context.trace_id:032x}", span.attributes["server.address"]) == (TRACE_ID, "shop.test")


def test_what_the_application_calls_is_in_its_trace(tracing):
    async def app(scope, receive, send):
        inject(carried)
        await sends(START, BODY)(scope, receive, send)

    carried = {}
    span = answer(tracing, app)

    assert carried["traceparent"].split("-")[2] == format(span.context.span_id, "016x")


def test_context_outside_is_as_before(tracing):
    async def request():
        before = otel_context.get_current()
        await middleware(http_scope(), None, nothing)
        assert otel_context.get_current() is before
        await middleware(http_scope(), None, nothing)

    async def nothing(message):
        pass

    import asyncio

    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[OpenTelemetrySink(tracer_provider=tracing.provider)])
    asyncio.run(request())

    first, second = tracing.spans()
    assert first.context.trace_id != second.context.trace_id


def test_baggage_comes_through(tracing):
    from opentelemetry import baggage

    async def app(scope, receive, send):
        seen.update(baggage.get_all())
        await sends(START, BODY)(scope, receive, send)

    seen = {}
    answer(tracing, app, http_scope(headers=[(b"baggage", b"a=1"), (b"baggage", b"b=2")]))

    assert seen == {"a": "1", "b": "2"}


def test_line_has_the_ids_of_the_span_that_is_made_here(tracing, witness):
    otel = OpenTelemetrySink(tracer_provider=tracing.provider)
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness, otel]), http_scope())

    [record], span = witness.take(), server_span(tracing.spans())
    assert record.span_id == format(span.context.span_id, "016x")


class Case:
    """Requests that are asked for with a clock that stands still."""

    def __init__(self, tracing, engine, **options):
        self.clock, self.tracing, self.engine = Clock(), tracing, engine

        self.app = timed(
            self.answer, self.clock, sinks=[OpenTelemetrySink(tracer_provider=tracing.provider, **options)]
        )
        self.took, self.status = 0.0, 200
        self.work, self.late = select, None

    async def answer(self, scope, receive, send):
        self.work(self.engine)
        self.clock.advance(self.took)
        await send({**START, "status": self.status})
        await send(BODY)
        if self.late is not None:
            self.clock.advance(0.001)
            self.late(self.engine)

    def statements(self, count=1):
        self.tracing.exporter.clear()
        for _ in range(count):
            run(self.app, http_scope())
        return len(statement_spans(self.tracing.spans()))


def test_statements_of_ordinary_requests_are_kept_by_ratio(memory_engine, tracing):
    assert Case(tracing, memory_engine, keep=0.0).statements(20) == 0
    assert 0 < Case(tracing, memory_engine, keep=0.5).statements(100) < 100
    assert Case(tracing, memory_engine).statements(20) == 20


of_a_trace = pytest.mark.parametrize(
    ("trace_id", "kept"), [("f" * 16 + "0" * 15 + "1", 1), ("0" * 15 + "1" + "f" * 16, 0)], ids=["kept", "left out"]
)


@of_a_trace
def test_services_that_keep_the_same_share_keep_the_same_requests(memory_engine, tracing, trace_id, kept):
    async def app(scope, receive, send):
        select(memory_engine)
        await sends(START, BODY)(scope, receive, send)

    answer(tracing, app, http_scope(headers=[(b"traceparent", f"00-{trace_id}-{PARENT_ID}-01".encode())]), keep=0.5)

    assert TraceIdRatioBased(0.5).should_sample(None, int(trace_id, 16), "GET").decision.is_sampled() is bool(kept)
    assert len(statement_spans(tracing.spans())) == kept


@of_a_trace
def test_request_without_a_span_of_its_own_is_kept_by_the_trace_that_it_came_in(memory_engine, tracing, trace_id, kept):
    async def app(scope, receive, send):
        with tracing.provider.get_tracer("application").start_as_current_span("loading"):
            select(memory_engine)
        raise asyncio.CancelledError

    app._is_instrumented_by_opentelemetry = True  # as contrib packages say, which may leave this request out
    otel = OpenTelemetrySink(keep=0.5, tracer_provider=tracing.provider)
    remote = propagate.extract({"traceparent": f"00-{trace_id}-{PARENT_ID}-01"})

    token = otel_context.attach(remote)
    try:
        with pytest.raises(asyncio.CancelledError):
            run(SQLTraceMiddleware(app, sinks=[otel]), http_scope())
    finally:
        otel_context.detach(token)

    assert len(statement_spans(tracing.spans())) == kept


def test_statements_of_slow_requests_are_kept_always(memory_engine, tracing):
    case = Case(tracing, memory_engine, keep=0.0, slow=0.5)
    case.took = 0.6

    assert case.statements() == 1


def test_statements_of_a_websocket_are_not_kept_because_it_lives(memory_engine, tracing, logs, clock):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        select(memory_engine)
        clock.advance(3_600)
        await send({"type": "websocket.close"})

    provider, exporter = logs
    otel = OpenTelemetrySink(keep=0.0, log_line=True, tracer_provider=tracing.provider, logger_provider=provider)
    run(timed(app, clock, sinks=[otel], rules=[]), websocket_scope())

    assert statement_spans(tracing.spans()) == []
    assert [data.log_record.severity_text for data in exporter.get_finished_logs()] == ["INFO"]


def test_statements_of_failed_requests_are_kept_always(memory_engine, tracing):
    case = Case(tracing, memory_engine, keep=0.0)
    case.status = 500

    assert case.statements() == 1


def test_statements_of_which_one_failed_are_kept_always(memory_engine, tracing):
    case = Case(tracing, memory_engine, keep=0.0)

    def fail(engine):
        with engine.connect() as connection, suppress(DBAPIError):
            connection.execute(text("SELECT nothing"))

    case.work = fail

    assert case.statements() == 1


def test_statements_of_a_finding_that_came_after_the_response_are_kept(memory_engine, tracing):
    case = Case(tracing, memory_engine, keep=0.0)

    def ask_in_a_loop(engine):
        with engine.connect() as connection:
            for number in range(12):
                connection.execute(text("SELECT * FROM (SELECT 1 AS id) WHERE id = :id"), {"id": number}).all()

    case.late = ask_in_a_loop

    with tracing.provider.get_tracer("server").start_as_current_span("GET", kind=SpanKind.SERVER):
        run(case.app, http_scope())  # before the background work, all is told to the server's span

    assert statement_spans(tracing.spans())


def test_log_line_is_sent_as_a_record_in_the_span_of_the_request(memory_engine, tracing, logs):
    provider, exporter = logs

    async def app(scope, receive, send):
        select(memory_engine)
        await sends(START, BODY)(scope, receive, send)

    span = answer(tracing, app, logger_provider=provider, log_line=True)

    [data] = exporter.get_finished_logs()
    record = data.log_record
    assert (record.trace_id, record.span_id) == (span.context.trace_id, span.context.span_id)
    assert (record.event_name, record.severity_text) == ("sqltrace.request", "INFO")
    assert record.attributes["sql.count"] == 1
    assert record.attributes["sql.statements"][0]["summary"] == "SELECT"


def test_log_line_of_a_request_that_failed_is_an_error(tracing, logs):
    provider, exporter = logs

    answer(tracing, sends({**START, "status": 500}, BODY), logger_provider=provider, log_line=True)

    [data] = exporter.get_finished_logs()
    assert (data.log_record.event_name, data.log_record.severity_text) == ("sqltrace.request", "ERROR")


def test_log_line_needs_no_traces(logs):
    provider, exporter = logs
    sink = OpenTelemetrySink(logger_provider=provider, log_line=True)
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[sink]), http_scope())

    [data] = exporter.get_finished_logs()
    assert (data.log_record.event_name, data.log_record.trace_id) == ("sqltrace.request", 0)


def test_sink_for_the_log_line_alone_takes_no_spans_from_another(memory_engine, tracing, logs):
    async def app(scope, receive, send):
        select(memory_engine)
        await sends(START, BODY)(scope, receive, send)

    provider, exporter = logs
    lines = OpenTelemetrySink(logger_provider=provider, log_line=True)
    run(SQLTraceMiddleware(app, sinks=[lines, OpenTelemetrySink(tracer_provider=tracing.provider)]), http_scope())

    assert len(statement_spans(tracing.spans())) == len(exporter.get_finished_logs()) == 1


def test_log_line_without_a_provider_is_not_sent(tracing):
    assert answer(tracing, sends(START, BODY), log_line=True).name == "GET"


def test_nothing_happens_where_no_provider_is_configured(witness):
    otel = OpenTelemetrySink(log_line=True)
    run(
        SQLTraceMiddleware(sends(START, BODY), sinks=[otel, witness]),
        http_scope(headers=[(b"traceparent", INCOMING["traceparent"].encode())]),
    )

    [record] = witness.take()
    assert (record.trace_id, record.notes) == (None, {})


def test_span_of_another_provider_is_enriched_where_none_is_configured_here(tracing):
    """FastAPI and others take a provider of their own, that the global one knows nothing of."""
    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[OpenTelemetrySink()])

    async def app(scope, receive, send):
        with tracing.provider.get_tracer("test").start_as_current_span("request", kind=SpanKind.SERVER):
            await middleware(scope, receive, send)

    run(app, http_scope())

    assert server_span(tracing.spans()).attributes["sqltrace.statement.count"] == 0


def run_alone(code):
    """What the code prints in a Python of its own."""
    setup = """
        import asyncio, sys
        from sqltrace import SQLTraceMiddleware
        from tests.asgi import BODY, START, http_scope, run, sends
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(setup) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "failed and is skipped" not in done.stderr
    return done.stdout.splitlines()


def test_default_tells_as_soon_as_a_provider_is_configured():
    printed = run_alone("""
        import structlog
        structlog.configure(processors=[lambda logger, method, event: (_ for _ in ()).throw(structlog.DropEvent)])
        app = SQLTraceMiddleware(sends(START, BODY))
        run(app, http_scope())
        from tests.telemetry import Tracing
        from opentelemetry import trace
        tracing = Tracing()
        trace.set_tracer_provider(tracing.provider)
        run(app, http_scope())
        print([span.name for span in tracing.spans()])
    """)

    assert printed == ["['GET']"]


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk"])
def test_default_works_without_opentelemetry(missing):
    printed = run_alone(f"""
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == "{missing}" or name.startswith("{missing}."):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Missing())
        print(run(SQLTraceMiddleware(sends(START, BODY)), http_scope()) == [START, BODY])
    """)

    assert printed[-1] == "True"


def test_sink_that_is_asked_for_without_opentelemetry_says_which_extra_has_it():
    printed = run_alone("""
        sys.modules["opentelemetry"] = None
        import sqltrace.sinks
        try:
            sqltrace.sinks.OpenTelemetrySink
        except ModuleNotFoundError as error:
            print(error, error.name)
    """)

    assert printed == ["OpenTelemetrySink needs opentelemetry: the extra `otel` has it. opentelemetry"]


def test_name_of_the_sink_says_what_is_missing():
    import sqltrace.sinks

    assert sqltrace.sinks.OpenTelemetrySink is OpenTelemetrySink
    with pytest.raises(AttributeError, match="no attribute 'DatadogSink'"):
        sqltrace.sinks.DatadogSink


def test_global_provider_is_never_set():
    OpenTelemetrySink()

    assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"


class Slotted:
    """An application that cannot be referred to weakly."""

    __slots__ = ()

    async def __call__(self, scope, receive, send):
        await sends(START, BODY)(scope, receive, send)


def test_application_of_any_kind_is_traced(tracing):
    assert answer(tracing, Slotted()).name == "GET"
