"""What is found in the case that this project exists for, and that the fix mends it."""

import asyncio
import re
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession

import sqltrace
from example_app import guilty
from example_app.app import create_app
from example_app.data import SIZES, USER_ID, generate, refresh_token, seed_database
from example_app.database import open_postgresql, open_sqlite
from example_app.queries import GUILTY
from example_app.replay import Flavour, page_load

pytestmark = pytest.mark.usefixtures("no_garbage_collection")
SEED = 303
CALLS = tuple({str(call): call for call in page_load(refresh_token(USER_ID, SEED))}.values())  # each once


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request, tmp_path_factory):
    if request.param == "postgresql":
        database = open_postgresql(request.getfixturevalue("postgres_url"))
    else:
        database = open_sqlite(tmp_path_factory.mktemp("case") / "example.sqlite")
    database.create_tables()
    for _ in seed_database(database.sync_engine, generate(SIZES["case"], seed=SEED)):
        pass
    database.analyze()
    yield database
    database.drop_tables()
    database.sync_engine.dispose()


def visit(database, witness, flavour, calls=CALLS):
    """The records of these calls, one after the other."""
    app = create_app(database)
    app.user_middleware.clear()
    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=[witness])

    async def run():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://example", timeout=120) as client:
            try:
                for call in calls:
                    await client.request(call.method, flavour.prefix + call.path, json=call.body)
            finally:
                await database.async_engine.dispose()

    asyncio.run(run())
    return witness.take(len(calls))


def line_of(relationship):
    """``example_app/guilty.py:61`` of the relationship's declaration."""
    owner, key = relationship.split(".")
    lines = Path(guilty.__file__).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"class {owner}("))
    number = next(number for number in range(start, len(lines)) if lines[number].startswith(f"    {key}: "))
    return f"example_app/guilty.py:{number + 1}"


@pytest.mark.parametrize("session", ["sync", "async"])
def test_guilty_endpoint_is_told_what_its_mapping_did(database, witness, session, no_faults):
    [record] = visit(database, witness, Flavour("guilty", session), CALLS[2:3])

    [finding] = [finding for finding in record.findings if finding.kind == "cartesian_product"]

    assert finding.relationship == "Tag.articles"
    message = finding.message
    assert message.startswith("the selectin load of Tag.articles asked for 1 table")
    assert "was sent with 9 tables and 33 columns" in message
    place = {name: f"{name} ({line_of(name)})" for name in re.findall(r"\b[A-Z]\w+\.\w+(?= \()", message)}
    assert (
        f"the mapping joins {place['Article.user']} → ({place['User.contents']} → ({place['Content.video_metadata']},"
        f" {place['Content.post_metadata']}), {place['User.tags']}, {place['User.comments']})"
    ) in message
    assert "User.contents × User.tags × User.comments multiply each other into 14,406 rows for " in message
    assert ("making objects on the event loop" in message) is (session == "async")
    assert finding.cost == pytest.approx(record.recording.time_account.objects, rel=2)
    assert finding.parents == f"SELECT tags at {finding.call_site}"
    assert ("lazyload" in finding.fix) is (session == "sync")


@pytest.mark.parametrize("session", ["sync", "async"])
def test_mended_endpoints_have_no_finding(database, witness, session, no_faults):
    visit(database, witness, Flavour("mended", session))  # imports drivers and compiles, which holds the loop
    records = visit(database, witness, Flavour("mended", session))

    assert {record.path: record.findings for record in records} == {record.path: [] for record in records}
    assert len(records) == len(CALLS)


@pytest.mark.parametrize("session", ["sync", "async"])
def test_innocent_guilty_endpoint_has_no_finding(database, witness, session):
    [record] = visit(database, witness, Flavour("guilty", session), CALLS[:1])

    assert record.findings == []


def pasted(query, findings):
    """The query with the fixes of the findings, as they would be pasted."""
    names = {name: getattr(orm, name) for name in ("defaultload", "selectinload", "raiseload", "lazyload")}
    for finding in findings:
        if finding.fix.startswith(".options("):
            query = eval(f"query{finding.fix}", names | vars(guilty) | {"query": query})
    return query


@pytest.mark.parametrize("ask", [GUILTY.tags_of_user, GUILTY.contents_of_user], ids=["tags", "contents"])
def test_pasted_fix_mends_the_query(database, ask):
    async def load(query):
        with sqltrace.record() as recording:
            async with AsyncSession(database.async_engine) as session:
                (await session.scalars(query)).unique().all()
        await database.async_engine.dispose()
        return recording

    before = asyncio.run(load(ask(USER_ID)))
    after = asyncio.run(load(pasted(ask(USER_ID), sqltrace.diagnose(before))))

    assert before.row_count > 10_000
    assert after.row_count < 200
    assert sqltrace.diagnose(after) == []


def test_objects_of_a_load_are_counted_once_however_often_its_rows_repeat_them(database):
    with sqltrace.record() as recording, orm.Session(database.sync_engine) as session:
        tags = session.scalars(GUILTY.tags_of_user(USER_ID)).unique().all()
        articles = {article.id for tag in tags for article in tag.articles}

    [load] = [group for group in recording.groups if group.origin.relationship == "Tag.articles"]

    assert load.rows == 14_406
    assert load.roots == len(articles)


def test_innocent_request_is_told_whom_it_waited_for(database, witness):
    app = create_app(database)
    app.user_middleware.clear()
    app.add_middleware(sqltrace.SQLTraceMiddleware, sinks=[witness])

    async def page():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://example", timeout=120) as client:
            guilty_ones = asyncio.gather(*(client.get(f"/guilty/async{call.path}") for call in CALLS[4:]))
            while not guilty_ones.done():
                await client.post(f"/guilty/async{CALLS[0].path}", json=CALLS[0].body)
            await guilty_ones
        await database.async_engine.dispose()

    waits = {}
    for _ in range(5):  # the loop may be held just while a refresh has answered, and puts its session away
        asyncio.run(page())
        waits |= {
            record.recording.time_account.loop_wait or 0.0: record
            for record in witness.records
            if record.method == "POST"
        }
        if max(waits) > 0.5:
            break
    worst = waits[max(waits)]
    account, holders = worst.recording.time_account, worst.recording.waited_for
    # Where the machine is slow, so may its database be, and that is true then.
    kinds = [finding.kind for finding in worst.findings if finding.kind != "slow_statement"]
    assert kinds == ["waited_for_loop"], (account, holders)
    [message] = [finding.message for finding in worst.findings if finding.kind == "waited_for_loop"]
    assert "held by GET /guilty/async/api/tags/{tag_id}/contents/all" in message
