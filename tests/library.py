"""
A mapping with any `lazy=` for its relationships, and a database with three authors of two books each.

Made anew for each setting: a relationship has one.
"""

from functools import cache
from types import SimpleNamespace

from sqlalchemy import Column, ForeignKey, String, Table, create_engine, insert
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import StaticPool

AUTHORS, BOOKS = 3, 6


@cache
def mapping(lazy="select", of_books="select"):
    """
    Classes `Author`, `Book`, `Topic`.

    Args:
        lazy: Of `Author.books`, a collection.
        of_books: Of `Book.author` (many to one) and `Book.topics` (many to many).
    """

    class Base(DeclarativeBase):
        pass

    class Author(Base):
        __tablename__ = "authors"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))
        bio: Mapped[str] = mapped_column(String(50), deferred=True)
        books: Mapped[list["Book"]] = relationship(back_populates="author", lazy=lazy, order_by="Book.id")

    class Book(Base):
        __tablename__ = "books"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
        author: Mapped[Author] = relationship(back_populates="books", lazy=of_books)
        topics: Mapped[list["Topic"]] = relationship(secondary=lambda: book_topic, lazy=of_books)

    class Topic(Base):
        __tablename__ = "topics"
        id: Mapped[int] = mapped_column(primary_key=True)

    book_topic = Table(
        "book_topic",
        Base.metadata,
        Column("book_id", ForeignKey("books.id"), primary_key=True),
        Column("topic_id", ForeignKey("topics.id"), primary_key=True),
    )
    return SimpleNamespace(Base=Base, Author=Author, Book=Book, Topic=Topic)


def fill(connection, library):
    library.Base.metadata.create_all(connection)
    tables = library.Base.metadata.tables
    rows = {
        "authors": [{"id": n, "name": f"name {n}", "bio": "long"} for n in range(1, AUTHORS + 1)],
        "books": [{"id": n, "author_id": (n - 1) // 2 + 1} for n in range(1, BOOKS + 1)],
        "topics": [{"id": 1}, {"id": 2}],
        "book_topic": [{"book_id": n, "topic_id": n % 2 + 1} for n in range(1, BOOKS + 1)],
    }
    for name, values in rows.items():
        connection.execute(insert(tables[name]), values)
    connection.commit()


def open_library(library):
    """An engine on a filled SQLite database in memory."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        fill(connection, library)
    return engine


async def open_async_library(library):
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.connect() as connection:
        await connection.run_sync(fill, library)
    return engine
