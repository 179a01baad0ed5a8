import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_overhead_is_printed_as_a_table_for_every_contender():
    command = [sys.executable, BENCHMARKS / "overhead.py", "--rounds", "1"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for words in ("cursor events: added", "idle: added", "recording: added", "log line: added", "100 repeated"):
        assert words in printed


def test_cost_of_origins_is_printed_for_every_kind():
    printed = subprocess.run(
        [sys.executable, BENCHMARKS / "origins.py"], capture_output=True, text=True, check=True
    ).stdout

    for kind in ("query", "lazy", "immediate", "selectin", "subquery", "refresh"):
        assert f"origin {kind}" in printed
    assert "once for a compiled statement" in printed


def test_number_of_rounds_is_checked():
    command = [sys.executable, BENCHMARKS / "overhead.py", "--rounds", "0"]

    refused = subprocess.run(command, capture_output=True, text=True, check=False)

    assert refused.returncode == 2
    assert "--rounds must be at least 1, got 0" in refused.stderr


def test_cost_of_tracing_is_printed_for_every_case():
    command = [sys.executable, BENCHMARKS / "tracing.py", "--turns", "2"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for words in ("no provider", "own span, not sampled", "sink keeps none", "sink keeps all"):
        assert words in printed


def test_cost_of_findings_is_printed_for_few_and_many_groups():
    printed = subprocess.run(
        [sys.executable, BENCHMARKS / "findings.py"], capture_output=True, text=True, check=True
    ).stdout

    assert len(printed.splitlines()) == 4
    assert "10,000 statements,     1 distinct" in printed


def test_cost_of_objects_and_rows_is_printed():
    command = [sys.executable, BENCHMARKS / "mapped.py", "--turns", "2"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for words in ("64 orm", "5000 rows", "5000 joined", "nanoseconds a row"):
        assert words in printed


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, which counts instructions, is not installed")
def test_instructions_of_a_statement_stay_within_their_limits():
    command = [sys.executable, BENCHMARKS / "instructions.py", "--assert"]

    counted = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (counted.returncode, counted.stdout.splitlines()[-1:]) == (0, ["All ratios are within their limits."])
