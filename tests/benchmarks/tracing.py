"""
What `OpenTelemetrySink` adds to a request that is recorded anyway: CPU time.

    python tests/benchmarks/tracing.py [--turns N] [--instructions]

As `overhead.py`, or with ``--instructions`` as `instructions.py`, with the SDK of OpenTelemetry and an exporter that drops what it gets. Where the
packages `opentelemetry-instrumentation-asgi` and `-sqlalchemy` are installed, they are measured, too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import instructions
from contenders import (
    CONTENDERS,
    DISTINCT,
    EMPTY,
    REPEATED,
    ASGIApp,
    Workload,
    bare,
    configure_structlog,
    layout,
    prepare,
    recording,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from overhead import contender, microseconds, spread
from sqlalchemy import Engine
from starlette.applications import Starlette

WORKLOADS = (EMPTY, Workload(10, "distinct"), REPEATED, DISTINCT)


class Dropping(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider(*, sampled: bool) -> TracerProvider:
    provider = TracerProvider() if sampled else TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(Dropping()))
    return provider


def traced(*, sampled: bool, sink: bool, line: bool = False, **options: Any) -> Callable[[Starlette, Engine], ASGIApp]:
    """Recorded, inside of a server span as FastAPI makes it; with a log line, as by default, or without."""

    def build(app: Starlette, engine: Engine) -> ASGIApp:
        import sqltrace
        from sqltrace.sinks import OpenTelemetrySink, Sink, StructlogSink

        configure_structlog()
        tracers = provider(sampled=sampled)
        sinks: list[Sink] = [StructlogSink()] if line else []
        if sink:
            sinks.append(OpenTelemetrySink(tracer_provider=tracers, **options))
        middleware = sqltrace.SQLTraceMiddleware(app, sinks=sinks)
        tracer = tracers.get_tracer("benchmark")

        async def spanned(scope: Any, receive: Any, send: Any) -> None:
            with tracer.start_as_current_span("request", kind=SpanKind.SERVER):
                await middleware(scope, receive, send)

        return spanned

    return build


def own_span(app: Starlette, engine: Engine) -> ASGIApp:
    import sqltrace
    from sqltrace.sinks import OpenTelemetrySink

    return sqltrace.SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(tracer_provider=provider(sampled=False))])


def unconfigured(app: Starlette, engine: Engine) -> ASGIApp:
    import sqltrace
    from sqltrace.sinks.automatic import OpenTelemetryWhenConfigured

    return sqltrace.SQLTraceMiddleware(app, sinks=[OpenTelemetryWhenConfigured()])


def metered(app: Starlette, engine: Engine) -> ASGIApp:
    import sqltrace
    from sqltrace.sinks import OpenTelemetrySink

    meters = MeterProvider(metric_readers=[InMemoryMetricReader()])
    return sqltrace.SQLTraceMiddleware(app, sinks=[OpenTelemetrySink(meter_provider=meters)])


def spans_alone(app: Starlette, engine: Engine) -> ASGIApp:
    """What the SDK takes by itself for a span of ten attributes for each statement: less is not possible."""
    tracer = provider(sampled=True).get_tracer("benchmark")
    attributes = {f"benchmark.attribute_{number}": "some text" if number % 2 else number for number in range(10)}

    async def spanned(scope: Any, receive: Any, send: Any) -> None:
        with tracer.start_as_current_span("request", kind=SpanKind.SERVER):
            await app(scope, receive, send)
            for _ in range(int(scope["path"].rpartition("/")[2])):
                tracer.start_span("statement", kind=SpanKind.CLIENT, attributes=attributes, start_time=1).end(2)

    return spanned


def contrib(app: Starlette, engine: Engine) -> ASGIApp:
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor

    tracers = provider(sampled=True)
    SQLAlchemyInstrumentor().instrument(engine=engine, tracer_provider=tracers, skip_dep_check=True)
    return OpenTelemetryMiddleware(app, tracer_provider=tracers)


TRACED: dict[str, tuple[str | None, Callable[[Starlette, Engine], ASGIApp]]] = {  # with what it is compared to
    "bare": (None, bare),
    "recording": ("bare", recording),
    "no provider": ("recording", unconfigured),
    "in a span, not sampled": ("recording", traced(sampled=False, sink=False)),
    "  sink": ("in a span, not sampled", traced(sampled=False, sink=True)),
    "own span, not sampled": ("recording", own_span),
    "metrics only": ("recording", metered),
    "in a span, sampled": ("recording", traced(sampled=True, sink=False)),
    "  sink keeps none": ("in a span, sampled", traced(sampled=True, sink=True, keep=0.0)),
    "  sink keeps all": ("in a span, sampled", traced(sampled=True, sink=True)),
    "log line in a span, sampled": ("bare", traced(sampled=True, sink=False, line=True)),
    "  and sink keeps none": ("log line in a span, sampled", traced(sampled=True, sink=True, line=True, keep=0.0)),
    "  and sink keeps all": ("log line in a span, sampled", traced(sampled=True, sink=True, line=True)),
    "all of ours, sampled": ("bare", traced(sampled=True, sink=True)),
}
if find_spec("opentelemetry.instrumentation") and find_spec("opentelemetry.instrumentation.sqlalchemy"):
    TRACED["contrib asgi + sqlalchemy"] = ("bare", contrib)
TRACED["a span for each, the SDK alone"] = ("bare", spans_alone)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what OpenTelemetrySink adds to a recorded request.")
    parser.add_argument("--turns", type=int, default=60, help="of each contender (default: %(default)s)")
    parser.add_argument("--instructions", action="store_true", help="count instructions under valgrind instead")
    parser.add_argument("--run-contenders", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    CONTENDERS.clear()
    CONTENDERS.update({name.strip(): build for name, (_, build) in TRACED.items()})
    instructions.REQUESTS.clear()
    instructions.REQUESTS.update(zip(WORKLOADS, (20, 6, 2, 2), strict=True))
    if arguments.run_contenders:
        instructions.run_contenders()
    elif arguments.instructions:
        print_instructions()
    else:
        print_microseconds(arguments.turns)


def print_instructions() -> None:
    counts = instructions.count_instructions(__file__)
    rows = [["thousand instructions added to a request", "to", *map(str, WORKLOADS)]]
    for name, (base, _) in TRACED.items():
        if base is not None:
            added = [counts[name.strip(), workload] - counts[base.strip(), workload] for workload in WORKLOADS]
            rows.append([name, base, *(f"{one / 1_000:,.0f}" for one in added)])
    print(layout(rows))


def print_microseconds(turns: int) -> None:
    prepare()
    samples: dict[tuple[Workload, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        orders = {name: stack.enter_context(contender(name.strip())) for name in TRACED}
        for turn in range(turns):
            for workload in WORKLOADS:
                for name in orders if turn % 2 else reversed(orders):
                    samples[workload, name].append(microseconds(orders[name], workload))

    rows = [["microseconds added to a request", "to", *map(str, WORKLOADS)]]
    for name, (base, _) in TRACED.items():
        if base is not None:
            pairs = [zip(samples[workload, name], samples[workload, base], strict=True) for workload in WORKLOADS]
            rows.append([name, base, *(spread([own - other for own, other in pair]) for pair in pairs)])
    print(layout(rows))


if __name__ == "__main__":
    main()
