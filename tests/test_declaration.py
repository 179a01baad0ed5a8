import ast
import sys
from types import ModuleType

import pytest

from sqltrace import declaration
from sqltrace.declaration import Declaration

SOURCE = '''\
from typing import Any


class Base:
    name: str
    books = 1


class Author(Base):
    """Has books = 2 in its text."""

    books: Any = 3

    def chapters(self):
        books = 4

    class Meta:
        books = 5


if True:

    class Conditional:
        books = 6


def make():
    class Local(Base):
        def declared(cls): ...

    return Local
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    file = tmp_path / "models_of_the_test.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, file.stem, module)
    yield module
    declaration._class_bodies.cache_clear()


def find(module, key, *qualnames):
    return Declaration(key, tuple((module.__name__, qualname) for qualname in qualnames)).find()


@pytest.mark.parametrize(
    ("key", "qualnames", "line"),
    [
        ("books", ["Author", "Base"], 12),
        ("books", ["Base"], 6),
        ("name", ["Author", "Base"], 5),
        ("chapters", ["Author"], 14),
        ("books", ["Author.Meta"], 18),
        ("books", ["Conditional"], 24),
        ("declared", ["make.<locals>.Local", "Base"], 29),
        ("mapped_elsewhere", ["Author", "Base"], 9),
    ],
)
def test_line_of_a_declaration(module, key, qualnames, line):
    assert find(module, key, *qualnames) == f"models_of_the_test.py:{line}"


def test_what_has_no_source_is_not_found(module, tmp_path):
    module.__file__ = str(tmp_path / "gone.py")

    assert find(module, "books", "Author") is None
    assert Declaration("books", (("no_such_module", "Author"),)).find() is None
    assert Declaration("real", (("builtins", "complex"),)).find() is None
    assert Declaration("books", ()).find() is None


def test_class_that_the_source_does_not_have_is_not_found(module):
    assert find(module, "books", "Unknown") is None
    assert find(module, "books", "Unknown", "Base") == "models_of_the_test.py:6"


def test_source_that_does_not_parse_is_not_found(module):
    with open(module.__file__, "w", encoding="utf-8") as file:
        file.write("class :")

    assert find(module, "books", "Author") is None


def test_source_is_read_once(module, monkeypatch):
    assert find(module, "books", "Author") is not None
    monkeypatch.setattr(ast, "parse", None)

    assert find(module, "name", "Base") is not None
