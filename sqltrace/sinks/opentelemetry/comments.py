"""
SQL comments in the form of sqlcommenter, so that the database's own log and views name the request.

Appended to what the driver is handed; what is recorded, logged and raised stays as it was.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from opentelemetry import trace

from sqltrace.callsite import find_call_site, shorten
from sqltrace.faults import report_fault
from sqltrace.request import RequestRecord
from sqltrace.route import Scope, route_template

_COMMENTED = re.compile(r"\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)
_FORMATTING = ("format", "pyformat")  # styles of parameters in which a driver takes % for its own

# What differs in every request would fill their caches of prepared statements and plans.
_CACHING_DRIVERS = ("asyncpg",)
_CACHING_SYSTEMS = ("oracle", "mssql")


class Commenter:
    """Comments the statements of one request."""

    def __init__(self, record: RequestRecord, scope: Scope) -> None:
        self._record = record
        self._scope = scope
        self._route: str | None = None

    def __call__(self, statement: str, dialect: Any) -> str:
        """The statement with its comment, or as it is. Never raises."""
        try:
            if _COMMENTED.match(statement) is None or "/*" in statement or "--" in statement:
                return statement
            if statement.rstrip().endswith(";"):
                return statement
            comment = self._comment(dialect)
            return f"{statement} /*{comment}*/" if comment else statement
        except Exception as fault:
            report_fault("commenting a statement", fault)
            return statement

    def _comment(self, dialect: Any) -> str:
        site = find_call_site()
        values = {
            "call_site": f"{shorten(site.file)}:{site.line}" if site is not None else None,
            "route": self._name_route(),
            "traceparent": None if _caches(dialect) else _traceparent(),
        }
        comment = ",".join(f"{name}='{quote(value, safe='')}'" for name, value in values.items() if value)
        return comment.replace("%", "%%") if dialect.paramstyle in _FORMATTING else comment

    def _name_route(self) -> str | None:
        if self._route is None:  # it is known from the router on
            self._route = self._record.route or route_template(self._scope)
        return self._route


def _caches(dialect: Any) -> bool:
    return dialect.driver in _CACHING_DRIVERS or dialect.name in _CACHING_SYSTEMS


def _traceparent() -> str | None:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
