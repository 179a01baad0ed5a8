"""Codes of failures where a driver keeps them in a way of its own, by drivers that no other tests run on."""

import socket

import oracledb
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

import sqltrace
from sqltrace.capture.failure import describe_failure
from tests.databases import SERVERS


@pytest.mark.postgresql
def test_code_of_pg8000_is_the_sqlstate():
    engine = create_engine(SERVERS.url("postgresql").set(drivername="postgresql+pg8000"))
    with sqltrace.record() as recording, engine.connect() as connection, pytest.raises(ProgrammingError):
        connection.execute(text("SELECT * FROM nowhere"))
    engine.dispose()

    [statement] = recording.statements
    assert (statement.failure.type, statement.failure.code) == ("pg8000.dbapi.ProgrammingError", "42P01")


def test_code_of_oracledb_is_the_whole_one_of_the_error():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(oracledb.OperationalError) as caught:
            oracledb.connect(user="user", password="password", dsn=f"127.0.0.1:{listener.getsockname()[1]}/service")

    assert describe_failure(caught.value).code == "DPY-6005"
