"""Rows that multiply: what is told, and what is not."""

import re
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import joinedload

import sqltrace
from sqltrace.capture import objects
from sqltrace.findings import cartesian_product, eager_join, row_fan_out
from tests import shelf as shelves
from tests.scenarios import RECORDERS, Scenarios, authors, check

SCENARIOS = Scenarios()


def many_books_and_prizes(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(20)])
    session.execute(insert(shelf.Prize), [{"author_id": 1} for _ in range(20)])


@SCENARIOS.add("cartesian_product", fix=".options(selectinload(Author.books), selectinload(Author.prizes))")
def two_collections_joined_by_options(session, shelf):
    many_books_and_prizes(session, shelf)
    authors(session, shelf, joinedload(shelf.Author.books), joinedload(shelf.Author.prizes))


@SCENARIOS.add(
    "cartesian_product",
    fix=".options(selectinload(Author.books), selectinload(Author.prizes))",
    books="joined",
    prizes="joined",
)
def two_collections_joined_by_the_mapping(session, shelf):
    many_books_and_prizes(session, shelf)
    authors(session, shelf)


@SCENARIOS.add(
    "cartesian_product",
    fix=".options(defaultload(Book.author).selectinload(Author.prizes), selectinload(Book.topics))",
    author="joined",
    books="joined",
    prizes="joined",
)
def two_collections_behind_a_joined_many_to_one(session, shelf):
    many_books_and_prizes(session, shelf)
    session.scalars(
        select(shelf.Book).options(
            joinedload(shelf.Book.author).joinedload(shelf.Author.prizes), joinedload(shelf.Book.topics)
        )
    ).unique().all()


@SCENARIOS.add("row_fan_out", fix=".options(selectinload(Author.books))", books="joined")
def wide_parent_repeated_in_thousands_of_rows(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(4_000)])
    authors(session, shelf)


@SCENARIOS.add("eager_join", fix="(Book.author", author="joined", publisher="joined", topics="joined")
def many_tables_joined_by_the_mapping(session, shelf):
    session.execute(insert(shelf.Book), [{"title": "more", "author_id": 1} for _ in range(4_000)])
    session.scalars(select(shelf.Book)).unique().all()


@RECORDERS
@pytest.mark.parametrize("case", SCENARIOS)
def test_multiplied_rows_are_told(case, record, no_faults):
    check(case, record)


def test_eager_join_is_told_where_nobody_knows_the_time_of_its_objects(monkeypatch):
    monkeypatch.setattr(objects, "work", lambda: False)  # as if SQLAlchemy made them in another way
    sqltrace.uninstrument()
    recording = shelves.record_sync(authors, shelves.mapping(books="joined", publisher="joined"))

    [finding] = sqltrace.diagnose(recording, [partial(eager_join, tables=2, values=1)])

    assert re.search(r"; \d+ values came with them, [\d.]+ ms in the database\.$", finding.message)


def test_joins_that_the_query_itself_wants_are_no_eager_joins():
    def work(session, shelf):
        authors(session, shelf, joinedload(shelf.Author.books), joinedload(shelf.Author.publisher))

    recording = shelves.record_sync(work, shelves.mapping())

    assert len(recording.groups[0].widening.joins) == 2
    assert sqltrace.diagnose(recording, [partial(eager_join, tables=1, values=1)]) == []


def test_values_that_were_sent_again_are_those_of_the_parents_in_all_rows_but_the_first():
    recording = shelves.record_sync(authors, shelves.mapping(books="joined"))

    [group] = recording.groups
    [finding] = sqltrace.diagnose(recording, [partial(row_fan_out, rows=1, ratio=1.0, values=1)])

    again = (group.rows - group.roots) * group.widening.asked_columns
    assert again > 0
    assert f" sent {again:,} values again and again" in finding.message


@pytest.mark.parametrize(
    ("rule", "rows", "roots", "objects", "columns", "found"),
    [
        (cartesian_product, 100, 10, 33, 1, True),
        (cartesian_product, 99, 10, 33, 1, False),
        (cartesian_product, 100, 10, 34, 1, False),
        (cartesian_product, 102, 35, 34, 1, False),
        (row_fan_out, 500, 50, 500, 23, True),
        (row_fan_out, 499, 49, 499, 23, False),
        (row_fan_out, 500, 51, 500, 23, False),
        (row_fan_out, 1_050, 50, 1_050, 10, True),
        (row_fan_out, 1_049, 50, 1_049, 10, False),
    ],
)
def test_rows_are_too_many_from_these_numbers_on(rule, rows, roots, objects, columns, found):
    recording = shelves.record_sync(authors, shelves.mapping(books="joined", prizes="joined"))
    [group] = recording.groups
    group.rows, group.roots, group.entities = rows, roots, {"Author": objects}
    group.widening = replace(group.widening, asked_columns=columns)

    assert bool(sqltrace.diagnose(recording, [rule])) is found


@pytest.mark.parametrize(
    ("relationships", "rows", "values", "found"),
    [
        (("publisher", "books", "prizes"), 1, 10_000, True),
        (("publisher", "books", "prizes"), 1, 9_999, False),
        (("publisher", "books"), 1, 10_000, False),
        (("publisher", "books", "prizes"), None, 10_000, False),
    ],
)
def test_eager_joins_are_too_many_from_three_tables_and_ten_thousand_values_on(
    relationships, rows, values, found, no_faults
):
    recording = shelves.record_sync(authors, shelves.mapping(**dict.fromkeys(relationships, "joined")))
    [group] = recording.groups
    first, *others = group.widening.joins
    joins = replace(first, columns=values), *[replace(join, columns=0) for join in others]
    group.rows, group.widening = rows, replace(group.widening, joins=joins)

    assert bool(sqltrace.diagnose(recording, [eager_join])) is found
