"""
What is compared: the contenders, what their requests do, and how a turn of requests is run.

Each contender belongs in a process of its own, for listeners stay behind: on the `Engine` class they
are heard by all engines, cursor events leave ``Engine._has_events`` set when they are removed, and the
interpreter specializes SQLAlchemy's code for the engine it sees. The processes must be forks of one that
has run `prepare`: by where objects lie in memory, names share a place in the interpreter's method cache
or do not, which makes a statement some percent dearer in one process than in another. What has run
before the fork lies in the same places in all.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import mapped
from sqlalchemy import Column, Engine, Integer, MetaData, Select, Table, bindparam, create_engine, event, select
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Message = MutableMapping[str, Any]
ASGIApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

# Of a contender's process. Whoever has a PYTHONPATH measures the sqltrace that he has on it.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).resolve().parents[2])])
    )
}

_WARM_UP = {0: 40, 1: 20, 10: 3, 100: 2}  # requests, by statements: more than the interpreter and the caches need


class Workload(NamedTuple):
    """
    What a request does: how many statements, all of one text (repeated) or in turn of ten (distinct).

    Of `mapped.py`: so many ORM queries (orm; session: of an `AsyncSession`), or one statement of so many rows: read
    at once (rows), made into an object each and a hundred more (joined), or two collections of one object that
    multiply each other (product).
    """

    statements: int
    variant: str

    def __str__(self) -> str:
        alike = self.statements < 2 and self.variant != "session"  # whether repeated or distinct
        return str(self.statements) if alike else f"{self.statements} {self.variant}"


WORKLOADS = (
    Workload(0, "repeated"),
    Workload(1, "repeated"),
    Workload(10, "repeated"),
    Workload(10, "distinct"),
    Workload(100, "repeated"),
    Workload(100, "distinct"),
)
EMPTY, REPEATED, DISTINCT = WORKLOADS[0], WORKLOADS[4], WORKLOADS[5]


def bare(app: Starlette, engine: Engine) -> ASGIApp:
    """The application alone."""
    return app


def cursor_events(app: Starlette, engine: Engine) -> ASGIApp:
    """The yardstick: the usual pair of listeners, doing no more than the bookkeeping that everybody needs."""
    noted: ContextVar[list[tuple[int, int, str, Any]] | None] = ContextVar("noted", default=None)
    clock = time.perf_counter_ns

    def before_cursor_execute(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        context._benchmark_started = clock()

    def after_cursor_execute(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        statements = noted.get()
        if statements is not None:
            statements.append((context._benchmark_started, clock(), statement, context.dialect))

    event.listen(engine, "before_cursor_execute", before_cursor_execute)
    event.listen(engine, "after_cursor_execute", after_cursor_execute)

    async def middleware(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        token = noted.set([])
        try:
            await app(scope, receive, send)
        finally:
            noted.reset(token)

    return middleware


def idle(app: Starlette, engine: Engine) -> ASGIApp:
    """Instrumented, and no recording open: start-up code, scripts, excluded paths."""
    import sqltrace

    sqltrace.instrument()
    return app


def recording(app: Starlette, engine: Engine) -> ASGIApp:
    """The middleware with nobody to tell."""
    import sqltrace

    return sqltrace.SQLTraceMiddleware(app, sinks=[])


def log_line(app: Starlette, engine: Engine) -> ASGIApp:
    """All that `app.add_middleware(SQLTraceMiddleware)` does, structlog set up for production, to a null file."""
    import sqltrace

    configure_structlog()
    return sqltrace.SQLTraceMiddleware(app)


def configure_structlog() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=open(os.devnull, "w", encoding="utf-8")),  # noqa: SIM115 - stays open
        cache_logger_on_first_use=True,
    )


CONTENDERS = {
    "bare": bare,
    "cursor events": cursor_events,
    "idle": idle,
    "recording": recording,
    "log line": log_line,
}
YARDSTICK = "cursor events"


def build(name: str) -> ASGIApp:
    """An application with the named contender around it."""
    return CONTENDERS[name](*_application())


def _application() -> tuple[Starlette, Engine]:
    """Starlette, and the engine of its own SQLite in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    things = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("size", Integer))
    things.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(things.insert(), [{"id": number, "size": number} for number in range(100)])
    which = things.c.id == bindparam("id")
    distinct = [select(things.c.id, things.c.size.label(f"size_{number}")).where(which) for number in range(10)]

    def endpoint(selects: list[Select[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def run_statements(request: Request) -> Response:
            count = int(request.path_params["count"])
            if count:
                with engine.connect() as connection:
                    for number in range(count):
                        connection.execute(selects[number % len(selects)], {"id": number}).one()
            return Response(b"done")

        return run_statements

    routes = [
        Route("/repeated/{count}", endpoint(distinct[:1])),
        Route("/distinct/{count}", endpoint(distinct)),
        *mapped.routes(engine),
    ]
    return Starlette(routes=routes), engine


async def run_requests(app: ASGIApp, workload: Workload, requests: int) -> None:
    path = f"/{workload.variant}/{workload.statements}"
    for _ in range(requests):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*")],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8_000),
        }
        await app(scope, _receive, _send)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    if message["type"] == "http.response.start" and message["status"] != 200:
        raise RuntimeError(f"the application answered {message['status']}")


def prepare() -> None:
    """Import and run what the contenders have in common. Leaves no listener behind."""
    import structlog  # noqa: F401

    import sqltrace  # noqa: F401

    asyncio.run(warm_up(bare(*_application())))


async def warm_up(app: ASGIApp) -> None:
    for workload in WORKLOADS:
        await run_requests(app, workload, _WARM_UP[workload.statements])
    gc.collect()
    gc.freeze()  # what SQLAlchemy has imported is not collected over and over within the turns


async def take_turn(app: ASGIApp, workload: Workload, requests: int) -> float:
    """CPU seconds of one request."""
    gc.collect()
    await run_requests(app, workload, 1 + requests // 4)  # the processor's caches
    os.getppid()  # under callgrind a signal: instructions.py lets it write its counters here
    started = time.process_time()
    await run_requests(app, workload, requests)
    spent = time.process_time() - started
    os.getppid()
    return spent / requests


def layout(rows: list[list[str]]) -> str:
    """A table in plain text; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
