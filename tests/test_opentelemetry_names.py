"""Every name on a span is one of the semantic conventions, and no deprecated one, or it is ours."""

import importlib
import inspect
import pkgutil
import re

import pytest
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

from tests.telemetry import plain, traced

semconv = pytest.importorskip("opentelemetry.semconv._incubating.attributes")
stable = pytest.importorskip("opentelemetry.semconv.attributes")


def conventions():
    """Names of attributes, and those that are deprecated."""
    known, deprecated = set(), set()
    for package in (semconv, stable):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            source = inspect.getsource(module)
            for constant, name in vars(module).items():
                if constant.isupper() and isinstance(name, str):
                    known.add(name)
                    text = re.search(rf'^{constant}: Final = .*\n(?:"""\n(.*\n)*?""")?', source, re.MULTILINE)
                    if text is not None and "Deprecated: " in text[0]:
                        deprecated.add(name)
    return known, deprecated


def test_names_are_of_the_conventions_or_ours(memory_engine, tracing):
    client = TestClient(traced(plain, memory_engine, tracing.provider), raise_server_exceptions=False)
    for path in ("/sync/1?a=1", "/many/20", "/fail", "/background"):
        client.request("BREW" if "?" in path else "GET", path)
    with client.websocket_connect("/socket") as websocket:
        websocket.send_text("hello")

    known, deprecated = conventions()
    told = {name for span in tracing.spans() for name in span.attributes}
    assert len(known) > 500
    assert "db.system" in deprecated
    assert {name for name in told if not name.startswith("sqltrace.")} <= known - deprecated
    assert {name for name in told if name.startswith("sqltrace.") and name in known} == set()


REQUIRED = {
    SpanKind.SERVER: {"http.request.method", "url.path", "url.scheme"},
    SpanKind.CLIENT: {"db.system.name", "db.query.summary"},
    SpanKind.INTERNAL: set(),
}


def test_what_the_conventions_require_is_there(memory_engine, tracing):
    client = TestClient(traced(plain, memory_engine, tracing.provider), raise_server_exceptions=False)
    for path in ("/sync/1?a=1", "/many/20", "/fail", "/background"):
        client.get(path)

    missing = {span.name: REQUIRED[span.kind] - set(span.attributes) for span in tracing.spans()}
    assert {name: names for name, names in missing.items() if names} == {}
