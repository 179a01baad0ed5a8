"""
Whether quotes stand where a statement can have them.

``'O'Brien'`` does not tell which of its quotes opens: what was a value is read as words, and words as a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from sqltrace.literals import MARKS_OF_NAMES, PATTERNS

_CLAUSES = "FROM WHERE GROUP ORDER HAVING LIMIT OFFSET FETCH FOR INTO WINDOW UNION INTERSECT EXCEPT MINUS QUALIFY LOCK"
_TOUCHING_AFTER = frozenset(
    f"{_CLAUSES} AS AND OR XOR NOT IS ISNULL NOTNULL IN LIKE ILIKE RLIKE REGEXP GLOB MATCH SIMILAR BETWEEN OVERLAPS"
    " COLLATE ESCAPE UESCAPE AT DIV MOD SOUNDS MEMBER CASE WHEN THEN ELSE END ASC DESC NULLS USING ON SET VALUES OVER"
    " RETURNING WITH TO DAY HOUR MINUTE SECOND MONTH YEAR JOIN INNER LEFT RIGHT FULL CROSS NATURAL".split()
)
_TOUCHING_BEFORE = frozenset(
    "SELECT DISTINCT ALL ANY SOME WHERE HAVING BY LIMIT OFFSET FROM INTO TO AS AND OR XOR NOT IS IN LIKE ILIKE RLIKE"
    " REGEXP GLOB MATCH BETWEEN COLLATE ESCAPE UESCAPE DIV MOD CASE WHEN THEN ELSE VALUES VALUE SET DEFAULT BOTH"
    " LEADING TRAILING ON USING RETURNING COMMENT PASSWORD UNTIL SEPARATOR ZONE BINARY"
    # types of PostgreSQL, and what stands for one elsewhere: DATE'2020-01-01', {ts'2020-01-01'}, r'\d'
    " DATE TIME TIMESTAMP TIMESTAMPTZ TIMETZ DATETIME INTERVAL TEXT CHAR BPCHAR VARCHAR NAME BYTEA BIT VARBIT BOOL"
    " BOOLEAN INT INT2 INT4 INT8 INTEGER BIGINT SMALLINT DECIMAL NUMERIC BIGNUMERIC REAL FLOAT FLOAT4 FLOAT8 PRECISION"
    " MONEY JSON JSONB JSONPATH UUID XML INET CIDR MACADDR MACADDR8 POINT LINE LSEG BOX PATH POLYGON CIRCLE GEOMETRY"
    " GEOGRAPHY HSTORE CITEXT LTREE LQUERY TSVECTOR TSQUERY OID REGCLASS REGTYPE REGPROC INT4RANGE INT8RANGE NUMRANGE"
    " TSRANGE TSTZRANGE DATERANGE VECTOR D T TS R B RB BR".split()
)
_LONGEST = max(map(len, _TOUCHING_BEFORE))
_WORD = re.compile(r"\w+")
_LAST_WORD = re.compile(r"\w+\Z")
# SELECT 'a'b FROM t: in all databases b is an alias there. Nowhere else can one be.
_LIST = re.compile(r"\b(?:(?P<columns>SELECT|RETURNING)|WHERE|HAVING|VALUES|SET)\b", re.IGNORECASE)
_AFTER_ALIAS = re.compile(rf"\s*+(?:[,);]|\Z|(?:{_CLAUSES.replace(' ', '|')})\b)", re.IGNORECASE)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_QUOTE = re.compile(r"""['"]""")
_DOUBTFUL = ("'''", '"""', "#", "-", "/")  # what some databases read as the begin of a string or a comment


def is_broken(sql: str, quoted: Sequence[tuple[int, int]], system: str) -> bool:
    """
    Whether a quote is left open, or beside one of these strings stands what cannot stand there.

    Args:
        quoted: Where the strings begin and end that `PATTERNS` found, in order.
    """
    if _is_followed_wrongly(sql, quoted):
        return True
    if any(_is_led_wrongly(sql, end, start) for (_, end), (start, _) in pairwise(quoted)):
        return True
    start, end = quoted[-1]
    return end == len(sql) and _is_open(sql, start, system)


def _is_followed_wrongly(sql: str, quoted: Sequence[tuple[int, int]]) -> bool:
    aliased = set()
    for _, end in quoted:
        word = _WORD.match(sql, end)
        if word is None:
            if sql.startswith("(", end):
                return True
        elif word[0].upper() not in _TOUCHING_AFTER:
            if not _AFTER_ALIAS.match(sql, word.end()):
                return True
            aliased.add(end)
    return bool(aliased) and not _are_columns(sql, quoted, aliased)


def _are_columns(sql: str, quoted: Sequence[tuple[int, int]], aliased: set[int]) -> bool:
    columns, last = False, 0
    for start, end in quoted:
        for clause in _LIST.finditer(sql, last, start):
            columns = clause["columns"] is not None
        if end in aliased and not columns:
            return False
        last = end
    return True


def _is_led_wrongly(sql: str, end: int, start: int) -> bool:
    """
    Of a string that is not the first: nothing can have gone wrong before that.

    Args:
        end: Of the string before.
    """
    if sql[start] not in "'\"":
        return False
    before = sql[max(end, start - _LONGEST - 1) : start]
    if _WORD.match(sql, end):
        before = before.rstrip()  # few write so: the more must be right
    word = _LAST_WORD.search(before)
    if word is None:
        return sql[start] == "'" and before.endswith(".") and before != "."  # 'a'.'b' are names to SQLite
    # A word that begins with _ is a character set of MySQL.
    return word[0].upper() not in _TOUCHING_BEFORE and word[0][0] != "_"


def _is_open(sql: str, start: int, system: str) -> bool:
    reached = PATTERNS.get(system, PATTERNS[""]).match(sql + " ", start)
    if reached is None or reached.end() <= len(sql):
        return False
    text = sql[start:]
    if text[0] in MARKS_OF_NAMES.get(system, "`["):
        return "'" in text  # else a name in which the text was cut
    if system not in PATTERNS and text.startswith(_DOUBTFUL):
        return False
    quote = _QUOTE.search(text)
    if quote is None or "\\" not in text:
        return True
    # Where a backslash may escape a quote or not, the text is whole if it is in one of the two readings.
    return all(reading.count(quote[0]) % 2 for reading in (text, _ESCAPED.sub("", text)))
