"""Running ASGI applications: by hand, and under a real uvicorn."""

import asyncio
import contextlib
import socket
import struct
import threading
from itertools import count

import uvicorn
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

import sqltrace
from sqltrace import SQLTraceMiddleware
from sqltrace.recording import Recording


class Witness:
    """A sink that keeps every moment of every request, in order. Safe to read from another thread."""

    def __init__(self):
        self.moments = []
        self.records = []
        self._finished = threading.Condition()

    def response_ready(self, record):
        self.moments.append("response_ready")

    def request_finished(self, record):
        with self._finished:
            self.moments.append("request_finished")
            self.records.append(record)
            self._finished.notify_all()

    def take(self, count=1):
        """The `count` requests since the last take, as soon as all have finished: a client does not see that."""
        with self._finished:
            self._finished.wait_for(lambda: len(self.records) >= count, timeout=30)
            taken, self.records = self.records, []
        assert len(taken) == count
        return taken

    def of(self, path):
        """The latest request for a path."""
        return next(record for record in reversed(self.records) if record.path == path)

    def __getitem__(self, path):
        """The recording of the latest request for a path."""
        return self.of(path).recording

    @property
    def record(self):
        """The only request."""
        [record] = self.records
        return record


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 1_000_000_000

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += round(seconds * 1_000_000_000)


def ticking():
    """A clock that goes on by a microsecond with each reading: no machine is too busy for it."""
    return count(1_000_000_000, 1_000).__next__


@contextlib.contextmanager
def recorded(clock, **options):
    """A recording by this clock."""
    sqltrace.instrument()
    recording = Recording(clock=clock, **options)
    outer = recording.open()
    try:
        yield recording
    finally:
        recording.end()
        recording.leave(outer)


def timed(app, clock, **options):
    """The application inside of the middleware, by this clock."""

    class TimedMiddleware(SQLTraceMiddleware):
        _clock = staticmethod(clock)

    return TimedMiddleware(app, **options)


def http_scope(path="/", **more):
    return {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", **more}


def websocket_scope(path="/", **more):
    return {"type": "websocket", "path": path, "headers": [], "query_string": b"", **more}


async def call(app, scope, received=(), *, send=None):
    """Call the application as a server would, and return what it sent. The client stays connected."""
    waiting, sent = list(received), []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send_to_list(message):
        sent.append(message)

    await app(scope, receive, send or send_to_list)
    return sent


def run(app, scope, received=(), *, send=None):
    return asyncio.run(call(app, scope, received, send=send))


def memory_engine():
    """For all threads; dispose of it."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def select(engine, count=1):
    """Run as many different statements."""
    with engine.connect() as connection:
        for number in range(count):
            connection.execute(text(f"SELECT {number}"))


START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"done"}
CHUNK = {"type": "http.response.body", "body": b"part", "more_body": True}


def sends(*messages):
    """An application that sends these."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


class _Server(uvicorn.Server):
    def __init__(self, config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def serve(app, **options):
    """The application under uvicorn, in a thread. Yields the server, with its `port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = {"lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 5, **options}
    server = _Server(uvicorn.Config(app, **options))
    server.port = listener.getsockname()[1]
    server.thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    server.thread.start()
    try:
        assert server.ready.wait(30)
        yield server
    finally:
        server.should_exit = True
        server.thread.join(30)
        listener.close()
    assert not server.thread.is_alive()


def connect(server, request):
    """A socket on which these bytes have been sent."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    client.sendall(request)
    return client


def abort(client):
    """Close so that the other side sees a reset, not an orderly end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
