import ast

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


def test_failures_and_work_after_the_response_are_told():
    statement = REQUEST["sql.statements"][0] | {"failed": 1}
    del statement["call_site"]

    printed = render(**{"sql.failed": 1, "sql.after_response": 2, "sql.statements": [statement]})

    assert "121.3 ms in the database, 1 failed; 2 more after the response" in printed
    assert "SELECT contents tags  1 failed" in printed
    assert " at " not in printed


def test_no_line_of_a_statement_is_longer_than_the_width():
    statement = REQUEST["sql.statements"][0] | {"summary": "SELECT " + "t " * 99, "sql": "SELECT " + "x" * 300}

    printed = render(width=100, **{"sql.statements": [statement]})

    assert max(map(len, printed.splitlines())) == 100
    assert printed.count("…") == 2


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


def test_commit_that_takes_a_good_part_of_the_database_time_is_told():
    event = {
        "http.request.method": "POST", "http.route": "/commit", "outcome": "ok", "duration_ms": 710.9, "sql.count": 2,
        "sql.distinct": 2, "sql.failed": 0, "sql.after_response": 0, "time.database_ms": 705.2, "time.python_ms": 5.7,
        "connection.commit_ms": 703.6, "sql.statements": [],
    }  # fmt: skip

    printed = ReadableRenderer(colors=False)(None, "info", event)

    assert "705.2 ms in the database, 703.6 ms of it committing" in printed


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
