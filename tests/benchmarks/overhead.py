"""
What sqltrace adds to a request: CPU time, against the bare application and against cursor events.

    python tests/benchmarks/overhead.py [--rounds N] [--json PATH]

Every contender runs in a process of its own (`contenders.py` says why) and they take turns, one at a
time: some milliseconds of requests each, once in one order and at once again in the reverse, so that
a machine that speeds up or slows down changes both sides of a difference alike. What is told is the
median of the differences to the bare application's turns beside them, with the quartiles, and the
ratio to the yardstick's difference of the same turns. Each round starts anew, with other addresses and
hashes, and in the other order.

CPU time of the process, not wall-clock time. sqlite in memory, Core SELECT of one row, Starlette,
the ASGI application called without a server. Nothing is asserted: instructions.py does that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import sqlalchemy
from contenders import (
    CONTENDERS,
    DISTINCT,
    EMPTY,
    ENVIRONMENT,
    REPEATED,
    WORKLOADS,
    YARDSTICK,
    Workload,
    build,
    layout,
    prepare,
    take_turn,
    warm_up,
)

TURNS = 12  # of every contender with every workload, in a round; each there and back
REQUESTS = {0: 200, 1: 60, 10: 15, 50: 4, 64: 2, 100: 2, 5_000: 2}  # a turn, by statements: some milliseconds
BARE, *OTHERS = CONTENDERS

Samples = dict[tuple[Workload, str], list[float]]  # microseconds of one request, turn by turn


async def run_contender(name: str, orders: Connection) -> None:
    """Takes a turn for each workload that is sent, and answers with the microseconds of a request."""
    app = build(name)
    await warm_up(app)
    while (workload := orders.recv()) is not None:
        orders.send(1e6 * await take_turn(app, workload, REQUESTS[workload.statements]))


@contextmanager
def contender(
    name: str, run: Callable[[str, Connection], Coroutine[Any, Any, None]] = run_contender
) -> Iterator[Connection]:
    """The other end of the orders that `run` takes in a process of its own."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: asyncio.run(run(name, theirs)), daemon=True)
    process.start()
    theirs.close()  # so that recv() ends when the contender does
    yield ours
    ours.send(None)
    process.join()


def microseconds(orders: Connection, workload: Workload) -> float:
    orders.send(workload)
    return float(orders.recv())


def run_round(number: int) -> Samples:
    prepare()
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        orders = {name: stack.enter_context(contender(name)) for name in CONTENDERS}
        for turn in range(TURNS):
            there = list(orders) if (number + turn) % 2 else list(reversed(orders))
            for workload in WORKLOADS:
                first = {name: microseconds(orders[name], workload) for name in there}
                for name in reversed(there):
                    samples[workload, name].append((first[name] + microseconds(orders[name], workload)) / 2)
    return samples


def measure(rounds: int) -> Samples:
    samples: Samples = defaultdict(list)
    for number in range(rounds):
        print(f"\rround {number + 1}/{rounds} ", end="", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--run-round", str(number)]
        answer = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
        for workload, name, values in json.loads(answer):
            samples[Workload(*workload), name] += values
    print(file=sys.stderr)
    return samples


def added(samples: Samples, workload: Workload, name: str) -> list[float]:
    """Microseconds added to the bare application's request, turn by turn."""
    return [own - bare for own, bare in zip(samples[workload, name], samples[workload, BARE], strict=True)]


def added_per_statement(samples: Samples, workload: Workload, name: str) -> list[float]:
    """The request's own part left out."""
    pairs = zip(added(samples, workload, name), added(samples, EMPTY, name), strict=True)
    return [(full - empty) / workload.statements for full, empty in pairs]


def ratios(own: list[float], yardstick: list[float]) -> list[float]:
    return [left / right for left, right in zip(own, yardstick, strict=True) if right > 0]


def spread(values: list[float], digits: int = 1) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return f"{median(values):.{digits}f}" if values else "-"
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def tables(samples: Samples) -> str:
    per_request = [["statements in a request", f"{BARE}: all", *(f"{name}: added" for name in OTHERS)]]
    for workload in WORKLOADS:
        cells = [spread(added(samples, workload, name)) for name in OTHERS]
        per_request.append([str(workload), spread(samples[workload, BARE], 0), *cells])

    per_statement = [["100 statements in a request", *(f"{name}: added" for name in OTHERS)]]
    for workload in (REPEATED, DISTINCT):
        each = {name: added_per_statement(samples, workload, name) for name in OTHERS}
        share = {name: [cost / workload.statements for cost in added(samples, workload, name)] for name in OTHERS}
        for what, costs in (("a statement", each), ("a statement, with its share of the request", share)):
            compared = [spread(ratios(costs[name], costs[YARDSTICK]), 2) for name in OTHERS]
            per_statement.append([f"{workload.variant}: {what}", *(spread(costs[name], 2) for name in OTHERS)])
            per_statement.append([f"  x {YARDSTICK}", *compared])

    turns = len(samples[EMPTY, BARE])
    return (
        f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}, {platform.machine()}: "
        f"microseconds of CPU time, median [quartiles] of {turns} paired turns\n\n"
        f"{layout(per_request)}\n\n{layout(per_statement)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sqltrace adds to a request in CPU time.")
    parser.add_argument("--rounds", type=int, default=15, help="of 12 turns each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the samples of every turn there")
    parser.add_argument("--run-round", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_round is not None:
        print(
            json.dumps([[workload, name, values] for (workload, name), values in run_round(options.run_round).items()])
        )
        return
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")

    samples = measure(options.rounds)
    print(tables(samples))
    if options.json is not None:
        rows = [
            {"statements": workload.statements, "variant": workload.variant, "contender": name, "microseconds": values}
            for (workload, name), values in samples.items()
        ]
        versions = {"python": platform.python_version(), "sqlalchemy": sqlalchemy.__version__}
        options.json.write_text(json.dumps(versions | {"samples": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
