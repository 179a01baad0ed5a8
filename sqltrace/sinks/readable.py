"""`ReadableRenderer`: the log line for human eyes, in a terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import structlog

from sqltrace.checks import checked_flag, checked_size
from sqltrace.findings.wording import by_name, of_threads, plural, time
from sqltrace.time_account import TimeAccount

_INDENT = " " * 9
_COLUMNS = re.compile(r"\bSELECT (?P<columns>(?:(?! FROM ).){40,}?) FROM ", re.DOTALL)
_TOLD_ABOVE = frozenset(
    "timestamp level event logger http.request.method http.route http.response.status_code outcome error.type"
    " duration_ms time_to_first_byte_ms time.connection_ms time.database_ms time.objects_ms time.loop_wait_ms"
    " time.loop_wait_estimated time.python_ms python.awaited python.gil_wait_ms loop.held_ms loop.longest_hold_ms"
    " loop.waited_for threads.wait_ms threads.count threads.used_by after_response_ms"
    " sql.count sql.rows sql.distinct sql.failed sql.on_loop sql.after_response sql.statements connection.checkouts"
    " connection.wait_ms connection.held_ms connection.commit_ms connection.commit_after_response_ms"
    " connection.idle_in_transaction_ms connection.waits network.protocol.name client.address findings".split()
)
_TIME_OF_DAY = re.compile(r"\d\d:\d\d:\d\d")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = str.maketrans({"×": "x", "→": "->", "…": "..."})  # what not every encoding has of our own
_WORDS = re.compile(r"(?<= )(?!(?<=\d )m?s\b|(?<=[A-Z] )/)")  # a number keeps its unit, and a method its path
_CODE = re.compile(r"(?<=\))(?=\.)|(?<= )")  # between words and between calls: it can still be pasted as one expression
_PAINT = re.compile(r"\x1b\[\d+m")
_LEAST = 20  # characters, however narrow the terminal
_NOTABLE = 0.1  # milliseconds
_LONG = 50.0  # milliseconds; a shorter request that is all one part needs no account
_COLORS = {"info": "32", "warning": "33", "error": "31", "dim": "2", "bold": "1"}


class ReadableRenderer:
    """
    A last structlog processor that prints a request on several lines, and everything else as usual.

        structlog.configure(processors=[..., sqltrace.sinks.ReadableRenderer()])

    Args:
        others: Renders all other events. By default structlog's `ConsoleRenderer`.
        colors: By default when standard output is a terminal.
        width: Characters of a line. By default the terminal's, or 100 where there is none.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: `width` is less than 1.

    .. versionadded:: 0.1.0
    """

    def __init__(self, *, others: Any = None, colors: bool | None = None, width: int | None = None) -> None:
        if others is not None and not callable(others):
            raise TypeError(f"others must be a structlog renderer, got {others!r:.100}")
        terminal = sys.stdout is not None and sys.stdout.isatty()  # a process without a console has none
        self._colors = terminal if colors is None else checked_flag("colors", colors)
        self._others = others or structlog.dev.ConsoleRenderer(colors=self._colors)
        columns = shutil.get_terminal_size((100, 24)).columns
        self._width = columns if width is None else checked_size("width", width)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        if "sql.statements" not in event:
            return self._others(logger, method, event)
        event = _printable(event)
        lines = [
            *self._wrap(self._headline(event, method), "", hang=_INDENT + "  "),
            *self._wrap(self._account(event)),
        ]
        told = (
            _parts(event),
            _awaited(event),
            _waited(event),
            _waited_for_thread(event),
            _waited_for_gil(event),
            *map(_wait, event.get("connection.waits", ())),
        )
        for line in filter(None, told):
            lines += self._wrap(line)
        for finding in event.get("findings", ()):
            lines += self._finding(finding)
        for statement in event["sql.statements"]:
            lines += self._statement(statement)
        rest = {key: value for key, value in event.items() if key not in _TOLD_ABOVE}
        if rest.get("url.path") == event.get("http.route"):
            rest.pop("url.path", None)  # a processor may have dropped it, of a request without a route
        lines += self._wrap("  ".join(f"{key}={value}" for key, value in rest.items()), color="dim")
        return _encodable("\n".join(lines))

    def _headline(self, event: Mapping[str, Any], method: str) -> str:
        level = str(event.get("level", method))
        facts = [str(event.get("http.response.status_code", "no response")), _time(event["duration_ms"])]
        if event["outcome"] != "ok":
            facts.append(event["outcome"])
        if "error.type" in event and event["error.type"] != facts[0]:
            facts.append(event["error.type"])
        timestamp = str(event.get("timestamp", ""))  # a number, where structlog's TimeStamper() was given no format
        found = _TIME_OF_DAY.search(timestamp)
        clock = found[0] if found is not None else timestamp
        return f"{clock:8} {self._paint(level, f'{level:7}')} {self._paint('bold', _who(event))}  {'  '.join(facts)}"

    def _account(self, event: Mapping[str, Any]) -> str:
        count, later = event["sql.count"], event["sql.after_response"]
        failed = ", " + self._paint("error", f"{event['sql.failed']} failed") if event["sql.failed"] else ""
        if not count:
            return f"no statements; {later} after the response{failed}" if later else "no statements"
        text = f"{plural(count, 'statement')}, {event['sql.distinct']} distinct"
        if event.get("sql.rows"):
            text += f", {plural(event['sql.rows'], 'row')}"
        text += f", {_time(event['time.database_ms'])} in the database"
        commit = event.get("connection.commit_ms", 0.0) - event.get("connection.commit_after_response_ms", 0.0)
        if commit >= max(1.0, event["time.database_ms"] / 10):
            # Where it also waited for the event loop, which is no time of the database, it is not all a part of that.
            committing = "of it committing" if commit <= event["time.database_ms"] else "committing"
            text += f", {_time(commit)} {committing}"
        if event.get("sql.on_loop"):
            text += ", " + self._paint("warning", f"{event['sql.on_loop']} synchronous on the event loop")
        return text + failed + (f"; {later} more after the response" if later else "")

    def _finding(self, finding: Mapping[str, Any]) -> list[str]:
        under = _INDENT + "  "
        text = f"! {finding['kind']}  {_time(finding['cost_ms'])}  {finding['message']}"
        lines = self._wrap(text, color="warning")
        for key, word in (("call_site", "at"), ("loaded_for", "for")):
            if key in finding:
                lines += self._wrap(f"{word} {finding[key]}", under, color="dim")
        if "fix" in finding:
            code, mark, comment = finding["fix"].partition("# ")
            room = self._room(under)
            lines += [under + self._paint("bold", line) for line in _fold(f"fix: {code}", room, pieces=_CODE)]
            lines += [under + self._paint("dim", f"# {line}") for line in _fold(comment, room - 2) if mark]
        return lines

    def _statement(self, statement: Mapping[str, Any]) -> list[str]:
        count = f"{statement['count']} ×"
        facts = f"{count:>6} {_time(statement['total_ms']):>9}{_cost(statement)}"
        failed = f"  {statement['failed']} failed" if statement.get("failed") else ""
        head = self._cut(f"{_INDENT}{facts}  {statement['summary']}", len(failed)) + self._paint("error", failed)
        lines = [head]
        under = _INDENT + " " * 18
        if "error" in statement:
            lines += self._wrap(f"failed with {statement['error']}", under, color="error")
        for line in _why(statement):
            lines += self._wrap(line, under)
        if "call_site" in statement:
            lines += self._wrap(f"at {statement['call_site']}", under, color="dim")
        sql = _COLUMNS.sub(_elide, " ".join(statement["sql"].split()))
        lines.append(under + self._paint("dim", self._cut(sql, len(under))))
        return lines

    def _wrap(self, text: str, indent: str = _INDENT, hang: str = "", color: str = "") -> list[str]:
        """Lines with a hanging indent. Nothing is cut, and no word is broken: it may be a file and its line."""
        hang = hang or indent + "  "
        folded = _fold(text, self._room(indent), self._room(hang))
        return [(hang if number else indent) + self._paint(color, line) for number, line in enumerate(folded)]

    def _cut(self, text: str, used: int = 0) -> str:
        room = max(_LEAST, self._width - used)
        return text if len(text) <= room else text[: room - 1] + "…"

    def _room(self, indent: str) -> int:
        return max(_LEAST, self._width - len(indent))

    def _paint(self, color: str, text: str) -> str:
        if not text or not self._colors or color not in _COLORS:
            return text
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def _fold(text: str, width: int, then: int | None = None, *, pieces: re.Pattern[str] = _WORDS) -> Iterator[str]:
    """
    Args:
        then: Width of all lines but the first.
    """
    line = ""
    for piece in pieces.split(text.rstrip()):
        if line and _seen(line) + _seen(piece.rstrip()) > width:
            yield line.rstrip()
            line, width = "", then or width
        line += piece
    if line:
        yield line


def _seen(text: str) -> int:
    return len(_PAINT.sub("", text))


def _who(event: Mapping[str, Any]) -> str:
    """The request, named as in what others waited for."""
    return f"{event.get('http.request.method', 'WEBSOCKET')} {event.get('http.route') or event.get('url.path', '')}"


def _parts(event: Mapping[str, Any]) -> str:
    """The time account, without the parts that are too small to be seen."""
    total = event["duration_ms"]
    parts = {part: event.get(f"time.{part}_ms") or 0.0 for part in TimeAccount._fields}
    seen = [f"{_time(spent)} {part.replace('_', ' ')}" for part, spent in parts.items() if _is_seen(spent, total)]
    worth_it = len(seen) > 1 or (total >= _LONG and sum(parts.values()) > 0.9 * total)
    return f"{_time(total)} = {' + '.join(seen)}{_off_the_loop(event)}" if worth_it else ""


def _is_seen(spent: float, total: float) -> bool:
    return spent >= max(_NOTABLE, total / 200)


def _off_the_loop(event: Mapping[str, Any]) -> str:
    """Of what is called Python, the last of the parts, some may be awaiting another service, or a thread's work."""
    python = event.get("time.python_ms", 0.0)
    off = python - event.get("loop.held_ms", python)
    return f" ({_time(off)} of it off the event loop)" if off >= max(_LONG, python / 2) else ""


def _waited(event: Mapping[str, Any]) -> str:
    if not event.get("loop.waited_for") or not _is_seen(event["time.loop_wait_ms"], event["duration_ms"]):
        return ""
    about = "about " if event.get("time.loop_wait_estimated") else ""
    own = _who(event)
    holders = ", ".join(
        f"{'another ' if holder['name'] == own else ''}{holder['name']} ({_time(holder['ms'])})"
        for holder in event["loop.waited_for"]
    )
    return f"waited {about}{_time(event['time.loop_wait_ms'])} for the event loop, held by {holders}"


def _waited_for_thread(event: Mapping[str, Any]) -> str:
    if not _is_seen(event.get("threads.wait_ms", 0.0), event["duration_ms"]):
        return ""
    text = f"waited {_time(event['threads.wait_ms'])} for {of_threads(event.get('threads.count'))}"
    users = ", ".join(f"{user['name']} ({user['threads']})" for user in event.get("threads.used_by", ()))
    return f"{text}, used by {users}" if users else text


def _waited_for_gil(event: Mapping[str, Any]) -> str:
    waited = event.get("python.gil_wait_ms", 0.0)
    if not _is_seen(waited, event["duration_ms"]):
        return ""
    return f"replies lay ready for {_time(waited)}, while threads waited for the interpreter's lock"


def _awaited(event: Mapping[str, Any]) -> str:
    awaits = [one for one in event.get("python.awaited", ()) if _is_seen(one["ms"], event["duration_ms"])]
    told = ", ".join(f"{_time(one['ms'])} at {one['call_site']}" for one in awaits)
    return f"awaited {told}" if told else ""


def _cost(statement: Mapping[str, Any]) -> str:
    text = f"  {plural(statement['rows'], 'row')}" if "rows" in statement else ""
    if statement.get("objects_ms", 0.0) >= _NOTABLE:
        text += f", objects {_time(statement['objects_ms'])}"
    return text


def _why(statement: Mapping[str, Any]) -> Iterator[str]:
    if "origin" in statement:
        what = " ".join(filter(None, (statement["origin"], "load of", statement.get("relationship"))))
        what = what if "relationship" in statement else statement["origin"]
        yield f"{what} for {statement['loaded_for']}" if "loaded_for" in statement else what
    if "eager_joins" in statement:
        joins = statement["eager_joins"]
        asked = plural(joins["asked_tables"], "table")
        yield f"asked {asked}, sent {joins['sent_tables']}: {', '.join(joins['joins'])}"


def _elide(match: re.Match[str]) -> str:
    columns = match["columns"]
    if "(" in columns:  # a call or a subquery: its commas are no columns
        return match[0]
    return f"SELECT [{plural(columns.count(',') + 1, 'column')}] FROM "  # noqa: S608 - for eyes, never run


def _wait(wait: Mapping[str, Any]) -> str:
    overflow = f"+{wait['overflow']}" if "overflow" in wait else ""
    text = f"waited {_time(wait['waited_ms'])} for a connection"
    if wait["timed_out"]:
        text += " in vain, while it held one itself" if "self_deadlock" in wait else " in vain"
    text += f"; pool {wait['in_use']}/{wait['pool_size']}{overflow} in use"
    holders = ", ".join(by_name(((holder["name"], holder["held_ms"]) for holder in wait["held_by"]), _time))
    return f"{text}, held by {holders}" if holders else text


def _time(milliseconds: float) -> str:
    return time(milliseconds / 1_000)


def _printable(value: Any, key: str = "") -> Any:
    """
    Without control characters, for a path is what a client says: it must not print lines of its own, nor steer the
    terminal. It is in the names of requests, too. SQL may have lines.
    """
    if isinstance(value, str):
        return _CONTROL.sub(lambda match: match[0] if key == "sql" and match[0].isspace() else _escape(match[0]), value)
    if isinstance(value, Mapping):
        return {name: _printable(inner, name) for name, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list | tuple) else value


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _encodable(text: str) -> str:
    """As standard output takes it, or the whole line would be lost. Redirected on Windows, it has no ``→``."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text
