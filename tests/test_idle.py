"""Transactions by themselves, with times in seconds."""

from dataclasses import dataclass

import pytest

from sqltrace.callsite import CallSite
from sqltrace.idle import IdleStretch, Transactions

SECOND = 1_000_000_000
LINE = CallSite("app.py", 1, "load")


@dataclass
class Ran:
    """A statement."""

    started: int
    ended: int
    fetch: int = 0
    loop_wait: int | None = None
    streamed: bool = False
    call_site: CallSite | None = None
    gil_wait: int = 0


def ran(start, end, fetch=0, loop_wait=None, gil_wait=0, **more):
    loop_wait = None if loop_wait is None else round(loop_wait * SECOND)
    more["gil_wait"] = round(gil_wait * SECOND)
    return Ran(round(start * SECOND), round(end * SECOND), round(fetch * SECOND), loop_wait, **more)


def transaction(*executions):
    transactions = Transactions()
    for execution in executions:
        transactions.note(execution)
    return transactions


@pytest.mark.parametrize(
    ("executions", "idle"),
    [
        ([], 0),
        ([ran(10, 12)], 18),
        ([ran(10, 12, fetch=3)], 15),
        ([ran(10, 14, loop_wait=1)], 17),
        ([ran(10, 12, gil_wait=2, fetch=3), ran(18, 19, gil_wait=1)], 11),
        ([ran(10, 12), ran(15, 16), ran(20, 25)], 12),
        ([ran(10, 25), ran(10, 25)], 0),
        ([ran(10 + number / 10, 10.05 + number / 10) for number in range(150)], 20 - 150 * 0.05),
    ],
    ids=[
        "none",
        "one",
        "rows",
        "waited for the loop",
        "waited for the interpreter",
        "several",
        "at once",
        "more than are kept",
    ],
)
def test_transaction_is_idle_since_its_first_statement_while_none_runs(executions, idle):
    transactions = transaction(*executions)

    assert transactions.idle(30 * SECOND) == round(idle * SECOND)

    transactions.end_transaction(30 * SECOND)
    assert transactions.idle(90 * SECOND) == round(idle * SECOND)


@pytest.mark.parametrize(
    ("before", "flush", "within", "idle"),
    [
        ([ran(10, 20)], (25, 35), [ran(26, 27)], 40 - 20 - 10),
        ([ran(10, 20)], (25, 35), [], 40 - 20 - 10),
        ([], (0, 35), [ran(10, 20)], 40 - 35),
        ([ran(1, 2)], (10, 20), [ran(10, 15), ran(10, 15)], 40 - 2 - 10),
        (
            [ran(number / 100, 0.001 + number / 100) for number in range(70)],
            (10, 30),
            [ran(10 + number / 10, 10.05 + number / 10) for number in range(100)],
            40 - 0.064 - 20,  # the six that are kept of those before it are counted in
        ),
    ],
    ids=["statement before", "no statement", "begins before the transaction", "no pause", "more than are kept"],
)
def test_transaction_is_not_idle_while_the_orm_flushes(before, flush, within, idle):
    transactions = transaction(*before)
    progress = transactions.progress()
    for execution in within:
        transactions.note(execution)

    transactions.note_flush(flush[0] * SECOND, flush[1] * SECOND, progress)

    assert transactions.idle(40 * SECOND) == round(idle * SECOND)


def test_flush_that_begins_between_two_transactions_has_nothing_of_the_first():
    transactions = transaction(ran(1, 2), ran(3, 4))
    transactions.end_transaction(4 * SECOND)
    progress = transactions.progress()
    transactions.note(ran(10, 11))

    transactions.note_flush(9 * SECOND, 15 * SECOND, progress)

    assert transactions.idle(17 * SECOND) == (1 + 2) * SECOND


def stretch(start, end, **more):
    return IdleStretch(round(start * SECOND), round(end * SECOND), **more)


@pytest.mark.parametrize(
    ("executions", "flushes", "stretches"),
    [
        ([ran(1, 2)], [], [stretch(2, 9)]),
        ([ran(1, 2), ran(2.05, 3, fetch=1), ran(4.049, 8.951)], [], [stretch(2, 2.05)]),
        ([ran(1, 2, call_site=LINE), ran(3, 9)], [], [stretch(2, 3, call_site=LINE)]),
        ([ran(1, 2, call_site=LINE), ran(2, 5)], [], [stretch(5, 9, call_site=LINE)]),
        ([ran(1, 2, streamed=True), ran(3, 9)], [], [stretch(2, 3, reading=True)]),
        ([ran(1, 2, gil_wait=1), ran(3, 4, fetch=1, gil_wait=2)], [], [stretch(7, 9)]),
        ([ran(1, 2)], [(1, 4), (7, 8)], [stretch(4, 7)]),
        ([ran(1, 2)], [(0, 1)], [stretch(2, 9)]),
        ([ran(1, 2)], [(1, 9)], []),
        ([ran(1, 2), ran(3, 9)], [(1, 9)], []),
        ([ran(1, 2), ran(3, 4)], [(6, 9)], [stretch(2, 3), stretch(4, 6)]),
        ([ran(1, 2), ran(5, 6)], [(1, 7)], [stretch(7, 9)]),
        ([ran(1, 2), ran(5, 6)], [(4, 7)], [stretch(2, 4), stretch(7, 9)]),
    ],
    ids=[
        "until the end", "from 50 ms on", "line before", "line further back", "reading", "waits for the interpreter",
        "flush before and within",
        "flush before the first", "flush throughout", "flush beyond the next", "flush at the end", "flush from the first on", "flush from within the first on",
    ],
)  # fmt: skip
def test_long_stretches_lie_between_statements_and_outside_of_flushes(executions, flushes, stretches):
    transactions = transaction(*executions)
    transactions._flushes = [(start * SECOND, end * SECOND) for start, end in flushes]

    assert transactions.idle_stretches(9 * SECOND) == stretches


def test_stretches_of_an_ended_transaction_know_when_others_held_the_loop_and_come_before_the_next():
    transactions = transaction(ran(1, 2))
    transactions.connection = lambda: None  # of an asynchronous driver
    transactions.end_transaction(5 * SECOND, lambda start, end: [(start, end - SECOND)])
    transactions.note(ran(10, 11))

    assert transactions.idle_stretches(12 * SECOND) == [
        stretch(2, 5, is_async=True, loop_held=((2 * SECOND, 4 * SECOND),)),
        stretch(11, 12, is_async=True),
    ]


def test_twenty_longest_stretches_and_latest_flushes_are_kept():
    transactions = transaction(*[ran(number, number + 0.5) for number in range(30)])
    for number in range(30):
        transactions.note_flush(number * SECOND, (number + 1) * SECOND, (0, 0))
        transactions.note_flush(number * SECOND, number * SECOND + SECOND // 50, (0, 0))  # too short to matter
    flushes = [*transactions._flushes]
    transactions._flushes = None
    transactions.end_transaction(40 * SECOND)

    assert [start // SECOND for start, _ in flushes] == [*range(10, 30)]
    assert [one.end - one.start for one in transactions._stretches] == [round(10.5 * SECOND)] + [SECOND // 2] * 19
