"""The application's structlog: JSON lines to a file, and the same events readably to the terminal."""

import json
from collections.abc import Iterable, MutableMapping
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

    It also hands over the lines of awaited requests: a line is written when a request's
    work is over, and the client has the answer before that. Safe with threads.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._awaited: dict[str, LogLine | None] = {}
        self._written = Condition()

    def __call__(self, _: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line = json.dumps(dict(event), default=str)
        with self._written:
            self._file.write(line + "\n")
            self._file.flush()
            request_id = event.get("request_id")
            if request_id in self._awaited and "duration_ms" in event:
                self._awaited[request_id] = json.loads(line)
                self._written.notify_all()
        return event

    def await_requests(self, request_ids: Iterable[str]) -> None:
        """Keep the lines of these requests until they are taken."""
        with self._written:
            self._awaited |= dict.fromkeys(request_ids)

    def take(self, request_ids: Iterable[str], timeout: float = 10) -> dict[str, LogLine]:
        """The awaited lines by request id. One that has not come after `timeout` seconds is left out."""
        wanted = list(request_ids)
        with self._written:
            self._written.wait_for(lambda: all(self._awaited[request_id] for request_id in wanted), timeout)
            lines = {request_id: self._awaited.pop(request_id) for request_id in wanted}
        return {request_id: line for request_id, line in lines.items() if line}

    def close(self) -> None:
        self._file.close()


class ConsoleLogger:
    """Prints through rich, so that a line never lands inside a progress bar."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def msg(self, text: str) -> None:
        self._console.print(Text.from_ansi(text), soft_wrap=True)

    debug = info = warning = error = critical = exception = msg


def configure_logging(console: Console, json_lines: JSONLines) -> None:
    """Set structlog up for the process."""
    logger = ConsoleLogger(console)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            json_lines,
            sqltrace.sinks.ReadableRenderer(colors=console.is_terminal, width=console.width),
        ],
        logger_factory=lambda *_: logger,
    )
