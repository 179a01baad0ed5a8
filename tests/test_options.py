import re
from functools import partial

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.findings import default_rules, n_plus_one, slow_statement
from sqltrace.sinks import StructlogSink
from tests.asgi import BODY, START, Witness, http_scope, run, sends


async def asynchronous_rule(recording):
    return []


class Half:
    def response_ready(self, record):
        pass

    request_finished = None

    def __repr__(self):
        return "<half a sink>"


class Asynchronous:
    def response_ready(self, record):
        pass

    async def request_finished(self, record):
        pass


async def is_health(scope):
    return scope["path"] == "/health"


class IsHealth:
    async def __call__(self, scope):
        return await is_health(scope)

    def __repr__(self):
        return "IsHealth()"


class Unasked:
    def __call__(self):
        return True

    def __repr__(self):
        return "Unasked()"


class Asked:
    def __call__(self, recording, *, slow=1.0):
        return []


class AsynchronousRule:
    async def __call__(self, recording):
        return []


PATTERN = "exclude must hold path prefixes, got the pattern {}: write {}a callable that takes the scope"


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"sinks": "structlog"}, TypeError, "sinks must be a sequence of sinks, got 'structlog': write [sink]"),
        ({"rules": "n_plus_one"}, TypeError, "rules must be a sequence of functions, got 'n_plus_one': write [rule]"),
        ({"rules": len}, TypeError, "rules must be a sequence of functions, got <built-in function len>: write [rule]"),
        ({"rules": ["n"]}, TypeError, "a rule must be a function that takes a recording, got 'n'"),
        (
            {"rules": default_rules},
            TypeError,
            "rules must be a sequence of functions, got the function default_rules: write default_rules()",
        ),
        (
            {"rules": [default_rules]},
            TypeError,
            "a rule must be a function that takes a recording, got default_rules(): too many positional arguments",
        ),
        (
            {"rules": [partial(slow_statement, slwo=1)]},
            TypeError,
            "a rule must be a function that takes a recording, got slow_statement(recording, slow, rows):"
            " got an unexpected keyword argument 'slwo'",
        ),
        (
            {"rules": [partial(Asked(), slwo=1)]},
            TypeError,
            "a rule must be a function that takes a recording, got Asked(recording, slow):"
            " got an unexpected keyword argument 'slwo'",
        ),
        (
            {"rules": [AsynchronousRule()]},
            TypeError,
            "a rule must be a plain function, got an async one: AsynchronousRule",
        ),
        (
            {"rules": [asynchronous_rule]},
            TypeError,
            "a rule must be a plain function, got an async one: asynchronous_rule",
        ),
        ({"sinks": 5}, TypeError, "sinks must be a sequence of sinks, got 5: write [sink]"),
        ({"sinks": [print]}, TypeError, "a sink needs a method response_ready(record), got <built-in function print>"),
        ({"sinks": [Half()]}, TypeError, "a sink needs a method request_finished(record), got <half a sink>"),
        (
            {"sinks": [StructlogSink]},
            TypeError,
            "sinks must be objects, got the class StructlogSink: write StructlogSink()",
        ),
        (
            {"sinks": [Asynchronous()]},
            TypeError,
            "Asynchronous.request_finished() must be a plain function, got an async one",
        ),
        (
            {"exclude": "/health"},
            TypeError,
            "exclude must be a sequence of path prefixes or a callable, got '/health': write ['/health']",
        ),
        (
            {"exclude": 5},
            TypeError,
            "exclude must be a sequence of path prefixes or a callable, got 5: write ['/health']",
        ),
        ({"exclude": [re.compile("/h")]}, TypeError, "exclude must hold path prefixes as str, got re.compile('/h')"),
        ({"exclude": ["health"]}, ValueError, "exclude must hold paths that begin with '/', got 'health'"),
        ({"exclude": [""]}, ValueError, "exclude must hold paths that begin with '/', got ''"),
        (
            {"exclude": ["/static/*"]},
            ValueError,
            PATTERN.format("'/static/*'", "'/static' for all that is below it, or "),
        ),
        ({"exclude": ["/v*/health"]}, ValueError, PATTERN.format("'/v*/health'", "")),
        ({"exclude": ["/tags/{tag_id}"]}, ValueError, PATTERN.format("'/tags/{tag_id}'", "")),
        (
            {"exclude": Unasked()},
            TypeError,
            "exclude must be a function that takes the scope, got Unasked(): too many positional arguments",
        ),
        ({"exclude": IsHealth()}, TypeError, "exclude must be a plain function, got an async one: IsHealth()"),
        ({"engines": 5}, TypeError, "engines must be a sequence of engines, got 5: write [engine]"),
        ({"engines": "sqlite://"}, TypeError, "engines must be a sequence of engines, got 'sqlite://': write [engine]"),
        ({"engines": []}, ValueError, "engines is empty: leave it out to record every engine"),
        ({"engines": ["sqlite://"]}, TypeError, "expected a SQLAlchemy Engine or AsyncEngine, got str: 'sqlite://'"),
        ({"capture_parameters": 1}, TypeError, "capture_parameters must be True or False, got 1"),
        ({"max_statements": "500"}, TypeError, "max_statements must be an int, got '500'"),
        ({"max_statements": True}, TypeError, "max_statements must be an int, got True"),
        ({"max_statements": 0}, ValueError, "max_statements must be at least 1, got 0"),
        ({"max_sql_length": 1.5}, TypeError, "max_sql_length must be an int, got 1.5"),
        ({"max_sql_length": -1}, ValueError, "max_sql_length must be at least 1, got -1"),
    ],
)
def test_wrong_option_says_what_was_got_and_what_is_wanted(option, error, message):
    with pytest.raises(error) as raised:
        SQLTraceMiddleware(sends(START, BODY), **option)

    assert str(raised.value) == message


@pytest.mark.parametrize(
    "option",
    [
        {"exclude": None},
        {"exclude": {"path": True}.get},
        {"exclude": lambda scope, *, more=(): False},
        {"rules": [partial(slow_statement, slow=1.0), Asked(), partial(partial(n_plus_one, loads=2), queries=3)]},
        {"rules": [iter]},
    ],
    ids=["no exclude", "builtin", "defaults", "rules", "rule without a signature"],
)
def test_option_that_can_be_used_is_taken(option):
    sent = run(SQLTraceMiddleware(sends(START, BODY), sinks=[], **option), http_scope())

    assert sent == [START, BODY]


def test_async_function_as_exclude_is_refused():
    with pytest.raises(TypeError, match="exclude must be a plain function, got an async one"):
        SQLTraceMiddleware(sends(START, BODY), exclude=is_health)


@pytest.mark.parametrize("make_engine", [create_engine, create_async_engine])
def test_single_engine_is_refused_with_the_remedy(make_engine):
    engine = make_engine("sqlite+aiosqlite://" if make_engine is create_async_engine else "sqlite://")

    with pytest.raises(TypeError, match=r"engines must be a sequence of engines, got .*: write \[engine\]"):
        SQLTraceMiddleware(sends(START, BODY), engines=engine)


@pytest.mark.parametrize(
    "url", ["postgresql://user:s3cr3t@db/shop", "mysql://db/shop?user=a&password=s3cr3t", "oracle://a:it's3cr3t@db"]
)
def test_message_about_a_url_in_place_of_an_engine_has_no_password(url):
    for engines in (url, [url], {"shop": url}.values()):
        with pytest.raises(TypeError, match="got ") as raised:
            SQLTraceMiddleware(sends(START, BODY), engines=engines)

        assert "s3cr3t" not in str(raised.value)
    assert str(raised.value).endswith(f"{url.partition('//')[0]}//…")


def test_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'engine'"):
        SQLTraceMiddleware(sends(START, BODY), engine=None)


def test_long_values_are_cut_in_messages():
    with pytest.raises(TypeError) as raised:
        SQLTraceMiddleware(sends(START, BODY), exclude=[b"/" * 10_000])

    assert len(str(raised.value)) < 200


def test_wrong_option_instruments_nothing():
    with pytest.raises(TypeError):
        SQLTraceMiddleware(sends(START, BODY), max_statements="500")

    engine, before = create_engine("sqlite://"), sqltrace.missed_statements()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    assert sqltrace.missed_statements() == before


def test_sinks_may_come_from_a_generator():
    sinks = [Witness(), Witness()]

    run(SQLTraceMiddleware(sends(START, BODY), sinks=(sink for sink in sinks)), http_scope())

    assert [sink.moments for sink in sinks] == [["response_ready", "request_finished"]] * 2


def test_engines_may_come_from_a_generator_and_stay_the_only_ones():
    sink, wanted, other = Witness(), create_engine("sqlite://"), create_engine("sqlite://")

    async def app(scope, receive, send):
        for engine in (wanted, other):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        await sends(START, BODY)(scope, receive, send)

    run(SQLTraceMiddleware(app, sinks=[sink], engines=(engine for engine in [wanted])), http_scope())

    assert sink.record.recording.statement_count == 1
    wanted.dispose()
    other.dispose()


def test_options_of_the_recording_reach_it():
    sink, engine = Witness(), create_engine("sqlite://")

    async def app(scope, receive, send):
        with engine.connect() as connection:
            for number in range(3):
                connection.execute(text(f"SELECT :number, {number}"), {"number": 5})
        await sends(START, BODY)(scope, receive, send)

    options = {"capture_parameters": True, "max_statements": 2, "max_sql_length": 8}
    run(SQLTraceMiddleware(app, sinks=[sink], **options), http_scope())

    recording = sink.record.recording
    assert recording.statement_count == 3
    assert [(statement.sql, statement.parameters) for statement in recording.statements] == [("SELECT ?", "(5,)")] * 2
    engine.dispose()


def test_by_default_500_statements_are_kept_without_their_parameters():
    sink, engine = Witness(), create_engine("sqlite://")

    async def app(scope, receive, send):
        with engine.connect() as connection:
            for _ in range(501):
                connection.execute(text(f"SELECT :secret, '{'x' * 10_000}'"), {"secret": 5})
        await sends(START, BODY)(scope, receive, send)

    run(SQLTraceMiddleware(app, sinks=[sink]), http_scope())

    statements = sink.record.recording.statements
    assert sink.record.recording.statement_count == 501
    assert len(statements) == 500
    assert {(len(statement.sql), statement.parameters) for statement in statements} == {(10_000, None)}
    engine.dispose()


def test_options_are_checked_when_the_application_is_built():
    app = Starlette()
    app.add_middleware(SQLTraceMiddleware, exclude="/health")

    with pytest.raises(TypeError, match="exclude must be a sequence"), TestClient(app):
        pass
