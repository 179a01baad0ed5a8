"""The JSON log line, read by the tools that people read logs with."""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest
import structlog
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from tests import databases

QUERIES = Path(__file__).parent.parent / "example_app" / "observability"


def program(name):
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def read(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, **options).stdout


@pytest.fixture
def log(tmp_path):
    """Lines of two routes, one of them with a failed request, one path that is no route, and an event of the application."""
    path = tmp_path / "app.jsonl"
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    databases.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(databases.books.insert(), [{"title": "one"}, {"title": "two"}])

    async def few(request):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1")).all()
        return PlainTextResponse("few")

    async def many(request):
        with Session(engine) as session:
            for _ in range(int(request.path_params["count"])):
                session.scalars(select(databases.Book)).all()
            session.execute(text("SELECT broken"))

    app = Starlette(routes=[Route("/few", few), Route("/many/{count}", many)])
    app.add_middleware(sqltrace.SQLTraceMiddleware)
    with path.open("w", encoding="utf-8") as file:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.WriteLoggerFactory(file=file),
        )
        client = TestClient(app, raise_server_exceptions=False)
        for target in ("/few", "/many/3", "/few", "/many/5", "/missing"):
            client.get(target)
        structlog.get_logger().info("imported", duration_ms=1e6)
    engine.dispose()
    return path


@pytest.fixture
def routes(log):
    """What the tools should answer: requests and objects time by route."""
    answer = {}
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if line["event"] != "request":
            continue
        requests, objects = answer.get(line.get("http.route", line["url.path"]), (0, 0.0))
        answer[line.get("http.route", line["url.path"])] = requests + 1, objects + line["time.objects_ms"]
    assert {route: requests for route, (requests, _) in answer.items()} == {
        "/few": 2,
        "/many/{count}": 2,
        "/missing": 1,
    }
    assert answer["/many/{count}"][1] > answer["/few"][1] == 0
    return {route: (requests, round(objects, 3)) for route, (requests, objects) in answer.items()}


def test_duckdb_tells_the_slowest_routes(log, routes):
    connection = duckdb.connect()
    connection.execute(f"SET VARIABLE log = '{log}'")

    rows = connection.execute((QUERIES / "slowest_routes.sql").read_text(encoding="utf-8")).fetchall()

    assert {route: (requests, objects) for route, requests, objects, *_ in rows} == routes
    assert {route: fetched for route, *_, fetched in rows} == {"/few": 2, "/many/{count}": 16, "/missing": 0}


def test_duckdb_finds_the_types(log):
    described = duckdb.sql(f"DESCRIBE SELECT * FROM read_json_auto('{log}')").fetchall()

    types = {name: kind for name, kind, *_ in described}
    assert (types["timestamp"], types["sql.rows"]) == ("TIMESTAMP WITH TIME ZONE", "BIGINT")
    assert {kind for name, kind in types.items() if name.endswith("_ms")} == {"DOUBLE"}
    assert types["sql.statements"].endswith("[]")


@program("jq")
def test_jq_tells_the_slowest_routes(log, routes):
    output = read("jq", "-n", "-r", "-f", str(QUERIES / "slowest_routes.jq"), str(log))

    head, *rows = [line.split("\t") for line in output.splitlines()]
    assert head == ["route", "requests", "objects_ms", "slowest_ms"]
    assert {route: (int(requests), float(objects)) for route, requests, objects, _ in rows} == routes


@program("lnav")
def test_lnav_tells_the_slowest_routes_with_the_commands_of_its_format(log, routes, tmp_path):
    # Out of the text of the file, where they are copied from: nothing in them may need an escape in JSON.
    text = (QUERIES / "lnav_format.json").read_text(encoding="utf-8")
    described = re.search(r'"description": "(.*)"', text)[1]
    install, ask = (shlex.split(command) for command in re.findall(r"(?<=with: )lnav .*?\.jsonl?\b", described))
    environment = {"HOME": str(tmp_path)}

    read(*install, cwd=QUERIES, env=environment)
    asked = read(*ask[:-1], "-c", ":write-csv-to -", ask[-1], cwd=log.parent, env=environment)

    rows = list(csv.DictReader(io.StringIO(asked)))
    assert {row["route"]: (int(row["requests"]), float(row["objects_ms"])) for row in rows} == routes
    assert rows[0]["route"] == "/many/{count}"
    assert "/many/{count}" in read(*ask, cwd=log.parent, env=environment)
    assert "imported" in read("lnav", "-n", str(log), env=environment)
