"""
Send the case to Arize Phoenix, and compare what it gives back with what was sent.

    pip install arize-phoenix       # in an environment of its own
    python -m example_app.observability.check_phoenix --phoenix /path/to/phoenix --screenshot waterfall.png

Fails where a span is missing, or has another name, parent, time, status or attribute. The screenshot is of the trace
with the most statements, and needs `chromium`.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import httpx2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from example_app.data import SIZES
from example_app.observability.programs import find_program, free_port, running, wait_until

STATUSES = {Status.STATUS_CODE_UNSET: "UNSET", Status.STATUS_CODE_OK: "OK", Status.STATUS_CODE_ERROR: "ERROR"}
# It is Phoenix' own, and says what kind of AI call a span is.
ADDED = {"openinference.span.kind"}
Compared = dict[str, Any]


@click.command()
@click.option("--phoenix", default="phoenix", show_default=True, help="The program, where it is not on the PATH.")
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)), help="As of example_app.")
@click.option("--screenshot", type=click.Path(dir_okay=False, path_type=Path), help="A PNG of one trace's waterfall.")
def main(phoenix: str, size: str, screenshot: Path | None) -> None:
    """Send the case to Phoenix and read it back."""
    program = find_program(phoenix, "pip install arize-phoenix, in an environment of its own")
    with tempfile.TemporaryDirectory(prefix="sqltrace-phoenix-") as directory:
        url = f"http://127.0.0.1:{(port := free_port())}"
        environment = {
            **os.environ,
            "PHOENIX_WORKING_DIR": directory,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "False",  # its page would ask for fonts and a tracking pixel
        }
        log = Path(directory, "phoenix.log")
        with running([program, "serve"], f"{url}/healthz", log, environment=environment):
            sent = _send(url, size)
            wait_until(lambda: len(_read_back(url)) >= len(sent), 60)
            faults = list(_compare(sent, _read_back(url)))
            if screenshot is not None:
                _photograph(url, _widest(sent), screenshot.absolute())
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    raise SystemExit(1 if faults else 0)


def _send(url: str, size: str) -> dict[str, Compared]:
    """Run the case, and return the spans that went over the wire, by id."""
    command = [sys.executable, "-m", "example_app", "--size", size, "--otlp"]
    environment = {**os.environ, "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    with _overheard(url) as (address, spans):
        subprocess.run([*command, address], check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603  # ours
    return {span.span_id.hex(): _as_sent(span) for span in spans}


@contextmanager
def _overheard(url: str) -> Iterator[tuple[str, list[Span]]]:
    """A receiver that hands everything on to the other, and keeps the spans."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            headers = {"content-type": self.headers["content-type"]}
            answer = httpx2.post(url + self.path, content=body, headers=headers, timeout=60, trust_env=False)
            self.send_response(answer.status_code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: it would go to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()


def _as_sent(span: Span) -> Compared:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "parent": span.parent_span_id.hex() or None,
        "times": [
            nanoseconds / 1000
            for nanoseconds in (
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                *(event.time_unix_nano for event in span.events),
            )
        ],
        "status": STATUSES[span.status.code],
        "attributes": _plain(span.attributes),
        "events": [(event.name, _plain(event.attributes)) for event in span.events],
    }


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_value(each) for each in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


def _read_back(url: str) -> dict[str, Compared]:
    """All spans that Phoenix has, by id."""
    spans: dict[str, Compared] = {}
    cursor: dict[str, str] = {}
    while True:
        parameters = {"limit": "1000", **cursor}
        answer = httpx2.get(f"{url}/v1/projects/default/spans", params=parameters, timeout=60, trust_env=False)
        if answer.status_code == httpx2.codes.NOT_FOUND:  # the project comes with its first span
            return spans
        page = answer.raise_for_status().json()
        spans |= {span["context"]["span_id"]: _as_kept(span) for span in page["data"]}
        if not page["next_cursor"]:
            return spans
        cursor = {"cursor": page["next_cursor"]}


def _as_kept(span: dict[str, Any]) -> Compared:
    return {
        "name": span["name"],
        "trace": span["context"]["trace_id"],
        "parent": span["parent_id"],
        "times": [
            _microseconds(moment)
            for moment in (span["start_time"], span["end_time"], *(event["timestamp"] for event in span["events"]))
        ],
        "status": span["status_code"],
        "attributes": {name: value for name, value in span["attributes"].items() if name not in ADDED},
        "events": [(event["name"], event["attributes"]) for event in span["events"]],
    }


def _microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return round(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def _compare(sent: dict[str, Compared], kept: dict[str, Compared]) -> Iterator[str]:
    parts = Counter[str]()
    for span_id, span in sent.items():
        if span_id not in kept:
            yield f"{span['name']} {span_id} is missing"
            continue
        for part, value in span.items():
            parts[part] += 1
            if not _is_same(part, value, kept[span_id][part]):
                yield f"{part} of {span['name']} {span_id}: sent {value}, kept {kept[span_id][part]}"
    yield from (f"{kept[span_id]['name']} {span_id} was never sent" for span_id in kept.keys() - sent.keys())
    traces = {span["trace"] for span in sent.values()}
    attributes = sum(len(span["attributes"]) for span in sent.values())
    click.echo(f"{len(sent)} spans of {len(traces)} traces, {attributes} attributes; compared: {', '.join(parts)}")


def _is_same(part: str, sent: Any, kept: Any) -> bool:
    if part != "times":
        return bool(sent == kept)
    # Phoenix keeps microseconds, rounded as a float of seconds is.
    return len(sent) == len(kept) and all(abs(a - b) <= 1 for a, b in zip(sent, kept, strict=True))


def _widest(sent: dict[str, Compared]) -> str:
    """The trace with the most statements."""
    statements = Counter(span["trace"] for span in sent.values() if "db.query.text" in span["attributes"])
    trace: str = statements.most_common(1)[0][0]
    return trace


def _photograph(url: str, trace: str, path: Path) -> None:
    projects = httpx2.get(f"{url}/v1/projects", timeout=60, trust_env=False).json()["data"]
    [project] = [project["id"] for project in projects if project["name"] == "default"]
    command = [
        find_program("chromium", "apt-get install chromium"),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1600,1000"),
        *("--virtual-time-budget=20000", f"--screenshot={path}", f"{url}/projects/{project}/traces/{trace}"),
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)  # noqa: S603  # nothing in it is from outside
    click.echo(f"{path}: trace {trace}")


if __name__ == "__main__":
    main(prog_name="python -m example_app.observability.check_phoenix")
