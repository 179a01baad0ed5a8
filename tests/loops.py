"""Requests without a server, on each kind of event loop."""

import asyncio
import functools
import os
import selectors
import sys
import time

import pytest

import sqltrace
from tests.asgi import Clock, Witness, call, http_scope

RUNNERS = [pytest.param(asyncio.run, id="asyncio")]
if sys.platform != "win32":
    import uvloop

    RUNNERS.append(pytest.param(uvloop.run, id="uvloop"))


class _Selector(selectors.DefaultSelector):
    """Does not wait for the time to pass, but moves the clock."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def select(self, timeout=None):
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None and timeout > 0:
            self._clock.advance(timeout)
        return ready


class ClockedLoop(asyncio.SelectorEventLoop):
    """asyncio's own, by a clock that only its timers and `block` move: nothing else on the machine holds it."""

    def __init__(self):
        self.clock = Clock()
        super().__init__(_Selector(self.clock))

    def time(self):
        return self.clock.now / 1_000_000_000


def run_by_clock(main):
    """Without threads: of them the loop knows no time."""
    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        return runner.run(main)


CLOCKED = [pytest.param(run_by_clock, id="asyncio by a clock"), *RUNNERS[1:]]


def now():
    """Nanoseconds, by the clock of the running loop if it has one."""
    loop = asyncio._get_running_loop()
    return loop.clock() if isinstance(loop, ClockedLoop) else time.perf_counter_ns()


# `.ci/run` sets it to 1 as it runs once more what has failed.
TRIES = int(os.environ.get("SQLTRACE_TEST_TRIES", "3"))


def thrice(test):
    """For tests by the real time. A busy machine may put anything between two readings: not three times in a row."""

    @functools.wraps(test)
    def attempt(*arguments, **fixtures):
        for _ in range(TRIES - 1):
            try:
                return test(*arguments, **fixtures)
            except AssertionError:
                time.sleep(0.2)
        return test(*arguments, **fixtures)

    return attempt


class ObservedMiddleware(sqltrace.SQLTraceMiddleware):
    _clock = staticmethod(now)


def observed(app):
    """The application inside of the middleware, by the clock of its loop, and the witness."""
    witness = Witness()
    return ObservedMiddleware(app, sinks=[witness]), witness


async def get(app, path, **more):
    """What the application sent."""
    return await call(app, http_scope(path, **more), [{"type": "http.request", "body": b"", "more_body": False}])


async def respond(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def block(seconds):
    """Hold the event loop. The seconds that it took."""
    started, loop = now(), asyncio._get_running_loop()
    if isinstance(loop, ClockedLoop):
        loop.clock.advance(seconds)
    else:
        time.sleep(seconds)
    return (now() - started) / 1_000_000_000
