import ast
import os
import re
import subprocess
import sys

import pytest

from sqltrace.sinks import ReadableRenderer

REQUEST = {
    "event": "request",
    "level": "warning",
    "timestamp": "2026-11-23T12:04:31.120Z",
    "http.request.method": "GET",
    "http.route": "/tags/{tag_id}",
    "url.path": "/tags/303",
    "http.response.status_code": 200,
    "outcome": "ok",
    "duration_ms": 5_821.4,
    "time.database_ms": 121.3,
    "sql.count": 3,
    "sql.distinct": 2,
    "sql.failed": 0,
    "sql.after_response": 0,
    "sql.statements": [
        {
            "summary": "SELECT contents tags",
            "sql": "SELECT contents.id, contents.url, contents.title, contents.made\nFROM contents JOIN tags ON ?",
            "count": 2,
            "total_ms": 118.0,
            "max_ms": 100.0,
            "system": "sqlite",
            "call_site": "app/queries.py:46 in contents_of_tag",
        }
    ],
    "request_id": "r-1",
}


def render(*, colors=False, width=100, **changes):
    event = {key: value for key, value in (REQUEST | changes).items() if value is not None}
    return ReadableRenderer(colors=colors, width=width)(None, "info", event)


@pytest.mark.parametrize(("method", "level"), [("warning", None), ("info", "warning")])
def test_level_is_that_of_the_call_where_no_processor_has_added_it(method, level):
    event = {key: value for key, value in (REQUEST | {"level": level}).items() if value is not None}

    assert " warning GET " in ReadableRenderer(colors=False)(None, method, event).splitlines()[0]


def test_request_is_readable_at_a_glance():
    assert render().splitlines() == [
        "12:04:31 warning GET /tags/{tag_id}  200  5.82 s",
        "         3 statements, 2 distinct, 121.3 ms in the database",
        "            2 ×  118.0 ms  SELECT contents tags",
        "                           at app/queries.py:46 in contents_of_tag",
        "                           SELECT [4 columns] FROM contents JOIN tags ON ?",
        "         url.path=/tags/303  request_id=r-1",
    ]


def test_request_without_statements_is_two_lines():
    printed = render(
        **{"sql.count": 0, "sql.distinct": 0, "sql.statements": [], "request_id": None, "url.path": "/tags/{tag_id}"}
    )

    assert printed.splitlines()[1:] == ["         no statements"]


@pytest.mark.parametrize(("failed", "told"), [(0, ""), (1, ", 1 failed")])
def test_request_whose_statements_all_come_after_the_response_has_none_before(failed, told):
    printed = render(**{"sql.count": 0, "sql.distinct": 0, "sql.after_response": 2, "sql.failed": failed})

    assert printed.splitlines()[1] == f"         no statements; 2 after the response{told}"


def test_error_and_missing_response_are_told():
    printed = render(
        **{"http.response.status_code": None, "outcome": "error", "error.type": "app.Boom", "level": "error"}
    )

    assert printed.splitlines()[0] == "12:04:31 error   GET /tags/{tag_id}  no response  5.82 s  error  app.Boom"


def test_status_is_not_told_twice():
    printed = render(**{"http.response.status_code": 503, "outcome": "error", "error.type": "503"})

    assert printed.splitlines()[0].endswith("503  5.82 s  error")


def test_websocket_without_route_shows_its_path():
    printed = render(**{"http.request.method": None, "http.route": None, "url.path": "/ws", "timestamp": "12:04:31"})

    assert printed.startswith("12:04:31 warning WEBSOCKET /ws  200")


@pytest.mark.parametrize(("route", "named"), [("/tags/{tag_id}", "GET /tags/{tag_id}"), (None, "GET ")])
def test_path_that_a_processor_has_dropped_is_not_missed(route, named):
    printed = render(**{"http.route": route, "url.path": None})

    assert printed.startswith(f"12:04:31 warning {named}  200  5.82 s\n")
    assert printed.endswith("\n         request_id=r-1")


@pytest.mark.parametrize(
    ("timestamp", "told"),
    [
        ("2026-11-23 12:04:31", "12:04:31"),
        ("Mon Nov 23 12:04:31 2026", "12:04:31"),
        ("12:04:31.120000", "12:04:31"),
        (1_795_435_471.12, "1795435471.12"),
        ("12.04", "12.04   "),
        (None, "        "),
    ],
)
def test_time_of_day_is_told_of_a_timestamp_that_has_one(timestamp, told):
    assert render(timestamp=timestamp).startswith(f"{told} warning GET ")


def test_failures_and_work_after_the_response_are_told():
    statement = REQUEST["sql.statements"][0] | {"failed": 1, "error": "psycopg.errors.UniqueViolation (23505)"}
    del statement["call_site"]

    printed = render(**{"sql.failed": 1, "sql.after_response": 2, "sql.statements": [statement]})

    assert "121.3 ms in the database, 1 failed; 2 more after the response" in printed
    assert "SELECT contents tags  1 failed" in printed
    assert "failed with psycopg.errors.UniqueViolation (23505)" in printed
    assert " at " not in printed


def test_no_line_of_a_statement_is_longer_than_the_width():
    statement = REQUEST["sql.statements"][0] | {"summary": "SELECT " + "t " * 99, "sql": "SELECT " + "x" * 300}

    printed = render(width=100, **{"sql.statements": [statement]})

    assert max(map(len, printed.splitlines())) == 100
    assert printed.count("…") == 2


def test_line_of_a_narrow_terminal_has_20_characters_all_the_same():
    assert "SELECT [4 columns] …" in [line.strip() for line in render(width=1).splitlines()]


def test_few_columns_are_not_elided():
    sql = "SELECT tags.id, tags.name FROM tags"

    assert sql in render(**{"sql.statements": [REQUEST["sql.statements"][0] | {"sql": sql}]})


def test_columns_with_calls_are_not_elided():
    sql = "SELECT coalesce(contents.title, contents.url, contents.id) FROM contents"

    assert sql in render(**{"sql.statements": [REQUEST["sql.statements"][0] | {"sql": sql}]})


def test_colors_are_used_where_they_are_wanted():
    printed = render(colors=True)

    assert "\x1b[33mwarning\x1b[0m" in printed
    assert "\x1b[1mGET /tags/{tag_id}\x1b[0m" in printed


def test_unknown_level_has_no_color():
    assert "loud   " in render(colors=True, level="loud")


def test_every_other_event_goes_to_the_other_renderer():
    renderer = ReadableRenderer(others=lambda logger, method, event: f"{method}: {event['event']}")

    assert renderer(None, "info", {"event": "cache filled"}) == "info: cache filled"


def test_other_events_are_rendered_as_structlog_does_by_default():
    assert "cache filled" in ReadableRenderer(colors=False)(None, "info", {"event": "cache filled", "size": 3})


def test_findings_stand_before_the_statements_with_their_fix_whole():
    findings = [
        {
            "kind": "n_plus_one",
            "message": "Author.books was loaded by 12 statements, one for each Author as it was touched, in 3.1 ms.",
            "cost_ms": 3.1,
            "call_site": "app/api.py:47 in list_authors",
            "loaded_for": "SELECT authors at app/api.py:46 in list_authors",
            "fix": ".options(selectinload(Author.books))",
        },
        {"kind": "mine", "message": "Bare.", "cost_ms": 2_000.0},
    ]

    assert render(findings=findings).splitlines()[2:9] == [
        "         ! n_plus_one  3.1 ms  Author.books was loaded by 12 statements, one for each Author as it",
        "           was touched, in 3.1 ms.",
        "           at app/api.py:47 in list_authors",
        "           for SELECT authors at app/api.py:46 in list_authors",
        "           fix: .options(selectinload(Author.books))",
        "         ! mine  2.00 s  Bare.",
        "            2 ×  118.0 ms  SELECT contents tags",
    ]


def test_long_fix_is_folded_so_that_it_can_still_be_pasted():
    fix = (
        ".options(defaultload(Tag.articles).defaultload(Article.user).options(raiseload(User.contents, sql_only=True),"
        ' raiseload(User.tags, sql_only=True)))  # or lazy="raise_on_sql" at app/models.py:20 and app/models.py:21'
    )

    printed = render(findings=[{"kind": "mine", "message": "Bare.", "cost_ms": 1.0, "fix": fix}]).splitlines()[3:6]

    assert max(map(len, printed)) <= 100
    code = "\n".join(printed).replace("fix: ", "query")
    assert ast.dump(ast.parse(code.strip())) == ast.dump(ast.parse(f"query{fix}"))


WIDE = {
    "http.route": "/guilty/async/api/tags/{tag_id}/contents/all/of/them/and/more",
    "outcome": "error",
    "error.type": "sqlalchemy.exc.MissingGreenlet",
    "sql.rows": 14_406,
    "sql.on_loop": 12,
    "sql.failed": 2,
    "sql.after_response": 3,
    "findings": [
        {
            "kind": "eager_join",
            "message": "the selectin load of Tag.articles asked for 1 table but was sent with 9, as the mapping joins"
            " Article.user (example_app/guilty/models-of-the-shop.py:83) → User.contents.",
            "cost_ms": 3.1,
            "call_site": "example_app/guilty/some/deep/directory/async_api.py:47 in list_the_authors",
            "loaded_for": "SELECT tags article_tag articles users contents video_metadata post_metadata tags comments"
            " at example_app/queries.py:46 in contents_of_tag",
        }
    ],
    "sql.statements": [
        REQUEST["sql.statements"][0]
        | {
            "origin": "selectin",
            "relationship": "Tag.articles",
            "loaded_for": "SELECT tags article_tag articles users contents at example_app/queries.py:48 in tags_of_user",
            "call_site": "example_app/guilty/some/deep/async_api.py:49 in list_the_authors_and_all_of_their_books",
            "eager_joins": {
                "asked_tables": 1,
                "sent_tables": 9,
                "joins": [
                    "Article.user",
                    "Article.user → User.contents",
                    "Article.user → User.contents → Content.tags",
                ],
            },
            "failed": 2,
        }
    ],
    "connection.pool": "postgresql://shop@localhost:5432/shop",
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("colors", [False, True], ids=["plain", "colors"])
def test_long_lines_are_wrapped_and_no_file_and_line_is_lost(width, colors):
    printed = re.sub(r"\x1b\[\d+m", "", render(width=width, colors=colors, **WIDE))

    lines = printed.splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert set(re.findall(r"[\w-]+\.py:\d+", printed)) == {
        *("models-of-the-shop.py:83", "async_api.py:47", "queries.py:46", "queries.py:48", "async_api.py:49")
    }
    assert not any(line.lstrip().startswith((". ", ", ")) for line in lines)
    words = " ".join(printed.split())
    assert "for SELECT tags article_tag articles users contents at example_app/queries.py:48 in tags_of_user" in words
    assert "asked 1 table, sent 9: Article.user, Article.user → User.contents," in words


def test_wrapped_lines_hang():
    statement = REQUEST["sql.statements"][0] | {
        "origin": "selectin",
        "loaded_for": "SELECT a b c at app/queries.py:46 in f",
    }

    printed = render(width=60, **{"sql.statements": [statement]}).splitlines()

    assert printed[3:5] == [
        "                           selectin for SELECT a b c at",
        "                             app/queries.py:46 in f",
    ]


def test_word_that_fits_ends_its_line():
    line = "         ! mine  1.0 ms  one two"

    printed = render(width=len(line), findings=[{"kind": "mine", "message": "one two three", "cost_ms": 1.0}])

    assert f"\n{line}\n           three\n" in printed


def test_number_is_not_parted_from_its_unit():
    finding = {"kind": "mine", "message": "62.4 ms of 1.20 s, for 14,406 rows", "cost_ms": 62.4}

    for width in range(40, 80):
        lines = [line.strip() for line in render(width=width, findings=[finding]).splitlines()]
        assert [line for line in lines if re.match(r"(ms|s)\b", line)] == []


def test_method_is_not_parted_from_its_path():
    holders = [{"name": f"GET /tags/{number}", "ms": 100.0} for number in range(3)]

    for width in range(40, 80):
        printed = render(width=width, **{"time.loop_wait_ms": 330.0, "loop.waited_for": holders}).splitlines()
        assert [line for line in printed if line.lstrip().startswith("/")] == []


def test_path_that_is_longer_than_the_line_stays_whole():
    path = "application/" * 10 + "queries.py:46"
    statement = REQUEST["sql.statements"][0] | {"call_site": path}

    assert path in render(width=40, **{"sql.statements": [statement]})


@pytest.mark.parametrize("columns", [80, 120])
def test_width_is_that_of_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))

    printed = ReadableRenderer(colors=False)(None, "info", REQUEST | WIDE)

    assert columns - 20 < max(map(len, printed.splitlines())) <= columns


def test_what_a_client_says_prints_no_line_of_its_own_and_steers_no_terminal():
    path = "/x\n12:00:00 error   POST /admin\x1b[2J\u2028"
    event = {
        "http.request.method": "GET", "url.path": path, "outcome": "ok", "duration_ms": 400.0, "sql.count": 1, "sql.distinct": 1,
        "sql.failed": 0, "sql.after_response": 0, "time.database_ms": 1.0, "time.loop_wait_ms": 399.0, "level": "info",
        "loop.waited_for": [{"name": f"GET {path}", "ms": 399.0}],
        "findings": [{"kind": "waited_for_loop", "message": f"held by GET {path}", "cost_ms": 399.0, "fix": f"see GET {path}"}],
        "sql.statements": [{"summary": "SELECT t", "sql": "SELECT a\nFROM t\x1b[2J", "count": 1, "total_ms": 1.0}],
    }  # fmt: skip

    printed = ReadableRenderer(colors=False, width=300)(None, "info", event)

    assert not any(line.startswith("12:00:00") for line in printed.splitlines())
    assert "\x1b" not in printed
    assert "\u2028" not in printed
    assert r"GET /x\n12:00:00 error   POST /admin\x1b[2J\u2028" in printed
    assert "SELECT a FROM t" in printed


def test_long_request_says_where_its_time_went_though_it_is_one_part():
    event = {
        "http.request.method": "GET", "http.route": "/sleepy", "outcome": "ok", "duration_ms": 702.8, "sql.count": 0,
        "sql.distinct": 0, "sql.failed": 0, "sql.after_response": 0, "time.database_ms": 0.0, "time.python_ms": 702.8,
        "sql.statements": [],
    }  # fmt: skip

    printed = ReadableRenderer(colors=False)(None, "info", event)

    assert "702.8 ms = 702.8 ms python" in printed


@pytest.mark.parametrize(("waited", "told"), [(300.0, True), (0.05, False), (None, False)])
def test_waiting_for_the_interpreter_is_told_if_it_can_be_felt(waited, told):
    printed = render(**{"python.gil_wait_ms": waited})

    assert ("replies lay ready for 300.0 ms, while threads waited for the interpreter's lock" in printed) == told
    assert "python.gil_wait_ms" not in printed


@pytest.mark.parametrize(
    ("held", "told"),
    [(1.3, "702.8 ms python (701.5 ms of it off the event loop)\n"), (400, "702.8 ms python\n"), (None, "python\n")],
)
def test_time_that_was_awaited_is_told_from_what_python_took(held, told):
    account = {f"time.{part}_ms": 0.0 for part in ("connection", "database", "objects", "loop_wait")}
    facts = {"duration_ms": 702.8, "time.python_ms": 702.8, "sql.count": 0, "sql.statements": []} | account
    if held is not None:
        facts["loop.held_ms"] = held

    assert told in render(**facts)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"objects": 960.0, "python": 9_000.0, "database": 40.0}, "10.00 s = 960.0 ms objects + 9.00 s python"),
        (
            {"objects": 950.0, "python": 9_000.0, "database": 50.0},
            "= 50.0 ms database + 950.0 ms objects + 9.00 s python",
        ),
        ({"database": 9_000.0}, None),
        ({"database": 9_100.0}, "10.00 s = 9.10 s database"),
    ],
)
def test_part_that_is_too_small_to_be_seen_is_left_out(parts, told):
    parts = {f"time.{part}_ms": time for part, time in ({"database": 0.0} | parts).items()}

    lines = [line.strip() for line in render(duration_ms=10_000.0, **parts).splitlines() if " = " in line]

    assert [line.endswith(told or "") for line in lines] == [True] * (told is not None)


def test_short_request_that_is_all_of_one_part_needs_not_say_so():
    assert " = " not in render(duration_ms=49.9, **{"time.database_ms": 49.9})


def test_objects_that_took_no_time_to_speak_of_are_left_out():
    statements = [REQUEST["sql.statements"][0] | {"rows": 2, "objects_ms": time} for time in (0.05, 0.1)]

    printed = render(**{"sql.statements": statements})

    assert printed.count("2 rows") == 2
    assert re.findall("objects .*?ms", printed) == ["objects 0.1 ms"]


@pytest.mark.parametrize(("milliseconds", "told"), [(999.9, "999.9 ms"), (1_000.0, "1.00 s")])
def test_times_are_in_seconds_from_one_on(milliseconds, told):
    assert render(duration_ms=milliseconds).splitlines()[0].endswith(f"200  {told}")


def test_request_that_waited_for_another_of_its_route_says_so():
    holders = [{"name": "GET /tags/{tag_id}", "ms": 300.0}, {"name": "GET /tags", "ms": 30.0}]

    printed = render(width=200, **{"time.loop_wait_ms": 330.0, "loop.waited_for": holders})

    assert "held by another GET /tags/{tag_id} (300.0 ms), GET /tags (30.0 ms)" in printed


@pytest.mark.parametrize(("waited", "told"), [(8.4, False), (29.1, True)])
def test_who_held_the_loop_is_told_where_the_wait_is_in_the_account(waited, told):
    holders = [{"name": "GET /tags", "ms": waited}]
    times = {"time.database_ms": 5_800.0, "time.python_ms": 29.2, "time.loop_wait_ms": waited}

    printed = render(**times, duration_ms=5_820.0, **{"loop.waited_for": holders})

    assert ("ms loop wait" in printed) is ("held by GET /tags" in printed) is told


def test_commit_that_takes_a_good_part_of_the_database_time_is_told():
    event = {
        "http.request.method": "POST", "http.route": "/commit", "outcome": "ok", "duration_ms": 710.9, "sql.count": 2,
        "sql.distinct": 2, "sql.failed": 0, "sql.after_response": 0, "time.database_ms": 705.2, "time.python_ms": 5.7,
        "connection.commit_ms": 703.6, "sql.statements": [],
    }  # fmt: skip

    printed = ReadableRenderer(colors=False)(None, "info", event)

    assert "705.2 ms in the database, 703.6 ms of it committing" in printed


@pytest.mark.parametrize(("after_response", "told"), [(0.5, "1.5 ms of it committing"), (1.5, None)])
def test_commit_after_the_response_is_not_told_as_of_its_database_time(after_response, told):
    times = {"connection.commit_ms": 2.0, "connection.commit_after_response_ms": after_response}

    printed = render(**{"time.database_ms": 4.0}, **times)

    assert told in printed if told else "committing" not in printed


def test_commit_that_waited_for_the_event_loop_is_not_told_as_a_part_of_less_database_time():
    printed = render(**{"time.database_ms": 2.5, "connection.commit_ms": 3.3})

    assert "2.5 ms in the database, 3.3 ms committing" in printed


@pytest.mark.parametrize(("database", "commit"), [(100.0, 9.9), (1.0, 0.9)])
def test_commit_that_takes_little_is_not_told(database, commit):
    assert "committing" not in render(**{"time.database_ms": database, "connection.commit_ms": commit})


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"width": "x"}, TypeError, "width must be an int, got 'x'"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"colors": "x"}, TypeError, "colors must be True or False, got 'x'"),
        ({"others": 5}, TypeError, "others must be a structlog renderer, got 5"),
    ],
)
def test_wrong_option_says_what_was_got_and_what_is_wanted(option, error, message):
    with pytest.raises(error) as raised:
        ReadableRenderer(**option)

    assert str(raised.value) == message


def test_process_without_a_console_may_make_a_renderer(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)

    assert ReadableRenderer()(None, "info", {"event": "hello"})


PRINTS = """
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from sqlalchemy import create_engine, text
import sqltrace

engine = create_engine("sqlite://")

def endpoint(request):
    with engine.connect() as connection:
        for _ in range(2):
            connection.execute(text("SELECT 1")).all()
    return Response()

app = Starlette(routes=[Route("/{name}", endpoint)])
app.add_middleware(sqltrace.SQLTraceMiddleware)
TestClient(app).get("/\N{HIRAGANA LETTER A}\N{LATIN SMALL LETTER E WITH ACUTE}")
"""


@pytest.mark.parametrize(
    ("encoding", "path", "count"),
    [
        ("utf-8", "/\N{HIRAGANA LETTER A}\N{LATIN SMALL LETTER E WITH ACUTE}", "2 ×"),
        ("cp1252", r"/\u3042" + "\N{LATIN SMALL LETTER E WITH ACUTE}", "2 x"),
        ("ascii", r"/\u3042\xe9", "2 x"),
    ],
)
def test_line_is_told_whatever_encoding_standard_output_has(encoding, path, count):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    process = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, env=environment, timeout=120)

    printed = process.stdout.decode(encoding)
    assert f"url.path={path}" in printed, process.stderr
    assert count in printed
    assert not process.stderr
