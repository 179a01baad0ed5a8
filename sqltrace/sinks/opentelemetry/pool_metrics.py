"""The metrics of connection pools: what they look like when somebody collects, and how long their uses took."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from weakref import finalize

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from sqltrace import connection
from sqltrace.capture.pools import PoolState, pool_states
from sqltrace.clock import SECOND
from sqltrace.connection import Checkout
from sqltrace.faults import report_fault
from sqltrace.sinks.opentelemetry.attributes import POOL_NAME
from sqltrace.sinks.opentelemetry.measurements import Measurement

# The conventions give none. A connection costs milliseconds, and is held for up to minutes.
BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)
STATE = "db.client.connection.state"

_MAX_ENDED = 10_000  # checkouts between two requests that end

Reading = Callable[[PoolState], int | None]


class PoolMetrics:
    """
    The instruments of one meter. Pools of the same name count as one.

    What pools look like covers all their connections; waits and timeouts only those that a recording asked for.
    """

    def __init__(self, meter: Meter) -> None:
        self._ended: deque[Checkout] = deque(maxlen=_MAX_ENDED)
        watch = self._ended.append
        connection.watchers.append(watch)
        finalize(self, connection.watchers.remove, watch)
        self._observe(
            meter, "count", "The number of connections that are currently in state described by the `state` attribute.",
            {"used": lambda pool: pool.used, "idle": lambda pool: pool.idle},
        )  # fmt: skip
        self._observe(meter, "max", "The maximum number of open connections allowed.", {None: lambda pool: pool.most})
        self._observe(
            meter, "idle.max", "The maximum number of idle open connections allowed.",
            {None: lambda pool: pool.most_idle},
        )  # fmt: skip
        self._observe(
            meter, "idle.min", "The minimum number of idle open connections allowed.",
            {None: lambda pool: None if pool.most_idle is None else 0},
        )  # fmt: skip
        self._observe(
            meter, "pending_requests", "The number of current pending requests for an open connection.",
            {None: lambda pool: pool.waiting}, unit="{request}",
        )  # fmt: skip
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )
        self._create = _histogram(meter, "create_time", "The time it took to create a new connection.")
        self._wait = _histogram(meter, "wait_time", "The time it took to obtain an open connection from the pool.")
        self._use = _histogram(
            meter, "use_time", "The time between borrowing a connection and returning it to the pool."
        )

    def take_ended(self) -> list[Measurement]:
        """What is to be recorded of the checkouts that have ended since; timeouts are counted. For any thread."""
        measurements: list[Measurement] = []
        while self._ended:
            try:
                checkout = self._ended.popleft()
            except IndexError:  # another thread was faster
                break
            measurements += self._of_checkout(checkout)
        return measurements

    def _of_checkout(self, checkout: Checkout) -> Iterator[Measurement]:
        name = {POOL_NAME: checkout.neighbours.pool_name}
        if checkout.pool_wait is not None and checkout.pool_wait.timed_out:
            self._timeouts.add(1, name)
        taken = checkout.taken
        if taken is None:
            return
        yield self._wait, (taken - checkout.asked) / SECOND, name, 1
        yield self._use, checkout.held(taken) / SECOND, name, 1
        if checkout.connect:
            yield self._create, checkout.connect / SECOND, name, 1

    def _observe(
        self, meter: Meter, name: str, description: str, readings: dict[str | None, Reading], unit: str = "{connection}"
    ) -> None:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            try:
                return _observations(readings)
            except Exception as fault:
                report_fault("looking at the pools", fault)
                return []

        meter.create_observable_up_down_counter(f"db.client.connection.{name}", [callback], unit, description)


def _observations(readings: dict[str | None, Reading]) -> list[Observation]:
    totals: dict[tuple[str, str | None], int] = defaultdict(int)
    for pool in pool_states():
        for state, read in readings.items():
            value = read(pool)
            if value is not None:
                totals[pool.name, state] += value
    return [
        Observation(value, {POOL_NAME: name} if state is None else {POOL_NAME: name, STATE: state})
        for (name, state), value in totals.items()
    ]


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(
        f"db.client.connection.{name}", "s", description, explicit_bucket_boundaries_advisory=BUCKETS
    )
