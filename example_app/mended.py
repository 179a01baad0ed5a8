"""
The mapping mended: no relationship loads itself.

`raise_on_sql` makes a forgotten loader option an error in the first test, not a slow endpoint or a `MissingGreenlet`.
What an endpoint needs, its query says: see `queries`.
"""

from sqlalchemy.orm import DeclarativeBase, Mapped, relationship

from example_app import tables


class Base(DeclarativeBase):
    metadata = tables.metadata


class User(Base):
    __table__ = tables.users

    contents: Mapped[list["Content"]] = relationship(back_populates="user", lazy="raise_on_sql")
    tags: Mapped[list["Tag"]] = relationship(back_populates="user", lazy="raise_on_sql")
    comments: Mapped[list["Comment"]] = relationship(back_populates="user", lazy="raise_on_sql")
    articles: Mapped[list["Article"]] = relationship(back_populates="user", lazy="raise_on_sql")


class Content(Base):
    __table__ = tables.contents

    user: Mapped["User"] = relationship(back_populates="contents", lazy="raise_on_sql")
    video_metadata: Mapped["VideoMetadata | None"] = relationship(back_populates="content", lazy="raise_on_sql")
    post_metadata: Mapped["PostMetadata | None"] = relationship(back_populates="content", lazy="raise_on_sql")
    tags: Mapped[list["Tag"]] = relationship(
        secondary=tables.content_tag, back_populates="contents", lazy="raise_on_sql"
    )


class VideoMetadata(Base):
    __table__ = tables.video_metadata

    content: Mapped["Content"] = relationship(back_populates="video_metadata", lazy="raise_on_sql")


class PostMetadata(Base):
    __table__ = tables.post_metadata

    content: Mapped["Content"] = relationship(back_populates="post_metadata", lazy="raise_on_sql")


class Tag(Base):
    __table__ = tables.tags

    user: Mapped["User"] = relationship(back_populates="tags", lazy="raise_on_sql")
    contents: Mapped[list["Content"]] = relationship(
        secondary=tables.content_tag, back_populates="tags", lazy="raise_on_sql"
    )
    articles: Mapped[list["Article"]] = relationship(
        secondary=tables.article_tag, back_populates="tags", lazy="raise_on_sql"
    )


class Article(Base):
    __table__ = tables.articles

    user: Mapped["User"] = relationship(back_populates="articles", lazy="raise_on_sql")
    tags: Mapped[list["Tag"]] = relationship(
        secondary=tables.article_tag, back_populates="articles", lazy="raise_on_sql"
    )
    comments: Mapped[list["Comment"]] = relationship(back_populates="article", lazy="raise_on_sql")


class Comment(Base):
    __table__ = tables.comments

    user: Mapped["User"] = relationship(back_populates="comments", lazy="raise_on_sql")
    article: Mapped["Article"] = relationship(back_populates="comments", lazy="raise_on_sql")
