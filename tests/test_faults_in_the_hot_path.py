"""A fault of ours cannot change a result, an exception or a transaction."""

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

import sqltrace
from sqltrace import tally
from sqltrace.capture import statements


@pytest.fixture
def engine():
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE item (id INTEGER PRIMARY KEY)"))
    yield engine
    engine.dispose()


class Broken:
    """Raises whatever is done with it."""

    def __getattr__(self, name):
        raise RuntimeError(f"fault of ours: {name}")

    def __call__(self, *arguments, **options):
        raise RuntimeError("fault of ours")


@pytest.fixture(params=["find_call_site", "_key_of", "_repr", "internals"])
def fault(request, monkeypatch):
    assert hasattr(statements, request.param)
    monkeypatch.setattr(statements, request.param, Broken())
    return request.param


def test_result_and_transaction_are_untouched(engine, fault, caplog):
    with sqltrace.record(capture_parameters=True), engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO item VALUES (1)")
        connection.execute(text("INSERT INTO item VALUES (:id)"), [{"id": 2}, {"id": 3}])

    with engine.connect() as connection:
        assert connection.scalars(text("SELECT id FROM item")).all() == [1, 2, 3]
    faults = [record.message for record in caplog.records if record.name == "sqltrace"]
    assert faults == ["recording a statement failed and is skipped; the application is not affected"]


def test_exception_of_the_driver_is_untouched(engine, fault):
    with sqltrace.record(capture_parameters=True), engine.connect() as connection:
        connection.execute(text("INSERT INTO item VALUES (1)"))
        with pytest.raises(IntegrityError) as caught:
            connection.execute(text("INSERT INTO item VALUES (1)"))

    assert type(caught.value.orig).__module__ == "sqlite3"
    assert "UNIQUE constraint failed" in str(caught.value.orig)


def test_failure_that_cannot_be_described_is_still_a_failure(engine, monkeypatch):
    monkeypatch.setattr(statements, "describe_failure", Broken())

    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("INSERT INTO item VALUES (1)"))
        with pytest.raises(IntegrityError):
            connection.execute(text("INSERT INTO item VALUES (1)"))

    assert recording.failed_count == 1
    assert recording.statements[1].failure.type == "IntegrityError"


def test_block_whose_statements_cannot_be_counted_ends_all_the_same(engine, monkeypatch, caplog):
    monkeypatch.setattr(tally, "fingerprint", Broken())

    with sqltrace.record() as recording, engine.connect() as connection:
        connection.execute(text("INSERT INTO item VALUES (1)"))

    assert (recording.ended, recording.collector.pending, sqltrace.current_recording()) == (True, None, None)
    faults = [record.message for record in caplog.records if record.name == "sqltrace"]
    assert faults == ["counting statements failed and is skipped; the application is not affected"]
