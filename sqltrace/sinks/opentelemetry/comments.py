"""
SQL comments in the form of sqlcommenter, so that the database's own log and views name the request.

Appended to what the driver is handed; what is recorded, logged and raised stays as it was.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from opentelemetry import trace

from sqltrace.callsite import find_call_site
from sqltrace.code_files import shorten
from sqltrace.faults import report_fault
from sqltrace.request import RequestRecord
from sqltrace.route import Scope, route_template

_COMMENTED = re.compile(r"[\s(]*(?:SELECT|INSERT|UPDATE|DELETE|WITH|MERGE|REPLACE|VALUES|CALL)\b", re.IGNORECASE)
_STRINGS = re.compile(r"'[^']*'")  # where one is misread, ours may stand within or behind another comment: no harm
_FORMATTING = ("format", "pyformat")  # styles of parameters in which a driver takes % for its own
_QUOTES_KNOWING_DRIVERS = ("pg8000",)  # but not in quotes, where all values of a comment are

# Drivers of others, as PyMySQL, make one INSERT of many where they know each word of it, and else run them one by one.
_INSERT = re.compile(r"\s*(?:INSERT|REPLACE)\b", re.IGNORECASE)
_SYSTEMS_THAT_TAKE_MANY = ("sqlite", "postgresql", "oracle", "mssql")

# What differs in every request would fill their caches of prepared statements and plans.
_CACHING_DRIVERS = ("asyncpg", "psqlpy")
_CACHING_SYSTEMS = ("oracle", "mssql")


class Commenter:
    """Comments the statements of one request."""

    def __init__(self, record: RequestRecord, scope: Scope) -> None:
        self._record = record
        self._scope = scope
        self._route: str | None = None

    def __call__(self, statement: str, dialect: Any, method: str = "do_execute") -> str:
        """
        The statement with its comment, or as it is. Never raises.

        Args:
            method: Of the dialect, which is called with it.
        """
        try:
            end = _place(statement)
            if end is None or (method == "do_executemany" and _may_be_rewritten(statement, dialect)):
                return statement
            comment = self._comment(dialect)
            if _doubles_percents(dialect) and method != "do_execute_no_params":
                comment = comment.replace("%", "%%")
            return f"{statement[:end]} /*{comment}*/{statement[end:]}" if comment else statement
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
        return ",".join(f"{name}='{quote(value, safe='')}'" for name, value in values.items() if value)

    def _name_route(self) -> str | None:
        if self._route is None:  # it is known from the router on
            self._route = self._record.route or route_template(self._scope, answered=False)
        return self._route


def _place(statement: str) -> int | None:
    """Where a comment may stand, before a semicolon at the end; `None` in what has one, and in other statements."""
    if _COMMENTED.match(statement) is None:
        return None
    if "/*" in statement or "--" in statement:
        outside = _STRINGS.sub("", statement)
        if "/*" in outside or "--" in outside:
            return None
    if not statement.rstrip().endswith(";"):
        return len(statement)
    end = statement.rindex(";")
    return None if statement[:end].rstrip().endswith(";") else end


def _may_be_rewritten(statement: str, dialect: Any) -> bool:
    return dialect.name not in _SYSTEMS_THAT_TAKE_MANY and _INSERT.match(statement) is not None


def _doubles_percents(dialect: Any) -> bool:
    return dialect.paramstyle in _FORMATTING and dialect.driver not in _QUOTES_KNOWING_DRIVERS


def _caches(dialect: Any) -> bool:
    return dialect.driver in _CACHING_DRIVERS or dialect.name in _CACHING_SYSTEMS


def _traceparent() -> str | None:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
