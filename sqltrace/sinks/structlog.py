"""`StructlogSink`: one structured log line per request."""

from __future__ import annotations

import logging
from inspect import iscoroutine
from operator import is_not
from typing import Any, Final

import structlog

from sqltrace.checks import checked_flag, checked_number, checked_size
from sqltrace.request import RequestRecord
from sqltrace.sinks.log_line import level_of, log_line
from sqltrace.sinks.readable import ReadableRenderer

EVENT = "request"
_FILTERING: Final = structlog.make_filtering_bound_logger.__module__
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class StructlogSink:
    """
    Logs each finished request through structlog, as the application has configured it.

    Level ``error`` for a request that failed, ``warning`` for a slow one or one
    with a finding, ``info`` for the others. Values bound with `structlog.contextvars` (a
    request id) are merged in, also those that are unbound before the end. While structlog
    is not configured the line is printed readably on standard output.

    Args:
        logger: By default ``structlog.get_logger("sqltrace")``. Of an `AsyncBoundLogger` the synchronous one is used.
        slow: Seconds from which a request is slow; of a websocket or an event stream those until it begins.
        top: How many groups of statements a line has, most time first; 0 for none.
        literals:
            Leave literals written into raw SQL in the line. By default each is
            replaced by ``?``, for they may be personal data.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: a number is negative, or not a number.

    .. versionadded:: 0.1.0
    """

    def __init__(self, *, logger: Any = None, slow: float = 1.0, top: int = 5, literals: bool = False) -> None:
        self._logger = _checked_logger(logger)
        self._slow = checked_number("slow", slow, 0)
        self._top = checked_size("top", top, 0)
        self._literals = checked_flag("literals", literals)
        self._configured: tuple[dict[str, Any], Any] = {}, None

    def response_ready(self, record: RequestRecord) -> None:
        # A middleware further in may unbind its values before the request has finished.
        bound = structlog.contextvars.get_contextvars()
        if bound:
            record.notes["structlog"] = bound

    def request_finished(self, record: RequestRecord) -> None:
        logger, level = (self._logger or self._default()).bind(), level_of(record, self._slow)
        if not _is_enabled(logger, level):
            return
        line = log_line(record, top=self._top, literals=self._literals)
        bound = record.notes.get("structlog", {}) | structlog.contextvars.get_contextvars()
        if bound:
            # Not a bound `event`, either: ours has a name.
            line |= {key: value for key, value in bound.items() if key not in line and key != "event"}
        _log(logger, level, line)

    def _default(self) -> Any:
        """The application's logger: the same until structlog is configured anew, as making it takes its time."""
        if not structlog.is_configured():
            return _readable()
        configuration, logger = self._configured
        latest = structlog.get_config()
        # By identity: what is equal may still be changed, as `capture_logs()` does.
        if logger is None or any(map(is_not, latest.values(), configuration.values())):
            logger = structlog.get_logger("sqltrace")
            self._configured = latest, logger
        return logger


def _checked_logger(logger: Any) -> Any:
    if isinstance(logger, type):
        raise TypeError(f"logger must be an object, got the class {logger.__name__}")
    # Not asked for `info`: that binds a logger which is not bound yet, and some need a running loop for it.
    if logger is not None and not (hasattr(logger, "bind") and hasattr(logger, "unbind")):
        remedy = ": write structlog.wrap_logger(…)" if isinstance(logger, logging.Logger) else ""
        raise TypeError(f"logger must be a structlog logger, got {logger!r:.100}{remedy}")
    return logger


def _is_enabled(bound: Any, level: str) -> bool:
    """`False` where structlog's own filtering logger, from 25.1 on, makes nothing of events of this level."""
    filters: Any = getattr(type(bound), "is_enabled_for", None)
    # Methods of the application's own, in a class of its own, may do anything with an event.
    own = [getattr(method, "__module__", "") for method in (filters, getattr(type(bound), level, None))]
    return own != [_FILTERING, _FILTERING] or bool(filters(bound, _LEVELS[level]))


def _log(bound: Any, level: str, line: dict[str, Any]) -> None:
    if isinstance(bound, structlog.stdlib.AsyncBoundLogger):
        bound = bound.sync_bl  # nobody awaits what a sink does
    told = getattr(bound, level)(EVENT, **line)
    if iscoroutine(told):
        told.close()
        raise TypeError(
            f"structlog's logger must be synchronous, got {type(bound).__name__}.{level}(), which is not:"
            " give StructlogSink(logger=…) one"
        )


def _readable() -> Any:
    return structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            ReadableRenderer(),
        ],
    )
