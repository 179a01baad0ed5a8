"""
A mapping with any `lazy=` for its relationships, and databases for it.

Each author has a publisher of their own, books and prizes; three topics are for all books.
"""

import asyncio
from functools import cache
from types import SimpleNamespace

from sqlalchemy import Column, ForeignKey, String, Table, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool

from tests.asgi import recorded, ticking

AUTHORS, BOOKS, PRIZES, TOPICS = 12, 3, 4, 3  # as many as make findings


@cache
def mapping(**lazy):
    """Classes; `lazy` by relationship: ``books="joined"``, ``publisher=…``, ``prizes=…``, ``topics=…``."""

    def related(name, **options):
        return relationship(lazy=lazy.get(name, "select"), **options)

    class Base(DeclarativeBase):
        pass

    class Publisher(Base):
        __tablename__ = "publishers"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))

    class Author(Base):
        __tablename__ = "authors"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))
        bio: Mapped[str] = mapped_column(String(50), deferred=True)
        publisher_id: Mapped[int | None] = mapped_column(ForeignKey("publishers.id"))
        publisher: Mapped[Publisher | None] = related("publisher")
        books: Mapped[list["Book"]] = related("books", back_populates="author", order_by="Book.id")
        prizes: Mapped[list["Prize"]] = related("prizes")

    class Book(Base):
        __tablename__ = "books"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(String(50))
        author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
        author: Mapped[Author] = related("author", back_populates="books")
        topics: Mapped[list["Topic"]] = related("topics", secondary=lambda: book_topic)

    class Prize(Base):
        __tablename__ = "prizes"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))

    class Topic(Base):
        __tablename__ = "topics"
        id: Mapped[int] = mapped_column(primary_key=True)

    book_topic = Table(
        "book_topic",
        Base.metadata,
        Column("book_id", ForeignKey("books.id"), primary_key=True),
        Column("topic_id", ForeignKey("topics.id"), primary_key=True),
    )
    return SimpleNamespace(Base=Base, Author=Author, Book=Book, Prize=Prize, Publisher=Publisher, Topic=Topic)


def fill(connection, shelf, authors=AUTHORS, books=BOOKS):
    """
    Args:
        books: Of each author.
    """
    shelf.Base.metadata.create_all(connection)
    tables = shelf.Base.metadata.tables
    all_authors, all_books = range(1, authors + 1), range(1, authors * books + 1)
    rows = {
        "publishers": [{"id": n, "name": f"publisher {n}"} for n in all_authors],
        "authors": [{"id": n, "name": f"author {n}", "bio": "long", "publisher_id": n} for n in all_authors],
        "books": [{"id": n, "title": f"title {n}", "author_id": (n - 1) // books + 1} for n in all_books],
        "prizes": [{"id": n, "author_id": (n - 1) // PRIZES + 1} for n in range(1, authors * PRIZES + 1)],
        "topics": [{"id": n} for n in range(1, TOPICS + 1)],
        "book_topic": [{"book_id": n, "topic_id": n % TOPICS + 1} for n in all_books],
    }
    for name, values in rows.items():
        connection.execute(insert(tables[name]), values)
    connection.commit()


def open_shelf(shelf, authors=3, books=2):
    """An engine on a filled SQLite database in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        fill(connection, shelf, authors, books)
    return engine


async def open_async_shelf(shelf, authors=3, books=2):
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.connect() as connection:
        await connection.run_sync(fill, shelf, authors, books)
    return engine


def record_sync(work, shelf, **session_options):
    """The recording of ``work(session, shelf)`` with a `Session`."""
    engine = open_shelf(shelf, AUTHORS, BOOKS)
    with recorded(ticking()) as recording, Session(engine, **session_options) as session:
        work(session, shelf)
    engine.dispose()
    return recording


def record_async(work, shelf, **session_options):
    """The same with an `AsyncSession`: ``work`` runs under `AsyncSession.run_sync`."""

    async def main():
        engine = await open_async_shelf(shelf, AUTHORS, BOOKS)
        with recorded(ticking()) as recording:
            async with AsyncSession(engine, **session_options) as session:
                await session.run_sync(work, shelf)
        await engine.dispose()
        return recording

    return asyncio.run(main())
