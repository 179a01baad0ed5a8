"""A finished request as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqltrace.recording import Recording

Outcome = Literal["ok", "error", "cancelled", "disconnected"]


@dataclass(slots=True)
class RequestRecord:
    """
    The HTTP facts of a request, with its recording.

    Attributes:
        protocol: ``http`` or ``websocket``.

        method: Of HTTP; `None` for a websocket.

        route:
            Template (``/tags/{tag_id}``), mounts and prefixes included.
            `None` where no route matched or the framework does not tell.

        path: As asked for, without the query string.

        status:
            Of the response. 500 for an exception before any response began;
            101 for an accepted websocket, 403 for a refused one. `None` where
            neither was seen.

        outcome:
            ``error`` with an exception, a 5xx status or a response left
            unfinished; ``cancelled`` when the server cancelled the task;
            ``disconnected`` when the client left before the end.

        error_type: Dotted class name of the exception, the status code of a 5xx, or ``incomplete_response``.

        time_to_first_byte: Seconds until the response began; `None` if it never did.

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
    client_address: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    notes: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def started_at(self) -> datetime:
        return self.recording.started_at

    @property
    def duration(self) -> float:
        """Seconds to the last body chunk."""
        return self.recording.duration
