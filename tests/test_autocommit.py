"""Autocommit of every driver, and that nothing is sent to a server to learn of it."""

import pytest
from sqlalchemy import create_engine, text

import sqltrace
from tests.databases import SERVERS, drivers

MARIADB = ("mysql+pymysql", "mysql+mysqlconnector")


def ask_twice(connection):
    for _ in range(2):
        connection.execute(text("SELECT 1")).all()


def idle_time(database, engine):
    """Of a transaction that had a pause, if it was one."""
    with sqltrace.record() as recording:
        database.run(ask_twice, engine)
    return recording.connections.idle_in_transaction


@pytest.mark.parametrize("detects", [True, False], ids=["sqlalchemy_tells", "before_2.0.44"])
@pytest.mark.parametrize("database", drivers(), indirect=True)
def test_connection_in_autocommit_is_never_idle_in_transaction(database, detects, monkeypatch):
    if not detects:
        for cls in type(database.engine.dialect).__mro__:
            if "detect_autocommit_setting" in vars(cls):
                monkeypatch.delattr(cls, "detect_autocommit_setting")

    assert idle_time(database, database.engine.execution_options(isolation_level="AUTOCOMMIT")) == 0.0
    assert idle_time(database, database.engine) > 0.0


@pytest.mark.mariadb
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("dialect", MARIADB)
def test_server_is_asked_nothing_but_what_the_application_asks(dialect, autocommit):
    """MySQL Connector/Python sends a query whenever its `autocommit` is read."""
    url = SERVERS.url("mysql").set(drivername=dialect)
    engine = create_engine(url, connect_args={"autocommit": autocommit}, pool_size=1, max_overflow=0)

    def questions():
        with engine.connect() as connection:
            return int(connection.execute(text("SHOW SESSION STATUS LIKE 'Questions'")).one()[1])

    def asked():
        before = questions()
        for _ in range(3):
            with engine.begin() as connection:
                ask_twice(connection)
        return questions() - before

    bare = asked()
    with sqltrace.record() as recording:
        recorded = asked()
    engine.dispose()

    assert recorded == bare
    assert (recording.connections.idle_in_transaction == 0.0) is autocommit
