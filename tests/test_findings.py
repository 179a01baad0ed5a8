import json
from dataclasses import asdict
from functools import partial

import pytest
import structlog
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sqltrace
from sqltrace.finding import Finding
from sqltrace.findings import default_rules, n_plus_one
from tests import shelf as shelves
from tests.asgi import timed
from tests.scenarios import innermost


def cheap(recording):
    yield Finding("cheap", "It is cheap.", 0.1)


def dear(recording):
    return [Finding("dear", "It is dear.", 2.0)]


def broken(recording):
    yield Finding("broken", "Never seen.", 1.0)
    raise ValueError("no")


def visit(rules, sinks, work=lambda: None, background=None):
    app = Starlette(routes=[Route("/", lambda request: (work(), JSONResponse({}, background=background))[1])])
    TestClient(sqltrace.SQLTraceMiddleware(app, rules=rules, sinks=sinks)).get("/")


def loop(session, shelf):
    for author in session.query(shelf.Author):
        len(author.books)


def test_most_expensive_finding_comes_first():
    assert [finding.kind for finding in sqltrace.diagnose(None, [cheap, dear])] == ["dear", "cheap"]


def test_rule_that_raises_is_skipped_and_reported_once(caplog):
    for _ in range(2):
        assert [finding.kind for finding in sqltrace.diagnose(None, [broken, cheap])] == ["cheap"]

    assert [record.getMessage() for record in caplog.records] == [
        "the rule broken() failed and is skipped; the application is not affected"
    ]


def test_rule_that_answers_something_else_is_reported(caplog):
    assert sqltrace.diagnose(None, [lambda recording: ["slow"], dear])[0].kind == "dear"

    assert "the rule <lambda>() failed" in caplog.text


@pytest.mark.parametrize("other", [5, None, sqltrace.record("x")], ids=["number", "none", "block"])
def test_what_is_no_recording_is_refused_by_the_default_rules(other):
    with pytest.raises(TypeError) as raised:
        sqltrace.diagnose(other)

    assert str(raised.value) == (
        f"diagnose() needs a recording, as `with sqltrace.record() as recording` gives one, got {other!r}"
    )


def test_record_of_a_request_is_refused_with_the_remedy(witness):
    visit([], [witness])
    [record] = witness.take()

    with pytest.raises(TypeError, match=r"got a RequestRecord: write record\.recording"):
        sqltrace.diagnose(record)


def test_no_rules_find_nothing():
    assert sqltrace.diagnose(shelves.record_sync(loop, shelves.mapping()), []) == []


def test_recording_without_sql_has_findings_of_own_rules():
    with sqltrace.record() as recording:
        pass

    assert sqltrace.diagnose(recording) == []
    assert [finding.kind for finding in sqltrace.diagnose(recording, [*default_rules(), cheap])] == ["cheap"]


@pytest.mark.parametrize("count", range(7))
def test_default_rules_that_are_not_asked_would_have_told_nothing(count):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with sqltrace.record() as recording, engine.connect() as connection:
        for _ in range(count):
            connection.execute(text("SELECT name FROM sqlite_master")).all()
    engine.dispose()

    found = [finding.kind for finding in sqltrace.diagnose(recording, default_rules())]

    assert [finding.kind for finding in sqltrace.diagnose(recording)] == found == ["repeated_statement"] * (count >= 4)


def test_many_different_statements_are_told_nothing_by_rules_that_are_not_asked():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with sqltrace.record() as recording, engine.connect() as connection:
        for number in range(12):
            for _ in range(3):
                connection.execute(text(f"SELECT name AS name_{number} FROM sqlite_master")).all()
    engine.dispose()

    assert recording.counts.distinct == 12
    assert sqltrace.diagnose(recording, default_rules()) == sqltrace.diagnose(recording) == []


def test_thresholds_are_set_with_partial():
    recording = shelves.record_sync(loop, shelves.mapping())

    assert [finding.kind for finding in sqltrace.diagnose(recording, [partial(n_plus_one, loads=12)])] == ["n_plus_one"]
    assert sqltrace.diagnose(recording, [partial(n_plus_one, loads=13)]) == []


def test_default_rules_are_a_new_list_each_time():
    default_rules().clear()

    assert n_plus_one in default_rules()


def test_finding_goes_through_json():
    [finding] = sqltrace.diagnose(shelves.record_sync(loop, shelves.mapping()))

    assert Finding(**json.loads(json.dumps(asdict(finding)))) == finding


def test_n_plus_one_tells_its_parents_and_its_lines():
    [finding] = sqltrace.diagnose(shelves.record_sync(loop, shelves.mapping()))

    line = loop.__code__.co_firstlineno
    assert innermost(finding.parents) == f"SELECT authors at tests/test_findings.py:{line + 1} in loop"
    assert innermost(finding.call_site) == f"tests/test_findings.py:{line + 2} in loop"
    assert finding.call_site.startswith(f"{innermost(finding.call_site)}, from tests/shelf.py:")
    assert finding.relationship == "Author.books"
    assert finding.fix == ".options(selectinload(Author.books))"
    assert finding.message.startswith(
        "Author.books was loaded by 12 statements, one for each Author as it was touched, in"
    )


def test_findings_of_a_request_are_made_once_when_it_is_over(witness):
    seen = []

    def rule(recording):
        seen.append((recording.ended, recording.after_response_count))
        return [Finding("mine", "Seen.", 0.0)]

    engine = create_engine("sqlite://", poolclass=StaticPool)
    visit([rule], [witness], background=BackgroundTask(lambda: engine.connect().execute(text("SELECT 1")).close()))
    [record] = witness.take()

    assert record.findings is record.findings
    assert seen == [(True, 1)]
    engine.dispose()


def test_findings_are_known_when_the_response_is_ready():
    class Early:
        def response_ready(self, record):
            self.findings = record.findings

        def request_finished(self, record):
            self.all = record.findings

    early = Early()
    visit([dear], [early])

    assert early.findings == early.all == [Finding("dear", "It is dear.", 2.0)]
    assert early.findings is not early.all


@pytest.mark.parametrize(("rules", "level"), [([dear], "warning"), ([], "info"), (None, "info")])
def test_line_with_a_finding_is_a_warning(rules, level):
    with structlog.testing.capture_logs() as lines:
        visit(rules, None)

    assert lines[0]["log_level"] == level
    assert ("findings" in lines[0]) is (level == "warning")


def test_making_findings_is_not_in_the_duration(witness, clock):
    def slow(recording):
        clock.advance(5)
        return []

    app = Starlette(routes=[Route("/", lambda request: JSONResponse({}))])
    TestClient(timed(app, clock, rules=[slow], sinks=[witness])).get("/")
    [record] = witness.take()

    assert record.findings == []
    assert record.duration == record.recording.after_response == 0
