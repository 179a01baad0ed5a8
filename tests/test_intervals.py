import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqltrace.intervals import Coverage
from sqltrace.time_account import Spent, TimeAccount

INTERVAL = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(sorted).map(tuple)


def covered_by(intervals, end):
    return len({moment for start, stop in intervals for moment in range(start, min(stop, end))})


@given(st.lists(INTERVAL), st.integers(0, 320))
def test_overlapping_intervals_count_once_in_any_order(intervals, end):
    coverage = Coverage()

    for start, stop in intervals:
        coverage.add(start, stop)

    assert coverage.until(end) == covered_by(intervals, end)


@given(st.lists(st.lists(INTERVAL)), st.integers(0, 320))
def test_intervals_may_come_in_bulk(bulks, end):
    coverage = Coverage()

    for bulk in bulks:
        coverage.add_all([start for start, _ in bulk], [stop for _, stop in bulk])

    assert coverage.until(end) == covered_by([interval for bulk in bulks for interval in bulk], end)


def account_of(spent, end):
    return spent.account(end, end)


def test_time_beyond_the_limit_is_exact_for_parts_that_take_turns():
    spent, second = Spent(limit=10), 1_000_000_000

    for start in range(0, 3_000 * second, 3 * second):
        spent.add_all("database", [start], [start + second])
        spent.add_all("objects", [start + second], [start + 2 * second])

    account = account_of(spent, 3_000 * second)
    assert (account.database, account.objects, account.python) == (1_000, 1_000, 1_000)
    assert len(spent._covered["database"]) <= 10


def test_memory_for_stretches_is_bounded():
    spent = Spent()

    for start in range(1, 20_001, 2):
        spent.add_all("database", [start], [start + 1])

    assert len(spent._covered["database"]) <= 4_096
    assert account_of(spent, 1_000_000_000).database == 10_000 / 1_000_000_000


def test_one_part_beyond_the_limit_takes_nothing_from_another():
    spent, second = Spent(limit=10), 1_000_000_000

    spent.add_all(
        "objects", [*range(second, 1_000 * second, 2 * second)], [*range(2 * second, 1_001 * second, 2 * second)]
    )
    spent.add_all("database", [900 * second], [904 * second])

    assert account_of(spent, 1_000 * second).objects == 500
    assert account_of(spent, 1_000 * second).database == 2


def test_what_comes_late_for_settled_time_counts_from_its_end_on():
    spent, second = Spent(limit=4), 1_000_000_000
    for start in range(10, 110, 10):
        spent.add_all("database", [start * second], [(start + 5) * second])

    spent.add_all("objects", [10 * second, 60 * second, 110 * second], [20 * second, 68 * second, 112 * second])

    assert spent._settled_until == 65 * second
    account = account_of(spent, 1_000 * second)
    assert (account.database, account.objects) == (50, 5)


def test_stretch_across_the_end_of_settled_time_counts_once():
    spent, second = Spent(limit=4), 1_000_000_000
    spent.add_all("objects", [second], [100 * second])

    for start in range(10, 110, 10):
        spent.add_all("database", [start * second], [(start + 5) * second])

    assert second < spent._settled_until < 100 * second
    account = account_of(spent, 200 * second)
    assert (account.objects, account.database, account.python) == (99, 5, 96)


@pytest.mark.parametrize(("boundary", "database"), [(12, 7), (95, 50)], ids=["ended", "still to come"])
def test_time_after_the_end_of_the_response_is_not_settled_into_it(boundary, database):
    spent, second = Spent(limit=4), 1_000_000_000
    for start in range(0, 100, 10):
        spent.add_all("database", [start * second], [(start + 5) * second], boundary=boundary * second)

    assert account_of(spent, boundary * second).database == database
    assert len(spent._covered["database"]) <= 4


@pytest.mark.parametrize(
    ("stretches", "unknown", "account"),
    [
        ({}, set(), TimeAccount(0, 0, 0, 0, 10)),
        ({"database": (1, 7), "python": (2, 5)}, set(), TimeAccount(0, 3, 0, 0, 7)),
        ({"database": (1, 7), "objects": (5, 8), "connection": (6, 9)}, set(), TimeAccount(1, 4, 3, 0, 2)),
        ({"database": (1, 7)}, {"connection", "objects", "loop_wait"}, TimeAccount(None, 6, None, None, 4)),
        ({"loop_wait": (1, 7)}, {"loop_wait"}, TimeAccount(0, 0, 0, 6, 4)),
    ],
    ids=["nothing", "own work meanwhile", "overlapping", "unknown", "known in part"],
)
def test_parts_of_the_account_add_up_to_the_duration_and_unknown_ones_are_none(stretches, unknown, account):
    spent, second = Spent(), 1_000_000_000
    for part, (start, end) in stretches.items():
        spent.add_all(part, [start * second], [end * second])

    assert spent.account(10 * second, 10 * second, unknown) == account


def test_settled_time_is_among_the_stretches_on_demand_only():
    spent = Spent(limit=4)
    for start in range(10, 60, 10):
        spent.add_all("database", [start], [start + 5])

    assert spent.stretches(["database", "objects"]).gaps(1, 60) == [(1, 30), (35, 40), (45, 50), (55, 60)]
    assert spent.stretches(["objects"], settled=True).gaps(1, 60) == [(25, 60)]


def test_time_until_a_reading_within_a_stretch_ends_there():
    coverage = Coverage()
    coverage.add_all([10, 30], [20, 40])

    assert [coverage.until(end) for end in (5, 10, 15, 25, 35, 50)] == [0, 0, 5, 10, 15, 20]


def test_interval_that_does_not_end_after_its_start_is_none():
    coverage = Coverage()
    for start, end in [(10, 20), (15, 12), (30, 25), (40, 40)]:
        coverage.add(start, end)

    assert (len(coverage), coverage.total(), coverage.gaps(5, 45)) == (1, 10, [(5, 10), (20, 45)])


def test_union_with_nothing_is_a_copy_of_its_own():
    covered, union = Coverage(), Coverage()
    covered.add(10, 20)

    union.merge(covered)
    union.add(20, 30)

    assert (covered.until(50), union.until(50)) == (10, 20)
