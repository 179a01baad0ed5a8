"""What goes wrong in sqltrace or in a sink stays there, and is said once."""

import logging
from asyncio import CancelledError
from types import MappingProxyType

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, func, select
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.capture import statements
from sqltrace.recording import Recording
from tests.asgi import BODY, START, Witness, http_scope, run, sends, websocket_scope

books = Table("books", MetaData(), Column("id", Integer, primary_key=True), Column("title", String))


@pytest.fixture
def engine():
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    books.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def app(engine):
    """Adds a book in a transaction, and answers with all titles."""

    def endpoint(request):
        with engine.begin() as connection:
            connection.execute(books.insert().values(title=request.path_params["title"]))
        with engine.connect() as connection:
            return JSONResponse(connection.scalars(select(books.c.title).order_by(books.c.id)).all())

    return Starlette(routes=[Route("/{title}", endpoint)])


@pytest.fixture
def faults(caplog):
    """What was said on the logger `sqltrace`."""
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sqltrace"]


class RaisesInBoth(Witness):
    def response_ready(self, record):
        super().response_ready(record)
        raise RuntimeError("ready")

    def request_finished(self, record):
        super().request_finished(record)
        raise RuntimeError("finished")


class LosesItsMethods(Witness):
    def response_ready(self, record):
        LosesItsMethods.request_finished = None


def test_sink_that_raises_is_reported_once_and_the_next_one_is_told(app, faults):
    raising, after = RaisesInBoth(), Witness()
    client = TestClient(SQLTraceMiddleware(app, sinks=[raising, after]))

    answers = [client.get(f"/{title}").json() for title in ("Emma", "Ulysses")]

    assert answers == [["Emma"], ["Emma", "Ulysses"]]
    assert raising.moments == after.moments == ["response_ready", "request_finished"] * 2
    assert [record.outcome for record in after.records] == ["ok", "ok"]
    assert faults() == [
        "RaisesInBoth.response_ready() failed and is skipped; the application is not affected",
        "RaisesInBoth.request_finished() failed and is skipped; the application is not affected",
    ]


def test_sink_that_looks_at_a_cancelled_task_cancels_no_request(app, faults):
    class Looks(Witness):
        def response_ready(self, record):
            super().response_ready(record)
            raise CancelledError

    witness = Looks()

    assert TestClient(SQLTraceMiddleware(app, sinks=[witness])).get("/Emma").json() == ["Emma"]

    assert witness.record.outcome == "ok"
    assert faults() == ["Looks.response_ready() failed and is skipped; the application is not affected"]


def test_report_of_a_sink_has_its_traceback(app, caplog):
    TestClient(SQLTraceMiddleware(app, sinks=[RaisesInBoth()])).get("/Emma")

    assert 'raise RuntimeError("ready")' in caplog.text
    assert {record.levelno for record in caplog.records if record.name == "sqltrace"} == {logging.ERROR}


def test_sink_that_loses_its_methods_is_reported(app, faults):
    answer = TestClient(SQLTraceMiddleware(app, sinks=[LosesItsMethods()])).get("/Emma")

    assert answer.json() == ["Emma"]
    assert faults() == ["LosesItsMethods.request_finished() failed and is skipped; the application is not affected"]


def test_sink_that_raises_does_not_replace_the_exception_of_the_application(faults):
    async def app(scope, receive, send):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as raised:
        run(SQLTraceMiddleware(app, sinks=[RaisesInBoth()]), http_scope())

    assert (raised.value.__context__, raised.value.__cause__) == (None, None)
    assert len(faults()) == 1


def test_exclude_that_raises_excludes_nothing_and_is_reported_once(faults):
    def exclude(scope):
        return scope["no such key"]

    witness = Witness()
    middleware = SQLTraceMiddleware(sends(START, BODY), sinks=[witness], exclude=exclude)

    run(middleware, http_scope("/a"))
    run(middleware, http_scope("/b"))

    assert [record.path for record in witness.records] == ["/a", "/b"]
    assert faults() == ["the `exclude` option failed and is skipped; the application is not affected"]


@pytest.mark.parametrize("broken", ["__init__", "open", "leave", "end", "end_response"])
@pytest.mark.parametrize("fails", [False, True], ids=["answers", "raises"])
def test_broken_recording_changes_no_answer_and_no_exception(monkeypatch, faults, broken, fails):
    def break_down(*arguments, **options):
        raise ArithmeticError(broken)

    async def app(scope, receive, send):
        await sends(START, BODY)(scope, receive, send)
        if fails:
            raise error

    monkeypatch.setattr(Recording, broken, break_down)
    error, middleware = ValueError("mine"), SQLTraceMiddleware(app, sinks=[Witness()])
    sent = []

    async def send(message):
        sent.append(message)

    if fails:
        with pytest.raises(ValueError, match="mine") as raised:
            run(middleware, http_scope(), send=send)
        assert raised.value is error
        assert (error.__context__, error.__cause__) == (None, None)
    else:
        run(middleware, http_scope(), send=send)

    assert sent == [START, BODY]
    assert len(faults()) == 1


def test_application_still_runs_in_a_scope_that_cannot_be_written_to(faults):
    sent = run(SQLTraceMiddleware(sends(START, BODY), sinks=[Witness()]), MappingProxyType(http_scope()))

    assert sent == [START, BODY]
    assert faults() == ["opening a recording failed and is skipped; the application is not affected"]
    assert sqltrace.current_recording() is None


STRANGE = [{}, {"type": None}, {"type": ["list"]}, {"type": "http.response.start"}, 5]


@pytest.mark.parametrize("message", STRANGE, ids=repr)
def test_strange_message_reaches_the_server_and_the_application_as_it_is(message):
    """It is for the server to refuse it, as it would without us."""

    async def app(scope, receive, send):
        received.append(await receive())
        await sends(message, START, BODY)(scope, receive, send)

    witness, received = Witness(), []
    sent = run(SQLTraceMiddleware(app, sinks=[witness]), websocket_scope(), [message])

    assert received == [message]
    assert sent == [message, START, BODY]
    assert (witness.record.status, witness.record.outcome) == (200, "ok")


def test_broken_capture_changes_no_result_and_no_transaction(monkeypatch, engine, app, faults):
    def break_down(*arguments):
        raise ArithmeticError("capture")

    witness = Witness()
    client = TestClient(SQLTraceMiddleware(app, sinks=[witness]))
    monkeypatch.setattr(statements, "find_call_site", break_down)

    answers = [client.get(f"/{title}").json() for title in ("Emma", "Ulysses")]

    assert answers == [["Emma"], ["Emma", "Ulysses"]]
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(books)) == 2
    assert [record.outcome for record in witness.records] == ["ok", "ok"]
    assert faults() == ["recording a statement failed and is skipped; the application is not affected"]


def test_logging_handler_that_raises_does_not_reach_the_response(app):
    class Raising(logging.Handler):
        def emit(self, record):
            raise RuntimeError("handler")

    handler, logger = Raising(), logging.getLogger("sqltrace")
    logger.addHandler(handler)
    try:
        answer = TestClient(SQLTraceMiddleware(app, sinks=[RaisesInBoth()])).get("/Emma")
    finally:
        logger.removeHandler(handler)

    assert answer.json() == ["Emma"]
