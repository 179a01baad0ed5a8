"""Whoever makes the server span: there is one, and the statements are below it."""

import pytest
from opentelemetry.trace import format_span_id, format_trace_id
from starlette.testclient import TestClient

from tests.telemetry import (
    INCOMING,
    PARENT_ID,
    STACKS,
    TRACE_ID,
    around_contrib_starlette,
    is_below,
    outside_added_contrib_asgi,
    server_span,
    statement_spans,
    traced,
)

pytestmark = [
    pytest.mark.usefixtures("no_faults", "unpatched"),
    # Contrib packages and what they use warn of each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:opentelemetry.*"),
    pytest.mark.filterwarnings("ignore:pkg_resources"),
]


# An exception has ended the span of an instrumentation further in before anything of it comes by here.
UNSEEN = [(outside_added_contrib_asgi, "/fail"), (around_contrib_starlette, "/fail")]


def ask(app, path):
    client = TestClient(app, raise_server_exceptions=False)
    if path != "/socket":
        return client.get(path, headers=INCOMING)
    with client.websocket_connect(path, headers=INCOMING) as websocket:
        websocket.send_text("hello")
        return websocket.receive_text()


@pytest.mark.parametrize("path", ["/sync/5", "/async", "/stream", "/fail", "/background", "/socket", "/sub/a/items/5"])
@pytest.mark.parametrize("stack", STACKS)
def test_there_is_one_server_span_and_the_statements_are_within_it(memory_engine, tracing, caplog, stack, path):
    ask(traced(stack, memory_engine, tracing.provider), path)

    spans = tracing.spans()
    server, statements = server_span(spans), statement_spans(spans)
    assert len(statements) == 2
    assert all(is_below(span, server, spans) for span in statements)
    slack = 5_000_000  # two clocks, read one after the other
    for span in statements[: 1 if path == "/background" else None]:
        assert server.start_time - slack <= span.start_time <= span.end_time <= server.end_time + slack
    if (stack, path) not in UNSEEN:
        assert server.attributes["sqltrace.statement.count"] == (1 if path == "/background" else 2)
    assert (format_trace_id(server.context.trace_id), format_span_id(server.parent.span_id)) == (TRACE_ID, PARENT_ID)
    assert tracing.unfinished == 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []
