"""Which line is told of statements of one kind that ran at several."""

import inspect
from contextlib import suppress

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.findings.wording import place
from tests.asgi import recorded

WORK = text("SELECT work(:seconds)")


@pytest.fixture
def connection(clock):
    """With the function ``work(seconds)`` in SQL, which moves the clock, or fails where there is none."""
    engine = create_engine("sqlite://", poolclass=StaticPool)

    @event.listens_for(engine, "connect")
    def connect(connection, _):
        connection.create_function("work", 1, clock.advance)

    with engine.connect() as connection:
        yield connection
    engine.dispose()


def here(above=0):
    """The call site of the line that calls this, or of one above it, as it is told."""
    caller = inspect.currentframe().f_back
    return f"tests/test_findings_places.py:{caller.f_lineno - above} in {caller.f_code.co_qualname}"


def test_slow_statement_is_told_at_its_own_line(clock, connection):
    with recorded(clock) as recording:
        connection.execute(WORK, {"seconds": 0}).all()
        connection.execute(WORK, {"seconds": 0}).all()
        connection.execute(WORK, {"seconds": 0}).all()
        slow = connection.execute(WORK, {"seconds": 0.7}).all() and here()

    [finding] = sqltrace.diagnose(recording)
    assert (finding.kind, finding.call_site) == ("slow_statement", slow)
    assert place(recording.groups[0]) == slow


def test_line_that_was_not_taken_is_not_guessed(clock, connection):
    """Slow to fetch, which is not known when the line would be taken; the others ran at several."""
    rows = text("SELECT work(seconds) FROM (SELECT 0 AS seconds UNION ALL SELECT :seconds)")
    with recorded(clock) as recording:
        connection.execute(rows, {"seconds": 0}).all()
        connection.execute(rows, {"seconds": 0}).all()
        connection.execute(rows, {"seconds": 0.7}).all()

    [finding] = sqltrace.diagnose(recording)
    assert (finding.kind, finding.call_site) == ("slow_statement", None)


@pytest.mark.parametrize("lines", [2, 3])
def test_lines_that_run_a_statement_in_turn_are_told_apart(connection, lines):
    with sqltrace.record() as recording:
        for _ in range(12):
            connection.execute(WORK, {"seconds": 0}).all()
            connection.execute(WORK, {"seconds": 0}).all()
            if lines == 3:
                connection.execute(WORK, {"seconds": 0}).all()

    _, about = recording.groups[0].samples.busiest(recording.statement_count)
    assert about <= recording.statement_count * 0.8


def test_many_are_told_at_the_line_that_most_of_them_came_from(clock, connection):
    with recorded(clock) as recording:
        connection.execute(WORK, {"seconds": 0.001}).all()
        for _ in range(30):
            most = connection.execute(WORK, {"seconds": 0.001}).all() and here()

    assert place(recording.groups[0]) == most


def test_query_of_a_repository_that_a_loop_asks_is_told_with_the_loop(connection):
    connection.execute(text("CREATE TABLE topics (id INTEGER)"))

    def get(number):
        connection.execute(text("SELECT * FROM topics WHERE id = :id"), {"id": number}).all()

    with sqltrace.record() as recording:
        for number in range(12):
            get(number)
    loop = here(above=1)

    [finding] = sqltrace.diagnose(recording)
    assert finding.call_site.endswith(f".get, from {loop}")


def test_statement_that_failed_after_the_response_is_told_at_its_own_line(clock, connection):
    with recorded(clock) as recording:
        recording.end_response()
        clock.advance(0.1)
        for _ in range(6):
            connection.execute(WORK, {"seconds": 0}).all()
        with suppress(OperationalError):
            connection.execute(WORK, {"seconds": None})
        failed = here(above=1)

    [finding] = sqltrace.diagnose(recording)
    assert (finding.kind, finding.call_site) == ("after_response_sql", failed)


def test_statement_that_fails_as_its_rows_are_read_is_told_where_it_ran(clock, connection):
    rows = text("SELECT work(seconds) FROM (SELECT 0 AS seconds UNION ALL SELECT NULL)")
    with recorded(clock) as recording:
        result = connection.execute(rows)
        ran = here(above=1)
        before = recording.groups[0].failed
        with suppress(OperationalError):
            result.all()

    [group] = recording.groups
    assert (before, group.failed, str(group.failed_at)) == (0, 1, ran)
    assert group.failure.type == "sqlite3.OperationalError"
