"""What a SELECT was asked for and what eager joins added: once per compiled statement."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from sqltrace.callsite import shorten
from sqltrace.capture import internals
from sqltrace.faults import report_fault
from sqltrace.widening import EagerJoin, Widening

_ATTRIBUTE = "_sqltrace_widening"
_UNKNOWN = object()


def find_widening(compiled: Any) -> Widening | None:
    """
    How eager loading widened the SELECT; `None` where it did not.

    The answer is kept on the compiled statement and lives as long. Some 40
    microseconds the first time, 0.1 from then on.
    """
    known = compiled.__dict__.get(_ATTRIBUTE, _UNKNOWN)
    if known is _UNKNOWN:
        known = None
        try:
            known = _analyse(compiled)
        except Exception as fault:
            report_fault("analysing eager joins", fault)
        compiled.__dict__[_ATTRIBUTE] = known
    widening: Widening | None = known
    return widening


def _analyse(compiled: Any) -> Widening | None:
    state = internals.select_state(compiled)
    if state is None or not state.eager_joins:
        return None
    joins = tuple(_eager_join(state, path, selectable) for path, selectable in state.eager_joins)
    added = sum(join.tables for join in joins)
    return Widening(
        entities=tuple(mapper.class_.__name__ for mapper in state.mappers),
        asked_tables=state.tables - added,
        asked_columns=state.primary_columns,
        sent_tables=state.tables,
        sent_columns=state.all_columns,
        joins=joins,
        limited=state.wrapped,
    )


def _eager_join(state: internals.SelectState, path: Any, selectable: Any) -> EagerJoin:
    properties = tuple(step for step in path.path if hasattr(step, "key") and hasattr(step, "uselist"))
    last = properties[-1]
    columns = [column for column in state.secondary_columns if getattr(column, "table", None) is selectable]
    return EagerJoin(
        path=tuple(f"{prop.parent.class_.__name__}.{prop.key}" for prop in properties),
        entity=last.mapper.class_.__name__,
        uselist=bool(last.uselist),
        by_option=path.natural_path in state.option_paths,
        tables=len(last.mapper.tables) + (last.secondary is not None),
        columns=len(columns),
        declared=_declared(last.parent.class_, last.key),
    )


@lru_cache(maxsize=1_024)
def _declared(owner: type, key: str) -> str | None:
    """File and line of the class that declares an attribute; mixins and base classes declare too."""
    for cls in owner.__mro__:
        if key in cls.__dict__ or key in cls.__dict__.get("__annotations__", ()):
            owner = cls
    module = sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    return None if file is None else _find_line(file, owner.__qualname__, key)


def _find_line(file: str, qualname: str, key: str) -> str | None:
    import ast

    try:
        with open(file, encoding="utf-8") as source:
            nodes = ast.parse(source.read()).body
    except (OSError, SyntaxError, ValueError):
        return shorten(file)
    found: ast.AST | None = None
    for name in qualname.split("."):
        if name == "<locals>":
            continue
        found = next(
            (
                node
                for parent in [ast.Module(nodes, [])]
                for node in ast.walk(parent)
                if getattr(node, "name", None) == name
            ),
            None,
        )
        nodes = getattr(found, "body", [])
    for node in nodes:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == key for target in targets):
            return f"{shorten(file)}:{node.lineno}"
    return f"{shorten(file)}:{found.lineno}" if isinstance(found, ast.ClassDef) else shorten(file)
