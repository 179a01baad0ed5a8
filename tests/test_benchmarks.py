import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent / "benchmarks"


def test_overhead_is_printed_as_a_table_for_every_contender():
    command = [sys.executable, BENCHMARKS / "overhead.py", "--rounds", "1"]

    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for words in ("cursor events: added", "idle: added", "recording: added", "log line: added", "100 repeated"):
        assert words in printed


def test_number_of_rounds_is_checked():
    command = [sys.executable, BENCHMARKS / "overhead.py", "--rounds", "0"]

    refused = subprocess.run(command, capture_output=True, text=True, check=False)

    assert refused.returncode == 2
    assert "--rounds must be at least 1, got 0" in refused.stderr
