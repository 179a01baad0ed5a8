"""Requests without a server, on each kind of event loop."""

import asyncio
import sys
import time

import pytest

import sqltrace

RUNNERS = [pytest.param(asyncio.run, id="asyncio")]
if sys.platform != "win32":
    import uvloop

    RUNNERS.append(pytest.param(uvloop.run, id="uvloop"))


class Records:
    """A sink that keeps what it is told, by path."""

    def __init__(self):
        self.by_path = {}

    def response_ready(self, record):
        pass

    def request_finished(self, record):
        self.by_path[record.path] = record

    def __getitem__(self, path):
        return self.by_path[path].recording


def observed(app):
    records = Records()
    return sqltrace.SQLTraceMiddleware(app, sinks=[records]), records


async def get(app, path):
    asked = []

    async def receive():
        if asked:
            await asyncio.Event().wait()
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "root_path": ""}
    await app(scope | {"scheme": "http", "http_version": "1.1", "client": None, "server": None}, receive, send)


async def respond(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def block(seconds):
    """Hold the event loop. The seconds that it took."""
    started = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - started
