import asyncio
import contextvars
import gc
import sys
import threading
import tracemalloc
import weakref

import pytest
from sqlalchemy import column, create_engine, insert, literal_column, select, table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace import recording as recording_module
from sqltrace.collector import FOLD_AT, Collector, Execution, current
from sqltrace.database import Database
from sqltrace.recording import Recording
from sqltrace.statement import CallSite, Failure, Group, Statement
from sqltrace.tally import OTHER_STATEMENTS
from tests.asgi import recorded


@pytest.fixture
def engine(clock):
    """SQL that takes as many seconds as it says: `SELECT spend(0.5)`."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})

    def spend(seconds):
        clock.advance(seconds)
        return seconds

    with engine.connect() as connection:
        connection.connection.driver_connection.create_function("spend", 1, spend)
    sqltrace.instrument(engine)
    yield engine
    engine.dispose()


def run(engine, *seconds, sql="SELECT spend(:seconds)"):
    with engine.connect() as connection:
        for each in seconds:
            connection.execute(text(sql), {"seconds": each}).all()


def test_statement_is_recorded_whole(engine, clock):
    with recorded(clock) as recording:
        clock.advance(2)
        run(engine, 0.25)

    [statement] = recording.statements
    site, statement.call_site = statement.call_site, None
    assert statement == Statement(
        sql="SELECT spend(?)",
        fingerprint=statement.fingerprint,
        summary="SELECT",
        start=2.0,
        execute=0.25,
        fetch=0.0,
        objects=0.0,
        loop_wait=None,
        rows=1,
        system="sqlite",
        database=Database(namespace=":memory:"),
    )
    assert (site.file, site.function) == (__file__, "run")


def test_group_is_exact(engine, clock):
    with recorded(clock) as recording:
        run(engine, 0.5, 2, 0.5)

    [group] = recording.groups
    assert (group.count, group.failed, group.total, group.max) == (3, 0, 3.0, 2.0)
    assert isinstance(group, Group)
    assert isinstance(group.call_site, CallSite)


def test_groups_come_most_time_first(engine, clock):
    with recorded(clock) as recording:
        run(engine, 1)
        run(engine, 3, sql="SELECT spend(:seconds) AS second")
        run(engine, 2, sql="SELECT spend(:seconds) AS third")

    assert [group.total for group in recording.groups] == [3.0, 2.0, 1.0]


def test_lists_that_a_reader_changes_are_its_own(engine, clock):
    with recorded(clock) as recording:
        run(engine, 1)

    recording.statements.clear()
    recording.groups.clear()

    assert (len(recording.statements), len(recording.groups)) == (1, 1)


def test_statement_that_begins_at_the_very_end_of_the_response_is_of_the_response(engine, clock):
    with recorded(clock) as recording:
        recording.end_response()
        run(engine, 1, 1)

    assert [statement.phase for statement in recording.statements] == ["response", "after_response"]
    assert sorted((group.phase, group.count) for group in recording.groups) == [("after_response", 1), ("response", 1)]
    assert {group.phase: len(kept) for group, kept in recording.executions()} == {"after_response": 1, "response": 1}


def test_statement_that_was_counted_as_the_response_ended_is_kept_with_its_group(engine, clock):
    with recorded(clock) as recording:
        run(engine, 1)
        recording.fold()
        recording._response_ended = recording.started - 1  # another thread had read the clock, and then was held up

        executions = [len(kept) for _, kept in recording.executions()]

    assert executions == [0, 1]


def test_statements_that_are_kept_are_in_their_groups_once_however_often_one_asks(engine, clock):
    with recorded(clock) as recording:
        for number in (1, 2):
            run(engine, 1)
            for _ in range(2):
                assert [len(kept) for _, kept in recording.executions()] == [number]


def test_recording_is_closed_while_no_other_thread_reads_it():
    recording = Recording()
    others = []

    class Route:
        """Its name is let go of as the collector is closed."""

        name = ""

        def __setattr__(self, attribute, value):
            reader = threading.Thread(target=lambda: others.append(recording._lock.acquire(blocking=False)))
            reader.start()
            reader.join()

    recording.collector.label = Route()
    recording.end()

    assert others == [False]


def test_rows_that_are_read_after_the_end_are_in_no_answer(engine, clock):
    with engine.connect() as connection:
        with recorded(clock) as recording:
            result = connection.execute(text("SELECT 1 UNION SELECT 2"))
            assert recording.executions()[0][1][0].open
        result.all()

    [(group, [execution])] = recording.executions()
    assert (group.rows, execution.rows, recording.row_count) == (0, 0, 0)


def test_only_statements_of_the_response_count_as_on_the_loop(engine, clock):
    async def main():
        with recorded(clock) as recording:
            run(engine, 1)
            recording.end_response()
            clock.advance(1)
            run(engine, 1, 1)
        return recording

    recording = asyncio.run(main())

    assert (recording.counts.on_loop, recording.after_response_count) == (1, 2)


def test_statements_that_differ_beyond_the_sql_that_is_kept_are_different_ones(engine, clock):
    things = table("things", column("size"), column("weight"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE things (size INTEGER, weight INTEGER)"))
    with recorded(clock, max_sql_length=20) as recording, engine.connect() as connection:
        for each in (things.c.size, things.c.weight):
            connection.execute(select(things).where(each == 1)).all()

    assert [(group.sql, group.count) for group in recording.groups] == 2 * [("SELECT things.size, ", 1)]
    assert recording.counts.distinct == 2


def test_same_statement_for_two_reasons_is_one_distinct_statement(engine, clock):
    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        thing = Thing(id=1)
        session.add(thing)
        session.commit()
        with recorded(clock) as recording:
            assert thing.id == 1  # had expired with the commit
            session.expire(thing)
            assert thing.id == 1

    assert len(recording.groups) == 2
    assert recording.counts.distinct == 1


def test_duration_ends_with_the_response_and_the_rest_is_after_it(engine, clock):
    with recorded(clock) as recording:
        run(engine, 1)
        clock.advance(1)
        recording.end_response()
        clock.advance(2)
        run(engine, 3)

    assert (recording.duration, recording.after_response) == (2.0, 5.0)
    assert (recording.statement_count, recording.after_response_count, recording.counts.distinct) == (2, 1, 1)
    assert [statement.phase for statement in recording.statements] == ["response", "after_response"]
    assert recording.time_account.database == 1.0


def test_response_that_ended_twice_ended_the_first_time(clock):
    with recorded(clock) as recording:
        clock.advance(1)
        recording.end_response()
        clock.advance(1)
        recording.end_response()
        recording.end()
        clock.advance(1)
        recording.end()

    assert (recording.duration, recording.after_response, recording.ended) == (1.0, 1.0, True)


def test_open_recording_can_be_read(engine, clock):
    with recorded(clock) as recording:
        run(engine, 1)

        assert (recording.duration, recording.after_response, recording.time_account.database) == (1.0, 0.0, 1.0)
        assert recording.statement_count == len(recording.statements) == 1
        assert not recording.ended


def test_failure_is_counted_and_told(engine, clock):
    from sqlalchemy.exc import OperationalError

    with recorded(clock) as recording, engine.connect() as connection, pytest.raises(OperationalError):
        connection.execute(text("SELECT * FROM missing"))

    assert recording.failed_count == recording.groups[0].failed == 1
    assert recording.statements[0].failure == Failure("sqlite3.OperationalError", "SQLITE_ERROR")
    assert recording.statements[0].failed


def test_counts_stay_exact_beyond_the_statements_that_are_kept(engine, clock):
    with recorded(clock, max_statements=10) as recording:
        run(engine, *[1] * (2 * FOLD_AT + 7))

    assert len(recording.statements) == 10
    assert recording.statement_count == recording.groups[0].count == 2 * FOLD_AT + 7
    assert recording.groups[0].total == recording.time_account.database == 2 * FOLD_AT + 7


def test_group_knows_when_the_last_of_those_that_are_not_kept_ended(engine, clock):
    with recorded(clock, max_statements=1) as recording:
        run(engine, 1, 1, 1)
        last = clock.now
        clock.advance(1)

    assert recording.groups[0].ended == last


def test_groups_are_bounded_and_the_others_counted_together(engine, clock):
    with recorded(clock, max_statements=3) as recording:
        for number in range(10):
            run(engine, 1, sql=f"SELECT spend(:seconds) AS column_{number}")

    others = [group for group in recording.groups if group.sql == OTHER_STATEMENTS]
    assert len(recording.groups) == 4
    assert [(group.count, group.total, group.call_site) for group in others] == [(7, 7.0, None)]


def test_literals_in_the_text_do_not_fill_the_memory(engine, clock):
    with recorded(clock, max_statements=20) as recording:
        for number in range(2_049):
            run(engine, 0, sql=f"SELECT spend(:seconds), {number}")

        assert [group.count for group in recording.groups] == [2_049]
        assert len(recording._tally._known["response"]) == 1  # of 2,048 texts it begins anew


def test_statements_are_kept_with_their_group_when_their_texts_are_known_no_more(engine, clock):
    with recorded(clock, max_statements=2) as recording:
        for number in range(4):
            run(engine, 1, sql=f"SELECT spend(:seconds), {number}")

    [group] = recording.groups
    assert [(told is group, len(kept)) for told, kept in recording.executions()] == [(True, 2)]


def test_engines_that_a_statement_ran_on_do_not_fill_the_memory():
    with sqltrace.record() as recording:
        for _ in range(65):
            other = create_engine("sqlite://")
            run(other, 0, sql="SELECT :seconds")
            other.dispose()

    [group] = recording.groups
    assert (group.count, len(group.samples.engines)) == (65, 64)


def test_recording_that_has_ended_holds_no_texts_beyond_its_groups(engine, clock):
    with recorded(clock, max_statements=20) as recording:
        for number in range(100):
            run(engine, 0, sql=f"SELECT spend(:seconds), {number}")

    assert len(recording._tally._known["response"]) <= 20


def test_call_sites_are_looked_for_in_few_of_the_texts(engine, clock):
    with recorded(clock, max_statements=20) as recording, engine.connect() as connection:
        for number in range(100):
            connection.exec_driver_sql(f"SELECT {number} AS column_{number}").all()

        assert len(recording.collector.sites_taken) <= 20

    assert recording.statement_count == 100


def test_equal_parameters_are_looked_for_in_few_of_the_texts_of_a_group(engine, clock):
    with recorded(clock) as recording, engine.connect() as connection:
        for number in range(1_000):
            connection.exec_driver_sql(f"SELECT {number}").all()

    assert recording.groups[0].samples.compared <= 64


def test_long_sql_is_cut(engine, clock):
    with recorded(clock, max_sql_length=20) as recording:
        run(engine, 0, sql="SELECT spend(:seconds) AS a_long_name")

    assert recording.statements[0].sql == "SELECT spend(?) AS a"


def test_long_sql_is_held_nowhere(clock):
    engine = create_engine("sqlite://", connect_args={"cached_statements": 0})  # sqlite3 would hold it
    sqltrace.instrument(engine)
    with recorded(clock, max_sql_length=100) as recording, engine.connect() as connection:
        tracemalloc.start()
        for number in range(50):
            connection.exec_driver_sql(f"SELECT {number} /* {'x' * 100_000} */").all()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    engine.dispose()
    assert recording.statement_count == 50
    assert held < 1_000_000


def test_long_sql_that_sqlalchemy_keeps_not_is_held_nowhere(clock):
    engine = create_engine("sqlite://", connect_args={"cached_statements": 0})
    things = table("things", column("size"))
    sqltrace.instrument(engine)
    with recorded(clock, max_sql_length=100) as recording, engine.connect() as connection:
        connection.execute(text("CREATE TABLE things (size INTEGER)"))
        tracemalloc.start()
        for number in range(50):
            long = literal_column(f"{number} /* {'x' * 100_000} */")
            connection.execute(insert(things).values([{"size": 1}, {"size": long}]))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    engine.dispose()
    assert recording.statement_count == 51
    assert held < 1_000_000


def test_parameters_are_kept_on_request_only_and_shortened(engine, clock):
    with recorded(clock) as silent, recorded(clock, capture_parameters=True) as telling:
        run(engine, 0.5)
        with engine.connect() as connection:
            connection.execute(text("SELECT :text"), {"text": "x" * 1_000})

    assert {statement.parameters for statement in telling.statements} >= {"(0.5,)"}
    assert max(len(statement.parameters) for statement in telling.statements) < 200
    assert telling.groups[0].parameters == "(0.5,)"
    assert silent.statement_count == 2


def test_each_of_nested_recordings_shows_what_it_has_asked_for(engine, clock):
    with recorded(clock, max_sql_length=12) as outer, recorded(clock, capture_parameters=True) as inner:
        run(engine, 0.5)

    assert [(one.parameters, one.sql) for one in inner.statements] == [("(0.5,)", "SELECT spend(?)")]
    assert [(one.parameters, one.sql) for one in outer.statements] == [(None, "SELECT spend")]
    assert (outer.groups[0].parameters, outer.groups[0].sql) == (None, "SELECT spend")


def test_recording_around_has_what_it_has_asked_for_of_an_inner_one(engine, clock):
    with recorded(clock, capture_parameters=True) as outer, recorded(clock, max_sql_length=12) as inner:
        run(engine, 0.5)

    assert [(one.parameters, one.sql) for one in inner.statements] == [(None, "SELECT spend")]
    assert [(one.parameters, one.sql) for one in outer.statements] == [("(0.5,)", "SELECT spend(?)")]


def test_threads_add_while_others_read_and_nothing_is_lost(clock):
    threads_count, each = 8, 400
    recording = Recording("threads", clock=clock)
    sqltrace.instrument()
    start = threading.Barrier(threads_count + 1)

    def work():
        current.set(recording._collector)
        start.wait()
        engine = create_engine("sqlite://")
        run(engine, *[0] * each, sql="SELECT :seconds")
        engine.dispose()

    threads = [threading.Thread(target=work) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        assert recording.statement_count <= threads_count * each
    recording.end()

    assert recording.statement_count == recording.groups[0].count == threads_count * each


def test_what_comes_after_the_end_is_counted_as_late_and_not_kept(engine, clock):
    with recorded(clock) as recording:
        context = contextvars.copy_context()
    before = sqltrace.missed_statements().late

    context.run(run, engine, 1, 1)

    assert recording.late_count == 2
    assert sqltrace.missed_statements().late == before + 2
    assert (recording.statement_count, recording.statements, recording.groups) == (0, [], [])


def test_what_an_open_recording_around_takes_is_not_missed(engine, clock):
    with recorded(clock) as outer:
        with recorded(clock) as inner:
            context = contextvars.copy_context()
        before = sqltrace.missed_statements().late
        context.run(run, engine, 1)

    assert (outer.statement_count, inner.statement_count, inner.late_count) == (1, 0, 1)
    assert sqltrace.missed_statements().late == before


def test_late_statements_fill_no_recording_that_has_ended(engine, clock):
    with recorded(clock) as recording:
        context = contextvars.copy_context()
    collector = context[current]

    context.run(run, engine, *range(20))

    assert recording.late_count == 20
    assert (collector.sites_taken, collector.loads, collector.failed_loads) == ({}, {}, [])


def test_recording_around_that_has_ended_counts_as_late_what_the_inner_one_takes(engine, clock):
    outer = Recording("outer", clock=clock)
    before = outer.open()
    with recorded(clock) as inner:
        outer.end()
        run(engine, 1)
    outer.leave(before)

    assert (inner.statement_count, inner.late_count) == (1, 0)
    assert (outer.statement_count, outer.late_count) == (0, 1)


def test_recording_around_counts_many_statements_as_they_come(engine, clock):
    with recorded(clock, max_statements=10) as outer, recorded(clock, max_statements=10) as inner:
        run(engine, *[1] * (FOLD_AT + 10))
        waiting = [len(recording.collector.pending) for recording in (outer, inner)]

    assert max(waiting) < FOLD_AT
    assert outer.statement_count == inner.statement_count == FOLD_AT + 10
    assert outer.groups[0].total == inner.groups[0].total == FOLD_AT + 10


@pytest.mark.usefixtures("no_faults")
def test_recording_around_may_be_ended_by_another_thread_while_a_statement_is_passed_on(engine, clock):
    class Another:
        """As if another thread were faster than the one that wants to count."""

        def fold(self):
            outer.end()

    with recorded(clock) as outer:
        outer.collector.pending.extend([Execution(outer.collector, 0, 0, "", "", engine.dialect)] * FOLD_AT)
        outer.collector.recording = Another()
        with recorded(clock) as inner:
            run(engine, 1)

    assert inner.statement_count == 1


class Leaving(Collector):
    """As if another thread ended its request, and left the loop, each time that one has looked."""

    @property
    def loop(self):
        share, self.share = vars(self).get("share"), None
        return share

    @loop.setter
    def loop(self, share):
        self.share = share


def test_request_may_end_in_another_thread_while_a_recording_is_opened_or_settled_within(monkeypatch):
    monkeypatch.setattr(recording_module, "Collector", Leaving)
    outer, inner = Recording("outer"), Recording("inner")
    before = outer.open()
    outer.observe_loop()

    between = inner.open()
    outer.observe_loop()
    account = inner.time_account

    inner.leave(between)
    outer.leave(before)
    assert account.loop_wait is None


def test_recording_that_is_left_out_of_turn_does_not_take_the_place_of_another(engine, clock):
    first, second = Recording("first", clock=clock), Recording("second", clock=clock)
    before = first.open()
    between = second.open()
    first.end()
    first.leave(before)

    assert sqltrace.current_recording() is second

    run(engine, 1)
    second.end()
    second.leave(between)
    current.set(before)
    assert second.statement_count == 1


def test_group_has_the_call_site_of_the_first_that_has_one(engine, clock):
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("SELECT spend(1)")).all()
        first = sys._getframe().f_lineno - 1
        connection.execute(text("SELECT spend(1)")).all()

    assert recording.groups[0].call_site.line == first


def test_five_hundred_statements_are_kept_unless_asked_otherwise(engine, clock):
    with recorded(clock) as recording:
        run(engine, *[0] * 510)

    assert (len(recording.statements), recording.statement_count) == (500, 510)


def test_context_that_runs_on_does_not_keep_the_recording_alive(clock):
    recording = Recording(clock=clock)
    outer = recording.open()
    context = contextvars.copy_context()
    recording.end()
    recording.leave(outer)
    reference = weakref.ref(recording)

    del recording
    gc.collect()

    assert reference() is None
    assert context.run(sqltrace.current_recording) is None


def test_recording_keeps_no_session_result_connection_or_engine_alive():
    engine = create_engine("sqlite://")
    recording = Recording(capture_parameters=True)
    outer = recording.open()
    sqltrace.instrument(engine)
    with Session(engine) as session:
        result = session.execute(text("SELECT :x"), {"x": 1})
        references = [weakref.ref(each) for each in (session, result.context, session.connection(), engine)]
        result.all()
    recording.end()
    recording.leave(outer)

    sqltrace.uninstrument()
    engine.dispose()
    del session, result, engine
    gc.collect()

    assert [reference() for reference in references] == [None] * 4
    assert recording.statement_count == 1


def test_only_the_dialects_asked_for_are_recorded_and_the_recording_around_has_all(engine, clock):
    other = create_engine("sqlite://")
    sqltrace.instrument(other)

    with recorded(clock) as everything, recorded(clock, dialects=frozenset({other.dialect})) as some:
        run(engine, 1)
        with other.connect() as connection:
            connection.execute(text("SELECT 1"))
    other.dispose()

    assert (everything.statement_count, some.statement_count) == (2, 1)


def test_answers_of_a_frozen_recording_agree_and_time_goes_on_after_it():
    readings = iter(range(0, 10_000_000_000, 1_000_000))
    recording = Recording(clock=lambda: next(readings))
    recording.freeze()
    first, account = recording.duration, recording.time_account
    assert recording.duration == first
    assert recording.time_account is account
    assert account.python == first

    recording.thaw()
    assert recording.duration > first
    assert recording.time_account is not account


def test_recording_that_ends_while_it_is_frozen_keeps_its_answers():
    readings = iter(range(0, 10_000_000_000, 1_000_000))
    recording = Recording(clock=lambda: next(readings))
    recording.freeze()
    recording.end()
    account = recording.time_account

    recording.thaw()
    assert recording.time_account is account
    assert account.python == recording.duration


@pytest.mark.parametrize("pause", [0, 1])
def test_fetch_is_counted_once_in_each_of_two_recordings_that_look_while_rows_are_read(engine, clock, pause):
    with recorded(clock) as outer, engine.connect() as connection, recorded(clock) as inner:
        result = connection.execute(text("SELECT spend(0.00001) FROM (VALUES (1), (2), (3), (4))"))
        result.fetchone()
        assert inner.row_count >= 1
        result.fetchone()
        assert outer.row_count >= 2
        clock.advance(pause)
        result.all()

    [statement] = outer.statements
    assert inner.time_account.database == pytest.approx(statement.duration)
    assert outer.time_account.database == pytest.approx(statement.duration)


def test_results_left_open_do_not_fill_the_memory(engine, clock):
    with recorded(clock, max_statements=1) as recording, engine.connect() as connection:
        left_open = [connection.execute(text("SELECT 1 UNION SELECT 2")) for _ in range(6 * FOLD_AT)]
        recording.fold()
        assert len(recording._tally._unsettled) <= 2_048
        del left_open

    gc.collect()
    mine = [one for one in gc.get_objects() if isinstance(one, Execution) and one.collector is recording.collector]
    assert len(mine) == 1
