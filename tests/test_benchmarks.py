import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(name, *arguments):
    """Without what measures coverage: it would be measured, too."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    command = [sys.executable, BENCHMARKS / name, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def printed(name, *arguments):
    finished = run(name, *arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_overhead_is_printed_as_a_table_for_every_contender():
    table = printed("overhead.py", "--rounds", "1")

    for words in ("cursor events: added", "idle: added", "recording: added", "log line: added", "100 repeated"):
        assert words in table


def test_cost_of_origins_is_printed_for_every_kind():
    table = printed("origins.py")

    for kind in ("query", "lazy", "immediate", "selectin", "subquery", "refresh"):
        assert f"origin {kind}" in table
    assert "once for a compiled statement" in table


def test_number_of_rounds_is_checked():
    refused = run("overhead.py", "--rounds", "0")

    assert refused.returncode == 2
    assert "--rounds must be at least 1, got 0" in refused.stderr


def test_cost_of_tracing_is_printed_for_every_case():
    table = printed("tracing.py", "--turns", "2")

    for words in ("no provider", "own span, not sampled", "sink keeps none", "sink keeps all"):
        assert words in table


def test_cost_under_load_is_printed_for_one_and_many_requests_at_once():
    table = printed("loaded.py", "--turns", "2")

    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["1", "20", "200"]
    for words in ("bare: all", "recording: added", "log line: added"):
        assert words in table


def test_cost_of_findings_is_printed_for_few_and_many_groups():
    table = printed("findings.py")

    assert len(table.splitlines()) == 4
    assert "10,000 statements,     1 distinct" in table


def test_cost_of_objects_and_rows_is_printed():
    table = printed("mapped.py", "--turns", "2")

    for words in ("64 orm", "5000 rows", "5000 joined", "nanoseconds a row"):
        assert words in table


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, which counts instructions, is not installed")
def test_instructions_of_a_statement_stay_within_their_limits():
    counted = run("instructions.py", "--assert")

    assert (counted.returncode, counted.stdout.splitlines()[-1:]) == (0, ["All ratios are within their limits."])
