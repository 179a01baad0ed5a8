"""A process that is forked while another thread is within sqltrace. CI runs it on newer Pythons, too."""

import os
import subprocess
import sys

import pytest

FORK = """
import os, signal, sys, threading

def fork_while_another_thread_holds(lock):
    held, released = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            released.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        released.set()
        holder.join()
        sys.exit(os.waitstatus_to_exitcode(status))
    signal.alarm(20)
"""
SCRIPT = """
import sqltrace
from sqlalchemy import create_engine, text
from sqltrace.faults import report_fault
from opentelemetry.sdk.trace import TracerProvider
from sqltrace.sinks.opentelemetry.providers import Tracers

sqltrace.instrument()
module, name = sys.argv[1].rsplit(":")
lock = sys.modules[module]
for part in name.split("."):
    lock = getattr(lock, part)
fork_while_another_thread_holds(lock)
with sqltrace.record() as recording:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(text("SELECT 1")).all()
report_fault("a test", ValueError())
Tracers(TracerProvider()).get()
sqltrace.uninstrument()
sqltrace.instrument()
print(recording.statement_count, recording.row_count, recording.connections.checkouts, flush=True)
os._exit(0)
"""
LOCKS = """
import sys
import sqltrace, sqltrace.sinks.opentelemetry.providers
for name, module in sorted(sys.modules.items()):
    if name.startswith("sqltrace"):
        for attribute, value in vars(module).items():
            if type(value).__name__ == "RLock":
                print(f"{name}:{attribute}")
            elif type(value).__module__.startswith("sqltrace") and type(getattr(value, "_lock", None)).__name__ == "RLock":
                print(f"{name}:{attribute}._lock")
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )


LOCKS_OF_THE_PROCESS = run(LOCKS).stdout.split()


def test_there_are_locks_of_the_whole_process():
    assert "sqltrace.faults:_lock" in LOCKS_OF_THE_PROCESS
    assert "sqltrace.sinks.opentelemetry.providers:_lock" in LOCKS_OF_THE_PROCESS
    assert len(LOCKS_OF_THE_PROCESS) > 5


@forks
@pytest.mark.parametrize("lock", LOCKS_OF_THE_PROCESS)
def test_child_records_though_another_thread_held_a_lock_as_it_was_forked(lock):
    child = run(FORK + SCRIPT, lock)

    assert (child.returncode, child.stdout.split()) == (0, ["1", "1", "1"]), child.stderr


WITHIN_RECORDING = """
import sqltrace
from sqlalchemy import create_engine, text

engine = create_engine("sqlite://")
sqltrace.instrument()
with sqltrace.record() as ended, sqltrace.record() as outer, sqltrace.record():
    ended.end()
    fork_while_another_thread_holds(outer._lock)
    with engine.connect() as connection:
        for _ in range(2_000):
            connection.execute(text("SELECT 1")).all()
    print(outer.statement_count, flush=True)
"""


@forks
def test_child_goes_on_with_a_recording_that_another_thread_was_counting_as_it_was_forked():
    child = run(FORK + WITHIN_RECORDING)

    assert (child.returncode, child.stdout.split()) == (0, ["2000"]), child.stderr


WITHOUT_FORK = """
import os, sys, threading
import sqlalchemy, structlog

class Lock:  # as on Windows, where no lock knows what a fork is
    def __init__(self):
        self._lock = make()

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

make, threading.RLock = threading.RLock, Lock
for name in ("fork", "register_at_fork"):
    if hasattr(os, name):
        delattr(os, name)
sys.modules["fcntl"] = None

import sqltrace
from sqlalchemy import create_engine, text

threading.RLock = make
sqltrace.instrument()
with sqltrace.record() as recording, create_engine("sqlite://").connect() as connection:
    connection.execute(text("SELECT 1")).all()
print(recording.statement_count, flush=True)
"""


def test_system_without_fork_records_as_any_other():
    process = run(WITHOUT_FORK)

    assert (process.returncode, process.stdout.split()) == (0, ["1"]), process.stderr
