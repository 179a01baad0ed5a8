"""The application's structlog: JSON lines to a file, and the same events readably to the terminal."""

import json
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from threading import Condition
from typing import Any

import structlog
from rich.console import Console
from rich.text import Text

import sqltrace

LogLine = dict[str, Any]


class JSONLines:
    """
    A structlog processor that writes each event to a file, one JSON object per line.

    It also hands over the lines of awaited requests, when they are printed: that is when a request's
    work is over, and the client has the answer before. Safe with threads.

    Attributes:
        begun: Whether a line was written.
    """

    def __init__(self, path: Path) -> None:
        self.begun = False
        self._file = path.open("w", encoding="utf-8")
        self._awaited: dict[str, LogLine | None] = {}
        self._changed = Condition()

    def __call__(self, _: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        with self._changed:
            self._file.write(_to_json(event) + "\n")
            self._file.flush()
            self.begun = True
        return event

    def note_printed(self, event: Mapping[str, Any]) -> None:
        """Called for each event, after the last processor."""
        request_id = event.get("request_id")
        with self._changed:
            if request_id in self._awaited and "duration_ms" in event:
                self._awaited[request_id] = json.loads(_to_json(event))
                self._changed.notify_all()

    def await_requests(self, request_ids: Iterable[str]) -> None:
        """Keep the lines of these requests until they are taken."""
        with self._changed:
            self._awaited |= dict.fromkeys(request_ids)

    def take(self, request_ids: Iterable[str], timeout: float = 10) -> dict[str, LogLine]:
        """The awaited lines by request id. One that has not come after `timeout` seconds is left out."""
        wanted = list(request_ids)
        with self._changed:
            self._changed.wait_for(lambda: all(self._awaited[request_id] for request_id in wanted), timeout)
            lines = {request_id: self._awaited.pop(request_id) for request_id in wanted}
        return {request_id: line for request_id, line in lines.items() if line}

    def close(self) -> None:
        self._file.close()


class ConsoleLogger:
    """Prints through rich, so that a line never lands inside a progress bar, and says so."""

    def __init__(self, console: Console, json_lines: JSONLines) -> None:
        self._console = console
        self._json_lines = json_lines

    def msg(self, text: str, event: Mapping[str, Any]) -> None:
        try:
            self._console.print(Text.from_ansi(text), soft_wrap=True)
        finally:
            self._json_lines.note_printed(event)

    debug = info = warning = error = critical = exception = msg


def configure_logging(console: Console, json_lines: JSONLines) -> None:
    """Set structlog up for the process."""
    logger = ConsoleLogger(console, json_lines)
    renderer = sqltrace.sinks.ReadableRenderer(colors=console.is_terminal, width=console.width)

    def render(target: object, method: str, event: MutableMapping[str, Any]) -> tuple[Any, ...]:
        return (renderer(target, method, {**event}), event), {}  # of a copy: a renderer may take it apart

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            json_lines,
            render,
        ],
        logger_factory=lambda *_: logger,
    )


def _to_json(event: Mapping[str, Any]) -> str:
    return json.dumps(dict(event), default=str)
