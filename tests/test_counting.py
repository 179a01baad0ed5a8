"""What a group gains by executions, at once and in steps."""

import pytest

from sqltrace.callsite import CallSite
from sqltrace.collector import Execution
from sqltrace.counting import Unsettled, add_measured
from sqltrace.statement import Failure, Group

SECOND = 1_000_000_000
LINE, OTHER = CallSite("app.py", 1, "load"), CallSite("app.py", 2, "load")
REFUSED, LOST = Failure("IntegrityError", None), Failure("OperationalError", None)


def ran(seconds, call_site=LINE):
    execution = Execution(None, SECOND, SECOND + round(seconds * SECOND), "", "", None)
    execution.call_site = call_site
    return execution


def read(execution, *, fetch=0.0, objects=0.0, rows=None, roots=None, entities=None, failure=None):
    execution.fetch, execution.objects = round(fetch * SECOND), round(objects * SECOND)
    execution.rows, execution.roots, execution.entities, execution.failure = rows, roots, entities, failure


def group():
    return Group("SELECT 1", "", "SELECT", "sqlite", "response")


STEPS = [
    {"fetch": 0.5, "rows": 2},
    {"fetch": 0.5, "rows": 2, "objects": 0.25, "roots": 1, "entities": {"Book": 2}},
    {"fetch": 1.0, "rows": 5, "objects": 0.5, "roots": 2, "entities": {"Book": 4, "Author": 1}, "failure": LOST},
]


def test_execution_that_is_read_in_steps_counts_as_one_that_is_read_at_once():
    at_once, in_steps, one, other = group(), group(), ran(2), ran(2)
    unsettled = Unsettled(one, in_steps)
    in_steps.total = 1.5  # what is known of it before any row is read
    for execution in (one, other):
        execution.loop_wait, execution.open = SECOND // 2, True

    came = [unsettled.catch_up()]
    for step in STEPS:
        read(one, **step)
        came.append(unsettled.catch_up())
    read(other, **STEPS[-1])
    rows = add_measured(at_once, other)
    at_once.total -= 0.5  # which is for the one who counts

    assert came == [(0, False), (2, False), (0, False), (3, True)]
    assert (rows, at_once) == (5, in_steps)
    assert unsettled.catch_up() == (0, False)
    assert at_once == in_steps


def test_group_has_all_of_its_executions_and_the_line_of_the_longest_and_of_the_first_that_failed():
    several, first, second, third = group(), ran(1), ran(2, OTHER), ran(2.25)
    read(first, rows=2, roots=1, objects=0.5, entities={"Book": 2}, failure=REFUSED)
    read(second, fetch=0.5, rows=3, roots=2, entities={"Book": 1, "Author": 3}, failure=LOST)
    second.loop_wait = SECOND // 4
    read(third, objects=0.25)

    rows = [add_measured(several, execution) for execution in (first, second, third)]
    Unsettled(ran(1), several).catch_up()  # a shorter one

    expected = group()
    expected.total, expected._longest, expected.longest_at = 5.75, 9 * SECOND // 4, OTHER
    expected.rows, expected.roots, expected.objects = 5, 3, 0.75
    expected.entities, expected.failed, expected.failure, expected.failed_at = (
        {"Book": 3, "Author": 3},
        2,
        REFUSED,
        LINE,
    )
    assert rows == [2, 3, None]
    assert several == expected


@pytest.mark.parametrize("closed", [False, True])
def test_execution_is_settled_the_second_time_it_is_found_closed(closed):
    execution, settled = ran(1), []
    execution.open = not closed
    unsettled = Unsettled(execution, group())

    for _ in range(3):
        unsettled.catch_up()
        settled.append(unsettled.settled)

    assert settled == [False, closed, closed]


def test_execution_is_read_if_rows_came_since_it_was_looked_at_before():
    execution, is_read = ran(1), []
    unsettled = Unsettled(execution, group())

    for rows in (2, 2, 3, 3):
        execution.rows = rows
        unsettled.catch_up()
        is_read.append(unsettled.is_read)

    assert is_read == [False, False, True, False]
