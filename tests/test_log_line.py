import asyncio
import json
import logging
import re
import time
from importlib.resources import files

import jsonschema
import pytest
import structlog
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import connection
from sqltrace.finding import Finding
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord
from sqltrace.sinks.log_line import _threads, known, log_line
from sqltrace.thread_waits import ThreadWait
from tests.asgi import Clock, timed

SCHEMA = json.loads(files("sqltrace").joinpath("log_line.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


@pytest.fixture
def app(tmp_path):
    """Six statements of three kinds, one of them failing and one after the response."""
    engine = create_engine(f"sqlite:///{tmp_path}/app.db")

    def audit():
        with engine.connect() as connection:
            connection.execute(text("SELECT 'audit' WHERE 42 = 42"))

    def endpoint(request):
        with engine.connect() as connection:
            for number in range(4):
                connection.execute(text("SELECT :number, 'O''Hara', 1234567"), {"number": number})
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT * FROM missing"))
        return JSONResponse({}, background=BackgroundTask(audit))

    yield Starlette(routes=[Route("/people/{name}", endpoint)])
    engine.dispose()


def get(app, **options):
    return TestClient(sqltrace.SQLTraceMiddleware(app, **options)).get("/people/ada")


def test_line_without_statements_is_exact():
    clock = Clock()
    recording = Recording(clock=clock)
    record = RequestRecord(recording, protocol="http", path="/health", method="GET", status=204)
    clock.advance(0.25)
    recording.end_response()
    clock.advance(1.5)
    recording.end()

    line = log_line(record)

    assert line == {
        "http.request.method": "GET",
        "url.path": "/health",
        "http.response.status_code": 204,
        "outcome": "ok",
        "duration_ms": 250.0,
        "time.connection_ms": 0.0,
        "time.database_ms": 0.0,
        "time.objects_ms": 0.0,
        "time.python_ms": 250.0,
        "sql.count": 0,
        "sql.rows": 0,
        "sql.distinct": 0,
        "sql.failed": 0,
        "sql.after_response": 0,
        "after_response_ms": 1500.0,
        "network.protocol.name": "http",
        "sql.statements": [],
    }


def test_line_tells_the_statements_of_a_request(app):
    with structlog.testing.capture_logs() as lines:
        get(app)

    [line] = lines
    VALIDATOR.validate({**line, "level": line.pop("log_level")})
    assert line["http.route"] == "/people/{name}"
    assert line["url.path"] == "/people/ada"
    assert (line["sql.count"], line["sql.distinct"], line["sql.failed"], line["sql.after_response"]) == (5, 2, 1, 1)
    groups = {(group["summary"], group.get("phase")): group for group in line["sql.statements"]}
    assert groups.keys() == {("SELECT", None), ("SELECT missing", None), ("SELECT", "after_response")}
    assert groups["SELECT", None]["count"] == 4
    assert re.fullmatch(r"tests/test_log_line\.py:\d+ in app\.<locals>\.endpoint", groups["SELECT", None]["call_site"])
    assert groups["SELECT missing", None]["failed"] == 1
    assert groups["SELECT missing", None]["error"] == "sqlite3.OperationalError (SQLITE_ERROR)"


def test_line_with_findings_is_valid(app):
    findings = [
        Finding("n_plus_one", "Many.", 0.5, "app.py:1 in f", "A.b", "SELECT a at app.py:1 in f", ".options(…)"),
        Finding("mine", "Bare.", 0.1),
    ]
    with structlog.testing.capture_logs() as lines:
        get(app, rules=[lambda recording: findings])

    [line] = lines
    VALIDATOR.validate({**line, "level": line.pop("log_level")})
    assert line["findings"] == [
        {
            "kind": "n_plus_one",
            "message": "Many.",
            "cost_ms": 500.0,
            "call_site": "app.py:1 in f",
            "relationship": "A.b",
            "loaded_for": "SELECT a at app.py:1 in f",
            "fix": ".options(…)",
        },
        {"kind": "mine", "message": "Bare.", "cost_ms": 100.0},
    ]


def test_line_tells_the_first_ten_findings(app):
    findings = [Finding(f"kind_{number}", "Bare.", 0.1) for number in range(12)]
    with structlog.testing.capture_logs() as lines:
        get(app, rules=[lambda recording: findings])

    assert [finding["kind"] for finding in lines[0]["findings"]] == [f"kind_{number}" for number in range(10)]


def test_most_expensive_groups_come_first_and_only_as_many_as_asked_for(app):
    with structlog.testing.capture_logs() as lines:
        get(app, sinks=[sqltrace.sinks.StructlogSink(top=2)])

    totals = [group["total_ms"] for group in lines[0]["sql.statements"]]
    assert len(totals) == 2
    assert totals == sorted(totals, reverse=True)


def test_neither_literals_nor_parameters_are_told_unless_asked_for(app):
    with structlog.testing.capture_logs() as lines:
        get(app)

    told = json.dumps(lines)
    assert "Hara" not in told
    assert "1234567" not in told
    assert "parameters" not in told
    assert "SELECT ?, ?, ?" in told


def test_literals_are_told_on_request(app):
    with structlog.testing.capture_logs() as lines:
        get(app, sinks=[sqltrace.sinks.StructlogSink(literals=True)])

    assert "SELECT ?, 'O''Hara', 1234567" in [group["sql"] for group in lines[0]["sql.statements"]]


def test_parameters_are_told_on_request(app):
    with structlog.testing.capture_logs() as lines:
        get(app, capture_parameters=True)

    assert "(0,)" in [group.get("parameters") for group in lines[0]["sql.statements"]]


def test_groups_beyond_the_limit_are_told_as_others(engine):
    with sqltrace.record(max_statements=2) as recording, engine.connect() as connection:
        for columns in range(1, 6):
            connection.execute(text("SELECT " + ", ".join(["1 AS x"] * columns)))

    line = log_line(RequestRecord(recording, protocol="http", path="/"))

    VALIDATOR.validate({**line, "event": "request"})
    counts = sorted((group["summary"], group["count"]) for group in line["sql.statements"])
    assert counts == [("(other statements)", 3), ("SELECT", 1), ("SELECT", 1)]


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"sql.rows_total": 3},
        {"outcome": "fine"},
        {"duration_ms": "12"},
        {"trace_id": "0" * 31, "span_id": "0" * 16},
        {"sql.statements": [{"summary": "SELECT"}]},
    ],
    ids=["empty", "unknown key of ours", "unknown outcome", "number as text", "short trace id", "bare group"],
)
def test_schema_refuses_what_is_no_line(line):
    good = {
        "event": "request",
        **log_line(RequestRecord(Recording(), protocol="http", path="/")),
    }
    VALIDATOR.validate(good)

    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({**good, **line} if line else {})


def undescribed(properties):
    for name, schema in properties.items():
        if "description" not in schema:
            yield name
        yield from undescribed(schema.get("items", schema).get("properties", {}))


@pytest.mark.parametrize("part", ["line", *(name for name, part in SCHEMA["$defs"].items() if "properties" in part)])
def test_schema_describes_every_key(part):
    schema = SCHEMA if part == "line" else SCHEMA["$defs"][part]

    assert list(undescribed(schema["properties"])) == []


def test_json_renderer_prints_one_valid_object_per_line(app, capsys):
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ]
    )

    get(app)
    get(app)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        VALIDATOR.validate(json.loads(line))


def test_line_goes_through_the_standard_library(app):
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    printed = []
    handler = logging.Handler()
    handler.emit = lambda record: printed.append(handler.format(record))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
        )
    )
    logger = logging.getLogger("sqltrace")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        get(app)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)

    line = json.loads(printed[0])
    VALIDATOR.validate(line)
    assert line["logger"] == "sqltrace"


@pytest.mark.parametrize("cached", [False, True], ids=["bound each time", "bound once"])
def test_line_follows_a_configuration_that_changes(app, capsys, cached):
    def path_only(logger, method, event):
        return event["url.path"]

    sink = sqltrace.sinks.StructlogSink()
    structlog.configure(processors=[path_only], cache_logger_on_first_use=cached)
    get(app, sinks=[sink])
    structlog.configure(processors=[structlog.processors.JSONRenderer()], cache_logger_on_first_use=cached)
    get(app, sinks=[sink])
    with structlog.testing.capture_logs() as captured:
        get(app, sinks=[sink])
    structlog.reset_defaults()
    get(app, sinks=[sink])

    first, second, readable = capsys.readouterr().out.split("\n", 2)
    assert first == "/people/ada"
    VALIDATOR.validate(json.loads(second))
    assert [line["url.path"] for line in captured] == ["/people/ada"]
    assert "GET /people/{name}  200" in readable


class Asynchronous(structlog.stdlib.BoundLogger):
    async def info(self, event, **values):
        super().info(event, **values)


@pytest.mark.parametrize("given", [False, True], ids=["configured", "given"])
@pytest.mark.parametrize("cached", [False, True], ids=["bound each time", "bound once"])
def test_line_reaches_an_application_whose_structlog_is_asynchronous(app, capsys, no_faults, given, cached):
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.stdlib.AsyncBoundLogger,
        cache_logger_on_first_use=cached,
    )
    sink = sqltrace.sinks.StructlogSink(logger=structlog.get_logger("mine") if given else None)

    get(app, sinks=[sink])
    get(app, sinks=[sink])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["url.path"], line["level"]) for line in lines] == [("/people/ada", "info")] * 2


def test_logger_that_is_asynchronous_in_another_way_is_told_to_be_none_for_this(app, caplog):
    structlog.configure(wrapper_class=Asynchronous)

    answer = get(app)

    [fault] = [record for record in caplog.records if record.name == "sqltrace"]
    assert answer.status_code == 200
    assert str(fault.exc_info[1]) == (
        "structlog's logger must be synchronous, got Asynchronous.info(), which is not: give StructlogSink(logger=…) one"
    )


@pytest.mark.skipif(
    not hasattr(structlog.make_filtering_bound_logger(logging.WARNING), "is_enabled_for"),
    reason="structlog before 25.1 does not tell its level",
)
def test_line_below_the_level_of_structlog_is_not_made(app, capsys, monkeypatch):
    made = []

    def spy(record, **options):
        made.append(record)
        return log_line(record, **options)

    monkeypatch.setattr("sqltrace.sinks.structlog.log_line", spy)
    filtering = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(processors=[structlog.processors.JSONRenderer()], wrapper_class=filtering)

    get(app)
    assert made == []
    get(app, sinks=[sqltrace.sinks.StructlogSink(slow=0.0)])

    [line] = capsys.readouterr().out.splitlines()
    assert (len(made), json.loads(line)["url.path"]) == (1, "/people/ada")


def test_logger_whose_methods_are_the_applications_own_gets_every_line(app):
    told = []

    class Audited(structlog.make_filtering_bound_logger(logging.WARNING)):
        def info(self, event, **values):
            told.append(values["url.path"])

        @staticmethod
        def is_enabled_for(name):
            return False

    structlog.configure(wrapper_class=Audited)

    get(app)

    assert told == ["/people/ada"]


def test_values_bound_by_the_application_are_merged():
    async def application(scope, receive, send):
        with structlog.contextvars.bound_contextvars(request_id="r-1", outcome="not yours"):
            await JSONResponse({})(scope, receive, send)
        structlog.contextvars.bind_contextvars(user="ada")

    with structlog.testing.capture_logs() as lines:
        TestClient(sqltrace.SQLTraceMiddleware(application)).get("/")

    assert (lines[0]["request_id"], lines[0]["user"], lines[0]["outcome"]) == ("r-1", "ada", "ok")


@pytest.mark.parametrize(
    ("status", "duration", "level"),
    [(200, 0.1, "info"), (404, 0.1, "info"), (200, 1.0, "warning"), (503, 0.1, "error"), (503, 2.0, "error")],
)
def test_level_follows_outcome_and_duration(clock, status, duration, level):
    async def application(scope, receive, send):
        clock.advance(duration)
        await JSONResponse({}, status)(scope, receive, send)

    with structlog.testing.capture_logs() as lines:
        TestClient(timed(application, clock)).get("/")

    assert lines[0]["log_level"] == level


@pytest.mark.parametrize(("until_accepted", "level"), [(0.1, "info"), (1.0, "warning")])
def test_websocket_is_slow_until_it_is_accepted_and_not_because_it_lives(clock, until_accepted, level):
    async def application(scope, receive, send):
        clock.advance(until_accepted)
        await send({"type": "websocket.accept"})
        clock.advance(3_600)
        await send({"type": "websocket.close"})

    with (
        structlog.testing.capture_logs() as lines,
        TestClient(timed(application, clock, rules=[])).websocket_connect("/") as client,
    ):
        client.receive()

    assert [(line["log_level"], line["duration_ms"]) for line in lines] == [(level, 3_600_000 + 1_000 * until_accepted)]


@pytest.mark.parametrize(("until_begun", "level"), [(0.1, "info"), (1.0, "warning")])
def test_event_stream_is_slow_until_it_begins_and_not_because_it_lives(clock, until_begun, level):
    async def events():
        yield "data: 1\n\n"
        clock.advance(3_600)
        yield "data: 2\n\n"

    async def application(scope, receive, send):
        clock.advance(until_begun)
        await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)

    with structlog.testing.capture_logs() as lines:
        TestClient(timed(application, clock, rules=[])).get("/")

    assert [line["log_level"] for line in lines] == [level]


def test_stream_that_names_events_in_another_header_is_slow_as_any_other(clock):
    async def application(scope, receive, send):
        response = JSONResponse({}, headers={"x-accepts": "text/event-stream"})
        await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        clock.advance(2)
        await send({"type": "http.response.body", "body": response.body})

    with structlog.testing.capture_logs() as lines:
        TestClient(timed(application, clock, rules=[])).get("/")

    assert [line["log_level"] for line in lines] == ["warning"]


def test_unconfigured_structlog_prints_something_readable(app, capsys):
    get(app)

    printed = capsys.readouterr().out
    assert "info    GET /people/{name}  200" in printed
    assert "5 statements, 2 distinct" in printed
    assert "1 failed; 1 more after the response" in printed
    assert "4 ×" in printed
    assert "in app.<locals>.endpoint" in printed
    assert "\x1b[" not in printed


def test_top_0_tells_counts_and_times_only(app):
    with structlog.testing.capture_logs() as lines:
        get(app, sinks=[sqltrace.sinks.StructlogSink(top=0)])

    assert (lines[0]["sql.count"] > 0, lines[0]["sql.statements"]) == (True, [])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"logger": "sqltrace"}, TypeError, "logger must be a structlog logger, got 'sqltrace'"),
        (
            {"logger": logging.getLogger("mine")},
            TypeError,
            r"logger must be a structlog logger, got <Logger mine \(\w+\)>: write structlog.wrap_logger\(…\)",
        ),
        ({"logger": structlog.PrintLogger()}, TypeError, r"logger must be a structlog logger, got <PrintLogger"),
        ({"logger": structlog.BoundLogger}, TypeError, "logger must be an object, got the class BoundLogger"),
        ({"logger": structlog.get_logger}, TypeError, "logger must be a structlog logger, got <function get_logger"),
        ({"slow": "1s"}, TypeError, "slow must be a number, got '1s'"),
        ({"slow": -1}, ValueError, "slow must be at least 0, got -1"),
        ({"slow": float("nan")}, ValueError, "slow must be at least 0, got nan"),
        ({"top": 2.5}, TypeError, "top must be an int, got 2.5"),
        ({"top": -1}, ValueError, "top must be at least 0, got -1"),
        ({"literals": "x"}, TypeError, "literals must be True or False, got 'x'"),
        ({"verbose": True}, TypeError, "unexpected keyword argument 'verbose'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sqltrace.sinks.StructlogSink(**options)


def test_line_tells_connections_and_groups_as_the_recording_does(engine):
    with sqltrace.record() as recording, engine.connect() as connection:
        for number in range(3):
            connection.execute(text("SELECT :number"), {"number": number})
            connection.commit()

    line, use, [group] = log_line(RequestRecord(recording, "http", "/")), recording.connections, recording.groups
    for name in ("wait", "held", "commit", "idle_in_transaction"):
        assert line[f"connection.{name}_ms"] == pytest.approx(getattr(use, name) * 1_000, abs=0.001)
    assert use.commit > 0
    [told] = line["sql.statements"]
    assert told["total_ms"] == pytest.approx(group.total * 1_000, abs=0.001)
    assert told["max_ms"] == pytest.approx(group.max * 1_000, abs=0.001)
    assert group.max < group.total


@pytest.mark.parametrize("closed", [True, False], ids=["folded", "open"])
def test_line_tells_what_of_the_commits_was_after_the_response(engine, closed):
    def commit(connection):
        connection.execute(text("SELECT 1"))
        connection.commit()

    with sqltrace.record() as outer, sqltrace.record() as recording:
        with engine.connect() as connection:
            commit(connection)
            if not closed:
                recording.end_response()
                commit(connection)
        in_response = recording.connections.commit - recording.connections.commit_after_response
        if closed:
            recording.end_response()
            with engine.connect() as connection:
                commit(connection)

    line, use = log_line(RequestRecord(recording, "http", "/")), recording.connections
    assert 0 < use.commit_after_response < use.commit
    assert use.commit - use.commit_after_response == pytest.approx(in_response)
    assert line["connection.commit_after_response_ms"] == pytest.approx(use.commit_after_response * 1_000, abs=0.001)
    assert "connection.commit_after_response_ms" not in log_line(RequestRecord(outer, "http", "/"))


def test_line_tells_what_a_group_has_measured(engine):
    async def work():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1 UNION SELECT 2")).all()

    with sqltrace.record() as recording:
        asyncio.run(work())
        time.sleep(0.13)
    [group] = recording.groups
    group.objects, group.loop_wait, group.gil_wait = 0.5, 0.25, 0.125

    line = log_line(RequestRecord(recording, "http", "/"))

    assert (line["sql.rows"], line["sql.on_loop"], line["python.gil_wait_ms"]) == (2, 1, 125.0)
    times = {"objects_ms": 500.0, "loop_wait_ms": 250.0, "gil_wait_ms": 125.0}
    told = {key: line["sql.statements"][0].get(key) for key in ("rows", "on_loop", *times)}
    assert told == {"rows": 2, "on_loop": 1, **times}


def test_line_has_no_checkouts_where_connections_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(connection, "unmeasurable_times", {*connection.TIMES})
    with sqltrace.record() as recording:
        pass

    line = log_line(RequestRecord(recording, "http", "/"))

    assert [key for key in line if key.startswith("connection.")] == []


@pytest.mark.parametrize(("seconds", "told"), [(0.2500004, 250.0), (0.2500006, 250.001), (0.0000005, 0.001)])
def test_milliseconds_are_rounded_to_microseconds(seconds, told):
    clock = Clock()
    recording = Recording(clock=clock)
    clock.advance(seconds)
    recording.end()

    assert log_line(RequestRecord(recording, "http", "/"))["duration_ms"] == told


@pytest.mark.parametrize("overflow", [0, 1])
def test_line_tells_the_overflow_of_a_pool_that_has_one(tmp_path, overflow):
    options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": overflow, "pool_timeout": 0.01}
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", **options)
    held = [engine.connect() for _ in range(1 + overflow)]
    with sqltrace.record() as recording, pytest.raises(PoolTimeoutError):
        engine.connect()
    for one in held:
        one.close()
    engine.dispose()

    [wait] = log_line(RequestRecord(recording, "http", "/"))["connection.waits"]

    assert (wait["in_use"], wait.get("overflow")) == (1 + overflow, overflow or None)


def test_line_tells_who_held_the_connections_that_were_waited_for(tmp_path):
    options = {"poolclass": QueuePool, "pool_size": 2, "max_overflow": 0, "pool_timeout": 0.01}
    engine = create_engine(f"sqlite:///{tmp_path}/app.db", **options)
    with sqltrace.record():
        with sqltrace.record("sibling"):
            held = [engine.connect()]
        with sqltrace.record("victim") as victim, pytest.raises(PoolTimeoutError):
            held.append(engine.connect())
            engine.connect()
        with sqltrace.record("stranger") as stranger, pytest.raises(PoolTimeoutError):
            engine.connect()
    for one in held:
        one.close()
    engine.dispose()

    def told(recording):
        [wait] = log_line(RequestRecord(recording, "http", "/"))["connection.waits"]
        return wait.get("self_deadlock"), {(holder["name"], holder.get("own")) for holder in wait["held_by"]}

    assert told(victim) == (True, {("sibling", None), ("victim", True)})
    assert told(stranger) == (None, {("sibling", None), ("victim", None)})


@pytest.mark.parametrize(
    ("wait", "told"),
    [
        (ThreadWait(0.5, 40, (("GET /", 2.46),)), {"threads.count": 40, "threads.used_by": [{"name": "GET /", "threads": 2.5}]}),
        (ThreadWait(0.5, None, ()), {}),
    ],
    ids=["known", "unknown"],
)  # fmt: skip
def test_line_tells_who_used_the_threads_that_were_waited_for_where_that_is_known(wait, told):
    assert known(_threads(wait)) == {"threads.wait_ms": 500.0, **told}
