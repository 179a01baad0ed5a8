"""The metrics of requests and their statements, recorded when the request is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter

from sqltrace.clock import SECOND
from sqltrace.collector import Execution
from sqltrace.database import Database, database_of
from sqltrace.request import RequestRecord
from sqltrace.route import Scope
from sqltrace.sinks.log_line import known
from sqltrace.sinks.opentelemetry.attributes import Attributes, of_failure, of_operation, summary_of
from sqltrace.sinks.opentelemetry.measurements import Measurement, record_all
from sqltrace.sinks.opentelemetry.pool_metrics import PoolMetrics
from sqltrace.sinks.opentelemetry.server_span import http_method
from sqltrace.sinks.opentelemetry.unkept import Unkept
from sqltrace.statement import Failure, Group
from sqltrace.time_account import TimeAccount

# Of the semantic conventions, which the SDK's default boundaries (milliseconds) do not fit.
OPERATION_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
ROW_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# Of our own. The case takes 12 s and fetches 30,000 rows: what is beyond 10 s and 10,000 has to show.
TIME_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FETCHED_BUCKETS = (*ROW_BUCKETS, 50000, 100000)
COUNT_BUCKETS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)

_MAX_SUMMARIES = 1_000  # told apart in one process, each a time series for every bucket


class RequestMetrics:
    """
    The instruments of one meter.

    Every statement is measured, also those of which the recording keeps no
    more than their group. `record_all` says when they arrive. `None` in a time
    account is not measured.
    """

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, description: str, buckets: tuple[float, ...]) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

        self._operation = histogram(
            "db.client.operation.duration", "s", "Duration of database client operations.", OPERATION_BUCKETS
        )
        self._returned_rows = histogram(
            "db.client.response.returned_rows",
            "{row}",
            "The actual number of records returned by the database operation.",
            ROW_BUCKETS,
        )
        self._http = histogram("http.server.request.duration", "s", "Duration of HTTP server requests.", HTTP_BUCKETS)
        self._statements = histogram(
            "sqltrace.request.statements",
            "{statement}",
            "SQL statements of a request, without those after its response.",
            COUNT_BUCKETS,
        )
        self._rows = histogram(
            "sqltrace.request.rows", "{row}", "Rows that a request fetched, also after its response.", FETCHED_BUCKETS
        )
        self._parts = {
            part: histogram(
                f"sqltrace.request.{part}", "s", f"Part of the duration of a request: {part}.", TIME_BUCKETS
            )
            for part in TimeAccount._fields
        }
        self._findings = meter.create_counter("sqltrace.findings", "{finding}", "Findings in requests.")
        self._pools = PoolMetrics(meter)
        self._summaries: set[str] = set()
        self._note = f"opentelemetry.metrics.{id(self)}"

    def begin(self, record: RequestRecord, scope: Scope, *, measured_elsewhere: bool) -> None:
        """
        Args:
            measured_elsewhere: Whether somebody else measures ``http.server.request.duration``.
        """
        if self._note in record.notes:
            return  # another sink of the same provider measures it
        record.notes[self._note] = None, None  # if the rest fails, the request is measured
        unkept, collector = Unkept(OPERATION_BUCKETS, ROW_BUCKETS), record.recording.collector
        if isinstance(collector.unkept, Unkept):
            unkept = collector.unkept  # of the sink of another provider
        collector.unkept = unkept
        http = None
        if record.protocol == "http" and not measured_elsewhere:
            http = {"url.scheme": scope.get("scheme") or "http", "network.protocol.version": scope.get("http_version")}
        record.notes[self._note] = unkept, http

    def finish(self, record: RequestRecord, context: Context | None) -> None:
        """
        Args:
            context: Of the server span, for exemplars.
        """
        note = record.notes.pop(self._note, None)
        if note is None:
            return
        unkept, http = note
        if http is not None:
            self._http.record(record.duration, _of_http(record, http), context)
        self._measure_request(record, context)
        statements = [
            measurement
            for group, executions in record.recording.executions()
            for measurement in self._of_group(group, executions)
        ]
        if unkept is not None:
            statements += self._of_unkept(unkept)
        record_all(statements, context)
        record_all(self._pools.take_ended(), None)

    def _measure_request(self, record: RequestRecord, context: Context | None) -> None:
        route = _of_route(record)
        recording = record.recording
        self._statements.record(recording.statement_count - recording.after_response_count, route, context)
        self._rows.record(recording.row_count, route, context)
        account = recording.time_account
        for part, histogram in self._parts.items():
            seconds = getattr(account, part)
            if seconds is not None:
                histogram.record(seconds, route, context)
        for finding in record.findings:
            self._findings.add(1, {**route, "sqltrace.finding.kind": finding.kind}, context)

    def _of_group(self, group: Group, executions: list[Execution]) -> Iterator[Measurement]:
        found: dict[tuple[Any, bool, Failure | None], Attributes] = {}
        for execution in executions:
            kind = execution.dialect, execution.executemany, execution.failure
            attributes = found.get(kind)
            if attributes is None:
                summary, database = summary_of(group.summary, execution), database_of(execution.dialect)
                attributes = found[kind] = self._of_operation(group.system, summary, database, execution.failure)
            yield self._operation, execution.elapsed / SECOND, attributes, 1
            if execution.rows is not None:
                yield self._returned_rows, execution.rows, attributes, 1

    def _of_unkept(self, unkept: Unkept) -> Iterator[Measurement]:
        for (system, summary, database, failure), measured in unkept.settle().items():
            attributes = self._of_operation(system, summary, database, failure)
            for histogram, buckets in ((self._operation, measured.durations), (self._returned_rows, measured.rows)):
                for bucket in buckets.values():
                    yield histogram, bucket.total / bucket.count, attributes, bucket.count

    def _of_operation(
        self, system: str, summary: str, database: Database | None, failure: Failure | None
    ) -> dict[str, Any]:
        told: str | None = summary
        if summary not in self._summaries:
            if len(self._summaries) >= _MAX_SUMMARIES:
                told = None
            else:
                self._summaries.add(summary)
        return of_operation(system, told, database) | of_failure(failure)


def _of_route(record: RequestRecord) -> dict[str, Any]:
    """Without a method of what is meant to live: its times are those of all its life, and belong in no mean."""
    return known(
        {"http.route": record.route, "http.request.method": None if record.event_stream else http_method(record)}
    )


def _of_http(record: RequestRecord, http: Attributes) -> dict[str, Any]:
    failed = record.outcome == "error"
    return known(
        {
            "http.route": record.route,
            "http.request.method": http_method(record),
            **http,
            "http.response.status_code": record.status,
            "error.type": (record.error_type or "_OTHER") if failed else None,
        }
    )
