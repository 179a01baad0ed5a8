"""Each statement is found in the recording of its own request. Here with a server, over real sockets."""

import asyncio
import random
import socket
import threading
from contextlib import contextmanager

import httpx2
import pytest
import uvicorn
import websockets

import sqltrace
from tests.attribution_app import KINDS, LOST, STACKS, Databases, charged, make_app, marker_of, path_to

pytestmark = [pytest.mark.usefixtures("no_faults"), pytest.mark.postgresql]

LOOPS = ["asyncio", "uvloop"]


class Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config):
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets=None):
        try:
            await super().startup(sockets)
        finally:
            self.listening.set()


@contextmanager
def serving(app, loop):
    """``host:port`` of the application behind uvicorn, in a thread with a loop of its own."""
    config = uvicorn.Config(app, loop=loop, lifespan="on", log_config=None, timeout_graceful_shutdown=10)
    server = Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        server.listening.wait(timeout=30)
        assert server.started
        yield "{}:{}".format(*listener.getsockname())
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


async def talk(address, marker):
    async with websockets.connect(f"ws://{address}{path_to('websocket', marker)}", proxy=None) as connection:
        for word in ("message 0", "message 1"):
            await connection.send(word)
            assert await connection.recv() == f"{marker}:{word}"


async def visit(address, visits):
    """Make all requests at once: `visits` has the kind of endpoint for each marker."""
    limits = httpx2.Limits(max_connections=50, max_keepalive_connections=50)
    async with httpx2.AsyncClient(base_url=f"http://{address}", limits=limits, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(
            talk(address, marker) if KINDS[name].websocket else client.get(path_to(name, marker))
            for marker, name in visits.items()
        ))  # fmt: skip


@pytest.fixture(scope="module")
def databases(tmp_path_factory, postgres_url):
    return Databases(tmp_path_factory.mktemp("attribution") / "test.db", postgres_url)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("loop", LOOPS)
def test_statements_of_every_kind_of_endpoint_are_found_in_their_own_request(databases, witness, loop, stack):
    visits = {f"{name}-{number}": name for name in KINDS for number in range(3)}

    with serving(make_app(databases, witness, stack), loop) as address:
        asyncio.run(visit(address, visits))
        records = witness.take(len(visits))

    found = {marker_of(record): charged(record) for record in records}
    assert found == {marker: KINDS[name].tags(marker, stack) for marker, name in visits.items()}


@pytest.mark.parametrize("loop", LOOPS)
def test_statements_of_requests_on_one_kept_alive_connection_are_not_mixed(databases, witness, loop):
    names = [name for name, kind in KINDS.items() if not kind.websocket]

    async def visit_in_turn(address):
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(base_url=f"http://{address}", limits=limits, trust_env=False) as client:
            for name in names:
                await client.get(path_to(name, name))

    with serving(make_app(databases, witness), loop) as address:
        asyncio.run(visit_in_turn(address))
        records = witness.take(len(names))

    assert {marker_of(record): charged(record) for record in records} == {
        name: KINDS[name].tags(name) for name in names
    }
    assert len({record.recording.started_at for record in records}) == len(names)


@pytest.mark.parametrize("loop", LOOPS)
def test_not_one_statement_of_500_concurrent_requests_is_misattributed(databases, witness, loop):
    names = list(KINDS)
    markers = random.Random(4).sample(range(500), 500)
    visits = {f"request-{number}": names[number % len(names)] for number in markers}

    with serving(make_app(databases, witness), loop) as address:
        before = sqltrace.missed_statements()
        asyncio.run(visit(address, visits))
        records = witness.take(500)
        after = sqltrace.missed_statements()

    found = {marker_of(record): charged(record) for record in records}
    assert found == {marker: KINDS[name].tags(marker) for marker, name in visits.items()}
    lost = sum(name in LOST for name in visits.values())
    assert (after.unattributed - before.unattributed, after.late - before.late) == (lost, 0)
