from hypothesis import given
from hypothesis import strategies as st

from sqltrace.intervals import Coverage
from sqltrace.time_account import Spent

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

    spent.add_all("database", [10 * second], [105 * second])

    assert 50 <= account_of(spent, 1_000 * second).database <= 95


def test_time_after_the_end_of_the_response_is_not_settled_into_it():
    spent, second = Spent(limit=4), 1_000_000_000
    for start in range(0, 100, 10):
        spent.add_all("database", [start * second], [(start + 5) * second], boundary=12 * second)

    assert account_of(spent, 12 * second).database == 7
    assert len(spent._covered["database"]) <= 4


def test_time_until_a_reading_within_a_stretch_ends_there():
    coverage = Coverage()
    coverage.add_all([10, 30], [20, 40])

    assert [coverage.until(end) for end in (5, 10, 15, 25, 35, 50)] == [0, 0, 5, 10, 15, 20]


def test_union_with_nothing_is_a_copy_of_its_own():
    covered, union = Coverage(), Coverage()
    covered.add(10, 20)

    union.merge(covered)
    union.add(20, 30)

    assert (covered.until(50), union.until(50)) == (10, 20)
