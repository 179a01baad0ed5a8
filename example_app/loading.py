"""
The same page with each `lazy=` of a relationship, `/loading/{strategy}`: three users with their contents.

What its log line tells (`tests/test_loading.py` holds it), and where it differs with `AsyncSession`:

    joined               one query; eager_joins: asked 1 table, sent 2
    select               a query and 3 lazy loads; async: an error, with the finding missing_greenlet
    selectin, subquery   a query and one load
    immediate            a query and 3 immediate loads
    noload               a query, and nothing in the answer; deprecated in SQLAlchemy 2.1
    raise, raise_on_sql  a query and an error, with the finding raise_load
    dynamic              a query, and 3 for the collections; async: an error, with the finding missing_greenlet
    write_only           a query, and 3 for the collections
"""

import warnings
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Path
from sqlalchemy import Select, select
from sqlalchemy.exc import SADeprecationWarning, SAWarning
from sqlalchemy.orm import DeclarativeBase, relationship

from example_app import async_api, sync_api, tables

Strategy = Literal[
    "joined", "select", "selectin", "subquery", "immediate", "noload", "raise", "raise_on_sql", "dynamic", "write_only"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Titles = dict[str, list[str]]


def _user(strategy: Strategy) -> type[Any]:
    class Base(DeclarativeBase):
        metadata = tables.metadata

    class Content(Base):
        __table__ = tables.contents

    class User(Base):
        __table__ = tables.users

        contents = relationship(Content, lazy=strategy, order_by=tables.contents.c.id)

    with warnings.catch_warnings():
        # SQLAlchemy 2.1: it leaves out what is there, without a word. Here to be seen.
        warnings.filterwarnings("ignore", ".*noload", SADeprecationWarning)
        # Each mapping of these tables could write the same foreign keys; nothing is written through them.
        warnings.filterwarnings("ignore", "relationship .* will copy column", SAWarning)
        Base.registry.configure()
    return User


USERS = {strategy: _user(strategy) for strategy in STRATEGIES}
ChosenStrategy = Annotated[Strategy, Path(description="The `lazy=` of `User.contents`.")]


def _users(user: type[Any]) -> Select[Any]:
    return select(user).order_by(user.id).limit(3)


sync_loading = APIRouter(prefix="/loading")
async_loading = APIRouter(prefix="/loading")


@sync_loading.get("/{strategy}")
def titles(strategy: ChosenStrategy, session: sync_api.OpenSession) -> Titles:
    users = session.scalars(_users(USERS[strategy])).unique().all()
    if strategy == "write_only":
        return {user.name: _titles(session.scalars(user.contents.select())) for user in users}
    return {user.name: _titles(user.contents) for user in users}


@async_loading.get("/{strategy}")
async def titles_async(strategy: ChosenStrategy, session: async_api.OpenSession) -> Titles:
    users = (await session.scalars(_users(USERS[strategy]))).unique().all()
    if strategy == "write_only":
        return {user.name: _titles(await session.scalars(user.contents.select())) for user in users}
    return {user.name: _titles(user.contents) for user in users}


def _titles(contents: Any) -> list[str]:
    return [content.title for content in contents]
