"""What spans say: the semantic conventions where they have a word, `sqltrace.*` else. Times in seconds."""

from __future__ import annotations

from typing import Any

from sqltrace.callsite import CallSite
from sqltrace.database import Database
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord
from sqltrace.sinks.opentelemetry.telling import Rest
from sqltrace.sql_text import redact
from sqltrace.statement import Group, Statement
from sqltrace.tally import OTHER_STATEMENTS

Attributes = dict[str, Any]

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306, "microsoft.sql_server": 1433, "oracle.db": 1521}


def of_request(record: RequestRecord) -> Attributes:
    """For the server span, whoever made it."""
    recording = record.recording
    account, connections = recording.time_account, recording.connections
    return known(
        {
            "sqltrace.time.connection": account.connection,
            "sqltrace.time.database": account.database,
            "sqltrace.time.objects": account.objects,
            "sqltrace.time.loop_wait": account.loop_wait,
            "sqltrace.time.python": account.python,
            "sqltrace.loop.held": recording.held_loop,
            "sqltrace.loop.longest_hold": recording.longest_hold,
            "sqltrace.loop.waited_for": [name for name, _ in recording.waited_for] or None,
            "sqltrace.connection.wait": connections.wait,
            "sqltrace.connection.held": connections.held,
            "sqltrace.connection.idle_in_transaction": connections.idle_in_transaction,
            "sqltrace.connection.held_by": _holders(recording),
            "sqltrace.statement.count": recording.statement_count - recording.after_response_count,
            "sqltrace.statement.distinct": recording.distinct_count,
            "sqltrace.statement.failed": recording.failed_count,
            "sqltrace.statement.on_loop": recording.on_loop_count,
            "sqltrace.rows": recording.row_count,
            "sqltrace.outcome": record.outcome if record.outcome != "ok" else None,
        }
    )


def of_group(group: Group, statement: Statement | None, *, literals: bool) -> Attributes:
    """
    What the span of a statement has in common with those of its equals.

    Args:
        statement: `None` where none was kept.
        literals: Leave literals in the text of raw SQL.
    """
    if group.summary is OTHER_STATEMENTS:
        return {"db.system.name": group.system, "db.query.summary": OTHER_STATEMENTS}
    database = statement.database if statement is not None else None
    call_site = (statement.call_site if statement is not None else None) or group.call_site
    batch = statement is not None and statement.executemany and statement.batch_size != 1
    return known(
        {
            "db.system.name": group.system,
            "db.query.summary": f"BATCH {group.summary}" if batch else group.summary,
            "db.query.text": group.sql if literals else redact(group.sql, group.system),
            "sqltrace.origin": group.origin.kind,
            "sqltrace.relationship": group.origin.relationship,
            **of_database(database, group.system),
            **of_call_site(call_site),
        }
    )


def of_execution(statement: Statement) -> Attributes:
    """What is the span's own."""
    failure = statement.failure
    return known(
        {
            "db.operation.batch.size": statement.batch_size
            if statement.executemany and statement.batch_size != 1
            else None,
            "db.response.returned_rows": statement.rows,
            "db.response.status_code": failure.code if failure is not None else None,
            "error.type": failure.type.removeprefix("builtins.") if failure is not None else None,
            "sqltrace.fetch": statement.fetch,
            "sqltrace.objects": statement.objects,
            "sqltrace.loop_wait": statement.loop_wait,
        }
    )


def of_rest(rest: Rest) -> Attributes:
    """For the span that stands for several statements."""
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


def of_call_site(call_site: CallSite | None) -> Attributes:
    if call_site is None:
        return {}
    return {
        "code.file.path": call_site.file,
        "code.line.number": call_site.line,
        "code.function.name": call_site.function,
    }


def of_database(database: Database | None, system: str) -> Attributes:
    if database is None:
        return {}
    usual = database.address is None or database.port == _DEFAULT_PORTS.get(system)
    return {
        "db.namespace": database.namespace,
        "server.address": database.address,
        "server.port": None if usual else database.port,
    }


def _holders(recording: Recording) -> list[str] | None:
    return list(dict.fromkeys(holder.name for wait in recording.connections.waits for holder in wait.holders)) or None


def known(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
