"""
What sqltrace adds to requests that make ORM objects or read many rows: CPU time.

    python tests/benchmarks/mapped.py [--turns N] [--instructions]

As `overhead.py`, or with ``--instructions`` as `instructions.py`. The ORM is imported with the first of these requests, so that the others are without it.

The requests of an `AsyncSession` ask PostgreSQL through asyncpg, at SQLTRACE_TEST_POSTGRES if that is set.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

from sqlalchemy import Column, Engine, ForeignKey, Integer, String, insert, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Samples = dict[tuple[Any, str], list[float]]  # of one request, by workload and contender

OBJECTS, EACH = 100, 50
POSTGRESQL = os.environ.get("SQLTRACE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")


@cache
def _mapping(engine: Engine) -> Any:
    """A hundred shelves with fifty books each; the first has one label, the second a hundred."""
    from sqlalchemy.orm import DeclarativeBase, Session, relationship

    class Base(DeclarativeBase):
        pass

    class Shelf(Base):
        __tablename__ = "shelves"
        id = Column(Integer, primary_key=True)
        name = Column(String(40))
        books = relationship("Book")
        labels = relationship("Label")

    class Book(Base):
        __tablename__ = "books"
        id = Column(Integer, primary_key=True)
        shelf_id = Column(ForeignKey("shelves.id"))
        title = Column(String(40))

    class Label(Base):
        __tablename__ = "labels"
        id = Column(Integer, primary_key=True)
        shelf_id = Column(ForeignKey("shelves.id"))

    Base.registry.configure()
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(Shelf), [{"id": n, "name": f"shelf {n}"} for n in range(OBJECTS)])
        books = [{"id": n, "shelf_id": n % OBJECTS, "title": f"book {n}"} for n in range(OBJECTS * EACH)]
        session.execute(insert(Book), books)
        session.execute(insert(Label), [{"id": n, "shelf_id": 1 if n else 0} for n in range(1 + OBJECTS)])
        session.commit()
    return Shelf, Book


@cache
def _numbers() -> Any:
    """What makes sessions, and a class whose objects PostgreSQL invents."""
    from sqlalchemy import column, func, make_url
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy.orm import DeclarativeBase

    class Base(DeclarativeBase):
        pass

    number = func.generate_series(1, OBJECTS).table_valued(column("id", Integer), name="numbers").render_derived()

    class Number(Base):
        __table__ = number
        __mapper_args__ = {"primary_key": [number.c.id]}

    url = make_url(POSTGRESQL).set(drivername="postgresql+asyncpg")
    return async_sessionmaker(create_async_engine(url)), Number


async def _ask_a_session(request: Request) -> Response:
    sessions, number = _numbers()
    async with sessions() as session:
        for place in range(int(request.path_params["count"])):
            (await session.scalars(select(number).where(number.id == place + 1))).one()
    return Response(b"done")


def routes(engine: Engine) -> list[Route]:
    def endpoint(work: Callable[[Any, int], None]) -> Callable[[Request], Awaitable[Response]]:
        async def run(request: Request) -> Response:
            from sqlalchemy.orm import Session

            _mapping(engine)
            with Session(engine) as session:
                work(session, int(request.path_params["count"]))
            return Response(b"done")

        return run

    def orm(session: Any, count: int) -> None:
        shelf, _ = _mapping(engine)
        for number in range(count):
            session.scalars(select(shelf).where(shelf.id == number)).one()

    def rows(session: Any, count: int) -> None:
        _, book = _mapping(engine)
        session.connection().execute(select(book.__table__).limit(count)).all()

    def joined(session: Any, count: int) -> None:
        from sqlalchemy.orm import joinedload

        shelf, _ = _mapping(engine)
        session.scalars(select(shelf).options(joinedload(shelf.books)).limit(count // EACH)).unique().all()

    def product(session: Any, count: int) -> None:
        from sqlalchemy.orm import joinedload

        shelf, _ = _mapping(engine)
        wide = select(shelf).options(joinedload(shelf.books), joinedload(shelf.labels))
        session.scalars(wide.where(shelf.id == int(count > EACH))).unique().one()

    works = [Route(f"/{work.__name__}/{{count}}", endpoint(work)) for work in (orm, rows, joined, product)]
    return [*works, Route("/session/{count}", _ask_a_session)]


def main() -> None:
    import instructions
    from contenders import CONTENDERS, Workload, bare, recording

    parser = argparse.ArgumentParser(description="Measure what sqltrace adds to ORM objects and rows.")
    parser.add_argument("--turns", type=int, default=40, help="of each contender (default: %(default)s)")
    parser.add_argument("--instructions", action="store_true", help="count instructions under valgrind instead")
    parser.add_argument("--run-contenders", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    many = [Workload(5_000, variant) for variant in ("rows", "joined", "product")]
    few = {workload.variant: Workload(EACH, workload.variant) for workload in many}  # what does not depend on rows
    sessions = [Workload(count, "session") for count in (1, 10, 64)]
    workloads = [Workload(64, "orm"), *many, *sessions]
    CONTENDERS.clear()
    CONTENDERS.update({"bare": bare, "recording": recording})
    instructions.REQUESTS.clear()
    instructions.REQUESTS.update(dict.fromkeys([*few.values(), *workloads], 3))
    if arguments.run_contenders:
        instructions.run_contenders()
        return
    unit = "instructions" if arguments.instructions else "microseconds"
    samples = _counted() if arguments.instructions else _timed([*few.values(), *workloads], arguments.turns)
    each = f"{'instructions' if arguments.instructions else 'nanoseconds'} a row"
    _print_table(samples, workloads, few, [f"bare: {unit}", "recording: added", "in percent", each])


def _counted() -> Samples:
    import instructions

    counts = instructions.count_instructions(__file__)
    return {(workload, name): [count] for (name, workload), count in counts.items()}


def _timed(workloads: list[Any], turns: int) -> Samples:
    from contenders import prepare
    from overhead import contender, microseconds

    prepare()
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        orders = {name: stack.enter_context(contender(name)) for name in ("bare", "recording")}
        for turn in range(turns):
            for workload in workloads:
                for name in orders if turn % 2 else reversed(orders):
                    samples[workload, name].append(microseconds(orders[name], workload))
    return samples


def _print_table(samples: Samples, workloads: list[Any], few: dict[str, Any], head: list[str]) -> None:
    from contenders import layout
    from overhead import spread

    def added(workload: Any) -> list[float]:
        return [own - bare for own, bare in zip(samples[workload, "recording"], samples[workload, "bare"], strict=True)]

    scale = 1_000 if "nanoseconds" in head[-1] else 1
    table = [["a request", *head]]
    for workload in workloads:
        bare, extra = samples[workload, "bare"], added(workload)
        percent = [100 * more / whole for more, whole in zip(extra, bare, strict=True)]
        cells = [spread(bare, 0), spread(extra), spread(percent)]
        if workload.variant in few:
            more = workload.statements - EACH
            pairs = zip(extra, added(few[workload.variant]), strict=True)
            cells.append(spread([scale * (many - once) / more for many, once in pairs]))
        table.append([str(workload), *cells, *[""] * (4 - len(cells))])
    print(layout(table))


if __name__ == "__main__":
    main()
