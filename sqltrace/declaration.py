"""Where a class declares a relationship: found in the source, once somebody wants to know."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sqltrace.code_files import shorten


@dataclass(frozen=True, slots=True)
class Declaration:
    """
    What is known of a declaration without reading the source.

    Attributes:
        key: Name of the attribute.
        classes: Module and qualified name of the classes that may declare it, mixins and bases too, nearest first.
    """

    key: str
    classes: tuple[tuple[str, str], ...]

    def find(self) -> str | None:
        """
        ``app/models.py:23``; the line of the class where the attribute is not in its body, `None` without a source.

        Parses the source file the first time, which takes some milliseconds: not for the hot path.
        """
        best = None
        for module, qualname in self.classes:
            file = getattr(sys.modules.get(module), "__file__", None)
            lines = _class_bodies(file).get(qualname) if file is not None else None
            if file is None or lines is None:
                continue
            if self.key in lines:
                return f"{shorten(file)}:{lines[self.key]}"
            best = best or f"{shorten(file)}:{lines['class']}"
        return best


@lru_cache(maxsize=256)
def _class_bodies(file: str) -> dict[str, dict[str, int]]:
    """Lines of the names that are bound in the body of each class, by its qualified name; its own line as ``class``."""
    try:
        with open(file, encoding="utf-8") as source:
            module = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    return dict(_classes(module.body, ""))


def _classes(body: Iterable[ast.AST], scope: str) -> Iterator[tuple[str, dict[str, int]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield scope + node.name, {"class": node.lineno, **dict(_bound(node.body))}
            yield from _classes(node.body, f"{scope}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _classes(node.body, f"{scope}{node.name}.<locals>.")
        else:
            yield from _classes(ast.iter_child_nodes(node), scope)


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        yield from ((target.id, node.lineno) for target in targets if isinstance(target, ast.Name))
