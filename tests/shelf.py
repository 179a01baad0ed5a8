"""
A mapping with any `lazy=` for its relationships, and what to try on it: for the findings.

Twelve authors, each with a publisher of their own, three books and four prizes; three topics for all books.
"""

import asyncio
from functools import cache
from types import SimpleNamespace

from sqlalchemy import Column, ForeignKey, Table, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool

from tests.asgi import recorded, ticking

AUTHORS, BOOKS, PRIZES, TOPICS = 12, 3, 4, 3


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
        name: Mapped[str]

    class Author(Base):
        __tablename__ = "authors"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        bio: Mapped[str] = mapped_column(deferred=True)
        publisher_id: Mapped[int | None] = mapped_column(ForeignKey("publishers.id"))
        publisher: Mapped[Publisher | None] = related("publisher")
        books: Mapped[list["Book"]] = related("books", back_populates="author")
        prizes: Mapped[list["Prize"]] = related("prizes")

    class Book(Base):
        __tablename__ = "books"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
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


def fill(connection, shelf):
    shelf.Base.metadata.create_all(connection)
    tables = shelf.Base.metadata.tables
    authors = range(1, AUTHORS + 1)
    books = range(1, AUTHORS * BOOKS + 1)
    rows = {
        "publishers": [{"id": n, "name": f"publisher {n}"} for n in authors],
        "authors": [{"id": n, "name": f"author {n}", "bio": "long", "publisher_id": n} for n in authors],
        "books": [{"id": n, "title": f"title {n}", "author_id": (n - 1) // BOOKS + 1} for n in books],
        "prizes": [{"id": n, "author_id": (n - 1) // PRIZES + 1} for n in range(1, AUTHORS * PRIZES + 1)],
        "topics": [{"id": n} for n in range(1, TOPICS + 1)],
        "book_topic": [{"book_id": n, "topic_id": n % TOPICS + 1} for n in books],
    }
    for name, values in rows.items():
        connection.execute(insert(tables[name]), values)
    connection.commit()


def record_sync(work, shelf, **session_options):
    """The recording of ``work(session, shelf)`` with a `Session`."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        fill(connection, shelf)
    with recorded(ticking()) as recording, Session(engine, **session_options) as session:
        work(session, shelf)
    engine.dispose()
    return recording


def record_async(work, shelf, **session_options):
    """The same with an `AsyncSession`: ``work`` runs under `AsyncSession.run_sync`."""

    async def main():
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.connect() as connection:
            await connection.run_sync(fill, shelf)
        with recorded(ticking()) as recording:
            async with AsyncSession(engine, **session_options) as session:
                await session.run_sync(work, shelf)
        await engine.dispose()
        return recording

    return asyncio.run(main())
