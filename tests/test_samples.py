import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace.callsite import CallSite
from sqltrace.samples import SAMPLED, Samples


def record(work):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with sqltrace.record() as recording, engine.connect() as connection:
        work(connection)
    engine.dispose()
    [group] = recording.groups
    return group


def ask(connection, value):
    connection.execute(text("SELECT :value"), {"value": value})


def test_line_of_a_loop_has_all_of_them():
    group = record(lambda connection: [ask(connection, number) for number in range(50)])

    site, count = group.samples.busiest(group.count)

    assert site == group.call_site
    assert count == 50


def test_statement_at_many_lines_has_a_few_at_each():
    def work(connection):
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))
        connection.execute(text("SELECT 1"))

    group = record(work)

    assert group.samples.busiest(group.count)[1] <= 3


def test_line_that_several_others_call_is_told_with_the_busiest_of_them():
    def work(connection):
        ask(connection, 0)
        for number in range(20):
            ask(connection, number)

    group = record(work)

    site, count = group.samples.busiest(group.count)

    assert (site.function, count) == ("ask", 21)
    assert site.callers[0].line == work.__code__.co_firstlineno + 3
    assert group.samples.only_site == site


def test_call_site_is_looked_for_at_executions_that_see_both_lines_of_a_loop():
    assert sorted(SAMPLED)[:10] == [0, 1, 3, 8, 15, 32, 63, 128, 255, 512]  # run before it
    assert {number % 2 for number in SAMPLED} == {0, 1}


@pytest.mark.parametrize(
    ("ways", "count", "busiest"),
    [
        ({}, 10, None),
        ({4: 1.0}, 10, (1.0, 10)),
        ({1: 1.0, 4: 2.0}, 10, (2.0, 7)),
        ({1: 1.0, 2: 2.0, 4: 1.0}, 5, (1.0, 3)),
        ({1: 1.0, 10: 1.1, 12: 2.0}, 21, (1.0, 11)),
        ({1: 2.0} | dict.fromkeys(range(2, 64), 1.0) | {64: 3.0} | dict.fromkeys(range(65, 201), 4.0), 200, (3.0, 137)),
    ],
    ids=["none", "one", "two", "in turn", "two callers of one", "64 at most"],
)
def test_line_stands_for_all_up_to_the_next_that_is_known(ways, count, busiest):
    sites = {way: CallSite("app.py", int(way), "load") for way in ways.values()}
    samples = Samples(0)
    for number, way in ways.items():
        samples.add(number, sites[way], None, None)

    found = samples.busiest(count)

    assert (found and (id(found[0]), found[1])) == (busiest and (id(sites[busiest[0]]), busiest[1]))


def test_no_more_than_64_different_parameters_are_kept():
    samples = Samples(0)
    for digest in [*range(100), *range(100)]:
        samples.compare(digest)

    assert (samples.equal, samples.compared) == (2, 128)


@pytest.mark.parametrize(
    ("values", "equal", "compared"),
    [([1], 1, 1), ([1, 2, 3], 1, 3), ([1, 2, 1, 1], 3, 4), (["a"] * 20, 8, 8)],
)
def test_equal_parameters_are_counted_among_the_first_eight(values, equal, compared):
    group = record(lambda connection: [ask(connection, value) for value in values])

    assert (group.samples.equal, group.samples.compared) == (equal, compared)


@pytest.mark.parametrize(
    ("values", "varied"),
    [
        ([1] * 40, False),
        ([1] * 8 + [2] * 40, True),
        ([*range(8), *range(8)], False),
        ([1] * 8 + [2], True),
        ([1] * 8 + [2] + [1] * 40, True),
    ],
)
def test_later_parameters_are_compared_with_the_first_eight(values, varied):
    group = record(lambda connection: [ask(connection, value) for value in values])

    assert group.samples.varied is varied
    assert group.samples.compared == 8


def test_equal_statements_without_parameters_are_told_apart_by_their_values():
    group = record(lambda connection: [connection.execute(text(f"SELECT {number}")) for number in range(3)])

    assert (group.count, group.samples.equal) == (3, 1)


def test_nothing_is_known_of_statements_that_were_not_compared():
    def work(connection):
        connection.execute(text("SELECT " + ", ".join(f":p{n}" for n in range(20))), {f"p{n}": n for n in range(20)})

    group = record(work)

    assert (group.samples.equal, group.samples.compared) == (0, 0)
