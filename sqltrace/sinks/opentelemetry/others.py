"""Whether another instrumentation is going to make the server span, or to measure the request."""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary, ref

from opentelemetry import metrics, trace

from sqltrace.route import Scope, layers
from sqltrace.sinks.configured import is_configured

_CONTRIB = "opentelemetry.instrumentation."


class Insides:
    """What is known of applications. Each is looked into once: a stack of middleware stays as it was built."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, tuple[bool, ref[Any] | None]] = WeakKeyDictionary()

    def makes_server_span(self, app: Any, scope: Scope) -> bool:
        """Whether the application, or what it wraps, is instrumented by a contrib package, or by FastAPI itself."""
        contrib, native = self._look(app)
        return contrib or (native is not None and _will_trace(native(), scope))

    def measures_http(self, app: Any, scope: Scope, span: trace.Span) -> bool:
        """
        Whether ``http.server.request.duration`` comes from within the application, or from around it.

        Args:
            span: The one that is current when the request comes in.
        """
        if getattr(getattr(span, "instrumentation_scope", None), "name", "").startswith(_CONTRIB):
            return _contrib_uses_new_names()
        if "fastapi.telemetry" in scope and scope["fastapi.telemetry"] is None:
            return True  # FastAPI was told to leave this one out: its owner wants none
        for place in (app, scope.get("app")):
            contrib, native = self._look(place)
            if contrib:
                return _contrib_uses_new_names()
            if native is not None and _will_measure(native()):
                return True
        return False

    def _look(self, app: Any) -> tuple[bool, ref[Any] | None]:
        try:
            known = self._known.get(app)
        except TypeError:  # no weak references to it, or no hash
            return _look_into(app)
        if known is None:
            known = self._known[app] = _look_into(app)
        return known


def _look_into(app: Any) -> tuple[bool, ref[Any] | None]:
    """Whether a contrib package is in it, and the FastAPI that can make spans."""
    native = None
    for layer in layers(app):
        if _is_contrib(layer):
            return True, None
        if native is None and isinstance(getattr(layer, "_telemetry", None), dict):
            native = ref(layer)
    return False, native


def _is_contrib(layer: Any) -> bool:
    if getattr(layer, "_is_instrumented_by_opentelemetry", False) is True:
        return True  # what their instrument_app() leaves behind, before the stack is built
    added = [getattr(middleware, "cls", None) for middleware in getattr(layer, "user_middleware", None) or ()]
    return any(getattr(cls, "__name__", "") == "OpenTelemetryMiddleware" for cls in [type(layer), *added])


def _will_trace(fastapi: Any, scope: Scope) -> bool:
    """FastAPI >= 0.142 does, unless it is inside another, or told not to."""
    telemetry = getattr(fastapi, "_telemetry", None) or {}
    if not telemetry.get("tracing") or "fastapi.telemetry" in scope:
        return False
    exclude = telemetry.get("exclude")
    if exclude is not None and exclude(scope):
        return True  # its owner wants none
    return telemetry.get("tracer_provider") is not None or is_configured(trace.get_tracer_provider())


def _will_measure(fastapi: Any) -> bool:
    telemetry = getattr(fastapi, "_telemetry", None) or {}
    if not telemetry.get("metrics"):
        return False
    return telemetry.get("meter_provider") is not None or is_configured(metrics.get_meter_provider())


def _contrib_uses_new_names() -> bool:
    """Without this the contrib packages call it ``http.server.duration``, in milliseconds."""
    wanted = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "")
    return not {"http", "http/dup"}.isdisjoint(word.strip() for word in wanted.split(","))
