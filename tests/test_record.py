import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest
from sqlalchemy import create_engine, text

import sqltrace
from sqltrace.collector import current, outwards


def run(engine, count=1):
    with engine.connect() as connection:
        for _ in range(count):
            connection.execute(text("SELECT 1"))


def test_block_is_recorded_without_any_other_set_up(memory_engine):
    with sqltrace.record("nightly-import") as recording:
        assert sqltrace.current_recording() is recording
        run(memory_engine, 3)

    assert sqltrace.current_recording() is None
    assert (recording.name, recording.statement_count, recording.ended) == ("nightly-import", 3, True)


def test_async_block_is_recorded(memory_engine):
    async def work():
        async with sqltrace.record() as recording:
            await asyncio.to_thread(run, memory_engine, 2)
        return recording

    assert asyncio.run(work()).statement_count == 2


def test_statement_counts_in_every_recording_around_it(memory_engine):
    with sqltrace.record("outer") as outer:
        run(memory_engine)
        with sqltrace.record("inner") as inner:
            run(memory_engine, 2)
        run(memory_engine)

    assert (outer.statement_count, inner.statement_count) == (4, 2)


def test_recording_that_has_ended_leaves_the_one_around_it_current(memory_engine):
    with sqltrace.record() as outer:
        with sqltrace.record() as inner:
            context = contextvars.copy_context()
        context.run(run, memory_engine)

        assert context.run(sqltrace.current_recording) is outer

    assert (outer.statement_count, inner.statement_count, inner.late_count) == (1, 0, 1)


def test_exception_of_the_block_passes_and_ends_the_recording(memory_engine):
    block = sqltrace.record()

    with pytest.raises(KeyError, match="theirs"), block as recording:
        raise KeyError("theirs")

    assert recording.ended


def test_block_may_end_in_another_context_than_it_began(memory_engine):
    block = sqltrace.record()
    recording = contextvars.copy_context().run(block.__enter__)

    contextvars.copy_context().run(block.__exit__, None, None, None)

    assert recording.ended
    assert sqltrace.current_recording() is None


def test_block_is_entered_once():
    block = sqltrace.record()
    with block:
        pass

    with pytest.raises(RuntimeError, match=r"this record\(\) was entered before"), block:
        pass


def test_exit_without_entry_changes_nothing():
    sqltrace.record().__exit__(None, None, None)

    assert sqltrace.current_recording() is None


def test_engines_that_were_instrumented_alone_stay_alone(memory_engine):
    other = create_engine("sqlite://")
    sqltrace.instrument(memory_engine)

    with sqltrace.record() as recording:
        run(memory_engine)
        run(other, 2)
    other.dispose()

    assert recording.statement_count == 1


def test_only_the_engines_asked_for_are_recorded(memory_engine):
    other = create_engine("sqlite://")

    with sqltrace.record(engines=[other]) as recording:
        run(memory_engine)
        run(other, 2)
    other.dispose()

    assert recording.statement_count == 2


def test_recording_around_may_be_of_other_engines(memory_engine):
    other = create_engine("sqlite://")

    with sqltrace.record(engines=[other]) as outer, sqltrace.record() as inner:
        run(memory_engine)
    other.dispose()

    assert (outer.statement_count, inner.statement_count) == (0, 1)


def test_wrong_engine_is_refused():
    with pytest.raises(TypeError, match="expected a SQLAlchemy Engine or AsyncEngine, got str: 'x'"):
        sqltrace.record(engines=["x"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": 5}, TypeError, "name must be a str, got 5"),
        ({"engines": "sqlite://"}, TypeError, "engines must be a sequence of engines, got 'sqlite://': write [engine]"),
        ({"engines": []}, ValueError, "engines is empty: leave it out to record every engine"),
        ({"capture_parameters": "x"}, TypeError, "capture_parameters must be True or False, got 'x'"),
        ({"max_statements": "x"}, TypeError, "max_statements must be an int, got 'x'"),
        ({"max_statements": 0}, ValueError, "max_statements must be at least 1, got 0"),
        ({"max_sql_length": 1.5}, TypeError, "max_sql_length must be an int, got 1.5"),
        ({"max_sql_length": 0}, ValueError, "max_sql_length must be at least 1, got 0"),
    ],
)
def test_wrong_option_says_what_was_got_and_what_is_wanted(options, error, message):
    with pytest.raises(error) as raised:
        sqltrace.record(**options)

    assert str(raised.value) == message


def test_bare_thread_is_counted_as_unattributed_and_copy_context_is_the_remedy(memory_engine):
    before = sqltrace.missed_statements().unattributed

    with sqltrace.record() as recording:
        for target in (run, contextvars.copy_context().run):
            arguments = (memory_engine,) if target is run else (run, memory_engine)
            thread = threading.Thread(target=target, args=arguments)
            thread.start()
            thread.join()

    assert recording.statement_count == 1
    assert sqltrace.missed_statements().unattributed == before + 1


def test_recordings_that_are_left_in_another_context_do_not_pile_up(memory_engine):
    async def rows():
        with sqltrace.record():
            run(memory_engine)
            yield 1
            yield 2

    async def work():
        for _ in range(50):
            async for _ in rows():
                break  # asyncio closes the generator in a task of its own
            await asyncio.sleep(0)
        return len(list(outwards(current.get())))

    assert asyncio.run(work()) < 5


def test_recording_stays_as_it_ended_while_its_results_are_read_on(memory_engine):
    with memory_engine.connect() as connection:
        with sqltrace.record() as recording:
            result = connection.execute(text("SELECT 1 UNION SELECT 2 UNION SELECT 3"))
            result.fetchone()
        rows = recording.row_count
        result.all()

    assert rows < 3
    assert recording.statements[0].rows == recording.groups[0].rows == recording.row_count == rows


def test_rows_of_many_results_that_are_open_at_once_are_all_counted(memory_engine):
    with sqltrace.record() as recording, memory_engine.connect() as connection:
        results = [connection.execute(text("SELECT 1 UNION SELECT 2")) for _ in range(1_200)]
        for result in results:
            result.all()

    assert recording.row_count == recording.groups[0].rows == 2_400


def test_bytes_are_compared_with_no_number():
    code = """
import sqltrace, sqlalchemy
engine = sqlalchemy.create_engine("sqlite://")
with sqltrace.record() as recording, engine.connect() as connection:
    connection.execute(sqlalchemy.text("SELECT :value"), {"value": b"abc"}).all()
print(recording.statement_count)
"""
    finished = subprocess.run([sys.executable, "-b", "-c", code], capture_output=True, text=True)

    assert (finished.stdout, finished.stderr) == ("1\n", "")
