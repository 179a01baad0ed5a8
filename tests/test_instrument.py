import sys
import threading
from contextlib import nullcontext

import pytest
from sqlalchemy import create_engine, dialects, event, text
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine

import sqltrace
from sqltrace.capture import instrument as instrument_module
from sqltrace.capture import internals


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


def statement_count(engine):
    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    return recording.statement_count


def test_everything_is_measured_with_the_installed_sqlalchemy():
    told = sqltrace.capabilities()

    assert told.pop("reply_times") is (sys.platform == "linux")
    assert told == dict.fromkeys(
        "do_execute rows objects origins eager_joins failed_loads connections event_loop".split(), True
    )


def test_instrumenting_twice_and_both_ways_records_a_statement_once(engine):
    sqltrace.instrument()
    sqltrace.instrument()
    sqltrace.instrument(engine)
    sqltrace.instrument(engine, engine)

    assert statement_count(engine) == 1


def test_one_uninstrument_undoes_any_number_of_instruments(engine):
    sqltrace.instrument()
    sqltrace.instrument()
    sqltrace.instrument(engine)

    sqltrace.uninstrument()

    missed = sqltrace.missed_statements().unattributed
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert sqltrace.missed_statements().unattributed == missed


def test_only_the_given_engines_are_recorded(engine):
    other = create_engine("sqlite://")
    sqltrace.instrument(engine)

    assert (statement_count(engine), statement_count(other)) == (1, 0)
    other.dispose()


def test_uninstrument_takes_back_one_engine_and_leaves_the_others(engine):
    other = create_engine("sqlite://")
    sqltrace.instrument(engine, other)

    sqltrace.uninstrument(engine)

    assert (statement_count(engine), statement_count(other)) == (0, 1)
    other.dispose()


def test_engines_made_before_and_after_are_recorded(engine):
    sqltrace.instrument()
    later = create_engine("sqlite://")

    assert (statement_count(engine), statement_count(later)) == (1, 1)
    later.dispose()


class DeafDialect(SQLiteDialect_pysqlite):
    """As that of DuckDB and those made after it, says of itself that nobody listens to it."""

    _has_events = False
    supports_statement_cache = True


@pytest.fixture
def deaf_engine(monkeypatch):
    monkeypatch.setattr(DeafDialect, "_has_events", False)
    dialects.registry.register("sqlite.deaf", __name__, "DeafDialect")
    engine = create_engine("sqlite+deaf://")
    yield engine
    engine.dispose()


def test_dialect_that_says_nobody_listens_is_recorded_as_others_are(deaf_engine):
    sqltrace.instrument()

    assert statement_count(deaf_engine) == 1


def test_dialect_of_that_kind_that_is_imported_later_is_recorded_too(deaf_engine, monkeypatch):
    sqltrace.instrument()
    monkeypatch.setattr(DeafDialect, "_has_events", False)

    assert statement_count(deaf_engine) == 1


@pytest.mark.parametrize("instrumented", [True, False])
def test_connection_that_was_there_before_of_such_a_dialect_is_recorded(deaf_engine, instrumented):
    if instrumented:
        sqltrace.instrument()
    with deaf_engine.connect() as connection, sqltrace.record() as recording:
        connection.execute(text("SELECT 1"))

    assert recording.statement_count == 1


def test_variants_of_an_engine_are_recorded_with_it(engine):
    sqltrace.instrument(engine)

    assert statement_count(engine.execution_options(isolation_level="AUTOCOMMIT")) == 1


def test_an_engine_is_not_kept_alive():
    import gc
    import weakref

    engine = create_async_engine("sqlite+aiosqlite://")
    sqltrace.instrument(engine)
    dialect = weakref.ref(engine.dialect)

    del engine
    gc.collect()

    assert dialect() is None


def test_threads_may_instrument_and_uninstrument_at_the_same_time(engine):
    failures = []

    def work():
        try:
            for _ in range(50):
                sqltrace.instrument()
                sqltrace.instrument(engine)
                sqltrace.uninstrument(engine)
                sqltrace.uninstrument()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sqltrace.instrument()

    assert failures == []
    assert statement_count(engine) == 1


@pytest.mark.parametrize("open_recording", [False, True], ids=["idle", "recording"])
@pytest.mark.parametrize(
    ("instrumented_alone", "meanwhile"),
    [(False, sqltrace.uninstrument), (True, sqltrace.uninstrument), (True, sqltrace.instrument)],
    ids=["uninstrument all", "uninstrument one", "instrument all after one"],
)
def test_what_is_instrumented_may_change_while_statements_run(engine, instrumented_alone, meanwhile, open_recording):
    sqltrace.instrument(*[engine] * instrumented_alone)
    target = engine if instrumented_alone else Engine
    listener = (target, "do_execute", lambda *_: meanwhile())
    event.listen(*listener)
    try:
        with sqltrace.record() if open_recording else nullcontext(), engine.connect() as connection:
            answer = connection.scalar(text("SELECT 1"))
    finally:
        event.remove(*listener)

    assert answer == 1


def test_engine_that_was_given_back_hides_no_listener_of_the_application(engine):
    other, seen = create_engine("sqlite://"), []
    sqltrace.instrument(engine, other)
    event.listen(engine, "do_execute", lambda *arguments: seen.append(arguments[1]))

    sqltrace.uninstrument(engine)

    assert (statement_count(engine), seen) == (0, ["SELECT 1"])
    other.dispose()


@pytest.mark.parametrize(
    ("wrong", "got"),
    [("sqlite://", "str: 'sqlite://'"), (None, "NoneType: None"), (Engine, "type: <class")],
)
@pytest.mark.parametrize("function", [sqltrace.instrument, sqltrace.uninstrument], ids=["instrument", "uninstrument"])
def test_anything_but_an_engine_is_refused(function, wrong, got):
    with pytest.raises(TypeError, match=f"expected a SQLAlchemy Engine or AsyncEngine, got {got}"):
        function(wrong)


def test_own_listener_of_the_application_still_executes_and_is_recorded(engine):
    executed = []
    sqltrace.instrument(engine)

    @event.listens_for(engine, "do_execute")
    def replace(cursor, statement, parameters, context):
        executed.append(statement)
        cursor.execute("SELECT 42")
        return True

    with sqltrace.record() as recording, engine.connect() as connection:
        answer = connection.scalar(text("SELECT 1"))

    assert (answer, executed, recording.statement_count) == (42, ["SELECT 1"], 1)


def test_own_executemany_listener_of_the_application_still_executes_and_is_recorded(engine):
    sqltrace.instrument(engine)

    @event.listens_for(engine, "do_executemany")
    def replace(cursor, statement, parameters, context):
        cursor.executemany(statement, parameters[:1])
        return True

    with sqltrace.record() as recording, engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", [(1,), (2,)])

        assert connection.scalars(text("SELECT x FROM t")).all() == [1]
    assert [statement.executemany for statement in recording.statements] == [False, True, False]


def test_listeners_that_only_look_all_run_before_the_statement_is_executed(engine):
    seen = []
    sqltrace.instrument(engine)
    for name in ("first", "second"):
        event.listen(engine, "do_execute", lambda *arguments, name=name: seen.append(name))

    assert statement_count(engine) == 1
    assert seen == ["first", "second"]


def test_executemany_outside_any_recording_is_counted(engine):
    sqltrace.instrument()
    before = sqltrace.missed_statements().unattributed

    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", [(1,), (2,)])

    assert sqltrace.missed_statements().unattributed == before + 2


def test_engines_that_were_instrumented_alone_are_heard_once_when_all_are(engine):
    sqltrace.instrument(engine)
    sqltrace.instrument()
    before = sqltrace.missed_statements().unattributed

    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))

    assert sqltrace.missed_statements().unattributed == before + 1


def test_statement_that_no_engine_wants_is_nobodys(engine):
    other = create_engine("sqlite://")
    sqltrace.instrument(engine)

    with sqltrace.record(engines=[other]) as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    other.dispose()

    assert (recording.statement_count, recording.late_count) == (0, 0)


@pytest.mark.parametrize("broken", ["_exec_single_context", None])
def test_self_test_fails_where_a_connection_no_longer_asks_the_listeners(broken, monkeypatch):
    from sqlalchemy.engine import Connection

    if broken is None:
        monkeypatch.setattr(Connection, "_exec_single_context", lambda *arguments: None)
    else:
        monkeypatch.delattr(Connection, broken)

    assert internals.do_execute_fires() is False


def test_self_test_fails_where_a_connection_raises(monkeypatch):
    from sqlalchemy.engine import Connection

    original = Connection._exec_single_context

    def break_context(connection, dialect, context, statement, parameters):
        context.post_exec = None
        return original(connection, dialect, context, statement, parameters)

    monkeypatch.setattr(Connection, "_exec_single_context", break_context)

    assert internals.do_execute_fires() is False


def test_batch_size_that_cannot_be_read_is_none():
    assert internals.batch_size(object(), ()) is None


def unlisten(listeners):
    """They stay for the life of the process, which is one for all tests."""
    for listener in listeners:
        if event.contains(Engine, listener.__name__, listener):
            event.remove(Engine, listener.__name__, listener)


class TestFallback:
    """Where SQLAlchemy would no longer fire do_execute, the cursor events record."""

    @pytest.fixture(autouse=True)
    def deaf(self, monkeypatch):
        unlisten(instrument_module._LISTENERS)
        instrument_module._do_execute_fires.cache_clear()
        monkeypatch.setattr(internals, "do_execute_fires", lambda: False)
        yield
        unlisten(instrument_module._FALLBACK)
        instrument_module._do_execute_fires.cache_clear()

    def test_it_is_told_once(self, engine, caplog):
        sqltrace.instrument()
        sqltrace.instrument(engine)

        assert sqltrace.capabilities()["do_execute"] is False
        assert [record.message[:60] for record in caplog.records] == [
            "this SQLAlchemy does not fire its do_execute events: stateme"
        ]

    def test_statements_are_recorded_once(self, engine):
        sqltrace.instrument()
        sqltrace.instrument(engine)

        assert statement_count(engine) == 1

    def test_failure_is_recorded(self, engine):
        from sqlalchemy.exc import OperationalError

        with sqltrace.record() as recording, engine.connect() as connection:
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT * FROM missing"))
            connection.execute(text("SELECT 1"))

        assert [statement.failed for statement in recording.statements] == [True, False]
        assert recording.statements[0].failure.type == "sqlite3.OperationalError"

    def test_only_the_given_engines_are_recorded(self, engine):
        other = create_engine("sqlite://")
        sqltrace.instrument(engine)

        assert (statement_count(engine), statement_count(other)) == (1, 0)
        other.dispose()

    def test_all_engines_stay_recorded_when_one_is_given_back(self, engine):
        other = create_engine("sqlite://")
        sqltrace.instrument(engine, other)

        sqltrace.uninstrument(other)

        assert (statement_count(engine), statement_count(other)) == (1, 0)
        other.dispose()

    def test_uninstrument_takes_it_back(self, engine):
        sqltrace.instrument()
        sqltrace.instrument(engine)

        with sqltrace.record() as recording, engine.connect() as connection:
            sqltrace.uninstrument()
            connection.execute(text("SELECT 1"))

        assert (recording.statement_count, recording.late_count) == (0, 0)

    def test_statement_outside_any_recording_is_counted(self, engine):
        sqltrace.instrument()
        before = sqltrace.missed_statements().unattributed

        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))

        assert sqltrace.missed_statements().unattributed == before + 1

    def test_error_without_a_statement_passes(self, engine):
        sqltrace.instrument()

        with sqltrace.record() as recording, engine.connect() as connection, pytest.raises(Exception, match="nope"):
            connection.execute(text("SELECT :nope"))

        assert recording.statement_count == 0

    @pytest.mark.parametrize("name", ["current", "note"])
    def test_fault_before_or_after_the_statement_leaves_its_result_alone(self, engine, name, monkeypatch, caplog):
        sqltrace.instrument()
        monkeypatch.setattr(f"sqltrace.capture.cursor_events.{name}", None)

        with sqltrace.record(), engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1

        assert "recording a statement failed" in caplog.records[-1].message

    def test_fault_of_ours_leaves_result_and_transaction_alone(self, engine, monkeypatch, caplog):
        def broken(*arguments):
            raise RuntimeError("ours")

        sqltrace.instrument()
        monkeypatch.setattr("sqltrace.capture.statements.find_call_site", broken)

        with sqltrace.record(), engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            rows = connection.exec_driver_sql("SELECT x FROM t").all()

        assert rows == [(1,)]
        assert sum("recording a statement failed" in record.message for record in caplog.records) == 1
