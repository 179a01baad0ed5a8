"""uvicorn in a thread of this process."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

import click
import uvicorn
from starlette.types import ASGIApp


@dataclass(frozen=True)
class Address:
    url: str
    thread: Thread

    def wait(self, asked: list[int]) -> None:
        """Return when the server has stopped, or is asked to."""
        while self.thread.is_alive() and not asked:
            self.thread.join(0.1)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """
    Collects SIGINT and SIGTERM, and raises nothing. In the main thread only.

    An exception would be lost where nobody can catch it: in a callback of the garbage collector.
    """
    asked: list[int] = []  # an `Event` would be waiting for its own lock
    former = {
        number: signal.signal(number, lambda number, _: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def listen(port: int) -> socket.socket:
    """
    A socket on 127.0.0.1.

    Args:
        port: 0 for a free one.

    Raises:
        OSError: The port is taken.
    """
    return socket.create_server(("127.0.0.1", port))


@contextmanager
def serve(app: ASGIApp, listener: socket.socket) -> Iterator[Address]:
    """Answer while the block runs, and finish what was begun: a request cut off would keep its locks."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", access_log=False, log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield Address(url, thread)
    finally:
        server.should_exit = True
        thread.join()


def _wait_until_started(server: uvicorn.Server, thread: Thread) -> None:
    while not server.started:
        if not thread.is_alive():
            raise click.ClickException("the server did not start; its last words are above")
        time.sleep(0.01)
