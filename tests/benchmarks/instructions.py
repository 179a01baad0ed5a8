"""
What sqltrace adds to a request, in instructions: nearly the same on every run, where time is not.

    python tests/benchmarks/instructions.py [--assert]

The contenders of overhead.py under ``valgrind --tool=callgrind``. Before and after each turn the process
calls `os.getppid`, which has no other use in it: callgrind writes its counter there, and the difference
is the turn's alone, without start-up and warm-up. The request without statements, subtracted from the one
with 100, leaves what a statement costs.

Instructions are not time: a cache miss counts as one. overhead.py has the time. Left out is the search for names that
missed the interpreter's cache of methods, a tenth of all with SQLAlchemy's ORM: which names share a place in it depends
on where objects lie in memory, and so on the run, by more than what is measured.

The clock counts its readings instead, 5 us from one to the next: under valgrind a statement takes so long
that it would be treated as a slow one, on some machines and not on others. A reading costs next to nothing so, and what
takes 10 us or more, as giving a connection back may, hardly occurs.

With ``--assert`` the exit code is 1 when a ratio to the yardstick is over its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import sqlalchemy
from contenders import (
    CONTENDERS,
    DISTINCT,
    EMPTY,
    ENVIRONMENT,
    REPEATED,
    YARDSTICK,
    Workload,
    build,
    layout,
    prepare,
    take_turn,
    warm_up,
)

REQUESTS = {EMPTY: 40, REPEATED: 3, DISTINCT: 3}
BARE, *OTHERS = CONTENDERS
_TICK = 5_000  # nanoseconds
_UNCACHED = "find_name_in_mro"  # CPython's
_SLOWER = 50  # than without valgrind: else what looks at the event loop every 50 ms would do so at every 10th statement

Counts = dict[tuple[str, Workload], float]  # instructions of one request, of a contender with a workload
Costs = dict[str, float]  # instructions, by what they are spent on


class Limit(NamedTuple):
    contender: str
    what: str
    ratio: float  # to the yardstick's


EMPTY_REQUEST = "a request without statements"
EACH, WITH_SHARE = "a statement", "a statement, with its share of the request"
# The goal for a statement; of the log line what is reached, also by later Pythons, and a little.
LIMITS = (
    Limit("recording", EACH, 1.2),
    Limit("log line", WITH_SHARE, 1.85),
)


def run_contenders() -> None:
    """Under valgrind: all contenders at once, in forks. Tells their process ids."""
    time.perf_counter_ns = itertools.count(step=_TICK).__next__
    prepare()
    from sqltrace import watchdog  # here: what is imported before SQLAlchemy moves all that is counted in memory

    watchdog._PAUSE *= _SLOWER
    children = {}
    for name in CONTENDERS:
        child = os.fork()
        if not child:
            asyncio.run(run_contender(name))
            sys.exit()
        children[child] = name
    for _ in children:
        child, status = os.wait()
        if status:
            sys.exit(f"{children[child]} ended with status {status}")
    print("\n".join(f"{child} {name}" for child, name in children.items()))


async def run_contender(name: str) -> None:
    app = build(name)
    await warm_up(app)
    for workload, requests in REQUESTS.items():
        await take_turn(app, workload, requests)


def count_instructions(script: str = __file__) -> Counts:
    """
    Args:
        script: Calls `run_contenders` when it is given ``--run-contenders``.
    """
    with TemporaryDirectory(prefix="sqltrace-callgrind-") as directory:
        callgrind = ["--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={directory}/%p"]
        finished = subprocess.run(
            ["valgrind", "--quiet", *callgrind, sys.executable, script, "--run-contenders"],
            env=ENVIRONMENT | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise RuntimeError(f"valgrind exited with {finished.returncode}:\n{finished.stderr[-4_000:]}")
        counts: Counts = {}
        for line in finished.stdout.splitlines():
            child, name = line.split(maxsplit=1)
            # A file for each call: what ran since the last one. The second of each two is a turn.
            turns = [Path(directory, f"{child}.{2 * turn}") for turn in range(1, len(REQUESTS) + 1)]
            for (workload, requests), path in zip(REQUESTS.items(), turns, strict=True):
                counts[name, workload] = total(path) / requests
        return counts


def total(path: Path) -> int:
    """All that a file of callgrind has, without what `_UNCACHED` has taken."""
    text = path.read_text(encoding="utf-8")
    [everything] = re.findall(r"^totals: (\d+)$", text, re.MULTILINE)
    number = re.search(rf"^c?fn=\((\d+)\) {_UNCACHED}$", text, re.MULTILINE)
    if number is None:
        return int(everything)
    calls = re.findall(rf"^cfn=\({number[1]}\)(?: .*)?\ncalls=.*\n\S+ (\d+)$", text, re.MULTILINE)
    return int(everything) - sum(map(int, calls))


def costs_of(counts: Counts, name: str) -> Costs:
    """What the contender adds to the bare application; of that one, all."""
    costs = {
        workload: counts[name, workload] - (counts[BARE, workload] if name != BARE else 0) for workload in REQUESTS
    }
    named = {EMPTY_REQUEST: costs[EMPTY]}
    for workload in (REPEATED, DISTINCT):
        named[f"{workload.variant}: {EACH}"] = (costs[workload] - costs[EMPTY]) / workload.statements
        named[f"{workload.variant}: {WITH_SHARE}"] = costs[workload] / workload.statements
    return named


def table(costs: dict[str, Costs], ratios: dict[str, Costs]) -> str:
    rows = [["100 statements in a request", f"{BARE}: all", *(f"{name}: added" for name in OTHERS)]]
    for what in costs[BARE]:
        rows.append([what, *(f"{costs[name][what]:,.0f}" for name in CONTENDERS)])
        if what != EMPTY_REQUEST:
            rows.append([f"  x {YARDSTICK}", "", *(f"{ratios[name][what]:.3f}" for name in OTHERS)])
    return layout(rows)


def over_limits(ratios: dict[str, Costs]) -> list[str]:
    return [
        f"{limit.contender}, {what}: {ratio:.3f} x {YARDSTICK}, over the limit of {limit.ratio:.2f}"
        for limit in LIMITS
        for what, ratio in ratios[limit.contender].items()
        if what.endswith(f": {limit.what}") and ratio > limit.ratio
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the instructions that sqltrace adds to a request.")
    parser.add_argument("--assert", action="store_true", dest="asserting", help="exit 1 over a limit")
    parser.add_argument("--run-contenders", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_contenders:
        run_contenders()
        return
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed")

    print("counting, for some minutes on a slow machine", file=sys.stderr, flush=True)
    counts = count_instructions()
    costs = {name: costs_of(counts, name) for name in CONTENDERS}
    ratios = {name: {what: costs[name][what] / costs[YARDSTICK][what] for what in costs[name]} for name in OTHERS}
    print(
        f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}, {platform.machine()}: instructions\n"
    )
    print(table(costs, ratios))
    over = over_limits(ratios)
    print("\n" + ("\n".join(over) or "All ratios are within their limits."))
    if options.asserting and over:
        sys.exit(1)


if __name__ == "__main__":
    main()
