"""
What the text of a statement tells: its values taken out, its fingerprint, its summary.

Reads text with regular expressions instead of a parser: some 10 microseconds
for a statement, once per distinct text. What is in doubt counts as a value,
so that nothing leaks from SQL that was not understood.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

from sqltrace.literals import NO_DOUBT, PATTERNS, SCHEMA, SHAPES, is_name, places_of_names
from sqltrace.pairing import is_broken

_SUMMARY_LENGTH = 255  # semantic conventions for db.query.summary

_SPACE = re.compile(r"\s+")
_CAST = r"(?:\s*::\s*[\w\"]+(?:\s*\[\])?)?"
_LIST = re.compile(rf"\(\s*\?{_CAST}(?:\s*,\s*\?{_CAST})*\s*\)")
_ROWS = re.compile(r"(\(\?\))(?:\s*,\s*\(\?\))+")
_SAVEPOINT = re.compile(r"\s*(?:SAVEPOINT|SAVE|RELEASE|ROLLBACK)\b[^;]*\Z", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")


@lru_cache(maxsize=2_048)
def redact(sql: str, system: str = "other_sql") -> str:
    """
    The text with every literal replaced by ``?`` and comments left out.

    Placeholders and quoted names stay. `system` is a ``db.system.name``, which
    tells what is a literal. Where that is in doubt, as double quotes are for
    SQLite and all quotes for a system not known, it is. Already truncated text
    is safe. Where quotes do not pair up, all from the first of them on is one ``?``.
    """
    pattern = PATTERNS.get(system, PATTERNS[""])
    quoted: list[tuple[int, int]] = []
    names = places_of_names(sql) if '"' in sql and system not in NO_DOUBT else None

    def replace(match: re.Match[str]) -> str:
        kind, text = match.lastgroup, match[0]
        if kind == "comment":
            return " "
        if kind == "number":
            return "?"
        if kind == "value" or (names is not None and text[0] == '"' and not is_name(match, names)):
            quoted.append(match.span())
            return "?"
        return text

    redacted = pattern.sub(replace, sql)
    if quoted and is_broken(sql, quoted, system):
        redacted = pattern.sub(replace, sql[: quoted[0][0]]) + "?"
    return redacted.strip()


@lru_cache(maxsize=2_048)
def fingerprint(sql: str, system: str = "other_sql") -> str:
    """
    16 hex digits, equal for texts that differ in values, placeholders, list lengths or space only.

    So are those of savepoints that differ in their number.
    """

    def replace(match: re.Match[str]) -> str:
        if match.lastgroup == "comment":
            return " "
        return match[0] if match.lastgroup == "name" else "?"

    shape = _SPACE.sub(" ", SHAPES.get(system, SHAPES[""]).sub(replace, without_number(sql))).strip()
    shape = _ROWS.sub(r"\1", _LIST.sub("(?)", shape))
    return blake2b(shape.encode("utf-8", "replace"), digest_size=8).hexdigest()


def without_number(sql: str) -> str:
    """The statement of a savepoint without the number in its name: SQLAlchemy has one for each. Others as they are."""
    return _DIGITS.sub("", sql) if _SAVEPOINT.match(sql) else sql


_NAME = r'(?:"[^"]*+(?:""[^"]*+)*(?:"|\Z)|`[^`]*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z)|[^\W\d]\w*)'
_TRANSLATED = re.compile(rf"{SCHEMA}\.")
_WORD = re.compile(rf"(?P<name>{_NAME}(?:\.{_NAME})*)|(?P<sign>[(),;=])")
_OPERATIONS = frozenset(
    "SELECT INSERT UPDATE DELETE MERGE REPLACE CALL CREATE ALTER DROP TRUNCATE BEGIN START COMMIT"
    " ROLLBACK SAVEPOINT RELEASE SET SHOW PRAGMA EXPLAIN ANALYZE VACUUM COPY LOCK GRANT REVOKE"
    " DECLARE FETCH CLOSE LISTEN NOTIFY USE DO VALUES".split()
)
_WITHIN = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"})
WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
_BEFORE_TARGET = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "USING", "CALL", "PRAGMA"})
_BETWEEN = frozenset({"ONLY", "IF", "NOT", "EXISTS", "LATERAL", "OR", "IGNORE", "LOW_PRIORITY"})
_AFTER_TARGETS = frozenset({"WHERE", "GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "FOR", "UNION", "SET", "RETURNING"})
_NO_TARGET = frozenset({"SELECT", "VALUES", "SET", "UNNEST"})
_BEFORE_ROWS = frozenset({"FROM", "JOIN", "LATERAL", "USING", ","})  # f(x) there is a function
_BEFORE_SELECT = frozenset({"(", ")", "ALL", "UNION", "EXCEPT", "INTERSECT", ";"})
_NOT_A_FROM = frozenset({"DISTINCT", "EXTRACT", "TRIM", "SUBSTRING"})


@lru_cache(maxsize=2_048)
def summarize(sql: str, system: str = "other_sql") -> str:
    """
    Operations and their targets in the order of the text: ``INSERT a SELECT b c``.

    Follows the OpenTelemetry semantic conventions for ``db.query.summary``: no
    case is changed, names keep their quotes, at most 255 characters, cut
    between words. Names of common table expressions are not targets. A schema
    of `schema_translate_map` is left out: the text does not tell the one used.
    """
    summary = ""
    for part in _Words(_TRANSLATED.sub("", redact(sql, system))).parts():
        if len(summary) + len(part) >= _SUMMARY_LENGTH:
            break
        summary = f"{summary} {part}" if summary else part
    return summary or "SQL"


class _Words:
    """
    One walk over the words of a statement, with what must be remembered on the way.

    Attributes:
        found: Operations and targets.
        common: Names of common table expressions.
        listing: By depth of parentheses, whether inside a list of targets, where a comma is followed by the next.
        naming: By depth of parentheses, whether in a WITH clause, where a comma is followed by the next name.
        calls: By depth of parentheses, whether inside ``extract(.. FROM ..)`` or its like.
        expects_target: Whether the next name is one.
    """

    def __init__(self, sql: str) -> None:
        self._tokens = [match[0] for match in _WORD.finditer(sql)]
        self._upper = [token.upper() for token in self._tokens]
        self.found: list[str] = []
        self.common: set[str] = set()
        self.listing: dict[int, bool] = {}
        self.naming: dict[int, bool] = {}
        self.calls: dict[int, bool] = {}
        self.depth = 0
        self.expects_target = False

    def parts(self) -> list[str]:
        for index, token in enumerate(self._tokens):
            if token == "(":
                self._open(index)
            elif token == ")":
                self.listing.pop(self.depth, None)
                self.naming.pop(self.depth, None)
                self.depth, self.expects_target = self.depth - 1, False
            elif token == ",":
                self.expects_target = self.listing.get(self.depth, False)
            elif token == ";":
                self.listing.clear()
            elif self.expects_target and self._upper[index] not in _BETWEEN:
                self._take_target(index)
            else:
                self._take_keyword(index)
        return self.found

    def _open(self, index: int) -> None:
        self.depth += 1
        self.calls[self.depth] = self._previous(index) in _NOT_A_FROM
        if self.expects_target:
            # FROM (a JOIN b) has its targets inside, FROM (SELECT ...) its own FROM
            self.listing[self.depth] = True
            self.expects_target = self._next(index) not in _WITHIN

    def _take_target(self, index: int) -> None:
        self.expects_target = False
        is_function = self._next(index) == "(" and self._previous(index) in _BEFORE_ROWS
        if self._upper[index] in _NO_TARGET:
            self.listing[self.depth] = False
        elif self._tokens[index] not in self.common and not is_function:
            self.found.append(self._tokens[index])

    def _take_keyword(self, index: int) -> None:
        upper, previous, depth = self._upper[index], self._previous(index), self.depth
        if self._is_operation(upper, previous):
            self.found.append(self._tokens[index])
            self.listing[depth] = self.naming[depth] = False
            self.expects_target = upper in _BEFORE_TARGET
        elif (upper, self._next(index)) == ("USING", "("):
            pass  # JOIN b USING (id): columns; a SELECT in there is found as such
        elif upper in _BEFORE_TARGET and not (self.calls.get(depth) or previous == "DISTINCT"):
            self.expects_target = bool(self.found) and upper != "UPDATE"
            if upper != "JOIN":  # which a list goes on after
                self.listing[depth] = upper == "FROM"
        elif upper in _AFTER_TARGETS:
            if self._next(index) != "SYSTEM_TIME":  # of a table whose history is asked for: the list goes on
                self.listing[depth] = False
        elif self._next(index) in ("AS", "(") and (
            previous in ("WITH", "RECURSIVE") or (previous == "," and self.naming.get(depth))
        ):  # not in `timestamp with time zone`
            self.common.add(self._tokens[index])
            self.naming[depth] = True

    def _previous(self, index: int) -> str:
        return self._upper[index - 1] if index else ""

    def _next(self, index: int) -> str:
        return self._upper[index + 1] if index + 1 < len(self._upper) else ""

    def _is_operation(self, upper: str, previous: str) -> bool:
        if upper not in _OPERATIONS:
            return False
        if not self.found:
            return True
        if upper == "SELECT" and self.found[0].upper() in ("INSERT", "CREATE", "EXPLAIN"):
            return True
        return upper in _WITHIN and previous in _BEFORE_SELECT
