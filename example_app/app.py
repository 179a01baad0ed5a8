"""The application: two mappings, each with two kinds of session, and sqltrace in one line."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

import sqltrace
from example_app.async_api import async_router
from example_app.database import Database
from example_app.loading import async_loading, sync_loading
from example_app.queries import GUILTY, MENDED
from example_app.request_id import RequestIdMiddleware
from example_app.sync_api import sync_router
from sqltrace.sinks import Sink


def create_app(database: Database, *, sinks: Sequence[Sink] | None = None) -> FastAPI:
    """
    Every endpoint four times: under `/guilty/sync`, `/guilty/async`, `/mended/sync` and `/mended/async`.

    And `/sync/loading/{strategy}`, `/async/loading/{strategy}`: see `loading`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with database.async_engine.connect():
            pass  # SQLAlchemy asks a new engine's server for its version and settings: not in somebody's request.
        yield
        # An async engine's connections belong to the event loop that used them.
        await database.async_engine.dispose()

    app = FastAPI(title="Tagify", lifespan=lifespan)
    app.state.sync_sessions = sessionmaker(database.sync_engine)
    app.state.async_sessions = async_sessionmaker(database.async_engine, expire_on_commit=False)

    app.include_router(sync_router(GUILTY), prefix="/guilty/sync")
    app.include_router(async_router(GUILTY), prefix="/guilty/async")
    app.include_router(sync_router(MENDED), prefix="/mended/sync")
    app.include_router(async_router(MENDED), prefix="/mended/async")
    app.include_router(sync_loading, prefix="/sync")
    app.include_router(async_loading, prefix="/async")

    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=sinks)
    # Added last, so outermost: the id is bound before the log line is written.
    app.add_middleware(RequestIdMiddleware)
    return app
