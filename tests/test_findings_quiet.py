"""Legitimate ways to load, among them those that other tools complain about: nothing is told."""

import pytest
from sqlalchemy import Column, MetaData, Table, Text, create_engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session, contains_eager, defaultload, joinedload, selectinload, subqueryload, undefer

import sqltrace
from tests.scenarios import RECORDERS, Scenarios, authors, check

SCENARIOS = Scenarios()


@SCENARIOS.add()
def one_query(session, shelf):
    authors(session, shelf)


@SCENARIOS.add()
def one_and_one(session, shelf):
    author = session.get(shelf.Author, 1)
    len(author.books)


@SCENARIOS.add()
def lazy_for_a_few(session, shelf):
    for author in authors(session, shelf)[:4]:
        len(author.books)


@SCENARIOS.add()
def selectin_by_an_option(session, shelf):
    for author in authors(session, shelf, selectinload(shelf.Author.books).selectinload(shelf.Book.topics)):
        for book in author.books:
            len(book.topics)


@SCENARIOS.add(books="selectin", topics="selectin", publisher="selectin")
def selectin_by_the_mapping(session, shelf):
    authors(session, shelf)


@SCENARIOS.add()
def selectin_in_batches_of_500(session, shelf):
    session.execute(insert(shelf.Author), [{"name": "more", "bio": ""} for _ in range(6_000)])
    authors(session, shelf, selectinload(shelf.Author.books))


@SCENARIOS.add()
def selectin_for_each_chunk_of_yield_per(session, shelf):
    session.execute(insert(shelf.Author), [{"name": "more", "bio": ""} for _ in range(600)])
    query = select(shelf.Author).options(selectinload(shelf.Author.books)).execution_options(yield_per=20)
    for author in session.scalars(query):
        len(author.books)


@SCENARIOS.add()
def subquery_by_an_option(session, shelf):
    authors(session, shelf, subqueryload(shelf.Author.books))


@SCENARIOS.add()
def joined_many_to_one_by_an_option(session, shelf):
    for author in authors(session, shelf, joinedload(shelf.Author.publisher)):
        str(author.publisher.name)


@SCENARIOS.add(publisher="joined")
def joined_many_to_one_by_the_mapping(session, shelf):
    session.execute(insert(shelf.Author), [{"name": "more", "bio": "", "publisher_id": 1} for _ in range(3_000)])
    authors(session, shelf)


@SCENARIOS.add(books="joined")
def small_collection_joined_by_the_mapping(session, shelf):
    authors(session, shelf)


@SCENARIOS.add(books="joined", prizes="joined")
def two_small_collections_of_one_object(session, shelf):
    session.scalars(select(shelf.Author).where(shelf.Author.id == 1)).unique().one()


@SCENARIOS.add(author="joined", publisher="joined", topics="joined")
def many_tables_for_one_object(session, shelf):
    session.get(shelf.Book, 1)


@SCENARIOS.add()
def contains_eager_of_an_explicit_join(session, shelf):
    session.scalars(
        select(shelf.Author).join(shelf.Author.publisher).options(contains_eager(shelf.Author.publisher))
    ).all()


@SCENARIOS.add()
def explicit_join_of_many_tables(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(3_000)])
    session.execute(
        select(shelf.Book, shelf.Author, shelf.Publisher).join(shelf.Book.author).join(shelf.Author.publisher)
    ).all()


@SCENARIOS.add()
def objects_that_savepoints_of_their_own_have_rolled_back(session, shelf):
    for author in authors(session, shelf):
        savepoint = session.begin_nested()
        author.name = "other"
        session.flush()
        savepoint.rollback()
        str(author.name)


@SCENARIOS.add()
def pages_by_offset(session, shelf):
    for page in range(15):
        session.scalars(select(shelf.Book).order_by(shelf.Book.id).limit(3).offset(3 * page)).all()


@SCENARIOS.add()
def pages_by_key(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(500)])
    last = 0
    for _ in range(20):
        books = session.scalars(select(shelf.Book).where(shelf.Book.id > last).order_by(shelf.Book.id).limit(20)).all()
        last = books[-1].id


@SCENARIOS.add()
def batches_by_in(session, shelf):
    for start in range(0, 240, 20):
        session.scalars(select(shelf.Book).where(shelf.Book.id.in_(range(start, start + 20)))).all()


@SCENARIOS.add()
def page_and_its_total(session, shelf):
    session.scalar(select(func.count()).select_from(shelf.Book))
    session.scalars(select(shelf.Book).limit(10)).all()


@SCENARIOS.add()
def rows_one_by_one_from_one_statement(session, shelf):
    for _ in session.execute(select(shelf.Book)).yield_per(2):
        pass


@SCENARIOS.add()
def same_query_for_different_purposes(session, shelf):
    session.get(shelf.Author, 1)
    session.get(shelf.Author, 2)
    session.get(shelf.Author, 3)
    session.get(shelf.Author, 4)
    session.get(shelf.Author, 5)
    session.get(shelf.Author, 6)
    session.get(shelf.Author, 7)
    session.get(shelf.Author, 8)
    session.get(shelf.Author, 9)
    session.get(shelf.Author, 10)
    session.get(shelf.Author, 11)


@SCENARIOS.add()
def lazy_at_different_lines(session, shelf):
    found = authors(session, shelf)
    len(found[0].books)
    len(found[1].books)
    len(found[2].books)
    len(found[3].books)
    len(found[4].books)
    len(found[5].books)


@SCENARIOS.add()
def two_short_loops(session, shelf):
    for number in range(1, 6):
        session.get(shelf.Author, number)
    for number in range(6, 10):
        session.get(shelf.Author, number)


@SCENARIOS.add()
def get_of_what_the_session_has(session, shelf):
    found = authors(session, shelf)
    for author in found:
        session.get(shelf.Author, author.id)


@SCENARIOS.add()
def bulk_insert(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(1_000)])
    session.commit()


@SCENARIOS.add()
def unit_of_work_of_many(session, shelf):
    session.add_all(shelf.Book(title="new", author_id=1) for _ in range(50))
    session.commit()


@SCENARIOS.add()
def updates_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.execute(update(shelf.Author).where(shelf.Author.id == number).values(name="other"))
    session.commit()


@SCENARIOS.add()
def deletes_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.execute(delete(shelf.Book).where(shelf.Book.id == number))
    session.commit()


@SCENARIOS.add()
def commit_and_one_refresh(session, shelf):
    author = shelf.Author(name="new", bio="")
    session.add(author)
    session.commit()
    session.refresh(author)


@SCENARIOS.add()
def commit_and_touch_a_few(session, shelf):
    found = authors(session, shelf)
    session.commit()
    for author in found[:4]:
        str(author.name)


@SCENARIOS.add(session={"expire_on_commit": False})
def all_touched_after_a_commit_that_expires_nothing(session, shelf):
    found = authors(session, shelf)
    session.commit()
    for author in found:
        str(author.name)


@SCENARIOS.add()
def same_query_twice(session, shelf):
    for _ in range(2):
        session.scalars(select(shelf.Author).where(shelf.Author.id == 1)).all()


@SCENARIOS.add()
def read_again_after_each_write(session, shelf):
    for _ in range(5):
        session.execute(update(shelf.Author).where(shelf.Author.id == 1).values(name="other"))
        session.execute(select(shelf.Author.name).where(shelf.Author.id == 1)).all()
    session.commit()


@SCENARIOS.add()
def statement_without_a_table(session, shelf):
    for _ in range(20):
        session.execute(text("SELECT 1"))


@SCENARIOS.add()
def undeferred_column(session, shelf):
    for author in authors(session, shelf, undefer(shelf.Author.bio)):
        str(author.bio)


@SCENARIOS.add()
def unused_relationships(session, shelf):
    for author in authors(session, shelf, defaultload(shelf.Author.books)):
        str(author.name)


@SCENARIOS.add()
def nothing_found_in_a_loop_of_inserts(session, shelf):
    for _ in range(12):
        session.execute(insert(shelf.Book).values(title="new", author_id=1))
    session.rollback()


@SCENARIOS.add()
def no_statement_at_all(session, shelf):
    pass


@RECORDERS
@pytest.mark.parametrize("case", SCENARIOS)
def test_nothing_is_told(case, record, no_faults):
    check(case, record)


def test_pages_in_the_words_of_the_standard_are_no_n_plus_one(postgres_url):
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE numbers AS SELECT generate_series(1, 300) AS n"))
        with sqltrace.record() as recording:
            for last in range(0, 240, 20):
                page = text("SELECT n FROM numbers WHERE n > :last ORDER BY n FETCH FIRST 20 ROWS ONLY")
                connection.execute(page, {"last": last}).all()
    engine.dispose()

    assert [(group.count, group.rows) for group in recording.groups] == [(12, 240)]
    assert sqltrace.diagnose(recording) == []


@pytest.mark.parametrize("lock", ["FOR UPDATE", "FOR SHARE"])
def test_row_that_is_locked_again_is_no_repeated_statement(postgres_url, lock):
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE numbers AS SELECT generate_series(1, 3) AS n"))
        connection.commit()
        with sqltrace.record() as recording:
            for _ in range(5):
                connection.execute(text(f"SELECT n FROM numbers WHERE n = :n {lock}"), {"n": 1}).all()
                connection.commit()
    engine.dispose()

    assert recording.statement_count == 5
    assert sqltrace.diagnose(recording) == []


def test_minus_one_and_minus_two_are_different_parameters(memory_engine):
    """Which Python's `hash` takes for the same."""
    with memory_engine.begin() as connection:
        connection.execute(text("CREATE TABLE folders (parent INTEGER)"))
    with sqltrace.record() as recording, memory_engine.connect() as connection:
        for number in (-1, -2, -1, -2):
            connection.execute(text("SELECT parent FROM folders WHERE parent = :number"), {"number": number}).all()

    assert sqltrace.diagnose(recording) == []


@pytest.mark.parametrize("sql", ["SELECT name FROM settings", "SELECT name FROM settings WHERE key = :key"])
def test_same_question_to_each_database_of_many_tenants_is_no_repetition(tmp_path, sql):
    engines = [create_engine(f"sqlite:///{tmp_path}/{number}.db") for number in range(12)]
    for engine in engines:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE settings (key INTEGER, name TEXT)"))
    with sqltrace.record() as recording:
        for number, engine in enumerate(engines):
            with engine.connect() as connection:
                connection.execute(text(sql), {"key": number % 2} if ":key" in sql else {}).all()
    for engine in engines:
        engine.dispose()

    assert recording.groups[0].count == 12
    assert sqltrace.diagnose(recording) == []


def test_same_query_in_each_schema_of_many_is_no_repetition(postgres_url):
    engine = create_engine(postgres_url)
    settings = Table("settings", MetaData(), Column("name", Text))
    schemas = [f"tenant_{number}" for number in range(12)]
    with engine.connect() as connection:
        for schema in schemas:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            connection.execute(text(f"CREATE TABLE {schema}.settings (name text)"))
        with sqltrace.record() as by_path:
            for schema in schemas:
                connection.execute(text(f"SET LOCAL search_path TO {schema}"))
                connection.execute(text("SELECT name FROM settings")).all()
        with sqltrace.record() as by_option:
            for schema in schemas:
                with Session(connection.execution_options(schema_translate_map={None: schema})) as session:
                    session.execute(select(settings.c.name)).all()
        connection.rollback()
    engine.dispose()

    assert (by_path.statement_count, by_option.statement_count) == (24, 12)
    assert sqltrace.diagnose(by_path) == sqltrace.diagnose(by_option) == []
