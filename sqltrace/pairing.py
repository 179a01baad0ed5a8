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
# SELECT 'a'b FROM t: in all databases b is an alias there.
_AFTER_ALIAS = re.compile(rf"\s*+(?:[,);]|\Z|(?:{_CLAUSES.replace(' ', '|')})\b)", re.IGNORECASE)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_QUOTE = re.compile(r"""['"]""")
_DOUBTFUL = ("'''", '"""', "#", "-", "/")  # what some databases read as the begin of a string or a comment


def is_broken(sql: str, quoted: Sequence[tuple[int, int]], system: str) -> bool:
    """
    Whether a quote is left open, or one of these strings touches a word that cannot stand there.

    Args:
        quoted: Where the strings begin and end that `PATTERNS` found, in order.
    """
    if any(_touches_next(sql, end) for _, end in quoted):
        return True
    if any(_touches_last(sql, end, start) for (_, end), (start, _) in pairwise(quoted)):
        return True
    start, end = quoted[-1]
    return end == len(sql) and _is_open(sql, start, system)


def _touches_next(sql: str, end: int) -> bool:
    word = _WORD.match(sql, end)
    return word is not None and word[0].upper() not in _TOUCHING_AFTER and not _AFTER_ALIAS.match(sql, word.end())


def _touches_last(sql: str, end: int, start: int) -> bool:
    """Of a string that is not the first: nothing can have gone wrong before that."""
    if sql[start] not in "'\"":
        return False
    word = _LAST_WORD.search(sql[max(end, start - _LONGEST - 1) : start])
    # A word that begins with _ is a character set of MySQL.
    return word is not None and word[0].upper() not in _TOUCHING_BEFORE and word[0][0] != "_"


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
    # Where a backslash may escape a quote or not, the text is whole if it is so for one of both.
    return all(reading.count(quote[0]) % 2 for reading in (text, _ESCAPED.sub("", text)))
