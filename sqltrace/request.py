"""A finished request as plain data, and the word for how it ended."""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqltrace.callsite import CallSite
from sqltrace.clock import SECOND
from sqltrace.finding import Finding
from sqltrace.findings import Rule, diagnose
from sqltrace.recording import Recording

_NAMED = 3
_NOTABLE = 10_000_000  # nanoseconds at a line: half of the shortest wait, of which the rest was for something else
_INACCURATE = 1_000_000  # nanoseconds

Outcome = Literal["ok", "error", "cancelled", "disconnected"]


@dataclass(slots=True)
class RequestRecord:
    """
    The HTTP facts of a request, with its recording.

    Attributes:
        protocol: ``http`` or ``websocket``.

        method: Of HTTP; `None` for a websocket.

        route:
            Template (``/tags/{tag_id}``), root path, mounts and prefixes
            included. `None` where no route matched or the framework does not tell.

        path: As asked for, without the query string.

        status:
            Of the response. 500 for an exception before any response began;
            101 for an accepted websocket, 403 for a refused one. `None` where
            neither was seen.

        outcome:
            ``error`` with an exception, a 5xx status or a response left
            unfinished; ``cancelled`` when the task was cancelled, as servers do
            at shutdown; ``disconnected`` when the connection was lost before
            the end, as far as the server says so.

        error_type: Dotted class name of the exception, the status code of a 5xx, or ``incomplete_response``.

        time_to_first_byte: Seconds until the response began; `None` if it never did.

        event_stream: Whether it was a stream of server-sent events, which is meant to live.

        client_address: Of the peer, as the server says: often a proxy's. `None` where it does not.

        trace_id, span_id:
            Of the OpenTelemetry span the request came in with, else of the one its response went out in. Hex;
            `None` without one.

        rules: That make the findings; `None` for `sqltrace.findings.default_rules`. Not part of the data.

        notes: Room for sinks, from one moment to the next. Not part of the data.
    """

    recording: Recording
    protocol: str
    path: str
    method: str | None = None
    route: str | None = None
    status: int | None = None
    outcome: Outcome = "ok"
    error_type: str | None = None
    time_to_first_byte: float | None = None
    event_stream: bool = False
    client_address: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    rules: Sequence[Rule] | None = field(default=None, repr=False, compare=False)
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _findings: list[Finding] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def started_at(self) -> datetime:
        return self.recording.started_at

    @property
    def duration(self) -> float:
        """Seconds to the last body chunk."""
        return self.recording.duration

    @property
    def awaited(self) -> list[tuple[CallSite, float]]:
        """
        Where in the application its task waited for what is in ``time_account.python``, as for another service.

        The three lines at which it waited longest, from 10 ms on, and seconds. Only what took 20 ms at once is known.
        Of an endpoint or a dependency that ran in a thread it is the first line.
        """
        awaits = self.recording.awaits
        if awaits is None:
            return []
        others = self.recording.stretches("connection", "database", "objects", "loop_wait", settled=True)
        longest = awaits.by_line(others)[:_NAMED]
        # More at a line is told as something else, in one of the shorter waits, whose time of day is not known.
        most = self.recording.time_account.python * SECOND + _INACCURATE
        return [(site, waited / SECOND) for site, waited in longest if _NOTABLE <= waited <= most]

    @property
    def findings(self) -> list[Finding]:
        """
        What is worth telling, the most expensive first.

        Made when somebody asks: once, when the request is over. Before that of what is known so far, and anew each
        time, which the client may feel.
        """
        if self._findings is not None:
            return self._findings
        ended = self.recording.ended
        findings = diagnose(self.recording, self.rules)
        if ended:
            self._findings = findings
        return findings


def outcome_of(error: BaseException, *, disconnected: bool) -> Outcome:
    """
    How a request ended that this exception came out of.

    A group is as bad as the worst in it.

    Args:
        disconnected: Whether the server has said that the connection is lost.
    """
    if isinstance(error, BaseExceptionGroup):
        outcomes = {outcome_of(inner, disconnected=disconnected) for inner in error.exceptions}
        return next(outcome for outcome in _WORST_FIRST if outcome in outcomes)
    # By name: neither Starlette, trio nor the server is imported for it.
    name = type(error).__name__
    cancelled = name == "Cancelled" and not isinstance(error, Exception)
    if cancelled or isinstance(error, (CancelledError, GeneratorExit)):
        return "disconnected" if disconnected else "cancelled"
    if name in ("WebSocketDisconnect", "ClientDisconnect", "ClientDisconnected"):
        return "ok" if is_orderly_close(getattr(error, "code", 1006)) else "disconnected"
    if disconnected and isinstance(error, OSError):
        return "disconnected"  # what a server's send() raises once the client is gone
    return "error"


def is_orderly_close(code: int | None) -> bool:
    """Whether a websocket closed with: done, going away, no code, or one of the application's own (RFC 6455, 7.4)."""
    return code in (1000, 1001, 1005, None) or code >= 3000


_WORST_FIRST: tuple[Outcome, ...] = ("error", "disconnected", "cancelled", "ok")


def describe_span(record: RequestRecord) -> None:
    """Note the ids of the span that is current, if there is OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = format(context.trace_id, "032x")
        record.span_id = format(context.span_id, "016x")
