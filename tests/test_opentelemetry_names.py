"""Every name on a span is one of the semantic conventions, and no deprecated one, or it is ours."""

from starlette.testclient import TestClient

from tests.telemetry import REQUIRED, attribute_names, plain, traced


def test_names_are_of_the_conventions_or_ours(memory_engine, tracing):
    client = TestClient(traced(plain, memory_engine, tracing.provider), raise_server_exceptions=False)
    for path in ("/sync/1?a=1", "/many/20", "/fail", "/background"):
        client.request("BREW" if "?" in path else "GET", path)
    with client.websocket_connect("/socket") as websocket:
        websocket.send_text("hello")

    known, deprecated = attribute_names()
    told = {name for span in tracing.spans() for name in span.attributes}
    assert len(known) > 500
    assert "db.system" in deprecated
    assert {name for name in told if not name.startswith("sqltrace.")} <= known - deprecated
    assert {name for name in told if name.startswith("sqltrace.") and name in known} == set()


def test_what_the_conventions_require_is_there(memory_engine, tracing):
    client = TestClient(traced(plain, memory_engine, tracing.provider), raise_server_exceptions=False)
    for path in ("/sync/1?a=1", "/many/20", "/fail", "/background"):
        client.get(path)

    missing = {span.name: REQUIRED[span.kind] - set(span.attributes) for span in tracing.spans()}
    assert {name: names for name, names in missing.items() if names} == {}
