import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import structlog
from click.testing import CliRunner
from rich.console import Console
from sqlalchemy import create_engine, event, inspect, select, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.testclient import TestClient

from example_app import guilty, replay, tables
from example_app.__main__ import main
from example_app.app import create_app
from example_app.data import SIZES, TAG_IDS, USER_ID, generate, refresh_token, seed_database
from example_app.database import SCHEMA, open_postgresql, open_sqlite
from example_app.log import JSONLines, configure_logging
from example_app.report import print_results
from example_app.server import listen, serve

ROOT = Path(__file__).parent.parent
CALLS = replay.page_load(refresh_token(USER_ID, seed=1))
REQUEST_IDS = [flavour.request_id(number) for flavour in replay.FLAVOURS for number in range(len(CALLS))]


def run(*arguments):
    """A run of its own process, on a screen of 110 columns that is not a terminal."""
    command = [sys.executable, "-m", "example_app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), encoding="utf-8", capture_output=True, check=False, timeout=200
    )


def invoke(*arguments):
    """A run in this process, for what does not get far."""
    return CliRunner().invoke(main, arguments)


def environment():
    return {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "lines.jsonl"
    return run("--size", "small", "--log-file", str(path)), read_lines(path)


@pytest.fixture
def small_database(tmp_path):
    database = open_sqlite(tmp_path / "example.sqlite")
    database.create_tables()
    for _ in seed_database(database.sync_engine, generate(SIZES["small"], seed=1)):
        pass
    yield database
    database.sync_engine.dispose()


def test_run_ends_well_and_says_nothing_on_standard_error(small_run):
    process, _ = small_run

    assert (process.returncode, process.stderr) == (0, "")


def test_output_that_is_no_terminal_has_no_control_codes_and_fits(small_run):
    output = small_run[0].stdout

    assert re.findall(r"[\x00-\x09\x0b-\x1f]", output) == []
    assert max(len(line) for line in output.splitlines() if not line.startswith("JSON log lines")) <= 100


def test_every_request_has_one_json_line_with_its_request_id(small_run):
    _, lines = small_run

    assert sorted(line["request_id"] for line in lines) == sorted(REQUEST_IDS)
    assert {(line["event"], line["outcome"], line["http.response.status_code"]) for line in lines} == {
        ("request", "ok", 200)
    }


def test_every_request_is_printed_readably(small_run):
    process, lines = small_run

    for line in lines:
        assert f"{line['http.request.method']} {line['http.route']}  200" in process.stdout
        assert f"request_id={line['request_id']}" in process.stdout


def test_each_request_is_printed_below_the_heading_of_its_page(small_run):
    pages = re.split(r"─+ (\w+ \w+): a page of 11 requests ─+", small_run[0].stdout)

    printed = {
        flavour: set(re.findall(r"request_id=(\S+)", page))
        for flavour, page in zip(pages[1::2], pages[2::2], strict=True)
    }
    assert printed == {
        str(flavour): {flavour.request_id(number) for number in range(len(CALLS))} for flavour in replay.FLAVOURS
    }


def test_lines_are_handed_over_when_they_are_printed(tmp_path):
    class Slow(io.StringIO):
        def write(self, text):
            time.sleep(0.2)
            return super().write(text)

    log, screen = JSONLines(tmp_path / "lines.jsonl"), Slow()
    configure_logging(Console(file=screen), log)
    log.await_requests(["r-1"])
    thread = Thread(
        target=structlog.get_logger().info, args=["request"], kwargs={"request_id": "r-1", "duration_ms": 1.0}
    )
    thread.start()

    lines = log.take(["r-1"])

    assert lines["r-1"]["event"] == "request"
    assert "r-1" in screen.getvalue()
    thread.join()
    log.close()


def test_table_tells_what_the_log_lines_say(small_run):
    process, lines = small_run
    by_id = {line["request_id"]: line for line in lines}
    table = process.stdout[process.stdout.index("what the log lines say") :]
    rows = [line.split() for line in table.splitlines() if line.startswith(("GET ", "POST "))]

    expected = []
    for mapping in ("guilty", "mended"):
        for call in dict.fromkeys(map(str, CALLS)):
            row = call.split()
            for session in ("sync", "async"):
                ids = [f"{mapping}-{session}-{number}" for number, each in enumerate(CALLS) if str(each) == call]
                line = max((by_id[request_id] for request_id in ids), key=lambda line: line["duration_ms"])
                row += [f"{line['duration_ms'] / 1000:.3f}", "s", str(line["sql.count"])]
                row += [f"{line['time.database_ms'] / 1000:.3f}", "s"]
            expected.append(row)
    assert rows == expected


def test_findings_are_told_for_the_guilty_mapping_and_none_but_of_the_loop_for_the_mended_one(small_run):
    process, lines = small_run
    table = process.stdout[process.stdout.index("finding in … requests") :]
    rows = {
        line.split("  ")[0]: re.findall(r"\d+ of 11|–", line) for line in table.splitlines()[2:] if " of 11" in line
    }

    found = {flavour: [] for flavour in map(str, replay.FLAVOURS)}
    for line in lines:
        mapping, session, _ = line["request_id"].split("-")
        found[f"{mapping} {session}"].append({finding["kind"] for finding in line.get("findings", ())})
    assert found["mended sync"] == [set()] * 11
    of_the_loop = {"waited_for_loop", "blocked_loop"}  # all that this mapping does: on a slow machine it takes long
    assert all(kinds <= of_the_loop for kinds in found["mended async"])
    assert rows["none at all"] == [f"{requests.count(set())} of 11" for requests in found.values()]
    assert rows["cartesian_product"] == [
        f"{count} of 11" if (count := sum("cartesian_product" in kinds for kinds in requests)) else "–"
        for requests in found.values()
    ]


def test_guilty_selectin_load_of_articles_is_the_statement_of_the_case():
    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    for _ in seed_database(engine, generate(SIZES["small"], seed=1)):
        pass
    statements = []

    @event.listens_for(engine, "before_cursor_execute")
    def before_cursor_execute(connection, cursor, statement, parameters, context, executemany):
        statements.append(" ".join(statement.split()))

    with Session(engine) as session:
        session.scalars(select(guilty.Tag).where(tables.tags.c.user_id == USER_ID)).all()
    engine.dispose()

    joined = [re.findall(r"(?:FROM|(?:OUTER )?JOIN) (\w+)", statement) for statement in statements]
    assert joined == [
        ["tags"],
        [
            *("tags", "article_tag", "articles", "users", "contents"),
            *("video_metadata", "post_metadata", "tags", "comments"),
        ],
    ]
    assert "FROM tags AS tags_1 JOIN article_tag AS article_tag_1 ON tags_1.id = article_tag_1.tag_id" in statements[1]
    assert statements[1].endswith("WHERE tags_1.id IN (?, ?, ?, ?)")


@pytest.mark.parametrize("call", [pytest.param(call, id=str(call)) for call in CALLS])
def test_mappings_and_sessions_answer_the_same(small_database, call):
    with TestClient(create_app(small_database)) as client:
        responses = [
            client.request(call.method, flavour.prefix + call.path, json=call.body) for flavour in replay.FLAVOURS
        ]

    assert [response.status_code for response in responses] == [200] * 4
    assert responses[0].json()
    assert all(response.json() == responses[0].json() for response in responses)


def test_contents_of_a_tag_are_told_with_their_tags_and_metadata(small_database):
    with TestClient(create_app(small_database)) as client:
        contents = client.get(f"/mended/async/api/tags/{TAG_IDS[0]}/contents/all").json()

    assert all("asyncio-0" in content["tags"] and len(content["tags"]) == 2 for content in contents)
    assert all((content["video_metadata"] is None) != (content["post_metadata"] is None) for content in contents)


@pytest.mark.parametrize("session", ["sync", "async"])
def test_token_refresh_touches_its_own_row_and_commits(small_database, session):
    with TestClient(create_app(small_database)) as client:
        client.post(f"/guilty/{session}{CALLS[0].path}", json=CALLS[0].body)

    with small_database.sync_engine.connect() as connection:
        touched = connection.scalars(select(tables.users.c.id).where(tables.users.c.refreshed_at.is_not(None))).all()
    assert touched == [USER_ID]


@pytest.mark.parametrize("session", ["sync", "async"])
def test_unknown_refresh_token_is_refused(small_database, session):
    with TestClient(create_app(small_database)) as client:
        response = client.post(f"/mended/{session}{CALLS[0].path}", json={"refresh_token": "stolen"})

    assert response.status_code == 401


def test_data_is_the_same_for_the_same_seed():
    size = SIZES["small"]

    assert generate(size, seed=1) == generate(size, seed=1)
    assert generate(size, seed=1) != generate(size, seed=2)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_each_tag_of_the_case_has_contents_and_articles(size):
    rows = generate(size, seed=1)

    for table in (tables.content_tag, tables.article_tag):
        assert set(TAG_IDS) <= {row["tag_id"] for row in rows[table]}


def test_output_tells_how_long_the_client_waited_for_the_refresh(small_run):
    process, lines = small_run
    [told] = re.findall(r"for its client: +(\d+\.\d{3}) s guilty, +(\d+\.\d{3}) s mended", process.stdout)

    for seconds, mapping in zip(told, ("guilty", "mended"), strict=True):
        refreshes = [line for line in lines if line["http.route"] == f"/{mapping}/async{CALLS[0].path}"]
        assert len(refreshes) == 4
        assert float(seconds) > max(line["duration_ms"] for line in refreshes) / 1_000


def test_table_and_what_to_see_in_it_fit_a_terminal_of_80_columns(small_run):
    _, lines = small_run
    console = Console(width=80, file=io.StringIO())

    print_results(console, CALLS, {line["request_id"]: line for line in lines}, dict.fromkeys(REQUEST_IDS, 12.345))

    *_, last, empty = console.file.getvalue().splitlines()
    assert (last[:24], empty) == ("        for its client: ", "")


def test_replay_tells_what_failed():
    answered = {}

    with listen(0) as listener, serve(Starlette(), listener) as server:
        failures = asyncio.run(replay.replay(server.url, replay.FLAVOURS[0], CALLS, answered.__setitem__))

    assert failures == [f"guilty sync: {call} answered 404" for call in CALLS]
    assert answered.keys() == {f"guilty-sync-{number}" for number in range(len(CALLS))}
    assert all(0 < seconds < 60 for seconds in answered.values())


def test_replay_tells_what_had_no_answer():
    with listen(0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    failures = asyncio.run(replay.replay(url, replay.FLAVOURS[0], CALLS, lambda *_: None))

    assert [failure.partition(" had no answer: ")[0] for failure in failures] == [
        f"guilty sync: {call}" for call in CALLS
    ]


def test_run_with_a_failed_request_exits_with_1(monkeypatch):
    monkeypatch.setattr("example_app.__main__.page_load", lambda token: (replay.Call("GET", "/api/nowhere"),))

    result = invoke("--size", "small")

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Error: {flavour}: GET /api/nowhere answered 404" for flavour in replay.FLAVOURS
    ]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_serving_ends_cleanly_on_a_signal(stop):
    command = [sys.executable, "-m", "example_app", "--size", "small", "--serve"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell without job control starts what runs in its background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),
    ) as process:
        next(line for line in process.stdout if line.strip().endswith(f"/mended/async{CALLS[-1].path}"))
        process.send_signal(stop)
        # Not communicate(), which loses what was read together with that line.
        output, errors = process.stdout.read(), process.stderr.read()

    assert (process.returncode, errors) == (0, "")
    assert "/async/loading/{joined,select," in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "huge"], "expected small, case, large or a number from 4 to 60, got 'huge'"),
        (["--size", "3"], "expected small, case, large or a number from 4 to 60, got '3'"),
        (["--port", "99999"], "99999 is not in the range 0<=x<=65535"),
        (["--seed", "x"], "'x' is not a valid integer"),
        (["--nope"], "No such option"),
        (["--log-file", "/nowhere/lines.jsonl"], "Error: --log-file /nowhere/lines.jsonl: No such file or directory\n"),
        (
            ["--database-url", "postgresql://me:secret@127.0.0.1:1/test"],
            "Error: --database-url postgresql://me:***@127.0.0.1:1/test: connection failed: ",
        ),
        (["--database-url", "mysql://me:secret@host/db"], "got 'mysql://me:***@host/db'\n"),
        (["--database-url", "me:secret"], "Error: --database-url: not a URL of the form postgresql://"),
        (["--database-url", ""], "Error: --database-url: not a URL of the form postgresql://"),
    ],
)
def test_bad_option_is_refused_with_a_reason_and_leaves_no_file(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    result = invoke(*arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert os.listdir(tmp_path) == []


def test_run_that_does_not_begin_leaves_the_lines_of_the_one_before(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("{}\n")

    result = invoke("--log-file", str(path), "--database-url", "me:secret")

    assert (result.exit_code, path.read_text()) == (2, "{}\n")


def test_missing_driver_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "aiosqlite", None)

    result = invoke("--size", "small")

    assert (result.exit_code, result.stderr) == (2, "Error: aiosqlite is missing; the extra `example` has it.\n")
    assert os.listdir(tmp_path) == []


def test_driver_that_lacks_its_library_is_told():
    process = subprocess.run(
        [sys.executable, "-m", "example_app", "--database-url", "postgresql://postgres@127.0.0.1:1/test"],
        cwd=ROOT,
        env={**environment(), "PSYCOPG_IMPL": "c"},  # which is not installed
        encoding="utf-8",
        capture_output=True,
    )

    assert process.returncode == 2
    assert process.stderr.startswith("Error: --database-url: couldn't import requested psycopg 'c'")


def test_interrupted_run_tells_where_its_lines_are_and_leaves_nothing_else(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "example_app", "--size", "small"],
        cwd=ROOT,
        env={**environment(), "TMPDIR": str(tmp_path)},
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as above
    )
    with process:
        next(line for line in process.stdout if " /guilty/sync/" in line)
        process.send_signal(signal.SIGINT)
        output, errors = process.stdout.read(), process.stderr.read()

    assert (process.returncode, errors) == (130, "")
    [left] = tmp_path.iterdir()
    assert output.endswith(f"JSON log lines: {left}\n")
    assert read_lines(left)


def test_port_that_is_taken_is_refused():
    with listen(0) as taken:
        port = taken.getsockname()[1]
        result = invoke("--port", str(port))

    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: --port {port}: Address already in use")
    assert result.stderr.count("\n") == 1


@pytest.mark.postgresql
def test_postgresql_runs_and_leaves_the_other_tables_alone(postgres_url, tmp_path):
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE users (name text)"))
        connection.execute(text("INSERT INTO users VALUES ('mine')"))
    url = postgres_url.set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)

    process = run("--size", "small", "--log-file", str(tmp_path / "lines.jsonl"), "--database-url", url)

    with engine.begin() as connection:
        left = connection.scalars(text("SELECT name FROM users")).all()
        schemas = inspect(connection).get_schema_names()
        connection.execute(text("DROP TABLE users"))
    engine.dispose()
    assert (process.returncode, process.stderr) == (0, "")
    assert sorted(line["request_id"] for line in read_lines(tmp_path / "lines.jsonl")) == sorted(REQUEST_IDS)
    assert left == ["mine"]
    assert SCHEMA not in schemas


def test_options_of_libpq_become_those_of_asyncpg():
    database = open_postgresql("postgres://me@/db?host=/run/postgresql&sslmode=require&application_name=shop")

    assert dict(database.sync_engine.url.query) == {
        "host": "/run/postgresql",
        "sslmode": "require",
        "application_name": "shop",
    }
    assert dict(database.async_engine.url.query) == {"host": "/run/postgresql", "ssl": "require"}
