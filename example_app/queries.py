"""What the endpoints ask of the database: the same for both mappings and both kinds of session."""

import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Update, select, update
from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import configure_mappers, joinedload, selectinload
from sqlalchemy.sql.base import ExecutableOption

from example_app import guilty, mended
from example_app.tables import content_tag, contents, tags, users


@dataclass(frozen=True)
class Queries:
    """
    The endpoints' statements over one mapping.

    Attributes:
        content: The mapping's class for the table `contents`.
        tag: The mapping's class for the table `tags`.
        content_options: What to load with a content; empty where the mapping's defaults decide it.
        tag_options: What to load with a tag; likewise.
    """

    content: type[Any]
    tag: type[Any]
    content_options: tuple[ExecutableOption, ...] = ()
    tag_options: tuple[ExecutableOption, ...] = ()

    def refresh(self, token: str, now: datetime) -> Update:
        """Touch the token's one row. Its user's id comes back, or no row."""
        return update(users).where(users.c.refresh_token == token).values(refreshed_at=now).returning(users.c.id)

    def bookmarks_of_user(self, user_id: int) -> Select[Any]:
        return self.contents_of_user(user_id).where(contents.c.bookmarked)

    def contents_of_user(self, user_id: int) -> Select[Any]:
        return self._contents().where(contents.c.user_id == user_id)

    def contents_of_tag(self, tag_id: int) -> Select[Any]:
        return self._contents().join(content_tag).where(content_tag.c.tag_id == tag_id)

    def tags_of_user(self, user_id: int) -> Select[Any]:
        return select(self.tag).where(tags.c.user_id == user_id).order_by(tags.c.id).options(*self.tag_options)

    def _contents(self) -> Select[Any]:
        return select(self.content).order_by(contents.c.id).options(*self.content_options)


with warnings.catch_warnings():
    # Two mappings of the same tables could write the same foreign keys; here nothing is written through them.
    warnings.filterwarnings("ignore", "relationship .* will copy column", SAWarning)
    configure_mappers()

GUILTY = Queries(content=guilty.Content, tag=guilty.Tag)

MENDED = Queries(
    content=mended.Content,
    tag=mended.Tag,
    content_options=(
        joinedload(mended.Content.video_metadata),
        joinedload(mended.Content.post_metadata),
        selectinload(mended.Content.tags),
    ),
    tag_options=(selectinload(mended.Tag.articles),),
)
