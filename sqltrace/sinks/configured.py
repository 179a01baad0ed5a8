"""Whether the application has configured OpenTelemetry, which is not imported to find out."""

from __future__ import annotations

import sys
from typing import Any

# The API cannot be asked whether somebody has configured it: these stand in until then.
_DEFERRED = frozenset(("ProxyTracerProvider", "_ProxyMeterProvider", "ProxyLoggerProvider"))


def is_configured(provider: Any) -> bool:
    cls = type(provider)
    return not (cls.__name__ in _DEFERRED and cls.__module__.startswith("opentelemetry."))


def is_any_configured() -> bool:
    """Whether a global provider of spans or of metrics is."""
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    if trace is not None and is_configured(trace.get_tracer_provider()):
        return True
    return metrics is not None and is_configured(metrics.get_meter_provider())
