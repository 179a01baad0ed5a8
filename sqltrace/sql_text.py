"""
What the text of a statement tells: its values taken out, its fingerprint, its summary.

Reads text with regular expressions instead of a parser: some 10 microseconds
for a statement, once per distinct text. Where a quote is left open the rest
counts as a value, so that nothing leaks from SQL that was not understood.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b

_SUMMARY_LENGTH = 255  # semantic conventions for db.query.summary

# Stands for the schema under `schema_translate_map`, until SQLAlchemy renders it.
_SCHEMA = r"__\[SCHEMA_[^\[\]']*+\]"
# Nothing that begins with a digit is a name: 0b1, 1_000 and 1.5f are numbers somewhere.
_NUMBER = r"\d\w*(?:\.\w*|\$\d\w*)*(?:(?<=[eE])[+-]\d\w*)?"


def _nested(depth: int) -> str:
    """A comment with comments in it, as PostgreSQL and SQL Server read it. Whatever is nested deeper has no end."""
    inside = _nested(depth - 1) if depth else r"/\*.*"
    return rf"/\*(?: [^*/]++ | \*(?!/) | /(?!\*) | {inside} )* (?:\*/|\Z)"


def _values(quoted: str, comment: str, name: str, number: str, *, opens: str, dollar: str = "") -> re.Pattern[str]:
    """
    Args:
        name: Quoted names. Where one of the marks that `opens` them is not read as a name, the rest is a value.
        number: What stands before a number.
        dollar: Placeholders with a dollar sign.
    """
    return re.compile(
        rf"""
        (?= ['"`\[$\d.\-/_%:?\#] | [nN]?[eEnNbBxXqQ]' )  # where none stands nothing below matches: 3 times faster
        (?: (?P<name> {name} | {_SCHEMA} )
        | (?P<value> {quoted} | [{opens}].* | {number}{_NUMBER} | (?<![\w)\]])\.{_NUMBER} )
        | (?P<comment> {comment} )
        | (?P<placeholder>
            __\[POSTCOMPILE_[^\[\]'"]*+\]? | %\(\w+\)s | %s\b | (?<![:\w'"`)\]]):\w+ | \? {dollar} ) )
        """,
        re.VERBOSE | re.DOTALL,
    )


# None of these fails behind its opening quote or goes back to it: the time for a text grows with its length. Groups
# are atomic, (?>(?:..)*), not possessive, (?:..)*+: Python before 3.11.5 does not match those (gh-106052).
_PREFIX = r"(?:(?<![\w$\#])[nNbBxX])?"
_STRING = rf"{_PREFIX}'[^']*+(?:''[^']*+)*(?:'|\Z)"
_BACKSLASHED = r"'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*(?:'|\\?\Z)"
_ESCAPED = rf"{_PREFIX}{_BACKSLASHED}"
_E_STRING = rf"(?<![\w$])[eE]{_BACKSLASHED}"
# Whether a backslash escapes a quote is up to the session in MySQL and PostgreSQL, and not known of databases that
# are not known here: where one stands before a quote, all that follows is taken for a value.
_DOUBTFUL = rf"""{_PREFIX}'[^'\\]*+(?:(?:''|\\[^'])[^'\\]*+)*(?:'|\\?\Z|\\'.*)"""
_Q_STRING = r"""
    (?<![\w$\#])[nN]?[qQ]'
    (?: \[.*?(?:\]'|\Z) | \{.*?(?:\}'|\Z) | \(.*?(?:\)'|\Z) | <.*?(?:>'|\Z) | (?P<mark>\S).*?(?:(?P=mark)'|\Z) )
"""
_TAG = r"\$(?P<tag>[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*+|)\$"
_DOLLARS = rf"(?<![\w$]){_TAG}.*?(?:\$(?P=tag)\$|\Z) | (?<=[\w$]){_TAG.replace('?P<tag>', '?:')}.*"

_DOUBLE_QUOTED = r'"[^"]*+(?>(?:""[^"]*+)*)"'
_COMMENT = r"--[^\n]* | /\*.*?(?:\*/|\Z)"
_NESTED_COMMENT = rf"--[^\n]* | {_nested(9)}"
_MYSQL_COMMENT = r"(?:--(?=\s|\Z)|\#)[^\n]* | /\*.*?(?:\*/|\Z)"

# x[1] is a subscript, ARRAY[1] and [1] are not.
_POSTGRESQL_NUMBER = r"""(?<![\w$.]) (?: (?<![\w"`)\]]\[) | (?<=\b[aA][rR][rR][aA][yY]\[) )"""
_MONEY = r"(?<![\w$.@])\$?"  # $12.5 of SQL Server, where @1 is a placeholder
_DOLLAR = r"| \$\d+"


def _postgresql(string: str) -> re.Pattern[str]:
    strings = f"{_E_STRING} | {_DOLLARS} | {string}"
    return _values(strings, _NESTED_COMMENT, _DOUBLE_QUOTED, _POSTGRESQL_NUMBER, opens='"', dollar=_DOLLAR)


def _mysql(string: str) -> re.Pattern[str]:
    double_quoted = string.replace("'", '"')
    return _values(f"{string} | {double_quoted}", _MYSQL_COMMENT, r"`[^`]*+`", _MONEY, opens="`")


_OTHER_NUMBER = r"(?<![\w$.])\$?"
_EXACT = {
    "microsoft.sql_server": _values(
        _STRING, _NESTED_COMMENT, rf"{_DOUBLE_QUOTED} | \[[^\]]*+(?>(?:\]\][^\]]*+)*)\]", _MONEY, opens=r'"\['
    ),
    "sqlite": _values(
        _STRING, _COMMENT, rf"{_DOUBLE_QUOTED} | `[^`]*+` | \[[^\]]*+\]", r"(?<![\w$.@])", opens=r'"`\[', dollar=_DOLLAR
    ),
    "oracle.db": _values(f"{_Q_STRING} | {_STRING}", _COMMENT, _DOUBLE_QUOTED, _OTHER_NUMBER, opens='"'),
}
# Of databases not known here: where one reads a string, a name or a comment and another reads something that ends
# elsewhere, all that follows is taken for a value.
_LINE = r"""(?>(?: [^\n'"`\#/-] | /(?!/) | -(?!-) | '[^\n'\\]*+' | "[^\n"\\]*+" | `[^\n`]*+` )*)"""
_OTHER = rf"""
    (?: \#|//|--(?!\s) ) {_LINE} ['"`].*
  | /\* (?>(?: [^*/]++ | \*(?!/) | /(?!\*) )*) /\*.*
  | '{{3}}[^'\\]*+'{{3}}(?!') | '{{3}}.* | "{{3}}[^"\\]*+"{{3}}(?!")
  | (?<![\w$\#])[nN]?[qQ]'.* | {_E_STRING} | {_DOLLARS} | {_DOUBTFUL}
"""
_OTHER_NAME = r"""(?!"{3})"[^"\\]*+(?>(?:(?:""|\\[^"])[^"\\]*+)*)" | `[^`'"]*+`"""

# For telling statements apart, as most sessions read them.
_SHAPES = _EXACT | {
    "postgresql": _postgresql(_STRING),
    "mysql": _mysql(_ESCAPED),
    "": _values(
        f"{_E_STRING} | {_Q_STRING} | {_DOLLARS} | {_STRING}",
        _NESTED_COMMENT,
        f"{_DOUBLE_QUOTED} | `[^`]*+`",
        _OTHER_NUMBER,
        opens='"`',
    ),
}
# For what is shown, with doubt.
_PATTERNS = _EXACT | {
    "postgresql": _postgresql(_DOUBTFUL),
    "mysql": _mysql(_DOUBTFUL),
    "": _values(_OTHER, _COMMENT, _OTHER_NAME, _OTHER_NUMBER, opens='"`'),
}
for _patterns in (_SHAPES, _PATTERNS):
    _patterns["cockroachdb"], _patterns["mariadb"] = _patterns["postgresql"], _patterns["mysql"]

# Where what is in double quotes is a name, or in MySQL a string, without a doubt.
_NO_DOUBT = frozenset({"postgresql", "cockroachdb", "oracle.db", "mysql", "mariadb"})
# SQLite takes a name in double quotes for a string where no column has it, and to others it is one. It is a name for
# sure in these places only. The first line passes over what may be a comment, and a FROM that no table follows.
_TABLE = r'(?!VALUES\b|SELECT\b)(?>(?:[^\s()"\[]|"[^"]*+"|\[[^\[\]]*+\])+)'
_PLACES = re.compile(
    rf"""
    (?:--|\#|//)[^\n]* | \bDISTINCT\s++FROM\b | \b(?:EXTRACT|TRIM|SUBSTRING)\s*+\([^()]*?\bFROM\b
  | (?P<list> \b
        (?: (?:INTO|REFERENCES)\s++{_TABLE} | INDEX\s++(?:IF\s++NOT\s++EXISTS\s++)?{_TABLE}\s++ON\s++{_TABLE}
          | (?:PRIMARY|FOREIGN)\s++KEY | UNIQUE | ON\s++CONFLICT )
        \s*+ \( (?: \s*+ (?:{_DOUBLE_QUOTED}|[^\s(),"']++) \s*+ (?:,|(?=\))) )* )
  | (?P<before> \. | \b(?:FROM|JOIN|INTO|UPDATE|AS|TABLE|EXISTS|INDEX|VIEW|COLUMN|RETURNING|SET|REFERENCES|CONSTRAINT
        |(?:ORDER|GROUP|PARTITION)\s++BY|RENAME\s++TO) ) \s*+ (?=")
  | (?P<defined> [(,] ) \s*+ (?={_DOUBLE_QUOTED}\s++[^\W\d])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DEFINITION = re.compile(r"(?:\s*(?:CREATE|ALTER)\b(?:(?!\b(?:AS|SELECT|BEGIN)\b).)*)?", re.IGNORECASE | re.DOTALL)
_AFTER_NAME = re.compile(r"\s*+(?:\.(?!\d)|=\s*+[?:])")
_QUOTE = re.compile(_DOUBLE_QUOTED)

_SPACE = re.compile(r"\s+")
_CAST = r"(?:\s*::\s*[\w\"]+(?:\s*\[\])?)?"
_LIST = re.compile(rf"\(\s*\?{_CAST}(?:\s*,\s*\?{_CAST})*\s*\)")
_ROWS = re.compile(r"(\(\?\))(?:\s*,\s*\(\?\))+")


@lru_cache(maxsize=2_048)
def redact(sql: str, system: str = "other_sql") -> str:
    """
    The text with every literal replaced by ``?`` and comments left out.

    Placeholders and quoted names stay. `system` is a ``db.system.name``, which
    tells what is a literal. Where that is in doubt, as double quotes are for
    SQLite and all quotes for a system not known, it is. Already truncated text
    is safe.
    """
    names = _places_of_names(sql) if '"' in sql and system not in _NO_DOUBT else None

    def replace(match: re.Match[str]) -> str:
        kind, text = match.lastgroup, match[0]
        if kind == "comment":
            return " "
        if kind == "value" or (names is not None and text[0] == '"' and not _is_name(match, names)):
            return "?"
        return text

    return _PATTERNS.get(system, _PATTERNS[""]).sub(replace, sql).strip()


def _is_name(match: re.Match[str], names: set[int]) -> bool:
    return match.start() in names or _AFTER_NAME.match(match.string, match.end()) is not None


def _places_of_names(sql: str) -> set[int]:
    """Where the double quotes open that hold a name, found once for a text: to look back from each is quadratic."""
    places: set[int] = set()
    defined = _DEFINITION.match(sql)
    for match in _PLACES.finditer(sql):
        if match["list"]:
            places.update(quote.start() for quote in _QUOTE.finditer(sql, *match.span()))
        elif match["before"] or (match["defined"] and defined and match.end() < defined.end()):
            places.add(match.end())
    return places


@lru_cache(maxsize=2_048)
def fingerprint(sql: str, system: str = "other_sql") -> str:
    """16 hex digits, equal for texts that differ in values, placeholders, list lengths or space only."""

    def replace(match: re.Match[str]) -> str:
        if match.lastgroup == "comment":
            return " "
        return match[0] if match.lastgroup == "name" else "?"

    shape = _SPACE.sub(" ", _SHAPES.get(system, _SHAPES[""]).sub(replace, sql)).strip()
    shape = _ROWS.sub(r"\1", _LIST.sub("(?)", shape))
    return blake2b(shape.encode("utf-8", "replace"), digest_size=8).hexdigest()


_NAME = r'(?:"[^"]*+(?:""[^"]*+)*(?:"|\Z)|`[^`]*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z)|[^\W\d]\w*)'
_TRANSLATED = re.compile(rf"{_SCHEMA}\.")
_WORD = re.compile(rf"(?P<name>{_NAME}(?:\.{_NAME})*)|(?P<sign>[(),;=])")
_OPERATIONS = frozenset(
    "SELECT INSERT UPDATE DELETE MERGE REPLACE CALL CREATE ALTER DROP TRUNCATE BEGIN START COMMIT"
    " ROLLBACK SAVEPOINT RELEASE SET SHOW PRAGMA EXPLAIN ANALYZE VACUUM COPY LOCK GRANT REVOKE"
    " DECLARE FETCH CLOSE LISTEN NOTIFY USE DO VALUES".split()
)
_WITHIN = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE"})
_BEFORE_TARGET = frozenset({"FROM", "JOIN", "INTO", "UPDATE", "TABLE", "USING", "CALL", "PRAGMA"})
_BETWEEN = frozenset({"ONLY", "IF", "NOT", "EXISTS", "LATERAL", "OR", "IGNORE", "LOW_PRIORITY"})
_AFTER_TARGETS = frozenset({"WHERE", "GROUP", "ORDER", "ON", "LIMIT", "SET", "RETURNING", "HAVING", "UNION"})
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
        calls: By depth of parentheses, whether inside ``extract(.. FROM ..)`` or its like.
        expects_target: Whether the next name is one.
    """

    def __init__(self, sql: str) -> None:
        self._tokens = [match[0] for match in _WORD.finditer(sql)]
        self._upper = [token.upper() for token in self._tokens]
        self.found: list[str] = []
        self.common: set[str] = set()
        self.listing: dict[int, bool] = {}
        self.calls: dict[int, bool] = {}
        self.depth = 0
        self.expects_target = False

    def parts(self) -> list[str]:
        for index, token in enumerate(self._tokens):
            if token == "(":
                self._open(index)
            elif token == ")":
                self.listing.pop(self.depth, None)
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
            self.listing[depth] = False
            self.expects_target = upper in _BEFORE_TARGET
        elif upper in _BEFORE_TARGET and not (self.calls.get(depth) or previous == "DISTINCT"):
            self.expects_target = bool(self.found) and upper != "UPDATE"
            self.listing[depth] = upper == "FROM"
        elif upper in _AFTER_TARGETS:
            self.listing[depth] = upper == "ON" and self.listing.get(depth, False)
        elif previous in ("WITH", "RECURSIVE") or (self._next(index), self._next(index + 1)) == ("AS", "("):
            self.common.add(self._tokens[index])

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
