import gc
import sqlite3
import time
import weakref
from functools import partial

import pytest
from sqlalchemy import create_engine, event, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

import sqltrace
from sqltrace.capture import rows
from sqltrace.capture.internals import DEFAULT_FETCH
from sqltrace.collector import FOLD_AT
from tests.asgi import recorded
from tests.drivers import ROWS, Author, Runner
from tests.loops import thrice

QUERY = select(Author.__table__).order_by(Author.id)
STREAM = {"stream_results": True}


@pytest.fixture
def engine(databases):
    databases.fill("sqlite3")
    engine = create_engine(databases.url("sqlite3"))
    yield engine
    engine.dispose()
    sqltrace.uninstrument()


def last(recording):
    return recording.statements[-1]


def parts(result):
    return [row for part in iter(partial(result.fetchmany, 999), []) for row in part]


READ_ALL = {
    "all": lambda c: c.execute(QUERY).all(),
    "fetchall": lambda c: c.execute(QUERY).fetchall(),
    "iteration": lambda c: list(c.execute(QUERY)),
    "fetchone": lambda c: list(iter(c.execute(QUERY).fetchone, None)),
    "fetchmany": lambda c: parts(c.execute(QUERY)),
    "partitions": lambda c: [row for part in c.execute(QUERY).partitions(700) for row in part],
    "scalars": lambda c: c.scalars(QUERY).all(),
    "mappings": lambda c: [dict(row) for row in c.execute(QUERY).mappings()],
    "unique": lambda c: c.execute(QUERY).unique().all(),
    "yield_per": lambda c: list(c.execute(QUERY).yield_per(300)),
    "yield_per option": lambda c: list(c.execute(QUERY, execution_options={"yield_per": 300})),
    "stream all": lambda c: c.execute(QUERY, execution_options=STREAM).all(),
    "stream iteration": lambda c: list(c.execute(QUERY, execution_options=STREAM)),
    "stream partitions": lambda c: [
        row for part in c.execute(QUERY, execution_options=STREAM).partitions(700) for row in part
    ],
    "stream buffer": lambda c: list(c.execute(QUERY, execution_options={**STREAM, "max_row_buffer": 77})),
    "stream fetchmany without a size": lambda c: c.execute(QUERY, execution_options=STREAM).fetchmany(),
    "text": lambda c: c.execute(text(f"SELECT * FROM {Author.__tablename__} ORDER BY id")).all(),
    "text stream": lambda c: list(
        c.execute(text(f"SELECT * FROM {Author.__tablename__} ORDER BY id"), execution_options=STREAM)
    ),
    "driver": lambda c: c.exec_driver_sql(f"SELECT * FROM {Author.__tablename__} ORDER BY id").all(),
    "freeze": lambda c: c.execute(QUERY).freeze()().all(),
}


@pytest.mark.parametrize("read", READ_ALL.values(), ids=READ_ALL)
def test_all_rows_are_counted_and_come_out_unchanged(runner, read):
    expected = runner.connection(read)

    with sqltrace.record() as recording:
        found = runner.connection(read)

    assert found == expected
    assert (last(recording).rows, recording.row_count) == (ROWS, recording.row_count)
    assert last(recording).fetch > 0
    assert recording.row_count >= ROWS


def read_and_close(read, options=None):
    def function(connection):
        result = connection.execute(QUERY, execution_options=options or {})
        found = read(result)
        result.close()
        return found

    return function


READ_SOME = {
    "nothing": (lambda result: None, None, 0),
    "first": (lambda result: result.first(), None, 1),
    "one row": (lambda result: result.fetchone(), None, 1),
    "fetchmany": (lambda result: result.fetchmany(10), None, 10),
    "iteration": (lambda result: [next(iter(result)) for _ in range(3)], None, 3),
    # SQLAlchemy reads 1 row to learn the columns, then 5: these were taken from the driver
    "stream": (lambda result: [result.fetchone() for _ in range(3)], STREAM, 6),
    "yield_per": (lambda result: [result.fetchone() for _ in range(3)], {"yield_per": 20}, 21),
    "stream nothing": (lambda result: None, STREAM, 1),
}


@pytest.mark.parametrize(("read", "options", "rows"), READ_SOME.values(), ids=READ_SOME)
def test_rows_of_a_partial_read_are_those_taken_from_the_driver(runner, read, options, rows):
    expected = runner.connection(read_and_close(read, options))

    with sqltrace.record() as recording:
        found = runner.connection(read_and_close(read, options))

    assert found == expected
    assert last(recording).rows == rows


@pytest.mark.parametrize("way", ["iteration", "partitions", "all", "scalars"])
@pytest.mark.parametrize("orm", [False, True], ids=["core", "orm"])
def test_rows_of_an_async_stream(runner, way, orm):
    if not runner.is_async:
        pytest.skip("the driver is not async")

    async def read(engine):
        owner = AsyncSession(engine) if orm else engine.connect()
        async with owner:
            result = await owner.stream(select(Author).order_by(Author.id) if orm else QUERY)
            if way == "iteration":
                return len([row async for row in result])
            if way == "partitions":
                return sum([len(part) async for part in result.partitions(600)])
            return len(await (result.all() if way == "all" else result.scalars().all()))

    with sqltrace.record() as recording:
        assert runner.coroutine(read) == ROWS

    assert last(recording).rows == ROWS
    assert last(recording).fetch > 0


@pytest.mark.parametrize("capture_parameters", [False, True])
def test_statement_without_rows_has_no_number(runner, capture_parameters):
    def work(connection):
        connection.execute(insert(Author.__table__), {"id": ROWS + 1, "name": "x"})
        connection.execute(update(Author.__table__).where(Author.id == ROWS + 1).values(name="y"))
        connection.execute(text(f"UPDATE {Author.__tablename__} SET name = 'z' WHERE id = {ROWS + 1}"))
        connection.begin_nested().rollback()
        connection.rollback()

    with sqltrace.record(capture_parameters=capture_parameters) as recording:
        runner.connection(work)

    assert [statement.rows for statement in recording.statements[-5:]] == [None] * 5


def test_rows_of_returning(runner):
    if runner.driver in {"pymysql", "aiomysql", "asyncmy"}:
        statement = insert(Author.__table__).returning(Author.id)
    else:
        statement = insert(Author.__table__).returning(Author.id, sort_by_parameter_order=True)

    def work(connection):
        many = [{"id": ROWS + n, "name": "x"} for n in range(1, 2_501)]
        found = connection.execute(statement, many).all()
        one = connection.execute(statement, {"id": 2 * ROWS, "name": "x"}).all()
        connection.rollback()
        return len(found), len(one)

    with sqltrace.record() as recording:
        assert runner.connection(work) == (2_500, 1)

    inserts = [group for group in recording.groups if group.summary.startswith("INSERT")]
    assert sum(group.rows for group in inserts) == 2_501
    assert sum(group.count for group in inserts) > 2
    assert all(statement.fetch > 0 for statement in recording.statements if statement.rows)


def test_rows_of_update_returning_and_of_empty_results(runner):
    if runner.driver in {"pymysql", "aiomysql", "asyncmy"}:
        pytest.skip("MariaDB has no UPDATE RETURNING")

    def work(connection):
        statement = update(Author.__table__).values(name="x").returning(Author.id)
        connection.execute(statement.where(Author.id <= 10)).all()
        connection.execute(statement.where(Author.id < 0)).all()
        connection.execute(statement.where(Author.id <= 20)).fetchmany(3)
        connection.execute(QUERY.where(Author.id < 0)).all()
        connection.rollback()

    with sqltrace.record() as recording:
        runner.connection(work)

    assert [statement.rows for statement in recording.statements[-4:]] == [10, 0, 3, 0]


def test_database_time_is_about_that_of_the_driver_alone(runner, no_garbage_collection):
    alone, told = [], []

    def work(connection):
        for _ in range(7):  # by turns, as other work on the machine comes and goes
            started = time.perf_counter()
            connection.execute(QUERY).all()
            alone.append(time.perf_counter() - started)
            with sqltrace.record() as recording:
                connection.execute(QUERY).all()
            told.append(last(recording).duration)
            assert recording.time_account.database >= 0.9 * last(recording).duration

    runner.connection(work)

    assert min(alone) * 0.05 < min(told) < min(alone) * 3


def test_time_of_single_rows_reaches_the_account(engine):
    with sqltrace.record() as recording, engine.connect() as connection:
        for _ in connection.execute(QUERY):
            pass

    assert recording.time_account.database > 0.9 * last(recording).duration


def test_rows_show_while_the_result_is_being_read(engine):
    with sqltrace.record() as recording, engine.connect() as connection:
        result = connection.execute(QUERY)
        seen = [(recording.statement_count, recording.row_count)]
        result.fetchmany(10)
        seen.append((recording.statement_count, recording.row_count, recording.groups[0].rows))
        result.fetchmany(5)
        seen.append((recording.statement_count, recording.row_count, recording.groups[0].rows))
        result.all()
        seen.append((recording.statement_count, recording.row_count, recording.groups[0].rows))

    assert seen == [(1, 0), (1, 10, 10), (1, 15, 15), (1, ROWS, ROWS)]
    assert recording.groups[0].total == pytest.approx(last(recording).duration)
    assert recording.groups[0].max == pytest.approx(last(recording).duration)


@pytest.mark.parametrize("read", [list, lambda result: result.all(), lambda result: result.fetchmany(5)])
def test_error_while_fetching_is_that_of_the_driver_and_is_recorded(engine, read):
    integers = "SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3"
    sql = f"SELECT abs(CASE WHEN n = 3 THEN -9223372036854775807 - 1 ELSE n END) FROM ({integers})"

    def attempt():
        with engine.connect() as connection, pytest.raises(DBAPIError) as error:
            read(connection.execute(text(sql)))
        return type(error.value), str(error.value), type(error.value.orig)

    expected = attempt()

    with sqltrace.record() as recording:
        found = attempt()

    assert found == expected
    assert (recording.failed_count, recording.groups[0].failed) == (1, 1)
    assert last(recording).failure.type.startswith("sqlite3.")


@pytest.mark.parametrize("read", [list, lambda result: result.all()], ids=["single rows", "all"])
def test_interrupt_as_a_cursor_is_closed_comes_through(databases, read):
    class Cursor(sqlite3.Cursor):
        interrupts = []

        def close(self):
            super().close()
            if self.interrupts:
                raise self.interrupts.pop()

    class Connection(sqlite3.Connection):
        def cursor(self, *arguments):
            return super().cursor(Cursor)

    databases.fill("sqlite3")
    engine = create_engine(databases.url("sqlite3"), connect_args={"factory": Connection})
    with sqltrace.record() as recording, engine.connect() as connection:
        Cursor.interrupts.append(KeyboardInterrupt("theirs"))
        with pytest.raises(KeyboardInterrupt, match="theirs"):
            read(connection.execute(QUERY))
    engine.dispose()

    assert last(recording).failure.type == "builtins.KeyboardInterrupt"


@pytest.mark.parametrize("count", [FOLD_AT - 1, FOLD_AT, 2 * FOLD_AT])
def test_rows_of_many_statements_are_all_counted(engine, count):
    returning = insert(Author).returning(Author.id)

    with sqltrace.record() as recording, engine.connect() as connection:
        for number in range(count - 1):
            connection.execute(returning.values(id=ROWS + 1 + number, name="new")).all()
        streamed = connection.execute(QUERY, execution_options={"yield_per": 1_000}).all()

    assert recording.statement_count == count
    assert recording.row_count == sum(group.rows for group in recording.groups) == count - 1 + len(streamed)


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("large", [1, 2, 3, 16, 17])
def test_time_of_a_row_does_not_stand_for_others(databases, driver, large):
    runner = Runner(driver, databases.url(driver))
    numbers = "(SELECT json_agg(i) FROM generate_series(1, 100000) AS i)"
    query = text(f"SELECT CASE i WHEN {large} THEN {numbers} END FROM generate_series(1, 40) AS i")

    def work(connection):
        result = connection.execute(query)
        started = time.perf_counter()
        for _ in result:
            pass
        return time.perf_counter() - started

    with sqltrace.record() as recording:
        took = runner.connection(work)
    sqltrace.uninstrument()

    account = recording.time_account
    assert 0.25 * took < next(s.fetch for s in recording.statements if "json_agg" in s.sql) <= took
    assert account.database + account.connection + account.python == pytest.approx(recording.duration)


def test_time_of_a_single_row_counts_though_nobody_closes_the_result(engine):
    def slow(number):
        if number == 2:
            time.sleep(0.05)
        return number

    with sqltrace.record() as recording, engine.connect() as connection:
        connection.connection.driver_connection.create_function("slow", 1, slow)
        connection.execute(text("SELECT slow(n) FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3)")).fetchone()

    assert recording.time_account.database >= last(recording).fetch >= 0.05


def test_fetches_of_results_left_open_count_in_nested_recordings(engine):
    def slow(number):
        if number == 2:
            time.sleep(0.0001)
        return number

    query = text("SELECT slow(n) FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3)")
    with sqltrace.record() as outer, sqltrace.record() as inner, engine.connect() as connection:
        connection.connection.driver_connection.create_function("slow", 1, slow)
        for _ in range(2 * FOLD_AT):
            connection.execute(query).fetchone()

    total = sum(group.total for group in inner.groups)
    assert total > 2 * FOLD_AT * 0.0001
    assert inner.time_account.database == pytest.approx(total, rel=0.05)
    assert outer.time_account.database == pytest.approx(total, rel=0.05)


def test_rows_of_a_result_that_is_read_while_many_others_stay_open_are_counted(engine):
    outer = select(Author.id).limit(1_500)

    with sqltrace.record() as recording, engine.connect() as connection:
        for number in connection.execute(outer, execution_options={"yield_per": 10}).scalars():
            connection.execute(select(Author.id).where(Author.id == number)).fetchone()

    assert sorted((group.count, group.rows) for group in recording.groups) == [(1, 1_500), (1_500, 1_500)]


def test_rows_of_a_result_that_is_read_among_many_that_stay_open_are_counted(engine):
    with sqltrace.record() as recording, engine.connect() as connection:
        left_open = [connection.execute(select(Author.name)) for _ in range(100)]
        read = connection.execute(select(Author.id).limit(1_500), execution_options={"yield_per": 10})
        for number in read.scalars():
            left_open.append(connection.execute(select(Author.id).where(Author.id >= number)))
            if number % 50 == 0:
                assert recording.statement_count == len(left_open) + 1

    [group] = [group for group in recording.groups if "LIMIT" in group.sql]
    assert (group.count, group.rows) == (1, 1_500)


@pytest.mark.parametrize("read", [list, lambda result: result.all(), lambda result: result.fetchmany(5)])
def test_time_of_a_fetch_that_fails_reaches_the_account(engine, read):
    def fail_late(number):
        if number > 1:
            time.sleep(0.05)
            raise ValueError(number)
        return number

    with sqltrace.record() as recording, engine.connect() as connection:
        connection.connection.driver_connection.create_function("fail_late", 1, fail_late)
        with pytest.raises(DBAPIError):
            read(connection.execute(text("SELECT fail_late(n) FROM (SELECT 1 AS n UNION ALL SELECT 2)")))

    assert last(recording).fetch >= 0.05
    assert recording.time_account.database >= last(recording).duration


@pytest.mark.parametrize("options", [{}, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "read",
    [lambda result: [result.fetchone(), result.fetchone()], lambda result: result.all(), lambda r: r.fetchmany(5)],
    ids=["one by one", "all", "many"],
)
def test_transaction_was_not_idle_while_a_fetch_was_interrupted(clock, read, options):
    interrupted = False

    class Cursor(sqlite3.Cursor):
        def interrupt(self, *size):
            clock.advance(1)
            raise KeyboardInterrupt

        def __getattribute__(self, name):
            return super().__getattribute__("interrupt" if interrupted and name.startswith("fetch") else name)

    class Connection(sqlite3.Connection):
        def cursor(self):
            return super().cursor(Cursor)

    engine = create_engine("sqlite://", connect_args={"factory": Connection})
    with recorded(clock) as recording, engine.connect() as connection:
        result = connection.execute(select(literal(1)).union(select(literal(2))), execution_options=options)
        interrupted = True
        with pytest.raises(KeyboardInterrupt):
            read(result)
    engine.dispose()
    sqltrace.uninstrument()

    assert last(recording).duration == 1
    assert recording.connections.idle_in_transaction == 0


@pytest.mark.parametrize(
    "read",
    [lambda result: result.fetchone(), lambda result: result.all(), list, lambda result: result.fetchmany(9)],
    ids=["one", "all", "one by one", "many"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_closing_of_a_streamed_result_is_time_of_its_statement(clock, caplog, read, fails):
    class Cursor(sqlite3.Cursor):
        def close(self):
            clock.advance(2 if streamed else 0)
            super().close()
            if streamed and fails:
                raise sqlite3.OperationalError("disk I/O error")

    class Connection(sqlite3.Connection):
        def cursor(self):
            return super().cursor(Cursor)

    streamed = False
    engine = create_engine("sqlite://", connect_args={"factory": Connection})
    with recorded(clock) as recording, engine.connect() as connection:
        connection.execute(text("SELECT 1")).all()
        streamed = True
        result = connection.execute(select(literal(1)).union(select(literal(2))), execution_options=STREAM)
        read(result)
        result.close()
        closed = clock.now
        assert recording.row_count == 1 + last(recording).rows
    engine.dispose()
    sqltrace.uninstrument()

    assert closed == recording.started + 2_000_000_000
    assert (last(recording).duration, recording.time_account.database) == (2, 2)
    assert recording.connections.idle_in_transaction == 0
    assert sum("Error closing cursor" in record.message for record in caplog.records) == fails
    assert [group.total for group in recording.groups] == [2, 0]


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "psycopg_async"])
@thrice
def test_first_row_of_a_server_side_cursor_comes_with_its_execution(databases, driver):
    query = text("SELECT pg_sleep(CASE n WHEN 1 THEN 0.2 ELSE 0 END) FROM generate_series(1, 50) AS n")

    with sqltrace.record() as recording:
        Runner(driver, databases.url(driver)).connection(
            lambda connection: connection.execute(query, execution_options=STREAM).all()
        )

    assert last(recording).fetch < 0.1 < last(recording).execute
    assert last(recording).rows == 50
    assert recording.time_account.database == pytest.approx(last(recording).duration, abs=0.05)


@pytest.mark.postgresql
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "psycopg_async"])
def test_error_in_a_stream_is_that_of_the_driver_and_is_recorded(databases, driver):
    runner = Runner(driver, databases.url(driver))
    query = text("SELECT 1 / (2000 - n) FROM generate_series(1, 5000) AS s(n)")

    def attempt(connection):
        read = 0
        with pytest.raises(Exception, match="division by zero") as error:  # asyncpg's own, in a stream
            for _ in connection.execute(query, execution_options=STREAM):
                read += 1
        return read, type(error.value), type(error.value.__cause__)

    expected = runner.connection(attempt)
    with sqltrace.record() as recording:
        found = runner.connection(attempt)
    sqltrace.uninstrument()

    assert found == expected
    assert expected[0] > 0
    assert last(recording).failed
    assert last(recording).rows == expected[0]


@pytest.mark.postgresql
@pytest.mark.parametrize("sql", ["SELECT 1 / 0", "SELECT 1 / (n - 1) FROM generate_series(1, 3) AS n"])
def test_first_row_of_a_stream_fails_where_it_did_before(databases, sql):
    runner = Runner("psycopg2", databases.url("psycopg2"))
    seen = []

    def attempt(connection):
        event.listen(connection, "after_cursor_execute", lambda *arguments: seen.append("after"))
        with pytest.raises(DBAPIError, match="division by zero"):
            connection.execute(text(sql), execution_options=STREAM)

    runner.connection(attempt)
    with sqltrace.record() as recording:
        runner.connection(attempt)
    sqltrace.uninstrument()

    assert len(seen) in {0, 2}
    assert last(recording).failed


def test_stream_is_read_from_its_first_row_by_whoever_asks_for_its_description_before(engine):
    @event.listens_for(engine, "after_cursor_execute")
    def ask(connection, cursor, statement, parameters, context, executemany):
        assert context.cursor_fetch_strategy.alternate_cursor_description is None

    with sqltrace.record() as recording, engine.connect() as connection:
        found = connection.execute(QUERY, execution_options=STREAM).all()

    assert (len(found), last(recording).rows) == (ROWS, ROWS)


def test_context_that_refuses_to_be_made_ahead_is_recorded(engine):
    class Context(engine.dialect.execution_ctx_cls):
        @property
        def cursor_fetch_strategy(self):
            return vars(self).get("strategy", DEFAULT_FETCH)

        @cursor_fetch_strategy.setter
        def cursor_fetch_strategy(self, strategy):
            assert self.dialect is engine.dialect
            vars(self)["strategy"] = strategy

    engine.dialect.execution_ctx_cls = Context
    with sqltrace.record() as recording, engine.connect() as connection:
        found = connection.execute(QUERY).all()

    assert (len(found), last(recording).rows) == (ROWS, ROWS)


@pytest.mark.parametrize("options", [{}, STREAM, {"yield_per": 10}], ids=["plain", "stream", "yield_per"])
def test_nothing_outlives_an_abandoned_result(engine, options):
    gc.collect()
    gc.disable()
    try:
        with sqltrace.record() as recording:
            connection = engine.connect()
            result = connection.execute(QUERY, execution_options=options)
            result.fetchone()
            context, owner = weakref.ref(result.context), weakref.ref(connection)
            del result
            connection.close()
            del connection
            alive = context(), owner()
    finally:
        gc.enable()

    assert alive == (None, None)
    assert recording.statement_count == 1


def test_nothing_outlives_an_insert_of_many_with_returning(engine):
    gc.collect()
    gc.disable()
    try:
        with sqltrace.record():
            connection = engine.connect()
            result = connection.execute(insert(Author.__table__).returning(Author.id), [{"name": "x"}, {"name": "y"}])
            context = weakref.ref(result.context)
            result.all()
            del result
            connection.rollback()
            connection.close()
            alive = context()
    finally:
        gc.enable()

    assert alive is None


def test_strategy_of_the_dialect_is_left_alone(engine):
    from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy

    own = []

    @event.listens_for(engine, "do_execute")
    def do_execute(cursor, statement, parameters, context):
        cursor.execute(statement, parameters)
        own.append(FullyBufferedCursorFetchStrategy(cursor))
        context.cursor_fetch_strategy = own[-1]
        return True

    with sqltrace.record() as recording, engine.connect() as connection:
        result = connection.execute(QUERY)
        assert result.cursor_strategy is own[0]
        assert len(result.all()) == ROWS

    assert last(recording).rows is None


def test_strategy_that_the_dialect_sets_later_is_left_alone(engine, monkeypatch):
    from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy

    def post_exec(context):
        context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(context.cursor)

    with engine.connect() as connection:
        monkeypatch.setattr(engine.dialect.execution_ctx_cls, "post_exec", post_exec)
        with sqltrace.record() as recording:
            statement = insert(Author.__table__).returning(Author.id)
            assert len(connection.execute(statement, {"name": "x"}).all()) == 1
        monkeypatch.undo()
        connection.rollback()

    assert last(recording).rows is None


def test_fault_of_ours_leaves_rows_alone(engine, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("ours")

    monkeypatch.setattr("sqltrace.capture.fetching.mark", broken)

    with sqltrace.record() as recording, engine.connect() as connection:
        found = connection.execute(QUERY).all(), list(connection.execute(QUERY))

    assert [len(rows) for rows in found] == [ROWS, ROWS]
    assert [statement.rows for statement in recording.statements] == [ROWS, ROWS]
    assert sum("counting rows failed" in record.message for record in caplog.records) <= 1


def test_self_test_passes():
    assert rows.work()
