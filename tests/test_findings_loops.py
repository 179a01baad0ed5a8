"""Statements that run again and again: what is no loop, and the one query in place of those that are."""

import asyncio
import sys
from itertools import count

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, exists, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, with_loader_criteria
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable

import sqltrace
from sqltrace.findings.costs import cost_at_once, kept_of
from sqltrace.findings.n_plus_one import _is_batch
from tests import shelf as shelves
from tests.asgi import recorded, run, websocket_scope
from tests.loops import get, observed

IDS = range(1, shelves.AUTHORS + 1)


@pytest.fixture
def shelf():
    return shelves.mapping()


@pytest.fixture
def engine(shelf):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        shelves.fill(connection, shelf)
    yield engine
    engine.dispose()


def record(engine, work):
    with sqltrace.record() as recording, Session(engine) as session:
        work(session)
    return recording


def findings(engine, work):
    return sqltrace.diagnose(record(engine, work))


class TestTheSameAgain:
    @pytest.mark.parametrize(
        "before",
        [
            "WITH new(id) AS (SELECT max(id) + 1 FROM topics) INSERT INTO topics SELECT id FROM new",
            "CREATE TEMPORARY TABLE IF NOT EXISTS others (id INTEGER)",
            "SELECT set_tenant(1)",
        ],
        ids=["WITH … INSERT", "CREATE", "a function that is called for its effect"],
    )
    def test_is_not_told_where_something_may_have_changed_it(self, engine, before):
        with engine.connect() as connection:
            connection.connection.driver_connection.create_function("set_tenant", 1, lambda tenant: tenant)

        def work(session):
            for _ in range(6):
                session.execute(text(before))
                session.execute(text("SELECT count(*) FROM topics")).scalar()

        assert findings(engine, work) == []

    def test_is_told_of_all_that_recordings_within_have_compared(self, engine):
        def work(session):
            for _ in range(20):
                with sqltrace.record():
                    session.execute(text("SELECT count(*) FROM topics")).scalar()

        [finding] = findings(engine, work)

        assert finding.message.startswith("SELECT topics ran 20 times with the same parameters, in ")

    @pytest.mark.parametrize("rows", ["VALUES ({}, 'new')", "SELECT {}, 'new'"])
    def test_is_told_where_another_table_was_written(self, engine, rows):
        def work(session):
            for number in range(6):
                session.execute(text(f"INSERT INTO publishers {rows.format(100 + number)}"))
                session.execute(text("SELECT count(*) FROM topics")).scalar()

        assert [finding.kind for finding in findings(engine, work)] == ["repeated_statement"]

    @pytest.mark.parametrize("column", ["random()", "gen_random_uuid()"])
    def test_is_not_told_of_what_differs_each_time(self, engine, column):
        with engine.connect() as connection:
            connection.connection.driver_connection.create_function("gen_random_uuid", 0, lambda: 1)

        def work(session):
            for _ in range(6):
                session.execute(text(f"SELECT {column} FROM topics LIMIT 1")).scalar()

        assert findings(engine, work) == []


@pytest.mark.parametrize(
    ("condition", "batch"),
    [
        ("t.id IN (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", True),
        ("t.id in (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", True),
        ("t.id IN (%(id_1)s, %(id_2)s, %(id_3)s, %(id_4)s, %(id_5)s, %(a)s, %(b)s, %(c)s, %(d)s, %(e)s)", True),
        ("(t.a, t.b) IN (($1, $2), ($3, $4), ($5, $6), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))", True),
        ("t.id = ANY(%(ids)s)", True),
        ("t.id = any ($1::INTEGER[])", True),
        ("t.id = ANY(CAST(:ids AS INTEGER[]))", True),
        ("t.id IN (?, ?, ?, ?, ?)", False),
        ("t.id IN (?, ?) AND t.b IN (?, ?, ?, ?, ?, ?, ?, ?, ?)", False),
        ("(t.a, t.b) IN (($1, $2), ($3, $4), ($5, $6), (1, 2), (1, 2))", False),
        ("t.id IN (coalesce(?, ?, ?, ?, ?, ?, ?, ?, ?, ?))", False),
        ("$1 = ANY(t.tags)", False),
        ("t.id = ?", False),
    ],
)
def test_query_for_many_at_once_is_a_batch(condition, batch):
    assert _is_batch(f"SELECT t.a FROM t WHERE {condition} AND t.b = ?") is batch


@pytest.mark.parametrize("each", [8, 12, 30])
def test_loop_over_what_is_in_the_order_of_what_it_asks_for_repeats_nothing(engine, shelf, each):
    def work(session):
        for author in range(1, 4):
            for _ in range(each):
                session.execute(text("SELECT p.name FROM publishers p WHERE p.id = :id"), {"id": author}).all()

    assert [finding.kind for finding in findings(engine, work)] == ["n_plus_one"]


class TestOneForAll:
    def test_says_what_becomes_of_limit(self, engine, shelf):
        def work(session):
            for number in IDS:
                of_author = select(shelf.Book).where(shelf.Book.author_id == number)
                session.scalars(of_author.order_by(shelf.Book.title).limit(1)).all()

        [finding] = findings(engine, work)

        assert finding.fix == (
            "select(Book).where(Book.author_id.in_(author_ids))"
            "  # once, before the loop, with row_number() for each of them in place of LIMIT"
        )

    def test_needs_no_limit_for_a_key(self, engine, shelf):
        def work(session):
            for number in IDS:
                session.scalars(select(shelf.Book).where(shelf.Book.id == number).limit(1)).all()

        [finding] = findings(engine, work)

        assert finding.fix == "select(Book).where(Book.id.in_(ids))  # once, before the loop"

    def test_needs_no_limit_for_a_key_beside_a_condition_of_all(self, engine, shelf):
        """As `with_loader_criteria` adds one, of what is deleted."""

        def work(session):
            alive = with_loader_criteria(shelf.Book, shelf.Book.title.is_not(None))
            for number in IDS:
                session.scalars(select(shelf.Book).where(shelf.Book.id == number).limit(1).options(alive)).all()

        [finding] = findings(engine, work)

        assert finding.fix == "the same query once, before the loop, with Book.id.in_(ids)"

    @pytest.mark.parametrize(
        ("columns", "fix"),
        [
            (lambda book: [book], "select(Book).where(Book.title.in_(titles))  # once, before the loop"),
            (lambda book: [book.id], "one statement for all, before the loop: WHERE books.title IN (…)"),
        ],
        ids=["objects", "columns"],
    )
    def test_may_be_for_what_is_taken_where_only_the_last_found_nothing(self, engine, shelf, columns, fix):
        def work(session):
            number = 1
            while session.execute(select(*columns(shelf.Book)).where(shelf.Book.title == f"title {number}")).first():
                number += 1

        def at_once(session):
            taken = set(session.scalars(select(shelf.Book.title).where(shelf.Book.title.startswith("title "))))
            assert next(number for number in count(1) if f"title {number}" not in taken) == 37

        [finding] = findings(engine, work)

        assert finding.fix == f"{fix}; or by what they begin with, if they are tried until one is free"
        assert findings(engine, at_once) == []

    @pytest.mark.parametrize(
        ("most", "before", "titles"),
        [
            (37, 0, [*range(1, 38), 1]),
            (2, 2, [*range(1, 38)]),
            (100, 0, [*range(1, 37)]),
            (100, 0, [*range(37, 50)]),
        ],
        ids=["the last kept is not the last", "none is kept", "all found something", "none found anything"],
    )
    def test_is_not_for_what_is_taken_where_not_only_the_last_found_nothing(self, engine, shelf, most, before, titles):
        with sqltrace.record(max_statements=most) as recording, Session(engine) as session:
            for _ in range(before):
                session.execute(text("SELECT 1"))
            for number in titles:
                session.scalars(select(shelf.Book).where(shelf.Book.title == f"title {number}")).all()

        [finding] = sqltrace.diagnose(recording)

        assert finding.fix == "select(Book).where(Book.title.in_(titles))  # once, before the loop"

    def test_may_be_for_what_is_taken_where_it_is_not_known_what_was_found(self, engine, shelf):
        def work(session):
            for number in IDS:
                session.scalar(select(exists().where(shelf.Book.title == f"title {number}")))

        [finding] = findings(engine, work)

        assert finding.fix == (
            "one statement for all, before the loop: SELECT DISTINCT books.title … WHERE books.title IN (…)"
            "; or by what they begin with, if they are tried until one is free"
        )

    @pytest.mark.parametrize("column", ["id", "publisher_id"])
    def test_is_for_keys_also_where_the_last_found_nothing(self, engine, shelf, column):
        def work(session):
            for number in range(1, shelves.AUTHORS + 2):
                session.scalars(select(shelf.Author).where(getattr(shelf.Author, column) == number)).all()

        [finding] = findings(engine, work)

        assert finding.fix == f"select(Author).where(Author.{column}.in_({column}s))  # once, before the loop"

    def test_is_for_keys_that_are_names_also_where_the_last_found_nothing(self, memory_engine):
        class Base(DeclarativeBase):
            pass

        class Country(Base):
            __tablename__ = "countries"
            code: Mapped[str] = mapped_column(String(2), primary_key=True)

        Base.metadata.create_all(memory_engine)
        with Session(memory_engine) as session:
            session.add_all([Country(code=f"{number:02}") for number in IDS])
            session.commit()

        def work(session):
            for number in range(1, shelves.AUTHORS + 2):
                session.scalars(select(Country).where(Country.code == f"{number:02}")).all()

        [finding] = findings(memory_engine, work)

        assert finding.fix == "select(Country).where(Country.code.in_(codes))  # once, before the loop"

    def test_says_what_becomes_of_limit_in_raw_sql(self, engine):
        def work(session):
            for number in IDS:
                session.execute(text("SELECT b.id FROM books b WHERE b.author_id = :id LIMIT 1"), {"id": number}).all()

        [finding] = findings(engine, work)

        assert finding.fix == (
            "one statement for all, before the loop: WHERE b.author_id IN (…), with row_number() for each of them in"
            " place of LIMIT"
        )

    def test_names_the_column_also_on_the_right(self, engine):
        def work(session):
            for number in IDS:
                session.execute(text("select b.id from books b where :id = b.author_id"), {"id": number}).all()

        [finding] = findings(engine, work)

        assert finding.fix == "one statement for all, before the loop: WHERE b.author_id IN (…)"

    @pytest.mark.parametrize("column", ["main.books.author_id", '"main"."books"."author_id"'])
    def test_takes_no_part_of_a_longer_name_for_the_column(self, engine, column):
        def work(session):
            for number in IDS:
                session.execute(text(f"SELECT id FROM books WHERE :id = {column}"), {"id": number}).all()

        [finding] = findings(engine, work)

        assert "main" not in finding.fix

    @pytest.mark.parametrize(
        "column",
        ['"books".author_id', 'books."author_id"', "`books`.`author_id`"],
        ids=["table", "column", "backticks"],
    )
    def test_names_the_column_also_where_it_is_quoted(self, engine, column):
        """As SQLAlchemy quotes reserved words: ``"user"``, ``"order"``."""

        def work(session):
            for number in IDS:
                session.execute(text(f"SELECT id FROM books WHERE {column} = :id"), {"id": number}).all()

        [finding] = findings(engine, work)

        assert finding.fix == f"one statement for all, before the loop: WHERE {column} IN (…)"

    def test_of_a_loop_with_a_session_for_each_is_in_one_session(self, engine, shelf):
        def work(_):
            for number in IDS:
                with Session(engine) as session:
                    session.get(shelf.Author, number)

        [finding] = findings(engine, work)

        assert finding.fix == (
            "select(Author).where(Author.id.in_(ids))  # once for all, in one session, in place of session.get()"
        )

    @pytest.mark.parametrize(
        ("lock", "kept"),
        [
            (True, ".with_for_update()"),
            ({"skip_locked": True}, ".with_for_update(…)"),
            ({"read": True}, ".with_for_update(…)"),
        ],
    )
    @pytest.mark.postgresql
    def test_keeps_a_lock(self, accounts, lock, kept):
        def work(session):
            for number in IDS:
                session.get(Account, number, with_for_update=lock)

        [finding] = findings(accounts, work)

        assert finding.fix == (
            f"select(Account).where(Account.id.in_(ids)){kept}"
            "  # once for all, in one session, in place of session.get()"
        )

    @pytest.mark.postgresql
    def test_is_not_asked_for_where_each_is_locked_in_its_own_transaction(self, accounts):
        def work(session):
            for number in IDS:
                with session.begin():
                    session.get(Account, number, with_for_update=True)

        assert findings(accounts, work) == []


RESOLVE = "def resolve(resolvers):\n    return [resolver() for resolver in resolvers]\n"


@pytest.mark.parametrize(
    ("ask", "fix"),
    [
        (
            lambda session, shelf, number: session.get(shelf.Author, number),
            "select(Author).where(Author.id.in_(ids))  # once, {}, in place of session.get()",
        ),
        (
            lambda session, shelf, number: session.scalars(select(shelf.Book).filter_by(author_id=number)).all(),
            "select(Book).where(Book.author_id.in_(author_ids))  # once, {}",
        ),
        (
            lambda session, shelf, number: session.execute(
                text("SELECT count(*) FROM books WHERE books.author_id = :number"), {"number": number}
            ).all(),
            "one statement for all, {}: SELECT books.author_id, … WHERE books.author_id IN (…) GROUP BY books.author_id",
        ),
    ],
    ids=["get", "query", "text"],
)
def test_what_resolvers_of_graphql_ask_is_for_a_dataloader(engine, shelf, ask, fix, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphql", sys)
    graphql = {}
    exec(compile(RESOLVE, "/venv/site-packages/graphql/execution/execute.py", "exec"), graphql)

    def resolver(number):
        def resolve():
            with Session(engine) as session:
                ask(session, shelf, number)

        return resolve

    [finding] = findings(engine, lambda _: graphql["resolve"](map(resolver, IDS)))

    assert finding.fix == fix.format("by a DataLoader of the resolvers, or before the loop within one")


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "sqltrace_accounts"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def accounts(postgres_url):
    engine = create_engine(postgres_url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(Account), [{"id": number} for number in IDS])
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


class TestConversation:
    """Each message of a websocket, and each of an event stream, may have a loop of its own."""

    @pytest.mark.parametrize(("each", "found"), [(1, False), (6, True)])
    def test_loads_of_many_messages_are_no_loop(self, engine, shelf, each, found):
        async def app(scope, receive, send):
            while (message := await receive())["type"] != "websocket.disconnect":
                if message["type"] == "websocket.connect":
                    await send({"type": "websocket.accept"})
                    continue
                with Session(engine) as session:
                    for author in session.scalars(select(shelf.Author).limit(each)):
                        len(author.books)

        recording = converse(app, "websocket.connect", *12 * ["websocket.receive"], "websocket.disconnect")

        assert ("n_plus_one" in {finding.kind for finding in sqltrace.diagnose(recording)}) is found

    def test_same_question_in_each_message_is_no_repetition(self, engine):
        async def app(scope, receive, send):
            while (await receive())["type"] != "websocket.disconnect":
                with Session(engine) as session:
                    session.execute(text("SELECT count(*) FROM topics")).scalar()

        recording = converse(app, "websocket.connect", *7 * ["websocket.receive"], "websocket.disconnect")

        assert recording.statement_count == 8
        assert "repeated_statement" not in {finding.kind for finding in sqltrace.diagnose(recording)}

    @pytest.mark.parametrize(("content_type", "found"), [(b"text/event-stream", False), (b"application/json", True)])
    def test_loads_of_many_events_are_no_loop(self, engine, shelf, content_type, found):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
            for number in IDS:
                with Session(engine) as session:
                    len(session.get(shelf.Author, number).books)
                await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        observer, records = observed(app)
        asyncio.run(get(observer, "/"))

        assert ("n_plus_one" in {finding.kind for finding in sqltrace.diagnose(records["/"])}) is found


def converse(app, *kinds):
    observer, records = observed(app)
    run(observer, websocket_scope(), [{"type": kind, "text": ""} for kind in kinds])
    return records["/"]


def test_one_load_in_each_of_several_databases_is_no_loop(shelf):
    engines = [create_engine("sqlite://", poolclass=StaticPool) for _ in range(6)]
    for engine in engines:
        with engine.connect() as connection:
            shelves.fill(connection, shelf)
    with sqltrace.record() as recording:
        for engine in engines:
            with Session(engine) as session:
                len(session.get(shelf.Author, 1).books)
    for engine in engines:
        engine.dispose()

    assert [finding.kind for finding in sqltrace.diagnose(recording)] == []


@pytest.mark.parametrize(("times", "found"), [(1, []), (10, ["n_plus_one"])])
def test_one_query_in_each_of_several_schemas_is_no_loop(engine, times, found):
    notes = Table("notes", MetaData(schema="tenant"), Column("id", Integer), Column("state", String))
    with sqltrace.record() as recording, engine.connect() as connection:
        for tenant in [f"tenant_{number}" for number in range(10)]:  # as many as SQLite takes
            connection.execute(text(f"ATTACH ':memory:' AS {tenant}"))
            options = {"schema_translate_map": {"tenant": tenant}}
            connection.execute(CreateTable(notes), execution_options=options)
            for number in range(times):
                query = select(notes).where(notes.c.id == number, notes.c.state == "open")
                connection.execute(query, execution_options=options).all()

    assert [finding.kind for finding in sqltrace.diagnose(recording)] == found


HALF_SECONDS = [number / 2 for number in range(12)]


@pytest.mark.parametrize(
    ("starts", "longest", "objects", "count", "cost"),
    [
        ([0] * 12, 0.5, 0.0, 12, 0.5),
        ([0] * 11 + [1.4], 1.5, 0.0, 12, 1.4 + 0.5),
        ([0] * 11 + [0.6], 0.5, 0.25, 12, 0.6 + 0.5 + 0.25),
        (HALF_SECONDS, 0.5, 0.0, 12, 6.0),
        ([0, 0, *HALF_SECONDS[2:]], 0.5, 0.0, 12, 6.0),
        ([0] * 11 + [11.6], 0.5, 0.0, 24, 12.0),
        ([0] * 12, 0.5, 0.0, 24, 1.0),
        ([], 0.5, 0.0, 24, 12.0),
    ],
    ids=[
        "all at once", "the longest is not the latest", "with objects", "one after the other", "time for all",
        "time for those that are not kept", "as those that are kept", "none is kept",
    ],
)  # fmt: skip
def test_statements_at_once_cost_the_time_that_they_took_together(clock, starts, longest, objects, count, cost):
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with recorded(clock, max_statements=len(starts)) as recording, engine.connect() as connection:
        for number in range(12):
            connection.execute(text("SELECT :number"), {"number": number}).all()
    engine.dispose()
    group = recording.groups[-1]
    began, lengths = clock(), [longest, *[0.5] * 11][: len(starts)]
    for execution, start, length in zip(kept_of(recording, group), starts, lengths, strict=True):
        execution.started = began + round(start * 1e9)  # as of tasks
        execution.ended, execution.objects = execution.started + round(length * 1e9), round(objects * 1e9)
    group.count, group._longest, group.objects = count, round(longest * 1e9), count * objects
    group.total = longest + (count - 1) * 0.5
    group.samples.first, group.samples.last = began, began + round(max(starts, default=0) * 1e9)

    assert cost_at_once(recording, group) == pytest.approx(cost)
