import asyncio
import contextvars
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from tests.asgi import BODY, START, Witness, http_scope, run, select, sends, websocket_scope


def test_request_is_told_with_its_facts(witness):
    app = Starlette(routes=[Route("/items/{item}", lambda request: PlainTextResponse("fine"), methods=["POST"])])

    TestClient(SQLTraceMiddleware(app, sinks=[witness])).post("/items/5?secret=1")

    record = witness.record
    assert (record.protocol, record.method, record.path, record.route) == ("http", "POST", "/items/5", "/items/{item}")
    assert (record.status, record.outcome, record.error_type) == (200, "ok", None)
    assert record.client_address == "testclient"
    assert (record.trace_id, record.span_id) == (None, None)
    assert record.started_at == record.recording.started_at
    assert 0 < record.time_to_first_byte <= record.duration < 30


@pytest.mark.parametrize("make_scope", [http_scope, websocket_scope])
def test_scope_without_method_and_client_is_recorded(witness, make_scope):
    scope = make_scope("/x")
    scope.pop("method", None)

    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), scope)

    assert (witness.record.method, witness.record.client_address) == (None, None)
    assert witness.record.recording.name == f"{scope['type'].upper()} /x"


@pytest.mark.parametrize("client", [None, (), ["", 0]], ids=repr)
def test_client_without_an_address_has_none(witness, client):
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope(client=client))

    assert witness.record.client_address is None


def test_headers_that_can_be_read_once_reach_the_client(witness):
    headers = [(b"content-type", b"text/plain")]
    start = START | {"headers": iter(headers)}

    sent = run(SQLTraceMiddleware(sends(start, BODY), sinks=[witness]), http_scope())

    assert list(sent[0]["headers"]) == headers


def test_scope_without_path_is_recorded(witness):
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness], exclude=["/health"]), {"type": "http"})

    assert (witness.record.path, witness.record.outcome) == ("", "ok")


@pytest.mark.parametrize(
    "scope", [{"type": "lifespan"}, {"type": "mqtt", "path": "/"}, {}], ids=["lifespan", "unknown", "empty"]
)
def test_other_scopes_are_passed_on_untouched(witness, scope):
    async def app(*arguments):
        passed.append(arguments)

    async def receive():
        raise AssertionError

    async def send(message):
        raise AssertionError

    passed, before = [], dict(scope)
    asyncio.run(SQLTraceMiddleware(app, sinks=[witness])(scope, receive, send))

    [(scope_passed, receive_passed, send_passed)] = passed
    assert scope_passed is scope
    assert scope == before
    assert (receive_passed, send_passed) == (receive, send)
    assert witness.moments == []


def test_lifespan_of_the_application_runs(witness):
    @asynccontextmanager
    async def lifespan(app):
        seen.append("start")
        yield {"answer": 42}
        seen.append("stop")

    seen = []
    app = Starlette(
        lifespan=lifespan, routes=[Route("/", lambda request: PlainTextResponse(str(request.state.answer)))]
    )
    with TestClient(SQLTraceMiddleware(app, sinks=[witness])) as client:
        assert client.get("/").text == "42"

    assert seen == ["start", "stop"]
    assert len(witness.records) == 1


def test_messages_pass_through_as_they_are(witness):
    async def app(scope, receive, send):
        received.append(await receive())
        await send(START)
        await send(BODY)

    question, received = {"type": "http.request", "body": b"?"}, []
    sent = run(SQLTraceMiddleware(app, sinks=[witness]), http_scope(), [question])

    assert received[0] is question
    assert [id(message) for message in sent] == [id(START), id(BODY)]


@pytest.mark.parametrize(
    ("path", "root_path", "excluded"),
    [
        ("/health", "", True),
        ("/health/db", "", True),
        ("/healthy", "", False),
        ("/static/app.js", "", True),
        ("/static", "", False),
        ("/api/health", "/api", True),
        ("/health", "/api", True),
        ("/api/health", "", False),
        ("/health", None, True),
        ("/", "", False),
    ],
)
def test_excluded_prefixes_match_whole_segments_below_the_root_path(witness, path, root_path, excluded):
    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[witness], exclude=["/health", "/static/"])

    run(middleware, http_scope(path, root_path=root_path))

    assert witness.records == [] if excluded else len(witness.records) == 1


def test_excluded_root_is_everything(witness):
    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[witness], exclude=["/"])

    for scope in (http_scope("/"), http_scope("/a/b"), http_scope("/api", root_path="/api")):
        run(middleware, scope)

    assert witness.records == []


def test_excluded_websocket_is_passed_on(witness):
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness], exclude=["/live"]), websocket_scope("/live"))

    assert witness.records == []


def test_callable_decides_what_is_excluded(witness):
    middleware = SQLTraceMiddleware(
        sends(START, BODY), sinks=[witness], exclude=lambda scope: (b"x-probe", b"1") in scope["headers"]
    )

    run(middleware, http_scope("/a", headers=[(b"x-probe", b"1")]))
    run(middleware, http_scope("/b"))

    assert witness.record.path == "/b"


def test_statement_of_an_excluded_request_is_in_no_recording(witness, memory_engine):
    async def app(scope, receive, send):
        select(memory_engine)
        await sends(START, BODY)(scope, receive, send)

    before = sqltrace.missed_statements().unattributed
    run(SQLTraceMiddleware(app, sinks=[witness], exclude=["/health"]), http_scope("/health"))

    assert sqltrace.missed_statements().unattributed == before + 1


def test_excluded_request_that_is_abandoned_leaves_the_context_alone_in_which_it_is_found(memory_engine):
    async def app(scope, receive, send):
        await asyncio.sleep(60)

    async def main():
        middleware = SQLTraceMiddleware(app, sinks=[], exclude=["/health"])
        begun = middleware(http_scope("/health"), None, None)
        contextvars.copy_context().run(begun.send, None)
        with sqltrace.record() as recording:
            begun.close()  # as a garbage collection does
            select(memory_engine)
        return recording

    assert asyncio.run(main()).statement_count == 1


class Interrupted(Witness):
    """Is interrupted when it has looked at the statements of a request."""

    def response_ready(self, record):
        assert record.recording.groups == []
        raise KeyboardInterrupt


def test_interrupt_of_a_sink_reaches_the_application_and_what_comes_after_it_is_told(memory_engine):
    witness = Interrupted()

    async def app(scope, receive, send):
        await send(START)
        with pytest.raises(KeyboardInterrupt):
            await send(BODY)
        select(memory_engine)

    run(SQLTraceMiddleware(app, sinks=[witness]), http_scope())

    assert [group.summary for group in witness.record.recording.groups] == ["SELECT"]
