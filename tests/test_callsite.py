import asyncio
import os
import sys
import sysconfig
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from jinja2 import Environment, FileSystemLoader
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import sqltrace
from sqltrace import callsite
from sqltrace.callsite import CallSite, find_call_site, shorten

HERE = __file__


def line_of(marker):
    with open(HERE, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if f"# {marker}" in line and "line_of" not in line)


def load(path, code):
    """The names of a module written to `path`, as an import would make them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    names = {"find": find_call_site}
    exec(compile(code, str(path), "exec"), names)
    return names


def test_line_and_function_of_the_application_are_found():
    class Repository:
        def all(self):
            return find_call_site()  # here it is

    site = Repository().all()

    assert site.file == HERE
    assert site.line == line_of("here it is")
    assert site.function.endswith("<locals>.Repository.all")


def test_call_site_reads_the_same_on_every_machine():
    site = CallSite(HERE, 7, "work")

    assert str(site) == "tests/test_callsite.py:7 in work"


def test_path_outside_every_import_root_stays_whole():
    assert shorten("/nowhere/app.py") == "/nowhere/app.py"


def test_installed_libraries_are_passed_over(tmp_path):
    library = load(
        tmp_path / "site-packages" / "somelibrary" / "core.py",
        "def call(function):\n    return function()\n",
    )

    site = library["call"](lambda: find_call_site())

    assert site.file == HERE


def test_installed_application_is_second_best(tmp_path, monkeypatch):
    application = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items():\n    return find()\n")
    monkeypatch.setitem(callsite._kinds, HERE, callsite._SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    site = application["list_items"]()

    assert site.function == "list_items"
    assert site.file.endswith(os.path.join("shop", "api.py"))


def test_virtual_environment_inside_the_project_is_no_application(tmp_path):
    library = load(
        tmp_path / "project" / ".venv" / "lib" / "site-packages" / "dao.py",
        "def call(function):\n    return function()\n",
    )

    assert library["call"](lambda: find_call_site()).file == HERE


def test_framework_is_never_the_answer(tmp_path, monkeypatch):
    framework = load(tmp_path / "site-packages" / "starlette" / "routing.py", "def handle():\n    return find()\n")
    monkeypatch.setitem(callsite._kinds, HERE, callsite._SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    assert framework["handle"]() is None


@pytest.mark.parametrize("file", ["scripts/uvicorn", "site-packages/click/core.py"])
def test_what_starts_a_server_is_never_the_answer(file, tmp_path, monkeypatch):
    monkeypatch.setattr(callsite, "_LIBRARIES", (*callsite._LIBRARIES, str(tmp_path / "scripts") + os.sep))
    assert sysconfig.get_path("scripts") + os.sep in callsite._LIBRARIES
    starter = load(tmp_path / file, "def start():\n    return find()\n")
    monkeypatch.setitem(callsite._kinds, HERE, callsite._SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    assert starter["start"]() is None


def test_thread_without_any_application_frame_has_no_call_site():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(find_call_site).result() is None


def test_memory_for_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(callsite, "_MAX_FILES", 3)

    for number in range(10):
        load(tmp_path / f"made_{number}.py", "def call():\n    return find()\n")["call"]()

    assert len(callsite._kinds) <= 3


def test_call_site_crosses_the_greenlet_of_asyncio():
    async def work():
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            with sqltrace.record() as recording:
                await connection.execute(text("SELECT 1"))  # awaited here
                await connection.run_sync(lambda sync: sync.execute(text("SELECT 2")))
        await engine.dispose()
        return recording.statements

    first, second = asyncio.run(work())

    assert (first.call_site.line, first.call_site.file) == (line_of("awaited here"), HERE)
    assert second.call_site.function.endswith("work.<locals>.<lambda>")


def test_without_greenlet_call_sites_are_still_found(monkeypatch):
    monkeypatch.delitem(sys.modules, "greenlet")

    assert find_call_site().file == HERE


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (5, 3), (100, 7)])
def test_call_site_is_taken_for_ever_fewer_of_a_group(count, expected):
    engine = create_engine("sqlite://")
    with sqltrace.record() as recording, engine.connect() as connection:
        for _ in range(count):
            connection.execute(text("SELECT 1"))
    engine.dispose()

    assert sum(statement.call_site is not None for statement in recording.statements) == expected


def test_line_of_a_template_is_that_of_its_own_text(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<ul>\n  {% for each in range(1) %}\n\n    <li>{{ find() }}</li>\n  {% endfor %}\n</ul>\n", encoding="utf-8"
    )

    text = (
        Environment(loader=FileSystemLoader(tmp_path), autoescape=True)
        .get_template("page.html")
        .render(find=find_call_site)
    )

    assert f"<li>{shorten(str(page))}:4 in root</li>" in text
