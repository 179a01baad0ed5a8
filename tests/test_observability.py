"""`python -m example_app --otlp`, and what `example_app/observability/` makes of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from example_app import replay
from example_app.__main__ import main
from example_app.data import USER_ID, refresh_token
from tests.databases import free_port

oteltap = pytest.importorskip("oteltap")
telemetry = pytest.importorskip("example_app.telemetry")

ROOT = Path(__file__).parent.parent
REQUESTS = len(replay.FLAVOURS) * len(replay.page_load(refresh_token(USER_ID, seed=1)))
SERVER = 2


def run(*arguments, **environment):
    """A run of its own process: providers are set once for each."""
    command = [sys.executable, "-m", "example_app", "--size", "small", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        encoding="utf-8",
        capture_output=True,
        check=False,
        timeout=200,
    )


async def take_until(stream, wanted):
    """What comes in, up to and with the last of so many that are wanted."""
    taken, missing = [], wanted[1]
    while missing:
        taken.append(await anext(stream))
        missing -= wanted[0](taken[-1])
    return taken


async def received_from_run(*arguments):
    port = free_port()
    settings = oteltap.OtelTapHttpProtobufReceiverSettings(http_port=port)
    async with oteltap.OtelTapHttpProtobufReceiver(settings) as receiver:
        hearing = asyncio.gather(
            take_until(receiver.stream_traces(), (lambda span: span.kind == SERVER, REQUESTS)),
            take_until(receiver.stream_logs(), (lambda log: log.event_name == "sqltrace.request", REQUESTS)),
            take_until(receiver.stream_metrics(), (lambda metric: metric.name == "http.server.request.duration", 1)),
        )
        process = await asyncio.to_thread(run, "--otlp", f"http://127.0.0.1:{port}", *arguments)
        return process, *await asyncio.wait_for(hearing, 30)


def test_run_arrives_at_a_receiver_with_traces_logs_and_metrics_of_each_request(tmp_path):
    path = tmp_path / "lines.jsonl"

    process, spans, logs, metrics = asyncio.run(received_from_run("--log-file", str(path)))

    assert (process.returncode, process.stderr) == (0, "")
    assert "OTLP: traces, metrics, logs sent to http://127.0.0.1:" in process.stdout
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    told = sorted((line["trace_id"], line["span_id"]) for line in lines)
    assert len(told) == REQUESTS
    assert sorted((span.trace_id.hex(), span.span_id.hex()) for span in spans if span.kind == SERVER) == told
    requests = [log for log in logs if log.event_name == "sqltrace.request"]
    assert sorted((log.trace_id.hex(), log.span_id.hex()) for log in requests) == told
    assert metrics[-1].unit == "s"


def test_signals_that_a_receiver_does_not_take_can_be_left_out():
    paths = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            paths.add(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        process = run("--otlp", url, OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")
        server.shutdown()

    assert (process.returncode, process.stderr, paths) == (0, "", {"/v1/traces"})
    assert f"OTLP: traces sent to {url}\n" in process.stdout


def test_endpoint_that_nobody_listens_at_is_one_warning():
    url = f"http://127.0.0.1:{free_port()}"

    process = run("--otlp", url)

    assert process.returncode == 0
    [warning] = process.stderr.splitlines()
    assert warning.startswith(f"Warning: --otlp {url}: ")
    assert warning.endswith("No more is told of it; the run goes on.")
    assert "sent to" not in process.stdout


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a URL of the form http://host:4318"),
        ("localhost:4318", "not a URL of the form http://host:4318"),
        ("grpc://localhost:4317", "not a URL of the form http://host:4318"),
        ("http://localhost:port", "not a URL of the form http://host:4318"),
        ("http://[::1", "not a URL of the form http://host:4318"),
        ("http://localhost:4318/v1/traces", "give it without /v1/traces, /v1/metrics or /v1/logs: those are appended"),
        ("http://me:secret@localhost:4318", "a password belongs into OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_bad_url_is_refused_with_a_reason(url, message):
    result = CliRunner().invoke(main, ["--otlp", url])

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: --otlp: {message}")
    assert "secret" not in result.stderr


def test_url_may_have_a_path():
    assert telemetry.check_url("https://host/api/v1/otlp/") == "https://host/api/v1/otlp"


@pytest.mark.parametrize("library", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_missing_library_is_told(library):
    code = f"import sys; sys.modules[{library!r}] = None; from example_app.__main__ import main; main()"

    process = subprocess.run(
        [sys.executable, "-c", code, "--otlp", "http://localhost:4318"],
        cwd=ROOT,
        # Logfire, where it is installed, is one of pydantic's plugins, and warns without the SDK.
        env={**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        encoding="utf-8",
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert process.returncode == 2
    assert process.stderr.startswith(f"Error: --otlp: {library}")
    assert process.stderr.endswith(" is missing; the extra `otlp` has it.\n")


def test_check_with_prometheus_says_what_it_needs():
    code = """
import sys
sys.modules["opentelemetry.exporter.prometheus"] = None
import example_app.observability.check_prometheus
"""
    command = [sys.executable, "-c", code]

    process = subprocess.run(command, cwd=ROOT, encoding="utf-8", capture_output=True, check=False, timeout=60)

    assert process.returncode == 1
    assert process.stderr == (
        "Error: opentelemetry.exporter.prometheus is missing: pip install opentelemetry-exporter-prometheus\n"
    )


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_answers_every_query_of_the_dashboard_and_the_alerts():
    process = subprocess.run(
        [sys.executable, "-m", "example_app.observability.check_prometheus"],
        cwd=ROOT,
        encoding="utf-8",
        capture_output=True,
        check=False,
        timeout=200,
    )

    assert (process.returncode, process.stderr) == (0, "")
    assert " 0 series" not in process.stdout
