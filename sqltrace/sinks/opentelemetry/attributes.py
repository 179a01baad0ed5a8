"""What spans say: the semantic conventions where they have a word, `sqltrace.*` else. Times in seconds."""

from __future__ import annotations

from typing import Any

from sqltrace.clock import SECOND
from sqltrace.collector import Execution, unmeasurable
from sqltrace.connection import Acquisition, ConnectionUse, unmeasurable_times
from sqltrace.database import Database, database_of
from sqltrace.findings.costs import waited_for_gil
from sqltrace.origin import QUERY
from sqltrace.request import RequestRecord
from sqltrace.sinks.log_line import known, wait_is_estimated
from sqltrace.sinks.opentelemetry.telling import Rest
from sqltrace.sql_text import redact
from sqltrace.statement import Failure, Group
from sqltrace.tally import OTHER_STATEMENTS
from sqltrace.thread_waits import ThreadWait

Attributes = dict[str, Any]

POOL_NAME = "db.client.connection.pool.name"
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "microsoft.sql_server": 1433, "oracle.db": 1521}


def of_request(record: RequestRecord) -> Attributes:
    """Attributes of the server span, whoever made it."""
    recording = record.recording
    account, counts = recording.time_account, recording.counts
    return known(
        {
            "sqltrace.time.connection": account.connection,
            "sqltrace.time.database": account.database,
            "sqltrace.time.objects": account.objects,
            "sqltrace.time.loop_wait": account.loop_wait,
            "sqltrace.time.loop_wait_estimated": wait_is_estimated(recording) or None,
            "sqltrace.time.python": account.python,
            "sqltrace.python.awaited_at": [str(site) for site, _ in record.awaited] or None,
            "sqltrace.python.gil_wait": waited_for_gil(recording) or None,
            "sqltrace.loop.held": recording.held_loop,
            "sqltrace.loop.longest_hold": recording.longest_hold,
            "sqltrace.loop.waited_for": [name for name, _ in recording.waited_for] or None,
            **_of_threads(recording.thread_wait),
            **_of_connections(recording.connections),
            "sqltrace.statement.count": counts.statements - counts.after_response,
            "sqltrace.statement.distinct": counts.distinct,
            "sqltrace.statement.failed": counts.failed,
            "sqltrace.statement.on_loop": counts.on_loop or None,
            "sqltrace.rows": counts.rows,
            "sqltrace.outcome": record.outcome if record.outcome != "ok" else None,
        }
    )


def of_statement(group: Group, execution: Execution | None, rest: Rest | None, *, literals: bool) -> Attributes:
    """
    For the span of a statement, or of the rest of a group.

    Args:
        execution: The first of the rest; `None` where none was kept.
        literals: Leave literals in the text of raw SQL.
    """
    if group.summary is OTHER_STATEMENTS:
        attributes: Attributes = {"db.system.name": group.system, "db.query.summary": OTHER_STATEMENTS}
    else:
        attributes = {
            "db.system.name": group.system,
            "db.query.summary": group.summary,
            "db.query.text": group.sql if literals else redact(group.sql, group.system),
        }
        if group.origin is not QUERY:
            attributes |= known(
                {"sqltrace.origin": group.origin.kind, "sqltrace.relationship": group.origin.relationship}
            )
        call_site = group.call_site
        if execution is not None:
            attributes["db.query.summary"] = summary_of(group.summary, execution)
            _add_database(attributes, database_of(execution.dialect), group.system)
            call_site = execution.call_site or call_site
        if call_site is not None:
            attributes["code.file.path"] = call_site.file
            attributes["code.line.number"] = call_site.line
            attributes["code.function.name"] = call_site.function
    if rest is not None:
        attributes |= _of_rest(rest)
        if rest.has_failed:
            attributes |= of_failure(group.failure)
    elif execution is not None:  # pragma: no branch - for the type checker: one of both is there
        _add_measured(attributes, execution)
    return attributes


def summary_of(summary: str, execution: Execution) -> str:
    """``db.query.summary``. What `executemany()` ran had several sets of parameters: one alone is for `execute()`."""
    return f"BATCH {summary}" if execution.executemany else summary


def _add_measured(attributes: Attributes, execution: Execution) -> None:
    """Add what was measured of a single statement."""
    attributes["sqltrace.fetch"] = execution.fetch / SECOND
    if "objects" not in unmeasurable:
        attributes["sqltrace.objects"] = execution.objects / SECOND
    if execution.loop_wait is not None:
        attributes["sqltrace.loop_wait"] = execution.loop_wait / SECOND
    if execution.gil_wait:
        attributes["sqltrace.gil_wait"] = execution.gil_wait / SECOND
    if execution.rows is not None:
        attributes["db.response.returned_rows"] = execution.rows
    if execution.executemany and execution.batch_size is not None:
        attributes["db.operation.batch.size"] = execution.batch_size
    if execution.failure is not None:
        attributes |= of_failure(execution.failure)


def _of_rest(rest: Rest) -> Attributes:
    return known(
        {
            "sqltrace.compressed.count": rest.count,
            "sqltrace.compressed.sum": rest.total,
            "sqltrace.compressed.min": rest.least,
            "sqltrace.compressed.max": rest.most,
            "sqltrace.compressed.rows": rest.rows,
            "sqltrace.compressed.failed": rest.failed or None,
        }
    )


def of_acquisition(one: Acquisition) -> Attributes:
    """For the span of getting a connection."""
    times = {"wait": one.wait, "connect": one.connect}
    attributes: Attributes = {POOL_NAME: one.pool_name}
    for name, spent in times.items():
        if name not in unmeasurable_times:
            attributes[f"sqltrace.connection.{name}"] = spent / SECOND
    return attributes | of_failure(one.failure)


def of_failure(failure: Failure | None) -> Attributes:
    """Attributes of a statement that failed; none for `None`."""
    if failure is None:
        return {}
    return known({"error.type": failure.type.removeprefix("builtins."), "db.response.status_code": failure.code})


def of_operation(system: str, summary: str | None, database: Database | None) -> Attributes:
    """Attributes for the metrics of statements, of few different values."""
    attributes: Attributes = {"db.system.name": system}
    if summary is not None:
        attributes["db.query.summary"] = summary
    _add_database(attributes, database, system)
    return attributes


def _add_database(attributes: Attributes, database: Database | None, system: str) -> None:
    if database is None:
        return
    if database.namespace is not None:
        attributes["db.namespace"] = database.namespace
    if database.address is not None:
        attributes["server.address"] = database.address
        if database.port is not None and database.port != _DEFAULT_PORTS.get(system):
            attributes["server.port"] = database.port


def _of_threads(wait: ThreadWait | None) -> Attributes:
    if wait is None:
        return {}
    return {"sqltrace.threads.wait": wait.waited, "sqltrace.threads.used_by": [name for name, _ in wait.users] or None}


def _of_connections(use: ConnectionUse) -> Attributes:
    if not use.was_asked_for:
        return {}
    return {
        "sqltrace.connection.wait": use.wait,
        "sqltrace.connection.held": use.held,
        "sqltrace.connection.commit": use.commit,
        "sqltrace.connection.commit_after_response": use.commit_after_response or None,
        "sqltrace.connection.idle_in_transaction": use.idle_in_transaction,
        "sqltrace.connection.held_by": [*dict.fromkeys(one.name for wait in use.waits for one in wait.holders)] or None,
    }
