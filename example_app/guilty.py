"""
The mapping as the case had it: relationships load themselves, whoever asks.

One `select(Content)` becomes statements over nine tables, because `lazy="joined"` and `lazy="selectin"` hold for
every query of the program, also for the queries that SQLAlchemy writes to load other relationships.
"""

from sqlalchemy.orm import DeclarativeBase, Mapped, relationship

from example_app import tables


class Base(DeclarativeBase):
    metadata = tables.metadata


class User(Base):
    __table__ = tables.users

    contents: Mapped[list["Content"]] = relationship(back_populates="user", lazy="joined")
    tags: Mapped[list["Tag"]] = relationship(back_populates="user", lazy="joined")
    comments: Mapped[list["Comment"]] = relationship(back_populates="user", lazy="joined")
    articles: Mapped[list["Article"]] = relationship(back_populates="user")


class Content(Base):
    __table__ = tables.contents

    user: Mapped["User"] = relationship(back_populates="contents", lazy="joined")
    video_metadata: Mapped["VideoMetadata | None"] = relationship(back_populates="content", lazy="joined")
    post_metadata: Mapped["PostMetadata | None"] = relationship(back_populates="content", lazy="joined")
    tags: Mapped[list["Tag"]] = relationship(secondary=tables.content_tag, back_populates="contents", lazy="selectin")


class VideoMetadata(Base):
    __table__ = tables.video_metadata

    content: Mapped["Content"] = relationship(back_populates="video_metadata")


class PostMetadata(Base):
    __table__ = tables.post_metadata

    content: Mapped["Content"] = relationship(back_populates="post_metadata")


class Tag(Base):
    __table__ = tables.tags

    user: Mapped["User"] = relationship(back_populates="tags")
    contents: Mapped[list["Content"]] = relationship(secondary=tables.content_tag, back_populates="tags")
    # omit_join: SQLAlchemy 2.1 would leave `FROM tags` out of the load, and the case's statement has it.
    articles: Mapped[list["Article"]] = relationship(
        secondary=tables.article_tag, back_populates="tags", lazy="selectin", omit_join=False
    )


class Article(Base):
    __table__ = tables.articles

    user: Mapped["User"] = relationship(back_populates="articles", lazy="joined")
    tags: Mapped[list["Tag"]] = relationship(secondary=tables.article_tag, back_populates="articles")
    comments: Mapped[list["Comment"]] = relationship(back_populates="article")


class Comment(Base):
    __table__ = tables.comments

    user: Mapped["User"] = relationship(back_populates="comments")
    article: Mapped["Article"] = relationship(back_populates="comments")
