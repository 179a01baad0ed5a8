"""The server span, where no other instrumentation makes one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from sqltrace.request import RequestRecord
from sqltrace.route import Scope
from sqltrace.sinks.log_line import known

Headers = Iterable[tuple[bytes, bytes]]

_METHODS = frozenset("CONNECT DELETE GET HEAD OPTIONS PATCH POST PUT QUERY TRACE".split())
_known_methods = (
    frozenset(map(str.strip, os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "").split(","))) - {""}
) or _METHODS
_OTHER = "_OTHER"
_SECRETS = frozenset(  # of the semantic conventions for url.query
    "X-Amz-Signature X-Amz-Credential X-Amz-Security-Token AWSAccessKeyId Signature sig X-Goog-Signature".split()
)
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        values = [value.decode("latin-1") for name, value in carrier if name.decode("latin-1").lower() == key.lower()]
        if not values:
            return None
        return [",".join(values)] if key == "baggage" else values  # its propagator reads the first value only

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1").lower() for name, _ in carrier]


_GETTER = _HeaderGetter()


def begin_server_span(
    tracer: Tracer, record: RequestRecord, scope: Scope, start_time: int, *, url_query: bool
) -> tuple[Span, Context]:
    """A span for the request, and the context that it came with. Whether it is sampled is the provider's to say."""
    headers: Headers = scope.get("headers") or ()
    if iter(headers) is headers:  # which ASGI allows, and the application wants to read them, too
        headers = scope["headers"] = list(headers)
    parent = propagate.extract(headers, getter=_GETTER)
    span = tracer.start_span(
        span_name(record),
        context=parent,
        kind=SpanKind.SERVER,
        attributes=_attributes_at_start(record, scope, headers, url_query),
        start_time=start_time,
    )
    return span, parent


def conclude_server_span(span: Span, record: RequestRecord, end_time: int) -> None:
    """Say how the request ended, and end the span."""
    try:
        if record.route is not None:
            span.set_attribute("http.route", record.route)
            span.update_name(span_name(record))
        if record.status is not None:
            span.set_attribute("http.response.status_code", record.status)
        if record.outcome == "error":
            span.set_attribute("error.type", record.error_type or _OTHER)
            span.set_status(StatusCode.ERROR)
    finally:
        span.end(end_time)


def redact_query(query: str, *, values: bool) -> str:
    """
    The query string with the names of its parameters.

    Args:
        values: Leave the values, but for the signatures and credentials that clouds put there.
    """
    redact = _redact_secret if values else _redact_value
    return "&".join(map(redact, query.split("&")))


def _redact_value(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    if not equals:
        return pair and "REDACTED"  # a name or a value, nobody knows
    return f"{name}=REDACTED"


def _redact_secret(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}=REDACTED" if equals and unquote_plus(name) in _SECRETS else pair


def span_name(record: RequestRecord) -> str:
    """Without a route the method alone: a path is no name."""
    method = http_method(record)
    name = "WS" if method is None else "HTTP" if method == _OTHER else method
    return name if record.route is None else f"{name} {record.route}"


def http_method(record: RequestRecord) -> str | None:
    """``http.request.method``; `None` for a websocket."""
    if record.protocol == "websocket":
        return None
    return record.method if record.method in _known_methods else _OTHER


def _attributes_at_start(record: RequestRecord, scope: Scope, headers: Headers, url_query: bool) -> dict[str, Any]:
    method, websocket = http_method(record), record.protocol == "websocket"
    scheme = scope.get("scheme") or ("ws" if websocket else "http")
    host = agent = None
    for name, value in headers:
        if name == b"host":
            host = value.decode("latin-1")
        elif name == b"user-agent":
            agent = value.decode("latin-1")
    address, port = _server(host, scheme, scope)
    query = (scope.get("query_string") or b"").decode("latin-1")
    attributes = {
        "http.request.method": method,
        "http.request.method_original": record.method if method == _OTHER else None,
        "url.scheme": scheme,
        "url.path": record.path,
        "url.query": redact_query(query, values=url_query) or None,
        "server.address": address,
        "server.port": port,
        "client.address": record.client_address,
        "user_agent.original": agent,
        "network.protocol.name": "websocket" if websocket else None,
        "network.protocol.version": scope.get("http_version") or None,
    }
    return known(attributes)


def _server(host: str | None, scheme: str, scope: Scope) -> tuple[str | None, int | None]:
    if host is None:
        address, port = scope.get("server") or (None, None)
        return address, port
    try:
        url = urlsplit("//" + host)
        return url.hostname, url.port or _PORTS.get(scheme)
    except ValueError:
        return None, None  # what a client sends as its Host is anybody's guess
