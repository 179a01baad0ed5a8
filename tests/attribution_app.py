"""
An application with every kind of endpoint, to see whose statements are whose.

Each statement carries a tag: the marker of the request that caused it, taken
from the path, and a word for the place it comes from.
"""

import asyncio
import contextvars
import re
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, literal, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection

import sqltrace

STACKS = ("plain", "ours outside", "ours inside")  # of a BaseHTTPMiddleware, which asks too
DISPATCH = ("dispatch", "dispatched")


@dataclass(frozen=True)
class Kind:
    """What a request to an endpoint must be charged with: words of its statements, during and after the response."""

    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    websocket: bool = False

    def tags(self, marker, stack="plain"):
        dispatch = DISPATCH if stack == "ours outside" and not self.websocket else ()
        return sorted(f"{marker}:{word}" for word in (*self.words, *self.after, *dispatch))


KINDS = {}


def charged(record, phase=None):
    """The tags of the statements in a request's record, of all or of one phase; of one without a tag its SQL."""
    statements = [statement for statement in record.recording.statements if phase in (None, statement.phase)]
    return sorted((re.findall(r"[\w-]+:[\w ]+", s.parameters) or [s.sql])[0] for s in statements)


def marker_of(record):
    return record.path.rpartition("/")[2]


class Databases:
    """SQLite and PostgreSQL, each through a sync and an async driver."""

    def __init__(self, sqlite_file, postgres_url):
        pool = {"pool_size": 5, "max_overflow": 5}
        self.sync = {
            "sqlite": create_engine(f"sqlite:///{sqlite_file}", **pool),
            "psycopg": create_engine(postgres_url.set(drivername="postgresql+psycopg"), **pool),
        }
        self.asynchronous = {
            "aiosqlite": create_async_engine(f"sqlite+aiosqlite:///{sqlite_file}", **pool),
            "asyncpg": create_async_engine(postgres_url.set(drivername="postgresql+asyncpg"), **pool),
            "psycopg_async": create_async_engine(postgres_url.set(drivername="postgresql+psycopg_async"), **pool),
        }

    async def start(self):
        asker = Asker(self, "startup")
        for name in self.sync:
            asker.ask("lifespan", name)
        for name in self.asynchronous:
            await asker.aask("lifespan", name)

    async def stop(self):
        for engine in self.asynchronous.values():
            await engine.dispose()
        for engine in self.sync.values():
            engine.dispose()


class Asker:
    """Asks the databases on behalf of one request."""

    def __init__(self, databases, marker):
        self.databases = databases
        self.marker = marker

    def statement(self, word):
        return select(literal(f"{self.marker}:{word}"))

    def ask(self, word, driver="sqlite"):
        with Session(self.databases.sync[driver]) as session:
            return session.scalar(self.statement(word))

    async def aask(self, word, driver="aiosqlite"):
        async with AsyncSession(self.databases.asynchronous[driver]) as session:
            return await session.scalar(self.statement(word))


async def find_asker(connection: HTTPConnection):
    return Asker(connection.app.state.databases, connection.path_params["marker"])


Asking = Annotated[Asker, Depends(find_asker)]
router = APIRouter()
mounted = FastAPI()


def endpoint(*words, after=(), to=router):
    def register(function):
        name = function.__name__
        KINDS[name] = Kind(words, after)
        to.get(f"/{name}/{{marker}}")(function)
        return function

    return register


@endpoint("body")
def def_endpoint(asker: Asking):
    asker.ask("body")


@endpoint("body")
def def_endpoint_on_postgresql(asker: Asking):
    asker.ask("body", "psycopg")


@endpoint("body")
async def async_def_endpoint_with_sync_session(asker: Asking):
    asker.ask("body")


@endpoint("body")
async def async_session_on_aiosqlite(asker: Asking):
    await asker.aask("body", "aiosqlite")


@endpoint("body")
async def async_session_on_asyncpg(asker: Asking):
    await asker.aask("body", "asyncpg")


@endpoint("body")
async def async_session_on_psycopg(asker: Asking):
    await asker.aask("body", "psycopg_async")


def sync_resource(asker: Asking):
    asker.ask("before", "psycopg")
    try:
        yield
    finally:
        asker.ask("after", "psycopg")


async def async_resource(asker: Asking):
    await asker.aask("before", "asyncpg")
    try:
        yield
    finally:
        await asker.aask("after", "asyncpg")


async def resource_on_resource(asker: Asking, resource: Annotated[None, Depends(sync_resource)]):
    await asker.aask("inner before")
    yield
    await asker.aask("inner after")


@endpoint("before", "body", after=["after"])
def sync_yield_dependency(asker: Asking, resource: Annotated[None, Depends(sync_resource)]):
    asker.ask("body")


@endpoint("before", "body", after=["after"])
async def async_yield_dependency(asker: Asking, resource: Annotated[None, Depends(async_resource)]):
    await asker.aask("body")


@endpoint("before", "inner before", "body", after=["inner after", "after"])
def async_dependency_on_a_sync_one(asker: Asking, resource: Annotated[None, Depends(resource_on_resource)]):
    asker.ask("body")


@endpoint("before", "body", "after")
async def dependency_around_an_error(asker: Asking, resource: Annotated[None, Depends(async_resource)]):
    await asker.aask("body")
    raise HTTPException(status_code=404)


@endpoint("one", "two", "three", "then")
async def gather(asker: Asking):
    await asyncio.gather(asker.aask("one"), asker.aask("two", "asyncpg"), asker.aask("three", "psycopg_async"))
    await asker.aask("then")


@endpoint("one", "two", "then")
async def task_group(asker: Asking):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asker.aask("one", "asyncpg"))
        tasks.create_task(asker.aask("two", "asyncpg"))
    await asker.aask("then", "asyncpg")


@endpoint("one", "two", "in thread")
async def anyio_task_group(asker: Asking):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asker.aask, "one")
        tasks.start_soon(asker.aask, "two", "psycopg_async")
        tasks.start_soon(anyio.to_thread.run_sync, asker.ask, "in thread")


@endpoint("task")
async def awaited_task(asker: Asking):
    await asyncio.create_task(asker.aask("task", "asyncpg"))


@endpoint("thread")
async def run_in_the_threadpool(asker: Asking):
    await run_in_threadpool(asker.ask, "thread")


@endpoint("thread")
async def asyncio_to_thread(asker: Asking):
    await asyncio.to_thread(asker.ask, "thread", "psycopg")


@endpoint("thread", "back on the loop")
def from_thread(asker: Asking):
    asker.ask("thread")
    anyio.from_thread.run(asker.aask, "back on the loop", "asyncpg")


@endpoint("first", "chunk 0", "chunk 1")
def sync_stream(asker: Asking):
    def chunks():
        for number in range(2):
            yield asker.ask(f"chunk {number}")

    asker.ask("first")
    return StreamingResponse(chunks())


@endpoint("first", "chunk 0", "chunk 1")
async def async_stream(asker: Asking):
    async def chunks():
        for number in range(2):
            yield await asker.aask(f"chunk {number}", "asyncpg")

    await asker.aask("first")
    return StreamingResponse(chunks())


@endpoint("body", after=["background"])
def sync_background_task(asker: Asking, background: BackgroundTasks):
    background.add_task(asker.ask, "background")
    asker.ask("body")


@endpoint("body", after=["background"])
async def async_background_task(asker: Asking, background: BackgroundTasks):
    background.add_task(asker.aask, "background", "asyncpg")
    await asker.aask("body")


@endpoint("callback")
async def call_later(asker: Asking):
    done = asyncio.Event()

    def callback():
        asker.ask("callback")
        done.set()

    asyncio.get_running_loop().call_later(0, callback)
    await done.wait()


@endpoint("one", "two")
async def run_sync(asker: Asking):
    def work(connection):
        connection.execute(asker.statement("one"))
        connection.execute(asker.statement("two"))

    async with asker.databases.asynchronous["asyncpg"].connect() as connection:
        await connection.run_sync(work)


@endpoint("rows")
async def stream_of_rows(asker: Asking):
    engine = asker.databases.asynchronous["asyncpg"]
    async with engine.connect() as connection, connection.stream(asker.statement("rows")) as result:
        return [tag async for (tag,) in result]


@endpoint("body", to=mounted)
async def mounted_application(asker: Asking):
    await asker.aask("body")


@endpoint()
def bare_thread(asker: Asking):
    thread = threading.Thread(target=asker.ask, args=("lost",))
    thread.start()
    thread.join()


@endpoint()
async def bare_executor(asker: Asking):
    await asyncio.get_running_loop().run_in_executor(None, asker.ask, "lost")


@endpoint("thread")
def thread_with_context(asker: Asking):
    thread = threading.Thread(target=contextvars.copy_context().run, args=(asker.ask, "thread"))
    thread.start()
    thread.join()


@endpoint("executor")
async def executor_with_context(asker: Asking):
    run = contextvars.copy_context().run
    await asyncio.get_running_loop().run_in_executor(None, run, asker.ask, "executor")


LOST = ("bare_thread", "bare_executor")
KINDS["websocket"] = Kind(("accepted", "message 0", "message 1"), websocket=True)


@router.websocket("/websocket/{marker}")
async def websocket(socket: WebSocket, asker: Asking):
    await socket.accept()
    await asker.aask("accepted", "asyncpg")
    async for word in socket.iter_text():
        await socket.send_text(await asker.aask(word))


@router.get("/outliving_task/{marker}")
async def outliving_task(asker: Asking, connection: HTTPConnection):
    state = connection.app.state
    state.release = asyncio.Event()

    async def ask_late():
        await state.release.wait()
        await asker.aask("late")

    state.task = asyncio.create_task(ask_late())
    await asker.aask("body")


class AskingMiddleware(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        asker = Asker(request.app.state.databases, request.url.path.rpartition("/")[2])
        await asker.aask(DISPATCH[0], "asyncpg")
        response = await call_next(request)
        await asker.aask(DISPATCH[1])
        return response


def path_to(kind, marker):
    prefix = "/mounted" if kind == "mounted_application" else ""
    return f"{prefix}/{kind}/{marker}"


def make_app(databases, sink, stack="plain"):
    """The application; started and stopped with its databases by its lifespan."""

    @asynccontextmanager
    async def lifespan(app):
        await databases.start()
        yield
        await databases.stop()

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.mount("/mounted", mounted)
    app.state.databases = mounted.state.databases = databases
    if stack == "ours outside":
        app.add_middleware(AskingMiddleware)
    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=[sink], capture_parameters=True)
    if stack == "ours inside":
        app.add_middleware(AskingMiddleware)
    return app
