"""How each database writes strings, names, numbers, comments and placeholders."""

from __future__ import annotations

import re

# Stands for the schema under `schema_translate_map`, until SQLAlchemy renders it.
IN_SCHEMA = "__[SCHEMA_"
SCHEMA = re.escape(IN_SCHEMA) + r"[^\[\]']*+\]"
# Nothing that begins with a digit is a name: 0b1, 1_000 and 1.5f are numbers somewhere.
_NUMBER = r"\d\w*(?:\.\w*|\$\d\w*)*(?:(?<=[eE])[+-]\d\w*)?"


def _nested(depth: int) -> str:
    """A comment with comments in it, as PostgreSQL and SQL Server read it. Whatever is nested deeper has no end."""
    inside = _nested(depth - 1) if depth else r"/\*.*"
    return rf"/\*(?: [^*/]++ | \*(?!/) | /(?!\*) | {inside} )* (?:\*/|\Z)"


def _values(quoted: str, comment: str, name: str, number: str, *, opens: str, more: str = "") -> re.Pattern[str]:
    """
    Args:
        name: Quoted names. Where one of the marks that `opens` them is not read as a name, the rest is a value.
        number: What stands before a number.
        more: What belongs to a question mark, and other placeholders.
    """
    return re.compile(
        rf"""
        (?= ['"`\[$\d.\-/_%:?\#] | [nN]?[eEnNbBxXqQ]' )  # where none stands nothing below matches: 3 times faster
        (?: (?P<name> {name} | {SCHEMA} )
        | (?P<value> {quoted} | [{opens}].* )
        | (?P<number> {number}{_NUMBER} | (?<![\w)\]])\.{_NUMBER} )
        | (?P<comment> {comment} )
        | (?P<placeholder>
            __\[POSTCOMPILE_[^\[\]'"]*+\]? | %\(\w+\)s | %s\b | (?<![:\w'"`)\]]):\w+ | \? {more} ) )
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
_POSTGRESQL_COMMENT = rf"--[^\n\r]* | {_nested(9)}"
_MYSQL_COMMENT = r"(?:--(?=\s|\Z)|\#)[^\n]* | /\*.*?(?:\*/|\Z)"
# What stands in /*! */ is run, and does not end within a string: where it has one, all of it and after it is a value.
_RUN = r"""/\*M?! (?>(?: [^*'"`]++ | \*(?!/) )*) ['"`].*"""

# x[1] is a subscript, ARRAY[1] and [1] are not.
_POSTGRESQL_NUMBER = r"""(?<![\w$.]) (?: (?<![\w"`)\]]\[) | (?<=\b[aA][rR][rR][aA][yY]\[) )"""
_MONEY = r"(?<![\w$.@])\$?"  # $12.5 of SQL Server, where @1 is a placeholder
_DOLLAR = r"| \$\d+"


def _postgresql(string: str) -> re.Pattern[str]:
    strings = f"{_E_STRING} | {_DOLLARS} | {string}"
    return _values(strings, _POSTGRESQL_COMMENT, _DOUBLE_QUOTED, _POSTGRESQL_NUMBER, opens='"', more=_DOLLAR)


def _mysql(string: str) -> re.Pattern[str]:
    double_quoted = string.replace("'", '"')
    return _values(f"{string} | {double_quoted} | {_RUN}", _MYSQL_COMMENT, r"`[^`]*+`", _MONEY, opens="`")


_OTHER_NUMBER = r"(?<![\w$.])\$?"
_EXACT = {
    "microsoft.sql_server": _values(
        _STRING, _NESTED_COMMENT, rf"{_DOUBLE_QUOTED} | \[[^\]]*+(?>(?:\]\][^\]]*+)*)\]", _MONEY, opens=r'"\['
    ),
    "sqlite": _values(
        _STRING,
        _COMMENT,
        rf"{_DOUBLE_QUOTED} | `[^`]*+` | \[[^\]]*+\]",
        r"(?<![\w$.@])",
        opens=r'"`\[',
        more=rf"\d*+ {_DOLLAR}",
    ),
    "oracle.db": _values(f"{_Q_STRING} | {_STRING}", _COMMENT, _DOUBLE_QUOTED, _OTHER_NUMBER, opens='"'),
}
# Of databases not known here: where one reads a string, a name or a comment and another reads something that ends
# elsewhere, all that follows is taken for a value.
_LINE = r"""(?>(?: [^\n'"`\#/-] | /(?!/) | -(?!-) | '[^\n'\\]*+' | "[^\n"\\]*+" | `[^\n`]*+` )*)"""
_OTHER = rf"""
    (?: \#|//|--(?!\s) ) {_LINE} ['"`].* | --[^\n\r]*+\r [^\n'"`$]*+ ['"`$].* | {_RUN}
  | /\* (?>(?: [^*/]++ | \*(?!/) | /(?!\*) )*) /\*.*
  | '{{3}}[^'\\]*+'{{3}}(?!') | '{{3}}.* | "{{3}}[^"\\]*+"{{3}}(?!")
  | (?<![\w$\#])[nN]?[qQ]'.* | {_E_STRING} | {_DOLLARS} | {_DOUBTFUL}
"""
_OTHER_NAME = r"""(?!"{3})"[^"\\]*+(?>(?:(?:""|\\[^"])[^"\\]*+)*)" | `[^`'"]*+`"""

# For telling statements apart, as most sessions read them.
SHAPES = _EXACT | {
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
PATTERNS = _EXACT | {
    "postgresql": _postgresql(_DOUBTFUL),
    "mysql": _mysql(_DOUBTFUL),
    "": _values(_OTHER, _COMMENT, _OTHER_NAME, _OTHER_NUMBER, opens='"`'),
}
for _patterns in (SHAPES, PATTERNS):
    _patterns["cockroachdb"], _patterns["mariadb"] = _patterns["postgresql"], _patterns["mysql"]

# Where what is in double quotes is a name, or in MySQL a string, without a doubt.
NO_DOUBT = frozenset({"postgresql", "cockroachdb", "oracle.db", "mysql", "mariadb"})
MARKS_OF_NAMES = {"postgresql": '"', "cockroachdb": '"', "oracle.db": '"', "mysql": "`", "mariadb": "`"}
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


def is_name(match: re.Match[str], names: set[int]) -> bool:
    return match.start() in names or _AFTER_NAME.match(match.string, match.end()) is not None


def places_of_names(sql: str) -> set[int]:
    """Where the double quotes open that hold a name, found once for a text: to look back from each is quadratic."""
    places: set[int] = set()
    defined = _DEFINITION.match(sql)
    for match in _PLACES.finditer(sql):
        if match["list"]:
            places.update(quote.start() for quote in _QUOTE.finditer(sql, *match.span()))
        elif match["before"] or (match["defined"] and defined and match.end() < defined.end()):
            places.add(match.end())
    return places
