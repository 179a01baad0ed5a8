"""The one query in place of many that a loop asks, in words to paste."""

from __future__ import annotations

import re
from functools import lru_cache

from sqltrace.findings.costs import kept_of
from sqltrace.findings.locking import with_for_update
from sqltrace.findings.wording import listed
from sqltrace.recording import Recording
from sqltrace.sql_text import redact
from sqltrace.statement import Group
from sqltrace.widening import Lookup

LIMIT = re.compile(r"\sLIMIT\s|\sFETCH\s+(FIRST|NEXT)\s|\bSELECT\s+TOP\b", re.IGNORECASE)
EQUAL = re.compile(r"(?<![<>!:=])=(?![=>])")
_PLACEHOLDER = r"(?:\?|%s|%\(\w+\)s|(?<!:):\w+|\$\d+)(?:\s*::\s*\w+)?"
_NAME = r"(?:\w+|\"\w+\"|`\w+`)"
_COLUMN = rf"{_NAME}\.{_NAME}"
_EQUALS = re.compile(
    rf"\bWHERE\b.*?(?:(?<!\w)(?P<column>{_COLUMN}) = |\s{_PLACEHOLDER} = (?P<reversed>{_COLUMN})(?![\w.]))",
    re.IGNORECASE | re.DOTALL,
)
_EQUALS_ONE = rf"{_COLUMN} = {_PLACEHOLDER}"
_KEYS = re.compile(
    rf"(?:(?!\bWHERE\b| = {_PLACEHOLDER}).)*\bWHERE\s+(?P<keys>{_EQUALS_ONE}(?:\s+AND\s+{_EQUALS_ONE})+)"
    r"\s*(?:\)\s*(?:AS\s+\w+\s*)?|(?:(?:GROUP|ORDER|LIMIT|FETCH|FOR)\b(?:(?!\bHAVING\b).)*)?)",
    re.IGNORECASE | re.DOTALL,
)
_VALUE = re.compile(
    rf"(?:(?P<not><>|!=)|(?P<bound>[<>]=?))?\s*{_PLACEHOLDER}|\s(?P<end>LIMIT|OFFSET|FETCH)\s", re.IGNORECASE
)
_EXISTS = re.compile(r"\s*SELECT\s+EXISTS\b", re.IGNORECASE)
_NAMED = re.compile(rf"\w(?<!id)[\"`]? = {_PLACEHOLDER}", re.IGNORECASE)  # a column that has no other object's key
_FLUSH = "in before_flush, for all objects of one flush (session.new, session.dirty)"
OF_LIBRARY = "see the library's options: its listener asks; insert() and update() with a list of rows call none"
_LOOP, _DATALOADER = "before the loop", "by a DataLoader of the resolvers, or before the loop within one"
_AGGREGATE = re.compile(r"\b(?:(?:COUNT|SUM|AVG|MIN|MAX)\(|(?P<source>FROM)\b)", re.IGNORECASE)


def one_for_all(recording: Recording, group: Group) -> str:
    """What to ask once in place of a query of the application that is asked for each object."""
    lookup = group.widening.lookup if group.widening is not None else None
    busiest = group.samples.busiest(group.count)
    if busiest is not None and busiest[0].in_resolver:  # where there is no loop to be before
        return _at_once(recording, group, lookup, _DATALOADER)
    if busiest is not None and busiest[0].in_flush:
        return OF_LIBRARY if busiest[0].in_library else _at_once(recording, group, lookup, _FLUSH)
    text = _at_once(recording, group, lookup, _LOOP)
    of_name = _NAMED.search(group.sql) is not None and not (lookup is not None and lookup.is_key)
    if of_name and (_EXISTS.match(group.sql) or _found_until_the_last(recording, group)):
        text += "; or by what they begin with, if they are tried until one is free"
    return text


def _found_until_the_last(recording: Recording, group: Group) -> bool:
    """Whether each found one row, and the last of them none: as it is where a name is looked for that is still free."""
    *taken, last = [execution.rows for execution in kept_of(recording, group)] or [None]
    return len(taken) + 1 == group.count and last == 0 and set(taken) == {1}


def _at_once(recording: Recording, group: Group, lookup: Lookup | None, how: str) -> str:
    if group.widening is None or lookup is None or not lookup.equal:
        return _by_text(group.sql, group.system, how)
    [entity, *_], equal, lock = group.widening.entities, lookup.equal, with_for_update(group.sql)
    if lookup.alone and (len(equal) == 1 or lookup.is_key):
        which = _in(equal[0]) if len(equal) == 1 else f"tuple_({', '.join(equal)}).in_(keys)"
        loading = ".options(…)" if lookup.options else ""  # as they are: get() finds what is there without them
        select = f"select({entity}){loading}.where({which}){lock}"
        if not lookup.by_get:
            return f"{select}  # once, {how}{'' if lookup.is_key else _limited(group.sql)}"
        if how != _LOOP:
            return f"{select}  # once, {how}, in place of session.get()"
        if lock or is_one_in_each_transaction(recording, group):
            return f"{select}  # once for all, in one session, in place of session.get()"
        return _kept(select, group.is_async, bool(group.widening.collections))
    limited = "" if lookup.is_key else _limited(group.sql)
    if len(equal) == 1 and not lookup.values:
        also = "" if equal[0].startswith(f"{entity}.") else f", and {equal[0]} asked for, too"
        return f"the same query once, {how}, with {_in(equal[0])}{also}{limited}"
    differs = listed([*equal, "the other conditions"] if lookup.values else list(equal))
    return f"one query for all, {how}, with in_() for what differs of {differs}{limited}"


def is_one_in_each_transaction(recording: Recording, group: Group) -> bool:
    """Whether each may have had a transaction of its own, in which the connection goes back to the pool."""
    return recording.connections.checkouts >= group.count


def _limited(sql: str) -> str:
    return ", with row_number() for each of them in place of LIMIT" if LIMIT.search(sql) else ""


def _kept(select: str, is_async: bool, collections: bool) -> str:
    """What has `Session.get` find all of them in the session."""
    rows = f"(await session.scalars({select}))" if is_async else f"session.scalars({select})"
    unique = ".unique()" if collections else ""
    return f"kept = {rows}{unique}.all()  # once, before the loop, and kept: the session alone keeps no object"


def _in(attribute: str) -> str:
    """``Author.id.in_(ids)``."""
    return f"{attribute}.in_({attribute.partition('.')[2]}s)"


def _is_aggregate(sql: str) -> bool:
    """Whether what it asks for is counted, added up or the like."""
    first = _AGGREGATE.search(sql) if "(" in sql else None
    return first is not None and first["source"] is None


@lru_cache(maxsize=1_024)
def _by_text(sql: str, system: str, how: str) -> str:
    sql = redact(sql, system)  # what looks like a column may be a part of a value
    grouped, limited = _is_aggregate(sql), _limited(sql)
    match, keys = _EQUALS.search(sql), _KEYS.fullmatch(sql)
    if keys is not None and system != "microsoft.sql_server":  # which knows no rows of values
        columns = re.sub(rf" = {_PLACEHOLDER}(?:\s+AND\s+)?", ", ", keys["keys"], flags=re.IGNORECASE)[:-2]
        which = f"({columns})"
    elif match is None or len(EQUAL.findall(sql, match.start())) != 1 or not _is_only_value(sql, match.start()):
        which = "WHERE … IN (…) and GROUP BY" if grouped else "WHERE … IN (…)"
        return f"one statement for all, {how}: {which} for what differs{limited}"
    else:
        which = columns = match["column"] or match["reversed"]
    if _EXISTS.match(sql):
        return f"one statement for all, {how}: SELECT DISTINCT {columns} … WHERE {which} IN (…)"
    if grouped:
        groups = f"{columns}, …" if "GROUP BY" in sql.upper() else columns
        return f"one statement for all, {how}: SELECT {columns}, … WHERE {which} IN (…) GROUP BY {groups}"
    return f"one statement for all, {how}: WHERE {which} IN (…){limited}"


def _is_only_value(sql: str, start: int) -> bool:
    """Whether there is one value from there on that may differ: one bound (``> ?``) and ``!=`` hardly do."""
    values = bounds = 0
    for found in _VALUE.finditer(sql, start):
        if found["end"]:
            break
        bounds += found["bound"] is not None
        values += not (found["not"] or found["bound"])
    return values <= 1 and bounds <= 1
