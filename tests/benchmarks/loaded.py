"""
What sqltrace adds to requests that share one event loop with many others: CPU time.

    python tests/benchmarks/loaded.py [--turns N]

Each request asks PostgreSQL three times, as the requests of an `AsyncSession` in `mapped.py` do, alone or with many
others at once. With more of them than the pool has connections each waits for a connection, and for the event loop
before each of its steps, and every wait is looked into: who had the connections, and who held the loop.

As in `overhead.py` the contenders take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from contextlib import ExitStack
from multiprocessing.connection import Connection

from contenders import ASGIApp, Workload, build, layout, prepare, run_requests
from overhead import contender, spread

AT_ONCE = (1, 20, 200)
REQUESTS = 200  # of a turn
BARE, *OTHERS = NAMES = ("bare", "recording", "log line")
ASKS = Workload(3, "session")


async def take_turn(app: ASGIApp, at_once: int) -> float:
    """CPU microseconds of one request."""
    started = time.process_time()
    await asyncio.gather(*(run_requests(app, ASKS, REQUESTS // at_once) for _ in range(at_once)))
    return 1e6 * (time.process_time() - started) / REQUESTS


async def run_contender(name: str, orders: Connection) -> None:
    """Takes a turn for each number of requests at once that is sent, and answers with the microseconds of one."""
    app = build(name)
    for at_once in AT_ONCE:
        await take_turn(app, at_once)  # not counted: the connections, the interpreter and the caches
    while (at_once := orders.recv()) is not None:
        orders.send(await take_turn(app, at_once))


def measure(turns: int) -> dict[tuple[int, str], list[float]]:
    prepare()
    samples: dict[tuple[int, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        orders = {name: stack.enter_context(contender(name, run_contender)) for name in NAMES}
        for turn in range(turns):
            for at_once in AT_ONCE:
                for name in orders if turn % 2 else reversed(orders):
                    orders[name].send(at_once)
                    samples[at_once, name].append(orders[name].recv())
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sqltrace adds to requests that wait for each other.")
    parser.add_argument("--turns", type=int, default=20, help="of each contender (default: %(default)s)")
    turns = parser.parse_args().turns
    samples = measure(turns)
    rows = [
        ["requests at once", "bare: all", *(words for name in OTHERS for words in (f"{name}: added", "in percent"))]
    ]
    for at_once in AT_ONCE:
        bare = samples[at_once, BARE]
        rows.append([str(at_once), spread(bare, 0)])
        for name in OTHERS:
            added = [own - alone for own, alone in zip(samples[at_once, name], bare, strict=True)]
            percent = [100 * more / alone for more, alone in zip(added, bare, strict=True)]
            rows[-1] += [spread(added, 0), spread(percent, 0)]
    print(f"microseconds of CPU time of a request, median [quartiles] of {turns} turns\n\n{layout(rows)}")


if __name__ == "__main__":
    main()
