"""
Let Prometheus scrape the case's metrics, and ask it each query of the dashboard and of the alerts.

    pip install -e '.[example]' opentelemetry-exporter-prometheus
    apt-get install prometheus
    python -m example_app.observability.check_prometheus

Fails where a query is refused or finds nothing, or where Prometheus' totals are not those of the requests.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import click
import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from opentelemetry import metrics
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

import sqltrace
from example_app import telemetry
from example_app.app import create_app
from example_app.data import SIZES, USER_ID, generate, refresh_token, seed_database
from example_app.database import Database, open_sqlite
from example_app.observability.programs import find_program, free_port, running, wait_until
from example_app.replay import FLAVOURS, page_load, replay
from example_app.server import listen, serve
from sqltrace.sinks import OpenTelemetrySink

try:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server
except ImportError as error:
    sys.exit(f"Error: {error.name} is missing: pip install opentelemetry-exporter-prometheus")

HERE = Path(__file__).parent
ALERTS = HERE / "prometheus_alerts.yaml"
REMEDY = "apt-get install prometheus"
VARIABLES = {"$__rate_interval": "15s", "$__range": "5m", "$service": ".+", "$route": ".*", "$pool": ".*"}
# What the case, and what fails beside it, must set off.
CERTAIN = {
    *("ConnectionPoolExhausted", "ConnectionPoolTimeouts"),
    *("EagerJoinsMultiplyRows", "DatabaseErrors", "RequestErrors"),
}


class Totals:
    """A sink that adds up what Prometheus should come to. Safe with threads."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self._lock = Lock()

    def response_ready(self, record: sqltrace.RequestRecord) -> None:
        """Nothing yet."""

    def request_finished(self, record: sqltrace.RequestRecord) -> None:
        recording = record.recording
        with self._lock:
            self.sums["sqltrace_request_statements_count"] += 1
            self.sums["sqltrace_request_statements_sum"] += recording.statement_count
            self.sums["sqltrace_request_rows_sum"] += recording.row_count
            self.sums["db_client_operation_duration_seconds_count"] += recording.statement_count
            self.sums["sqltrace_findings_total"] += len(record.findings)
            self.sums["sqltrace_request_objects_seconds_sum"] += recording.time_account.objects or 0


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx2.Client(base_url=url, timeout=30, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; a refused query raises."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise ValueError(f"{answer.get('errorType')}: {answer.get('error')}")
        return answer["data"]

    def series(self, expression: str, *, instant: bool) -> int:
        """How many series have a number, now or in the last minute."""
        if instant:
            result = [[each["value"]] for each in self.get("query", query=expression)["result"]]
        else:
            now = time.time()
            window = {"start": f"{now - 60}", "end": f"{now}", "step": "1"}
            result = [each["values"] for each in self.get("query_range", query=expression, **window)["result"]]
        return sum(any(value != "NaN" for _, value in values) for values in result)

    def value(self, expression: str) -> float:
        """The one number of an answer, 0 where there is none."""
        result = self.get("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else 0.0


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)), help="As of example_app.")
def main(size: str) -> None:
    """Ask a Prometheus that has scraped the case each query of the dashboard and of the alerts."""
    promtool = find_program("promtool", REMEDY)
    subprocess.run([promtool, "check", "rules", str(ALERTS)], check=True)  # noqa: S603  # nothing in it is from outside
    with tempfile.TemporaryDirectory(prefix="sqltrace-prometheus-") as directory:
        database = open_sqlite(Path(directory, "example.sqlite"))
        database.create_tables()
        for _ in seed_database(database.sync_engine, generate(SIZES[size], seed=1)):
            pass
        with _scraped(Path(directory)) as prometheus:
            totals = _serve_the_case(database, Path(directory), prometheus)
            faults = [*_compare(prometheus, totals), *_ask(prometheus)]
        database.sync_engine.dispose()
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    raise SystemExit(1 if faults else 0)


@contextmanager
def _scraped(directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that reads this process' metrics every second."""
    metrics.set_meter_provider(telemetry.meter_provider(PrometheusMetricReader()))
    metrics_port, port = free_port(), free_port()
    start_http_server(metrics_port, addr="127.0.0.1")
    shutil.copy(ALERTS, directory / "alerts.yaml")
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": "example_app", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]},
        ],
    }
    # JSON is YAML.
    (directory / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")
    command = [
        find_program("prometheus", REMEDY),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/-/ready", directory / "prometheus.log"):
        yield Prometheus(url)


def _serve_the_case(database: Database, directory: Path, prometheus: Prometheus) -> Mapping[str, float]:
    """Replay the case twice, and what fails, as rates want two samples. Returns when Prometheus has seen all of it."""
    totals = Totals()
    app = create_app(database, sinks=[OpenTelemetrySink(), totals])
    narrow = create_engine(
        f"sqlite:///{directory / 'narrow.sqlite'}",
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=2.5,  # so that a scrape sees somebody wait
        pool_logging_name="narrow",
    )
    _add_what_fails(app, narrow)
    calls = page_load(refresh_token(USER_ID, seed=1))
    with listen(0) as listener, serve(app, listener) as server:
        for _ in range(2):
            for flavour in FLAVOURS:
                for failure in asyncio.run(replay(server.url, flavour, calls, lambda *_: None)):
                    raise click.ClickException(failure)
            for path in ("/fails/statement",) * 5 + ("/fails/pool",):
                httpx2.get(server.url + path, timeout=30, trust_env=False)
            if not wait_until(lambda: _is_seen(prometheus, totals), 30):
                raise click.ClickException("Prometheus has not seen all requests after 30 s")
    narrow.dispose()
    return totals.sums


def _add_what_fails(app: FastAPI, narrow: Engine) -> None:
    # Answered, and so not printed with its traceback.
    @app.exception_handler(SQLAlchemyError)
    def answer(_: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(type(error).__name__, 500)

    @app.get("/fails/statement")
    def statement() -> None:
        with narrow.connect() as connection:
            connection.execute(text("SELECT nothing FROM nowhere"))

    @app.get("/fails/pool")
    def pool() -> None:
        with narrow.connect() as first, narrow.connect() as second:
            first.close()
            second.close()


def _is_seen(prometheus: Prometheus, totals: Totals) -> bool:
    requests = totals.sums["sqltrace_request_statements_count"]
    return requests > 0 and prometheus.value("sum(sqltrace_request_statements_count{})") == requests


def _compare(prometheus: Prometheus, totals: Mapping[str, float]) -> Iterator[str]:
    for name, expected in totals.items():
        value = prometheus.value(f"sum({name}{{}})")
        click.echo(f"{name}: {value:g}")
        if abs(value - expected) > 1e-6 * max(1, expected):
            yield f"{name} is {value:g} in Prometheus, and {expected:g} in the requests"


def _ask(prometheus: Prometheus) -> Iterator[str]:
    for title, expression, instant in _queries():
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)  # noqa: PLW2901  # the same query, filled in
        try:
            count = prometheus.series(expression, instant=instant)
        except ValueError as error:
            yield f"{title}: {error}"
            continue
        click.echo(f"{count:4} series  {title}")
        if not count:
            yield f"{title}: nothing found by {expression}"
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    for rule in rules:
        count = prometheus.series(rule["query"], instant=False)
        click.echo(f"{count:4} alerts  {rule['name']}")
        if rule["health"] != "ok":
            yield f"alert {rule['name']}: {rule.get('lastError') or rule['health']}"
        elif not count and rule["name"] in CERTAIN:
            yield f"alert {rule['name']}: nothing found"


def _queries() -> Iterator[tuple[str, str, bool]]:
    """Title, expression and whether it asks for one moment only, of each variable and panel of the dashboard."""
    dashboard = json.loads((HERE / "grafana_dashboard.json").read_text(encoding="utf-8"))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
            yield f"variable {variable['name']}", f"count by ({label}) ({selector})", True
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            if target["datasource"]["type"] == "prometheus":
                yield f"{panel['title']} ({target['refId']})", target["expr"], target.get("instant", False)


if __name__ == "__main__":
    main(prog_name="python -m example_app.observability.check_prometheus")
