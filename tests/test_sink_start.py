"""The third moment of a sink, for those that want it."""

from contextvars import ContextVar

import pytest

from sqltrace import SQLTraceMiddleware
from sqltrace.sinks import Sink, StartingSink
from tests.asgi import BODY, START, Witness, call, http_scope, run, sends

seen = ContextVar("seen", default=None)


class Starting(Witness):
    def request_started(self, record, scope, app):
        self.moments.append("request_started")
        self.started = record, scope, app
        seen.set(record.path)


def test_sink_is_told_of_the_start_before_the_application():
    async def app(scope, receive, send):
        sink.moments.append("application")
        await call(sends(START, BODY), scope, send=send)

    sink, scope = Starting(), http_scope("/a")
    run(SQLTraceMiddleware(app, sinks=[sink]), scope)

    assert sink.moments == ["request_started", "application", "response_ready", "request_finished"]
    record, told_scope, told_app = sink.started
    assert (record.path, told_scope, told_app) == ("/a", scope, app)


def test_application_sees_what_is_set_in_a_context_variable():
    async def app(scope, receive, send):
        values.append(seen.get())
        await call(sends(START, BODY), scope, send=send)

    values = []
    run(SQLTraceMiddleware(app, sinks=[Starting()]), http_scope("/a"))

    assert values == ["/a"]


def test_sink_with_two_moments_is_one_still():
    witness = Witness()
    run(SQLTraceMiddleware(sends(START, BODY), sinks=[witness]), http_scope())

    assert witness.moments == ["response_ready", "request_finished"]
    assert isinstance(witness, Sink)
    assert not isinstance(witness, StartingSink)


def test_start_that_raises_is_reported_once_and_the_others_are_told(caplog):
    class Raising(Witness):
        def request_started(self, record, scope, app):
            raise RuntimeError("no")

    sinks = [Raising(), Starting()]
    app = SQLTraceMiddleware(sends(START, BODY), sinks=sinks)

    assert [run(app, http_scope()) for _ in range(2)] == [[START, BODY]] * 2
    assert sinks[1].moments == ["request_started", "response_ready", "request_finished"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "Raising.request_started() failed and is skipped; the application is not affected"
    ]


def test_async_start_is_refused():
    class Asynchronous(Witness):
        async def request_started(self, record, scope, app):
            pass

    with pytest.raises(TypeError, match=r"Asynchronous.request_started\(\) must be a plain function, got an async one"):
        SQLTraceMiddleware(sends(START, BODY), sinks=[Asynchronous()])


def test_start_that_is_no_function_is_refused():
    class Wrong(Witness):
        request_started = True

    with pytest.raises(TypeError, match=r"a sink needs a method request_started\(record, scope, app\), got"):
        SQLTraceMiddleware(sends(START, BODY), sinks=[Wrong()])
