"""The tables of the bookmarking service. Both mappings, guilty and mended, stand on these."""

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", String(200), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("refresh_token", String(64), nullable=False, unique=True),
    Column("refreshed_at", DateTime),
)

contents = Table(
    "contents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("url", String(500), nullable=False),
    Column("title", String(200), nullable=False),
    Column("description", Text, nullable=False),
    Column("bookmarked", Boolean, nullable=False),
    Column("created_at", DateTime, nullable=False),
)

video_metadata = Table(
    "video_metadata",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("content_id", ForeignKey("contents.id"), nullable=False, unique=True),
    Column("length", String(16), nullable=False),
)

post_metadata = Table(
    "post_metadata",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("content_id", ForeignKey("contents.id"), nullable=False, unique=True),
    Column("excerpt", Text, nullable=False),
)

tags = Table(
    "tags",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(50), nullable=False),
    Column("color", String(7), nullable=False),
)

articles = Table(
    "articles",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("title", String(200), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", DateTime, nullable=False),
)

comments = Table(
    "comments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("article_id", ForeignKey("articles.id"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("created_at", DateTime, nullable=False),
)

content_tag = Table(
    "content_tag",
    metadata,
    Column("content_id", ForeignKey("contents.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True, index=True),
)

article_tag = Table(
    "article_tag",
    metadata,
    Column("article_id", ForeignKey("articles.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True, index=True),
)
