from hypothesis import given
from hypothesis import strategies as st

from sqltrace.intervals import Coverage

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


def test_memory_is_bounded_and_the_total_stays_exact_for_one_after_the_other():
    coverage = Coverage(limit=10)

    for number in range(1, 1_000):
        coverage.add(number * 10, number * 10 + 3)
    coverage.add_all([*range(10_000, 20_000, 10)], [*range(10_003, 20_003, 10)])

    assert coverage.until(100_000) == 3 * 1_999
    assert len(coverage._starts) <= 1_010


def test_what_comes_late_for_a_closed_past_is_not_counted_twice():
    coverage = Coverage(limit=4)
    for number in range(1, 11):
        coverage.add(number * 10, number * 10 + 5)

    coverage.add(10, 105)

    assert coverage.until(1_000) <= 95
    assert coverage.until(1_000) >= 50


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
