"""The log line: a request record as one flat, JSON-safe dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqltrace.connection import ConnectionUse, PoolWait
from sqltrace.finding import Finding
from sqltrace.findings.costs import waited_for_gil
from sqltrace.findings.wording import name_and_line, place
from sqltrace.origin import QUERY
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord
from sqltrace.sql_text import redact
from sqltrace.statement import Group
from sqltrace.tally import OTHER_STATEMENTS
from sqltrace.thread_waits import ThreadWait
from sqltrace.widening import Widening

_MOST_FINDINGS = 10
_NOTABLE_WAIT = 0.001  # seconds


def log_line(record: RequestRecord, *, top: int = 5, literals: bool = False) -> dict[str, Any]:
    """
    The line's keys and values, in the order in which they read best.

    Described by ``sqltrace/log_line.schema.json``. Milliseconds are rounded to
    microseconds. A key whose value is not known is left out.

    Args:
        top: Groups in ``sql.statements``, most time first.
        literals: Leave literals that were written into raw SQL as they are.
    """
    recording = record.recording
    account, counts = recording.time_account, recording.counts
    line = {
        "http.request.method": record.method,
        "http.route": record.route,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "outcome": record.outcome,
        "error.type": record.error_type,
        "duration_ms": _milliseconds(record.duration),
        "time_to_first_byte_ms": _milliseconds(record.time_to_first_byte),
        "time.connection_ms": _milliseconds(account.connection),
        "time.database_ms": _milliseconds(account.database),
        "time.objects_ms": _milliseconds(account.objects),
        "time.loop_wait_ms": _milliseconds(account.loop_wait),
        "time.loop_wait_estimated": wait_is_estimated(recording) or None,
        "time.python_ms": _milliseconds(account.python),
        "python.awaited": _awaited(record),
        "python.gil_wait_ms": _milliseconds(waited_for_gil(recording)) or None,
        "loop.held_ms": _milliseconds(recording.held_loop),
        "loop.longest_hold_ms": _milliseconds(recording.longest_hold),
        "loop.waited_for": _waited_for(recording) if (account.loop_wait or 0.0) >= _NOTABLE_WAIT else None,
        **_threads(recording.thread_wait),
        **_connections(recording.connections),
        "sql.count": counts.statements - counts.after_response,
        "sql.rows": counts.rows,
        "sql.distinct": counts.distinct,
        "sql.failed": counts.failed,
        "sql.on_loop": counts.on_loop or None,
        "sql.after_response": counts.after_response,
        "after_response_ms": _milliseconds(recording.after_response),
        "network.protocol.name": record.protocol,
        "client.address": record.client_address,
        "trace_id": record.trace_id,
        "span_id": record.span_id,
        "findings": [_finding(finding) for finding in record.findings[:_MOST_FINDINGS]] or None,
        "sql.statements": [_statement(group, literals) for group in recording.groups[:top]],
    }
    return known(line)


def level_of(record: RequestRecord, slow: float) -> str:
    """
    The name of the level for a finished request.

    Args:
        slow: Seconds from which it is slow.
    """
    if record.outcome == "error":
        return "error"
    return "warning" if record.findings or is_slow(record, slow) else "info"


def is_slow(record: RequestRecord, slow: float) -> bool:
    """A websocket or an event stream is meant to live: what its client waits for is that it begins."""
    lives = record.event_stream or record.protocol == "websocket"
    waited = record.time_to_first_byte if lives else record.duration
    return waited is not None and waited >= slow


def wait_is_estimated(recording: Recording) -> bool:
    """Whether the time that is told for the event loop is an estimate, in part."""
    return bool(recording.time_account.loop_wait) and recording.loop_wait_estimated


def _finding(finding: Finding) -> dict[str, Any]:
    line = {
        "kind": finding.kind,
        "message": finding.message,
        "cost_ms": _milliseconds(finding.cost),
        "call_site": finding.call_site,
        "relationship": finding.relationship,
        "loaded_for": finding.parents,
        "fix": finding.fix,
        "fingerprint": finding.fingerprint,
    }
    return known(line)


def _awaited(record: RequestRecord) -> list[dict[str, Any]] | None:
    return [{"call_site": str(site), "ms": _milliseconds(waited)} for site, waited in record.awaited] or None


def _waited_for(recording: Recording) -> list[dict[str, Any]] | None:
    return [{"name": name, "ms": _milliseconds(waited)} for name, waited in recording.waited_for] or None


def _statement(group: Group, literals: bool) -> dict[str, Any]:
    sql = group.sql if literals or group.sql is OTHER_STATEMENTS else redact(group.sql, group.system)
    line = {
        "summary": group.summary,
        "sql": sql,
        "fingerprint": group.fingerprint or None,
        "count": group.count,
        "failed": group.failed or None,
        "error": str(group.failure) if group.failure is not None else None,
        "total_ms": _milliseconds(group.total),
        "max_ms": _milliseconds(group.max),
        "rows": group.rows,
        "objects_ms": _milliseconds(group.objects or None),
        "loop_wait_ms": _milliseconds(group.loop_wait or None),
        "gil_wait_ms": _milliseconds(group.gil_wait or None),
        "on_loop": group.on_loop or None,
        "origin": group.origin.kind if group.origin is not QUERY else None,
        "relationship": group.origin.relationship,
        "lazy": group.origin.lazy,
        "loaded_for": name_and_line(group.parents),
        "eager_joins": _eager_joins(group.widening),
        "system": group.system,
        "phase": group.phase if group.phase != "response" else None,
        "call_site": place(group),
        "parameters": group.parameters,
    }
    return known(line)


def _eager_joins(widening: Widening | None) -> dict[str, Any] | None:
    if widening is None or not widening.joins:
        return None
    return {
        "asked_tables": widening.asked_tables,
        "sent_tables": widening.sent_tables,
        "asked_columns": widening.asked_columns,
        "sent_columns": widening.sent_columns,
        "joins": [f"{join} ({'option' if join.by_option else 'mapping'})" for join in widening.joins],
    }


def _threads(wait: ThreadWait | None) -> dict[str, Any]:
    if wait is None:
        return {}
    return {
        "threads.wait_ms": _milliseconds(wait.waited),
        "threads.count": wait.threads,
        "threads.used_by": [{"name": name, "threads": round(number, 1)} for name, number in wait.users] or None,
    }


def _connections(use: ConnectionUse) -> dict[str, Any]:
    if not use.was_asked_for:
        return {}
    return {
        "connection.checkouts": None if use.held is None else use.checkouts,
        "connection.wait_ms": _milliseconds(use.wait),
        "connection.held_ms": _milliseconds(use.held),
        "connection.commit_ms": _milliseconds(use.commit),
        "connection.commit_after_response_ms": _milliseconds(use.commit_after_response) or None,
        "connection.idle_in_transaction_ms": _milliseconds(use.idle_in_transaction),
        "connection.waits": [_wait(wait) for wait in use.waits] or None,
    }


def _wait(wait: PoolWait) -> dict[str, Any]:
    line = {
        "waited_ms": _milliseconds(wait.waited),
        "timed_out": wait.timed_out,
        "self_deadlock": wait.self_deadlock or None,
        "pool_size": wait.pool_size,
        "overflow": wait.overflow or None,
        "in_use": wait.in_use,
        "held_by": [
            {"name": holder.name, "held_ms": _milliseconds(holder.held)} | ({"own": True} if holder.own else {})
            for holder in wait.holders
        ],
    }
    return known(line)


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is `None`."""
    return {key: value for key, value in values.items() if value is not None}


def _milliseconds(seconds: float | None) -> float | None:
    if not seconds:
        return seconds
    # As `round(seconds * 1_000, 3)`, which takes four times as long: a line has many. No time is negative.
    return (seconds * 1_000_000 + 0.5) // 1 / 1_000
