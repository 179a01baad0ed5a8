"""
What it costs to tell why a statement ran, and what eager joins made of it.

    python tests/benchmarks/origins.py

`sqltrace.capture.origin.explain` is called again for statements as they run, many times; the fastest
time counts, as other work on the machine only adds. What is done once for a compiled statement is timed on
its own, for the SELECT of the example's case with six eager joins.
"""

from __future__ import annotations

import platform
import timeit
import warnings
from typing import Any

import sqlalchemy
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import SAWarning
from sqlalchemy.orm import Session, immediateload, selectinload, subqueryload
from sqlalchemy.pool import StaticPool

import sqltrace
from example_app import guilty, mended
from sqltrace.capture import joins, origin, statements

warnings.simplefilter("ignore", SAWarning)  # the example maps its tables twice, and says so at length

ROUNDS, CALLS = 500, 20
explain = origin.explain
fastest: dict[str, float] = {}


def timed_explain(execution: Any, purpose: Any, context: Any) -> None:
    explain(execution, purpose, context)
    times = timeit.repeat(lambda: explain(execution, purpose, context), number=CALLS, repeat=ROUNDS)
    kind = execution.origin.kind
    fastest[kind] = min(*times, fastest.get(kind, 1.0) * CALLS) / CALLS


def run() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guilty.Base.metadata.create_all(engine)
    tables = guilty.Base.metadata.tables
    with engine.begin() as connection:
        connection.execute(insert(tables["users"]).values(id=1, email="", name="", refresh_token=""))
        connection.execute(insert(tables["tags"]).values(id=1, user_id=1, name="", color=""))
    with sqltrace.record(), Session(engine) as session:
        session.execute(text("SELECT 1"))
        tag = session.get_one(guilty.Tag, 1)
        session.expire(tag)
        print(f"{tag.name}{len(tag.user.articles) or ''}", end="")
        for option in (selectinload, subqueryload, immediateload):
            session.expunge_all()
            session.scalars(select(mended.Tag).options(option(mended.Tag.contents))).all()


def study() -> float:
    compiled = select(guilty.Article).compile()
    return min(timeit.repeat(lambda: joins.find_widening(compiled), number=1, repeat=5_000))


if __name__ == "__main__":
    statements.explain = timed_explain
    run()
    print(f"SQLAlchemy {sqlalchemy.__version__}, Python {platform.python_version()}")
    for kind, seconds in sorted(fastest.items(), key=lambda item: item[1]):
        print(f"{seconds * 1e6:8.2f} µs  for each statement of origin {kind}")
    print(f"{study() * 1e6:8.2f} µs  once for a compiled statement with six eager joins")
