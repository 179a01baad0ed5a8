"""The endpoints with `AsyncSession`: all of them on the event loop."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from sqlalchemy.ext.asyncio import AsyncSession

from example_app.bodies import AccessToken, ContentOut, RefreshToken, TagOut
from example_app.queries import Queries


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.async_sessions() as session:
        yield session


OpenSession = Annotated[AsyncSession, Depends(open_session)]


def async_router(queries: Queries) -> APIRouter:
    """The endpoints over one mapping."""
    router = APIRouter(prefix="/api")

    @router.post("/users/token/refresh")
    async def refresh_token(body: RefreshToken, session: OpenSession) -> AccessToken:
        user_id = await session.scalar(queries.refresh(body.refresh_token, datetime.now(UTC).replace(tzinfo=None)))
        if user_id is None:
            raise HTTPException(401)
        await session.commit()
        return AccessToken.of(user_id, body.refresh_token)

    @router.get("/contents/bookmarks/user/{user_id}")
    async def bookmarks_of_user(user_id: int, session: OpenSession) -> list[ContentOut]:
        contents = (await session.scalars(queries.bookmarks_of_user(user_id))).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    @router.get("/tags/user/{user_id}")
    async def tags_of_user(user_id: int, session: OpenSession) -> list[TagOut]:
        tags = (await session.scalars(queries.tags_of_user(user_id))).unique().all()
        return [TagOut.model_validate(tag) for tag in tags]

    @router.get("/contents/user/{user_id}/all")
    async def contents_of_user(user_id: int, session: OpenSession) -> list[ContentOut]:
        contents = (await session.scalars(queries.contents_of_user(user_id))).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    @router.get("/tags/{tag_id}/contents/all")
    async def contents_of_tag(tag_id: int, session: OpenSession) -> list[ContentOut]:
        contents = (await session.scalars(queries.contents_of_tag(tag_id))).unique().all()
        return [ContentOut.model_validate(content) for content in contents]

    return router
