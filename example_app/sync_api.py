"""The endpoints with `Session`: Starlette runs each in a thread."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from sqlalchemy.orm import Session

from example_app.bodies import AccessToken, ContentOut, RefreshToken, TagOut
from example_app.queries import Queries


def open_session(request: Request) -> Iterator[Session]:
    with request.app.state.sync_sessions() as session:
        yield session


OpenSession = Annotated[Session, Depends(open_session)]


def sync_router(queries: Queries) -> APIRouter:
    """The endpoints over one mapping."""
    router = APIRouter(prefix="/api")

    @router.post("/users/token/refresh")
    def refresh_token(body: RefreshToken, session: OpenSession) -> AccessToken:
        user_id = session.scalar(queries.refresh(body.refresh_token, datetime.now(UTC).replace(tzinfo=None)))
        if user_id is None:
            raise HTTPException(401)
        session.commit()
        return AccessToken.of(user_id, body.refresh_token)

    @router.get("/contents/bookmarks/user/{user_id}")
    def bookmarks_of_user(user_id: int, session: OpenSession) -> list[ContentOut]:
        contents = session.scalars(queries.bookmarks_of_user(user_id)).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    @router.get("/tags/user/{user_id}")
    def tags_of_user(user_id: int, session: OpenSession) -> list[TagOut]:
        tags = session.scalars(queries.tags_of_user(user_id)).unique().all()
        return [TagOut.model_validate(tag) for tag in tags]

    @router.get("/contents/user/{user_id}/all")
    def contents_of_user(user_id: int, session: OpenSession) -> list[ContentOut]:
        contents = session.scalars(queries.contents_of_user(user_id)).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    @router.get("/tags/{tag_id}/contents/all")
    def contents_of_tag(tag_id: int, session: OpenSession) -> list[ContentOut]:
        contents = session.scalars(queries.contents_of_tag(tag_id)).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    return router
