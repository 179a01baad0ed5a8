"""The providers that the application has configured. None is ever set, made or shut down here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from opentelemetry import _logs, metrics, trace

from sqltrace.locks import process_lock
from sqltrace.sinks.configured import is_configured
from sqltrace.sinks.opentelemetry.metrics import RequestMetrics

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
_T = TypeVar("_T")
_lock = process_lock()  # two meters of a provider would measure its pools twice
_measured: WeakValueDictionary[int, RequestMetrics] = WeakValueDictionary()


class _Cached(Generic[_T]):
    """What a provider gives us: asked for once for each provider."""

    def __init__(self, given: Any, current: Callable[[], Any], make: Callable[[Any], _T]) -> None:
        self._current = current if given is None else lambda: given
        self._make = make
        self._known: tuple[Any, _T | None] = (None, None)

    def get(self) -> _T | None:
        """`None` while no provider is configured. For any thread."""
        known = self._known
        if known[0] is not self._current():
            with _lock:
                known, provider = self._known, self._current()
                if known[0] is not provider:  # no other thread was faster
                    known = self._known = provider, self._make(provider) if is_configured(provider) else None
        return known[1]


def _ours() -> tuple[str, str | None]:
    """Name and version of what asks."""
    return "sqltrace", getattr(sys.modules.get("sqltrace"), "__version__", None)


class Tracers(_Cached[trace.Tracer]):
    def __init__(self, provider: trace.TracerProvider | None) -> None:
        super().__init__(
            provider, trace.get_tracer_provider, lambda given: given.get_tracer(*_ours(), schema_url=SCHEMA_URL)
        )


class Loggers(_Cached[_logs.Logger]):
    def __init__(self, provider: _logs.LoggerProvider | None) -> None:
        super().__init__(
            provider, _logs.get_logger_provider, lambda given: given.get_logger(*_ours(), schema_url=SCHEMA_URL)
        )


class Meters(_Cached[RequestMetrics]):
    def __init__(self, provider: metrics.MeterProvider | None) -> None:
        super().__init__(provider, metrics.get_meter_provider, _metrics_of)


def _metrics_of(provider: metrics.MeterProvider) -> RequestMetrics:
    """The metrics of a provider, which all its sinks share as long as one of them lives."""
    known = _measured.get(id(provider))
    if known is None:
        known = _measured[id(provider)] = RequestMetrics(provider.get_meter(*_ours(), schema_url=SCHEMA_URL))
    return known
