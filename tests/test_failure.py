"""Codes of failures where a driver keeps them in a way of its own, by drivers that no other tests run on."""

import socket

import mysql.connector
import oracledb
import pymysql
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


def raised_by(driver, *args, **attributes):
    """An exception as a driver raises it that is not installed for the tests, since it has to be compiled."""
    error = type("ProgrammingError", (Exception,), {"__module__": driver})(*args)
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (raised_by("mariadb", "Table 'nowhere' doesn't exist", errno=1146, sqlstate="42S02"), "1146"),
        (raised_by("mariadb", "Cursor cannot be used anymore (it was already closed before)."), None),
    ],
    ids=["server", "client"],
)
def test_code_of_mariadb_is_the_number_of_the_error(error, code):
    assert describe_failure(error).code == code


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("42S02", "[42S02] [FreeTDS][SQL Server]Invalid object name 'nowhere'. (208) (SQLExecDirectW)"), "208"),
        (("IM002", "[IM002] [unixODBC][Driver Manager]Data source name not found (0) (SQLDriverConnect)"), "IM002"),
        (("HY000", "The driver did not supply an error!"), "HY000"),
        (("Invalid parameter type.  param-index=0 param-type=object", "HY105"), "HY105"),
        (("The cursor's connection has been closed.",), None),
    ],
    ids=["server", "manager", "driver", "parameter", "client"],
)
def test_code_of_pyodbc_is_the_number_of_the_error_else_the_sqlstate(args, code):
    assert describe_failure(raised_by("pyodbc", *args)).code == code


def test_number_that_names_no_error_is_no_code():
    unknown = mysql.connector.errors.ProgrammingError("Not enough parameters for the SQL statement")
    closed = pymysql.err.InterfaceError(0, "")
    of_hana = raised_by("hdbcli.dbapi", -10709, "Connection failed")

    assert [describe_failure(error).code for error in (unknown, closed, of_hana)] == [None, None, "-10709"]


def test_number_of_the_operating_system_is_no_code():
    assert str(describe_failure(ConnectionRefusedError(111, "Connect call failed"))) == "ConnectionRefusedError"
