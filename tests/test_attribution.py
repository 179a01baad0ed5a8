"""Each statement is found in the recording of its own request. Here in one event loop, without a server."""

import asyncio
import gc
import random
import weakref
from contextlib import asynccontextmanager

import httpx2
import pytest
from starlette.testclient import TestClient

import sqltrace
from tests.asgi import Witness
from tests.attribution_app import KINDS, LOST, STACKS, Databases, charged, make_app, marker_of, path_to

pytestmark = [pytest.mark.usefixtures("no_faults"), pytest.mark.postgresql]

HTTP_KINDS = [name for name, kind in KINDS.items() if not kind.websocket]


@pytest.fixture(scope="module")
def databases(tmp_path_factory, postgres_url):
    return Databases(tmp_path_factory.mktemp("attribution") / "test.db", postgres_url)


@asynccontextmanager
async def client_of(app):
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.fixture(scope="module", params=STACKS)
def visited(request, databases):
    """The stack, and the records of three requests to each kind of endpoint, made all at once."""
    app = make_app(databases, witness := Witness(), request.param)
    paths = [path_to(name, f"{name}-{number}") for number in range(3) for name in HTTP_KINDS]

    async def main():
        async with client_of(app) as client:
            await asyncio.gather(*(client.get(path) for path in paths))

    asyncio.run(main())
    return request.param, {marker_of(record): record for record in witness.take(len(paths))}


@pytest.mark.parametrize("name", HTTP_KINDS)
def test_statements_are_found_in_their_own_request(visited, name):
    stack, records = visited
    markers = [f"{name}-{number}" for number in range(3)]

    found = [charged(records[marker]) for marker in markers]

    assert found == [KINDS[name].tags(marker, stack) for marker in markers]


def test_statements_after_the_last_byte_are_told_apart(databases, witness):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            for name in HTTP_KINDS:
                await client.get(path_to(name, name))

    asyncio.run(main())

    found = {marker_of(record): charged(record, "after_response") for record in witness.take(len(HTTP_KINDS))}
    assert found == {name: sorted(f"{name}:{word}" for word in KINDS[name].after) for name in HTTP_KINDS}


@pytest.mark.parametrize("stack", STACKS)
def test_statements_of_a_websocket_are_found_in_its_own_recording(databases, witness, stack):
    app = make_app(databases, witness, stack)

    with TestClient(app) as client:
        for marker in ("socket-0", "socket-1"):
            with client.websocket_connect(path_to("websocket", marker)) as socket:
                answers = []
                for word in ("message 0", "message 1"):
                    socket.send_text(word)
                    answers.append(socket.receive_text())
                assert answers == [f"{marker}:message 0", f"{marker}:message 1"]

    found = {marker_of(record): charged(record) for record in witness.take(2)}
    assert found == {marker: KINDS["websocket"].tags(marker, stack) for marker in ("socket-0", "socket-1")}


def test_not_one_statement_of_500_concurrent_requests_is_misattributed(databases, witness):
    app = make_app(databases, witness)
    visits = {f"request-{number}": HTTP_KINDS[number % len(HTTP_KINDS)] for number in range(500)}
    order = random.Random(4).sample(sorted(visits), 500)

    async def main():
        async with client_of(app) as client:
            await asyncio.gather(*(client.get(path_to(visits[marker], marker)) for marker in order))

    asyncio.run(main())

    found = {marker_of(record): charged(record) for record in witness.take(500)}
    assert found == {marker: KINDS[name].tags(marker) for marker, name in visits.items()}


def test_statements_of_the_lifespan_are_in_no_request(databases, witness):
    app = make_app(databases, witness)
    before = sqltrace.missed_statements().unattributed

    with TestClient(app) as client:
        client.get(path_to("def_endpoint", "only"))

    assert [charged(record) for record in witness.take()] == [["only:body"]]
    assert sqltrace.missed_statements().unattributed - before >= len(databases.sync) + len(databases.asynchronous)


@pytest.mark.parametrize("name", LOST)
def test_statement_of_a_bare_thread_is_counted_as_unattributed(databases, witness, name):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            before = sqltrace.missed_statements()
            await client.get(path_to(name, "only"))
            return before, sqltrace.missed_statements()

    before, after = asyncio.run(main())

    assert [charged(record) for record in witness.take()] == [[]]
    assert (after.unattributed - before.unattributed, after.late - before.late) == (1, 0)


@pytest.mark.parametrize("name", ["thread_with_context", "executor_with_context"])
def test_statement_of_a_thread_run_in_a_copy_of_the_context_is_not_lost(databases, witness, name):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            before = sqltrace.missed_statements()
            await client.get(path_to(name, "only"))
            return before, sqltrace.missed_statements()

    before, after = asyncio.run(main())

    assert [charged(record) for record in witness.take()] == [KINDS[name].tags("only")]
    assert after == before


def test_statement_of_a_middleware_outside_ours_is_counted_as_unattributed(databases, witness):
    app = make_app(databases, witness, "ours inside")

    async def main():
        async with client_of(app) as client:
            before = sqltrace.missed_statements().unattributed
            await client.get(path_to("async_session_on_asyncpg", "only"))
            return sqltrace.missed_statements().unattributed - before

    assert asyncio.run(main()) == 2
    assert [charged(record) for record in witness.take()] == [["only:body"]]


def test_statement_of_a_task_that_outlives_its_request_is_counted_as_late(databases, witness):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            await client.get(path_to("outliving_task", "first"))
            before = sqltrace.missed_statements()
            app.state.release.set()
            await app.state.task
            await client.get(path_to("async_session_on_asyncpg", "second"))
            return before, sqltrace.missed_statements()

    before, after = asyncio.run(main())

    first, second = witness.take(2)
    assert (charged(first), charged(second)) == (["first:body"], ["second:body"])
    assert (first.recording.late_count, second.recording.late_count) == (1, 0)
    assert (after.late - before.late, after.unattributed - before.unattributed) == (1, 0)


def test_late_statement_still_counts_in_a_recording_around_the_request(databases, witness):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            with sqltrace.record() as outer:
                await client.get(path_to("outliving_task", "only"))
                inside = outer.statement_count
                app.state.release.set()
                await app.state.task
            return inside, outer

    inside, outer = asyncio.run(main())

    assert (inside, outer.statement_count, outer.late_count) == (1, 2, 0)
    assert witness.take()[0].recording.late_count == 1


def test_task_that_outlives_its_request_does_not_keep_the_recording_alive(databases, witness):
    app = make_app(databases, witness)

    async def main():
        async with client_of(app) as client:
            await client.get(path_to("outliving_task", "only"))
            recording = weakref.ref(witness.take()[0].recording)
            gc.collect()
            kept, running = recording() is not None, not app.state.task.done()
            app.state.release.set()
            await app.state.task
            return kept, running

    assert asyncio.run(main()) == (False, True)
