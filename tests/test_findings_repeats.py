"""One statement for each object, and the same one again and again: what is told."""

from itertools import count

import pytest
from jinja2 import Template
from pydantic import BaseModel
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import (
    immediateload,
    joinedload,
    lazyload,
    selectinload,
)

from tests.scenarios import RECORDERS, Scenarios, authors, check

SCENARIOS = Scenarios()


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def lazy_collection_in_a_loop(session, shelf):
    for author in authors(session, shelf):
        len(author.books)


@SCENARIOS.add("n_plus_one", fix=".options(joinedload(Author.publisher))")
def lazy_many_to_one_in_a_loop(session, shelf):
    for author in authors(session, shelf):
        str(author.publisher.name)


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Book.topics))")
def lazy_many_to_many_in_a_loop(session, shelf):
    for book in session.scalars(select(shelf.Book)):
        len(book.topics)


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))", books="joined")
def lazy_by_an_option_over_a_joined_mapping(session, shelf):
    for author in authors(session, shelf, lazyload(shelf.Author.books)):
        len(author.books)


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def immediate_by_an_option(session, shelf):
    authors(session, shelf, immediateload(shelf.Author.books))


@SCENARIOS.add("n_plus_one", fix=".options(joinedload(Author.publisher))", publisher="immediate")
def immediate_by_the_mapping(session, shelf):
    authors(session, shelf)


@SCENARIOS.add("n_plus_one", fix=".options(undefer(Author.bio))")
def deferred_column_in_a_loop(session, shelf):
    for author in authors(session, shelf):
        str(author.bio)


@SCENARIOS.add("n_plus_one", "n_plus_one")
def lazy_within_lazy(session, shelf):
    for author in authors(session, shelf):
        for book in author.books:
            len(book.topics)


@SCENARIOS.add("n_plus_one", fix=".options(defaultload(Author.books).selectinload(Book.topics))")
def lazy_below_a_selectin_load(session, shelf):
    for author in authors(session, shelf, selectinload(shelf.Author.books)):
        for book in author.books:
            len(book.topics)


@SCENARIOS.add("n_plus_one", fix=".options(defaultload(Author.books).selectinload(Book.topics))")
def lazy_below_an_eager_join(session, shelf):
    for author in authors(session, shelf, joinedload(shelf.Author.books)):
        for book in author.books:
            len(book.topics)


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def lazy_in_a_response_model(session, shelf):
    class BookOut(BaseModel, from_attributes=True):
        title: str

    class AuthorOut(BaseModel, from_attributes=True):
        name: str
        books: list[BookOut]

    for author in authors(session, shelf):
        AuthorOut.model_validate(author)


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def lazy_in_a_template(session, shelf):
    page = Template("{% for author in authors %}{{ author.name }}: {{ author.books | length }}{% endfor %}")
    page.render(authors=authors(session, shelf))


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def lazy_in_a_comprehension(session, shelf):
    [len(author.books) for author in authors(session, shelf)]


@SCENARIOS.add("n_plus_one", fix=".options(selectinload(Author.books))")
def lazy_after_a_legacy_query(session, shelf):
    for author in session.query(shelf.Author):
        len(author.books)


@SCENARIOS.add("n_plus_one")
def lazy_over_a_page(session, shelf):
    for author in session.scalars(select(shelf.Author).limit(5)):
        len(author.books)


@SCENARIOS.add("n_plus_one", fix="select(Author).where(Author.id.in_(ids))")
def get_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.get(shelf.Author, number)


@SCENARIOS.add("n_plus_one", fix="select(Book).where(Book.author_id.in_(author_ids))")
def select_by_id_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.scalars(select(shelf.Book).where(shelf.Book.author_id == number)).all()


@SCENARIOS.add("n_plus_one")
def first_by_id_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.scalars(select(shelf.Book).where(shelf.Book.author_id == number).limit(1)).first()


@SCENARIOS.add("n_plus_one")
def legacy_first_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.query(shelf.Book).filter_by(author_id=number).first()


@SCENARIOS.add("n_plus_one")
def count_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.scalar(select(func.count()).select_from(shelf.Book).where(shelf.Book.author_id == number))


@SCENARIOS.add("n_plus_one")
def raw_sql_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.execute(text("SELECT * FROM books WHERE author_id = :author"), {"author": number}).all()


@SCENARIOS.add("n_plus_one")
def raw_sql_with_values_in_the_text_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.execute(text(f"SELECT * FROM books WHERE author_id = {number}")).all()


@SCENARIOS.add("n_plus_one")
def merge_in_a_loop(session, shelf):
    for number in range(1, 13):
        session.merge(shelf.Author(id=number, name="other"))
    session.rollback()


@SCENARIOS.add("n_plus_one", fix="select(Author)")
def get_in_a_loop_of_what_loads_by_selectin(session, shelf):
    for number in range(1, 13):
        session.get(shelf.Author, number, options=[selectinload(shelf.Author.books)])


@SCENARIOS.add("refresh_after_commit", fix="expire_on_commit=False")
def all_touched_again_after_a_commit(session, shelf):
    found = authors(session, shelf)
    session.commit()
    for author in found:
        str(author.name)


@SCENARIOS.add("n_plus_one", fix="select(Author).where(Author.id.in_(ids)).execution_options(populate_existing=True)")
def created_and_refreshed_one_by_one(session, shelf):
    made = [shelf.Author(id=100 + number, name="new", bio="") for number in range(8)]
    session.add_all(made)
    session.commit()
    for author in made:
        session.refresh(author)


@SCENARIOS.add("repeated_statement", fix="keep the first result and pass it on, or keep it on request.state")
def same_query_again_and_again(session, shelf):
    for _ in range(5):
        session.scalars(select(shelf.Author).where(shelf.Author.id == 1)).all()


@SCENARIOS.add("repeated_statement")
def same_query_in_a_long_loop(session, shelf):
    for _ in range(30):
        session.execute(select(shelf.Author.name).where(shelf.Author.id == 1)).all()


def traced_in_comments(session, comment):
    """As tracers do: each execution has a comment of its own."""
    spans = count()

    def before_cursor_execute(connection, cursor, statement, parameters, context, executemany):
        return comment.format(statement, next(spans)), parameters

    event.listen(session.get_bind(), "before_cursor_execute", before_cursor_execute, retval=True)


@SCENARIOS.add("repeated_statement")
def same_query_with_the_span_in_a_comment_behind_it(session, shelf):
    traced_in_comments(session, "{} /*traceparent='00-ab-{}-01'*/")
    for _ in range(12):
        session.execute(select(shelf.Author.name).where(shelf.Author.id == 1)).all()


@SCENARIOS.add("repeated_statement")
def same_sql_with_the_span_in_a_comment_before_it(session, shelf):
    traced_in_comments(session, "/* span {1} */ {0}")
    for _ in range(12):
        session.execute(text("SELECT name FROM authors WHERE id = 1")).all()


@SCENARIOS.add("n_plus_one")
def different_queries_with_the_span_in_a_comment(session, shelf):
    traced_in_comments(session, "{} /* span {} */")
    for number in range(1, 13):
        session.execute(select(shelf.Author.name).where(shelf.Author.id == number)).all()


@RECORDERS
@pytest.mark.parametrize("case", SCENARIOS)
def test_repetition_is_told(case, record, no_faults):
    check(case, record)
