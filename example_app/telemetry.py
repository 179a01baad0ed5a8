"""The application's OpenTelemetry: all three providers, sent over OTLP/HTTP to whatever understands it."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import click
from opentelemetry import _logs, metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# A run takes seconds, and rates need two samples: the usual minute would send one, at the end.
METRICS_INTERVAL = 5.0
# For one export with its retries. It is what a run waits for at its end where nobody listens.
TIMEOUT = 5.0


class FirstWarning(logging.Handler):
    """Tells the first failed export, and is silent about those that follow from the same cause."""

    def __init__(self, url: str, signals: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._url = url
        self.signals = signals
        self.told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            reason = record.getMessage().splitlines()[0]
            click.echo(f"Warning: --otlp {self._url}: {reason} No more is told of it; the run goes on.", err=True)


def check_url(url: str) -> str:
    """
    The URL below which the three signals have their paths, without a slash at the end.

    Raises:
        ValueError: It is none of use. The message does not repeat it: there may be a password in it.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("not a URL of the form http://host:4318")
    if parts.username is not None:
        raise ValueError("a password belongs into OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20…")
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith(("/v1/traces", "/v1/metrics", "/v1/logs")):
        raise ValueError("give it without /v1/traces, /v1/metrics or /v1/logs: those are appended")
    return url.rstrip("/")


@contextmanager
def export_to(url: str) -> Iterator[FirstWarning]:
    """
    Configure OpenTelemetry for the process, and send what the block makes; all has left when it ends.

    A signal whose `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` or `OTEL_LOGS_EXPORTER` is `none` stays as it is.

    Yields:
        What knows the signals, and whether an export has failed.
    """
    begins = {"traces": _begin_traces, "metrics": _begin_metrics, "logs": _begin_logs}
    signals = [name for name in begins if os.environ.get(f"OTEL_{name.upper()}_EXPORTER", "").lower() != "none"]
    warning = FirstWarning(url, signals)
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(warning)
    logger.propagate = False
    providers = [begins[name](f"{url}/v1/{name}") for name in signals]
    try:
        yield warning
    finally:
        # Side by side: where nobody answers, each waits for its time.
        with ThreadPoolExecutor(len(begins)) as pool:
            list(pool.map(lambda provider: provider.shutdown(), providers))


def _begin_traces(url: str) -> TracerProvider:
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=TIMEOUT)))
    trace.set_tracer_provider(provider)
    return provider


def _begin_metrics(url: str) -> MeterProvider:
    exporter = OTLPMetricExporter(url, timeout=TIMEOUT)
    provider = meter_provider(PeriodicExportingMetricReader(exporter, export_interval_millis=METRICS_INTERVAL * 1000))
    metrics.set_meter_provider(provider)
    return provider


def _begin_logs(url: str) -> LoggerProvider:
    provider = LoggerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(url, timeout=TIMEOUT)))
    _logs.set_logger_provider(provider)
    return provider


def meter_provider(reader: MetricReader) -> MeterProvider:
    return MeterProvider([reader], resource=resource(), shutdown_on_exit=False)


def resource() -> Resource:
    """`service.name` is `example_app`, unless the usual variables of the environment say otherwise."""
    return Resource.create({SERVICE_NAME: "example_app"}).merge(OTELResourceDetector().detect())
