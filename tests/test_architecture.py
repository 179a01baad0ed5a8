import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sqltrace"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "__init__": 8,
    "middleware": 7,
    "options": 6,
    "sinks": 5,
    "capture": 4,
    "request": 4,
    "findings": 3.5,
    "recording": 3,
    "tally": 2.8,
    "inner_tasks": 2.6,
    "event_loop": 2.5,
    "child_tasks": 2.2,
    "counting": 2.5,
    "time_account": 2.5,
    "collector": 2,
    "statement": 1,
    "loop_log": 1,
    "watchdog": 1,
    "failed_load": 0.7,
    "origin": 0.5,
    "widening": 0.5,
    "declaration": 0.2,
    "database": 0,
    "callsite": 0,
    "checks": 0,
    "samples": 0.5,
    "finding": 0,
    "connection": 0.5,
    "idle": 0.2,
    "faults": 0,
    "intervals": 0,
    "route": 0,
    "sql_text": 0.5,
    "literals": 0,
    "label": 0,
    "pairing": 0.2,
}
MODULES = [str(file.relative_to(PACKAGE)) for file in FILES]


def part_of(module):
    """The part of the package on whose floor a dotted module stands."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=MODULES)
def test_file_imports_only_its_own_part_and_lower_floors(file):
    part = file.relative_to(PACKAGE).with_suffix("").parts[0]

    higher = [
        module
        for module in imported(file)
        if module.startswith("sqltrace") and part_of(module) != part and FLOORS[part_of(module)] >= FLOORS[part]
    ]

    assert higher == []


@pytest.mark.parametrize(
    ("library", "home"),
    [("sqlalchemy", "capture"), ("structlog", "sinks"), ("opentelemetry", "opentelemetry")],
)
def test_library_is_imported_in_its_own_part_only(library, home):
    elsewhere = [
        file.name
        for file in FILES
        if home not in file.parts and any(module.split(".")[0] == library for module in imported(file))
    ]

    assert elsewhere == []


@pytest.mark.parametrize("library", ["starlette", "fastapi", "pydantic"])
def test_web_frameworks_are_never_imported(library):
    assert [file.name for file in FILES if any(module.split(".")[0] == library for module in imported(file))] == []


def test_private_attributes_of_sqlalchemy_are_read_in_one_room():
    private = {
        (file.name, node.attr)
        for file in (PACKAGE / "capture").glob("*.py")
        if not file.name.endswith("internals.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }

    ours = {
        "_sqltrace",
        "_sqltrace_purpose",
        "_sqltrace_started",
        "_recording",
        "_entered",
        "_replaced",
        "_made",
        "_make",
        "_replacements",
        "_lock",
        "_wanted",
    }
    assert {attribute for _, attribute in private} <= ours


def test_file_stays_readable_in_one_sitting():
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}

    assert {name: length for name, length in lengths.items() if length > 330} == {}


def test_import_loads_nothing_that_is_not_needed():
    unwanted = "pytest starlette fastapi opentelemetry jinja2 sqlalchemy.orm httpx2".split()
    code = f"import sys, sqltrace; print([name for name in {unwanted} if name in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


def test_public_names_exist_and_have_docstrings():
    import sqltrace

    docstrings = {name: (getattr(sqltrace, name).__doc__ or "").strip() for name in sqltrace.__all__}
    undocumented = [
        name for name, text in docstrings.items() if not text or text.startswith(f"{name}(")
    ]  # a dataclass's

    assert undocumented == []
