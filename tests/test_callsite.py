import asyncio
import os
import sys
import sysconfig
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import uvloop
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader
from pydantic import BaseModel, ConfigDict
from sqlalchemy import create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

import sqltrace
from sqltrace import callsite, code_files
from sqltrace.callsite import CallSite, call_site_in, find_call_site, site_of_task
from sqltrace.code_files import shorten
from tests.asgi import call, websocket_scope
from tests.loops import RUNNERS, get, observed, respond
from tests.shelf import mapping, open_async_shelf, open_shelf

HERE = __file__


def trio_run(coroutine):
    async def main():
        return await coroutine

    return trio.run(main)


def line_of(marker):
    with open(HERE, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if f"# {marker}" in line and "line_of" not in line)


def load(path, code):
    """The names of a module written to `path`, as an import would make them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return compiled(str(path), code)


def compiled(name, code):
    """The names of code that says to come from a file `name`."""
    names = {"find": find_call_site}
    exec(compile(code, name, "exec"), names)
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


def test_line_of_the_application_is_found_behind_a_hundred_of_a_library(tmp_path):
    library = load(
        tmp_path / "site-packages" / "somelibrary" / "core.py",
        "def call(function, depth):\n    return call(function, depth - 1) if depth else function()\n",
    )

    site = library["call"](library["find"], 100)

    assert site.file == HERE


def test_installed_application_is_second_best(tmp_path, monkeypatch):
    application = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items():\n    return find()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    site = application["list_items"]()

    assert site.function == "list_items"
    assert site.file.endswith(os.path.join("shop", "api.py"))


def test_innermost_of_installed_applications_is_the_answer(tmp_path, monkeypatch):
    inner = load(tmp_path / "site-packages" / "shop" / "dao.py", "def load_items():\n    return find()\n")
    outer = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items(dao):\n    return dao()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(3))

    site = outer["list_items"](inner["load_items"])

    assert site.function == "load_items"
    assert [caller.function for caller in site.callers] == ["list_items"]


@pytest.mark.parametrize("inside", ["advanced_alchemy", "argon2", "fastapi_pagination", "httpx", "pandas"])
@pytest.mark.parametrize("outside", ["sentry_sdk", "slowapi"])
def test_installed_application_goes_before_libraries_that_are_known(inside, outside, tmp_path, monkeypatch):
    call = "def call(function, *arguments):\n    return function(*arguments)\n"
    repository = load(tmp_path / "site-packages" / inside / "core.py", call)["call"]
    decorator = load(tmp_path / "site-packages" / outside / "core.py", call)["call"]
    application = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items(load):\n    return load(find)\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)

    assert decorator(application["list_items"], repository).function == "list_items"


def test_library_that_is_known_is_the_answer_where_there_is_no_other(tmp_path, monkeypatch):
    library = load(tmp_path / "site-packages" / "sqladmin" / "models.py", "def get_list():\n    return find()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    assert library["get_list"]().function == "get_list"


def test_installed_application_in_a_traceback_goes_before_libraries_that_are_known(tmp_path, monkeypatch):
    library = load(tmp_path / "site-packages" / "fastcrud" / "crud.py", "def get():\n    raise KeyError\n")
    application = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items(get):\n    get()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)

    with pytest.raises(KeyError) as known:
        library["get"]()
    with pytest.raises(KeyError) as both:
        application["list_items"](library["get"])

    assert call_site_in(known.value.__traceback__).function == "get"
    assert call_site_in(both.value.__traceback__).function == "list_items"


def test_installed_application_in_a_traceback_is_second_best(tmp_path, monkeypatch):
    application = load(tmp_path / "site-packages" / "shop" / "api.py", "def list_items():\n    raise KeyError\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)

    with pytest.raises(KeyError) as raised:
        application["list_items"]()

    assert call_site_in(raised.value.__traceback__).function == "list_items"


def test_virtual_environment_inside_the_project_is_no_application(tmp_path):
    library = load(
        tmp_path / "project" / ".venv" / "lib" / "site-packages" / "dao.py",
        "def call(function):\n    return function()\n",
    )

    assert library["call"](lambda: find_call_site()).file == HERE


def test_lines_that_call_a_repository_are_told_with_it(tmp_path):
    repository = load(
        tmp_path / "shop" / "repository.py", "class Repository:\n    def get(self):\n        return find()\n"
    )
    service = load(tmp_path / "shop" / "service.py", "def order_of(repository):\n\n    return repository().get()\n")
    api = load(tmp_path / "shop" / "api.py", "def read_order(service, repository):\n    return service(repository)\n")
    main = load(tmp_path / "shop" / "main.py", "def main(api, *layers):\n    return api(*layers)\n")

    site = main["main"](api["read_order"], service["order_of"], repository["Repository"])

    assert (site.line, site.function) == (3, "Repository.get")
    assert [(Path(caller.file).name, caller.line, caller.function) for caller in site.callers] == [
        ("service.py", 3, "order_of"),
        ("api.py", 2, "read_order"),
    ]


def test_lines_that_await_a_repository_are_told_with_it():
    async def get_item(connection):
        await connection.execute(text("SELECT 1"))

    async def read_item(connection):
        await get_item(connection)  # awaits the repository

    async def app(scope, receive, send):
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.connect() as connection:
            await read_item(connection)
        await engine.dispose()
        await respond(send)

    observer, records = observed(app)
    asyncio.run(get(observer, "/"))

    [statement] = records["/"].statements
    service, endpoint = statement.call_site.callers
    assert (service.line, service.function.rpartition(".")[2]) == (line_of("awaits the repository"), "read_item")
    assert endpoint.function.endswith(".app")


def test_what_a_library_calls_is_called_by_no_line_of_the_application(tmp_path):
    library = load(
        tmp_path / "site-packages" / "fastapi" / "routing.py", "def call(endpoint):\n    return endpoint()\n"
    )

    def endpoint():
        return find_call_site()

    assert library["call"](endpoint).callers == ()


RESOLVE = "def resolve(*layers):\n    first, *others = layers\n    return first(*others)\n"


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("graphql/execution/execute.py", True),
        ("strawberry/types/fields/resolver.py", True),
        ("strawberry/dataloader.py", False),
        ("fastapi/routing.py", False),
        ("tenacity/retry.py", False),
    ],
)
def test_line_knows_that_it_resolves_a_field_of_graphql(file, found, depth, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphql", sys)
    library = load(tmp_path / "site-packages" / Path(file), RESOLVE)
    layers = [load(tmp_path / "shop" / f"{number}.py", RESOLVE)["resolve"] for number in range(depth)]

    assert library["resolve"](*layers, find_call_site).in_resolver is found


@pytest.mark.parametrize("comprehension", ["[find() for _ in '-'][0]", "next(find() for _ in '-')"])
def test_function_around_a_comprehension_does_not_call_it(comprehension, tmp_path):
    application = load(tmp_path / "shop" / "api.py", f"def read():\n    return {comprehension}\n")

    site = application["read"]()

    assert site.line == 2
    assert site.function.startswith("read")
    assert [caller.file for caller in site.callers[:1]] == [HERE]


def test_line_is_the_same_whoever_called_it():
    def repository():
        return find_call_site()

    here, there = repository(), repository()  # fmt: skip
    elsewhere = repository()

    assert here == there == elsewhere
    assert here is not elsewhere
    assert here.callers != elsewhere.callers


def test_framework_is_never_the_answer(tmp_path, monkeypatch):
    framework = load(tmp_path / "site-packages" / "starlette" / "routing.py", "def handle():\n    return find()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    assert framework["handle"]() is None


@pytest.mark.parametrize("name", ["<string>", "dto_transfer_function_ad607228866b", "memory:0x7f30"])
def test_code_that_a_library_makes_is_never_the_answer(name):
    names = {}
    exec(compile("def transfer(find):\n    return find()\n", name, "exec"), names)

    site = names["transfer"](find_call_site)

    assert site.file == HERE


@pytest.mark.parametrize(
    ("inside", "outside", "answer"),
    [
        ("sqlalchemy/engine/base.py", "shop/dao.py", "outer"),
        ("sqltrace/capture/engine.py", "shop.py", "outer"),
        ("asyncio/tasks.py", "shop/dao.py", "outer"),
        ("sqladmin/models.py", "shop/dao.py", "outer"),
        ("sqladmin/models.py", "fastapi/routing.py", "inner"),
        ("shop/dao.py", "asyncio/events.py", "inner"),
        ("sqlalchemy/engine/base.py", "asyncio/events.py", None),
        ("sqlalchemy/engine/base.py", "typing_extensions.py", "outer"),  # no library that is known
    ],
)
def test_frozen_code_is_told_by_its_package(inside, outside, answer, monkeypatch):
    """PyInstaller, and an archive of the standard library, leave no path: files lie in no place that would tell."""
    monkeypatch.setattr(code_files, "_PACKAGE", "sqltrace" + os.sep)
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(3))
    inner = compiled(inside.replace("/", os.sep), "def inner():\n    return find()\n")["inner"]
    outer = compiled(outside.replace("/", os.sep), "def outer(inner):\n    return inner()\n")["outer"]

    site = outer(inner)

    assert (site and site.function) == answer


def test_relative_path_of_a_file_that_is_there_is_no_frozen_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    script = load(Path("code", "app.py"), "def run():\n    return find()\n")

    assert script["run"]().function == "run"


@pytest.mark.parametrize("file", ["scripts/uvicorn", "site-packages/click/core.py"])
def test_what_starts_a_server_is_never_the_answer(file, tmp_path, monkeypatch):
    monkeypatch.setattr(code_files, "_LIBRARIES", (*code_files._LIBRARIES, str(tmp_path / "scripts") + os.sep))
    assert sysconfig.get_path("scripts") + os.sep in code_files._LIBRARIES
    starter = load(tmp_path / file, "def start():\n    return find()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(2))

    assert starter["start"]() is None


def test_thread_without_any_application_frame_has_no_call_site():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(find_call_site).result() is None


def test_memory_for_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(code_files, "_MAX_FILES", 3)

    for number in range(10):
        load(tmp_path / f"made_{number}.py", "def call():\n    return find()\n")["call"]()

    assert len(code_files.kinds) <= 3


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


# Statements without a line of the application above them


FRAMEWORK = """
async def respond(scope, receive, send):
    with engine.connect() as connection:
        connection.execute(statement)
    await finish(send)
"""


@pytest.mark.parametrize("start", [*RUNNERS, pytest.param(trio_run, id="trio")])
def test_line_that_starts_the_server_is_never_the_answer(start, tmp_path, memory_engine):
    framework = load(tmp_path / "site-packages" / "fastapi" / "routing.py", FRAMEWORK)
    framework |= {"engine": memory_engine, "statement": text("SELECT 1"), "finish": respond}
    app, records = observed(framework["respond"])

    start(get(app, "/"))

    assert [statement.call_site for statement in records["/"].statements] == [None]


@pytest.mark.parametrize("start", RUNNERS)
def test_line_that_starts_the_event_loop_is_not_the_answer_for_its_tasks(start, tmp_path, memory_engine):
    library = load(
        tmp_path / "site-packages" / "starlette" / "concurrency.py",
        "async def work():\n    with engine.connect() as connection:\n        connection.execute(statement)\n",
    )
    library |= {"engine": memory_engine, "statement": text("SELECT 1")}

    async def main():
        with sqltrace.record() as recording:
            await asyncio.create_task(library["work"]())
        return recording.statements

    assert [statement.call_site for statement in start(main())] == [None]


LATER_GROUP = """
import asyncio

class TaskGroup:  # waits where it does from 3.12.8 and 3.13.1 on
    async def __aenter__(self):
        self._group = asyncio.TaskGroup()
        return await self._group.__aenter__()

    async def __aexit__(self, et, exc, tb):
        return await self._aexit(et, exc)

    async def _aexit(self, et, exc):
        return await self._group.__aexit__(et, exc, None)
"""


@pytest.mark.parametrize("way", ["gather", "wait_for", "limited", "task", "group", "later group"])
def test_session_that_runs_in_a_task_of_its_own_is_told_where_that_is_awaited(way, tmp_path):
    later_group = load(tmp_path / "site-packages" / "asyncio" / "taskgroups.py", LATER_GROUP)["TaskGroup"]

    async def app(scope, receive, send):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        session, statement = AsyncSession(engine), text("SELECT 1")
        if way == "gather":
            await asyncio.gather(session.execute(statement))  # gather
        elif way == "wait_for":
            await asyncio.wait_for(session.execute(statement), 30)  # wait_for
        elif way == "limited":
            await asyncio.wait_for(asyncio.gather(session.execute(statement)), 30)  # limited
        elif way == "task":
            await asyncio.create_task(session.execute(statement))  # task
        elif way == "group":
            async with asyncio.TaskGroup() as group:  # group
                group.create_task(session.execute(statement))
        else:
            async with later_group() as group:  # later group
                group.create_task(session.execute(statement))
        await session.close()
        await engine.dispose()
        await respond(send)

    observer, records = observed(app)
    asyncio.run(get(observer, "/"))

    [statement] = records["/"].statements
    assert (statement.call_site.file, statement.call_site.line) == (HERE, line_of(way))


@asynccontextmanager
async def session_of_a_dependency(engine):
    async with async_sessionmaker(engine).begin() as session:  # dependency
        yield session


@pytest.mark.parametrize("way", ["begin", "dependency"])
def test_flush_as_a_session_ends_in_a_task_of_its_own_is_told_where_that_is_awaited(way):
    shelf = mapping()

    async def app(scope, receive, send):
        engine = await open_async_shelf(shelf)
        if way == "begin":
            async with async_sessionmaker(engine).begin() as session:  # begin
                session.add(shelf.Author(name="new", bio=""))
        else:
            async with session_of_a_dependency(engine) as session:
                session.add(shelf.Author(name="new", bio=""))
        await engine.dispose()
        await respond(send)

    observer, records = observed(app)
    asyncio.run(get(observer, "/"))

    insert = records["/"].statements[-1]
    assert insert.summary == "INSERT authors"
    assert (insert.call_site.file, insert.call_site.line) == (HERE, line_of(way))


def test_session_in_a_task_within_a_recording_of_a_part_of_the_request_is_told_where_that_is_awaited():
    recordings = []

    async def app(scope, receive, send):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        session = AsyncSession(engine)
        async with sqltrace.record() as recording:
            await asyncio.gather(session.execute(text("SELECT 1")))  # within a part
        recordings.append(recording)
        await session.close()
        await engine.dispose()
        await respond(send)

    observer, _ = observed(app)
    asyncio.run(get(observer, "/"))

    [statement] = recordings[0].statements
    assert (statement.call_site.file, statement.call_site.line) == (HERE, line_of("within a part"))


def test_statement_that_takes_too_long_for_wait_for_is_told_where_that_is(postgres_url):
    async def app(scope, receive, send):
        engine = create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"))
        async with AsyncSession(engine) as session:
            await session.connection()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.execute(text("SELECT pg_sleep(60)")), 0.05)  # too long
        await engine.dispose()
        await respond(send)

    observer, records = observed(app)
    asyncio.run(get(observer, "/"))

    [statement] = records["/"].statements
    assert statement.failed
    assert (statement.call_site.file, statement.call_site.line) == (HERE, line_of("too long"))


def test_task_that_nobody_awaits_has_no_call_site():
    async def app(scope, receive, send):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        session = AsyncSession(engine)
        task = asyncio.create_task(session.execute(text("SELECT 1")))
        while not task.done():
            await asyncio.sleep(0)
        await session.close()
        await engine.dispose()
        await respond(send)

    observer, records = observed(app)
    asyncio.run(get(observer, "/"))

    assert [statement.call_site for statement in records["/"].statements] == [None]


class Unchangeable(BaseHTTPMiddleware):
    def __setattr__(self, name, value):
        if name == "app" and hasattr(self, "app"):
            raise AttributeError("unchangeable")
        super().__setattr__(name, value)


@pytest.mark.parametrize(("middleware", "found"), [(BaseHTTPMiddleware, True), (Unchangeable, False)])
def test_session_in_a_task_below_http_middleware_is_not_told_at_that_middleware(middleware, found, caplog):
    async def endpoint(request):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        session = AsyncSession(engine)
        await asyncio.gather(session.execute(text("SELECT 1")))  # in a task of its own
        await session.close()
        await engine.dispose()
        return PlainTextResponse("ok")

    async def dispatch(request, call_next):
        return await call_next(request)

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(middleware, dispatch=dispatch)])
    observer, records = observed(app)
    asyncio.run(get(observer, "/"))
    caplog.clear()

    sites = [statement.call_site for statement in records["/"].statements]
    assert [site and site.line for site in sites] == [line_of("in a task of its own") if found else None]


def test_session_in_a_task_of_a_websocket_below_http_middleware_is_told_at_the_line_that_awaits_it():
    async def socket(websocket):
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        session = AsyncSession(engine)
        await websocket.accept()
        await asyncio.gather(session.execute(text("SELECT 1")))  # of a websocket
        await session.close()
        await engine.dispose()
        await websocket.close()

    async def dispatch(request, call_next):
        return await call_next(request)

    observer, records = observed(
        Starlette(routes=[WebSocketRoute("/", socket)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])
    )
    asyncio.run(call(observer, websocket_scope("/"), [{"type": "websocket.connect"}]))

    assert [statement.call_site.line for statement in records["/"].statements] == [line_of("of a websocket")]


class Named(BaseModel):
    name: str
    model_config = ConfigDict(from_attributes=True)


class Shown(BaseModel):
    publisher: Named
    model_config = ConfigDict(from_attributes=True)


class Passing:
    """Middleware of the application."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


class PassingRoute(APIRoute):
    def get_route_handler(self):
        handler = super().get_route_handler()

        async def handle(request):
            return await handler(request)

        return handle


@pytest.mark.parametrize("lazy", ["select", "raise"])
@pytest.mark.parametrize("route", [APIRoute, PassingRoute])
def test_what_is_around_a_router_has_not_touched_what_the_framework_makes_an_answer_of(route, lazy, tmp_path):
    shelf = mapping(publisher=lazy)
    engine = open_shelf(shelf)
    router = APIRouter(route_class=route)

    @router.get("/", response_model=list[Shown])
    async def endpoint():
        return session.scalars(select(shelf.Author)).all()

    app = FastAPI(middleware=[Middleware(Passing)])
    app.include_router(router)
    observer, records = observed(app)
    with Session(engine) as session, suppress(ResponseValidationError):
        asyncio.run(get(observer, "/"))
    engine.dispose()

    recording = records["/"]
    query, *loads = recording.statements
    assert query.call_site.function == endpoint.__qualname__
    assert len(loads) == (3 if lazy == "select" else 0)
    assert {load.call_site for load in (*loads, *recording.failed_loads)} == {None}


def test_script_that_was_started_by_a_relative_path_is_known_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    starter = load(Path("venv", "lib", "site-packages", "gunicorn", "app.py"), "def start():\n    return find()\n")
    monkeypatch.setattr(code_files, "_LIBRARIES", (str(tmp_path / "bin") + os.sep,))
    script = load(Path("bin", "gunicorn"), "def run(start):\n    return start()\n")
    monkeypatch.setitem(code_files.kinds, HERE, code_files.SKIP)
    monkeypatch.setattr(callsite, "_FRAMES", range(3))

    assert script["run"](starter["start"]) is None


def test_working_directory_may_be_removed_while_the_application_runs(tmp_path, monkeypatch):
    """As by a deploy, of a release that still runs."""
    directory = tmp_path / "release"
    directory.mkdir()
    monkeypatch.chdir(directory)
    directory.rmdir()
    made = compiled("<made at run time>", "def call():\n    return find()\n")

    assert made["call"]().file == HERE
    assert shorten(f"{directory}/app.py") == f"{directory}/app.py"


def site_here():
    return site_of_task(sys._getframe())


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_line_of_a_task_is_not_that_which_runs_the_loop(new_loop):
    async def task():
        return site_here()

    loop = new_loop()
    site = loop.run_until_complete(task())
    loop.close()

    assert (site.function, site.callers[0].function) == ("site_here", task.__qualname__)


@pytest.mark.parametrize(
    ("new_loop", "function"), [(asyncio.SelectorEventLoop, "site_here"), (uvloop.new_event_loop, None)]
)
def test_line_of_a_callback_is_known_where_the_loop_is_python(new_loop, function):
    sites = []
    loop = new_loop()
    loop.call_soon(lambda: sites.append(site_here()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()

    assert [site and site.function for site in sites] == [function]


def test_line_of_a_thread_that_runs_nothing_of_a_loop_is_unknown():
    assert site_here() is None
