"""What goes in and out of the endpoints as JSON."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator


def _sorted_names(tags: Iterable[Any]) -> list[str]:
    return sorted(tag.name for tag in tags)


def _sorted_titles(articles: Iterable[Any]) -> list[str]:
    return sorted(article.title for article in articles)


class RefreshToken(BaseModel):
    refresh_token: str


class AccessToken(BaseModel):
    user_id: int
    access_token: str
    expires_in: int = 900

    @classmethod
    def of(cls, user_id: int, refresh_token: str) -> Self:
        """A stand-in for a signed token: the same for the same refresh token, so that flavours can be compared."""
        return cls(user_id=user_id, access_token=sha256(refresh_token.encode()).hexdigest())


class VideoOut(BaseModel, from_attributes=True):
    length: str


class PostOut(BaseModel, from_attributes=True):
    excerpt: str


class ContentOut(BaseModel, from_attributes=True):
    id: int
    url: str
    title: str
    description: str
    bookmarked: bool
    video_metadata: VideoOut | None
    post_metadata: PostOut | None
    tags: Annotated[list[str], BeforeValidator(_sorted_names)]


class TagOut(BaseModel, from_attributes=True):
    id: int
    name: str
    color: str
    articles: Annotated[list[str], BeforeValidator(_sorted_titles)]
