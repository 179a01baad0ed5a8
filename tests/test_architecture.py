import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sqltrace
from sqltrace import findings, sinks

PACKAGE = Path(__file__).parent.parent / "sqltrace"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the ground up. What shares a floor may import each other, but not across a wall: ``|``.
FLOORS = (
    # plain data and small pure helpers
    "callsite checks clock code_files connection database declaration failed_commit failed_load faults finding idle intervals label"
    " libraries literals locks missed origin pairing route samples sql_text statement suspended widening",
    # what travels with the context, and who holds the event loop
    "awaits collector child_tasks event_loop inner_tasks loop_log shares thread_waits watchdog",
    # what one unit of work did
    "recording counting tally time_account",
    # how statements get into a recording, and what is worth telling of it: neither knows of the other
    "capture | findings",
    # a finished request, and who is told of it
    "request sinks",
    # a request from its first to its last byte
    "middleware options",
    # the public names
    "__init__",
)
ROOMS = [(floor, room.split()) for floor, rooms in enumerate(FLOORS) for room in rooms.split(" | ")]
MODULES = {
    str(file.relative_to(PACKAGE.parent))[:-3].replace("/", ".").removesuffix(".__init__"): file for file in FILES
}


def part_of(module):
    """The file or folder of the package that a dotted module is, or is in."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(file):
    """Dotted names of what a file imports, inside of functions, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_file_imports_only_from_its_own_room_and_from_lower_floors(module):
    [(floor, room)] = [(floor, room) for floor, room in ROOMS if part_of(module) in room]
    allowed = {part for other, parts in ROOMS if other < floor for part in parts}.union(room)

    ours = [other for other in imported(MODULES[module]) if other.startswith("sqltrace")]

    assert [other for other in ours if part_of(other) not in allowed] == []


def test_no_import_leads_in_a_circle():
    graph = {module: set(imported(file)) & set(MODULES) for module, file in MODULES.items()}

    TopologicalSorter(graph).prepare()  # raises


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


@pytest.mark.parametrize("module", [sqltrace, findings, sinks])
def test_public_names_exist_and_say_what_they_are(module):
    docstrings = {name: (getattr(module, name).__doc__ or "").strip() for name in module.__all__ if name != "Rule"}
    undocumented = [
        name for name, text in docstrings.items() if not text or text.startswith((f"{name}(", "Args:", "Attributes:"))
    ]  # the former is a dataclass's

    assert undocumented == []
