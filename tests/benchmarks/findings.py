"""
How long the rules take, once a request is over: ``python tests/benchmarks/findings.py``.

Ten thousand statements in a few groups, and in as many groups as are kept.
"""

import time

from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

import sqltrace

STATEMENTS = 10_000
ROUNDS = 15


def record(engine, distinct):
    queries = [text(f"SELECT * FROM notes AS n{number} WHERE id = :id") for number in range(distinct)]
    with sqltrace.record() as recording, engine.connect() as connection:
        for number in range(STATEMENTS):
            connection.execute(queries[number % distinct], {"id": number}).all()
    return recording


def diagnose(recording):
    """Seconds, the best of some, and the kinds found."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        findings = sqltrace.diagnose(recording)
        best = min(best, time.perf_counter() - started)
    return best, sorted({finding.kind for finding in findings})


def main():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (id INTEGER PRIMARY KEY)"))
    for distinct in (1, 10, 500, 5_000):
        best, kinds = diagnose(record(engine, distinct))
        print(f"{STATEMENTS:,} statements, {distinct:>5,} distinct: {best * 1_000:6.2f} ms  {', '.join(kinds)}")
    engine.dispose()


if __name__ == "__main__":
    main()
