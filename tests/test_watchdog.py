import asyncio
import ctypes
import gc
import operator
import os
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

import sqltrace
from sqltrace import watchdog
from sqltrace.callsite import CallSite
from sqltrace.event_loop import LoopShare
from sqltrace.findings import blocked_loop, waited_for_loop
from sqltrace.watchdog import Sightings, _pause_after
from tests.loops import RUNNERS, block, get, observed, respond, thrice

HERE = __file__
PATIENCE = 30  # seconds after which a test gives up
FIRST, SECOND = CallSite("/app/api.py", 1, "first"), CallSite("/app/api.py", 2, "second")


def line_of(marker):
    with open(HERE, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if f"# {marker}" in line and "line_of" not in line)


async def held_until_seen(scope, receive, send):
    recording, deadline = sqltrace.current_recording(), time.monotonic() + PATIENCE
    while recording.sightings is None and time.monotonic() < deadline:
        pass  # here it holds
    await respond(send)


FRAMEWORK = f"""
import sqltrace, time
from tests.loops import respond

async def handle(scope, receive, send):
    await serialize_response(sqltrace.current_recording(), time.monotonic() + {PATIENCE})
    await respond(send)

class Router:
    async def __call__(self, scope, receive, send):
        await handle(scope, receive, send)

async def serialize_response(recording, deadline):
    while recording.sightings is None and time.monotonic() < deadline:
        pass
"""


@pytest.mark.parametrize("run", RUNNERS)
def test_line_that_holds_the_loop_is_told(run, no_faults):
    app, records = observed(held_until_seen)

    run(get(app, "/"))

    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0)])
    assert finding.call_site in {
        f"tests/test_watchdog.py:{line_of('here it holds') + offset} in held_until_seen" for offset in (-1, 0)
    }
    assert finding.fix == "await run_in_threadpool(function) for what computes or blocks"


@pytest.mark.parametrize("inside", ["router", "route"])
def test_framework_that_computes_is_told_with_its_own_line_and_remedy(inside, tmp_path):
    library = tmp_path / "site-packages" / "fastapi" / "routing.py"
    library.parent.mkdir(parents=True)
    library.write_text(FRAMEWORK, encoding="utf-8")
    framework = {}
    exec(compile(FRAMEWORK, str(library), "exec"), framework)

    async def middleware(scope, receive, send):
        await (framework["Router"]() if inside == "router" else framework["handle"])(scope, receive, send)

    app, records = observed(middleware)

    asyncio.run(get(app, "/"))

    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0)])
    assert finding.call_site.startswith(str(library)), finding.call_site
    assert finding.call_site.endswith(" in serialize_response")
    assert finding.fix.startswith("fewer objects in the body")


@pytest.mark.parametrize("run", RUNNERS)
def test_line_of_another_task_that_holds_the_loop_is_told_to_those_who_wait(run, no_faults):
    logs = []

    async def waits(scope, receive, send):
        logs.append(sqltrace.current_recording().collector.loop.log)
        while logs:
            await asyncio.sleep(0.001)
        await respond(send)

    async def refresh():
        while not logs:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.03)
        deadline = time.monotonic() + PATIENCE
        while not logs[0].seen and time.monotonic() < deadline:
            pass  # here it refreshes
        logs.clear()

    app, records = observed(waits)

    async def main():
        await asyncio.gather(get(app, "/"), refresh())

    run(main())

    lines = [line_of("here it refreshes") + offset for offset in (-1, 0)]
    [finding] = sqltrace.diagnose(records["/"], [partial(waited_for_loop, wait=0, share=0)])
    assert finding.call_site in {f"tests/test_watchdog.py:{line} in {refresh.__qualname__}" for line in lines}
    assert f"held by (another task: {finding.call_site}) (" in finding.message
    assert finding.fix == "await asyncio.to_thread(function) there, for what computes or blocks"


class Node:
    """Garbage that only a collection finds."""

    def __init__(self):
        self.itself = self


# Without bytecode, so that no other thread of Python runs meanwhile, as while a large heap is looked through.
keep_the_lock = partial(operator.contains, range(10_000_000))


@thrice
@pytest.mark.parametrize("ends", ["within the step", "with it"])
@pytest.mark.parametrize("collects", [True, False])
def test_time_in_which_python_collects_garbage_is_told_as_that(collects, ends, no_faults):
    async def holds(scope, receive, send):
        await asyncio.sleep(0.1)  # it is looked at from now on
        node = Node()
        reference = weakref.ref(node, keep_the_lock if collects else None)
        del node
        if not collects:
            keep_the_lock(reference)
        else:
            gc.collect()
        if ends == "within the step":
            time.sleep(0.06)
        await asyncio.sleep(0.1)
        await respond(send)

    app, records = observed(holds)
    ballast = [object() for _ in range(3_000_000)]  # so many that a collection may take as long
    gc.collect()  # what is left by others: in their finalizers threads do run
    gc.disable()  # else one may come by itself
    try:
        asyncio.run(get(app, "/"))
    finally:
        gc.enable()
        del ballast

    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0)])
    assert ("while Python collected garbage" in finding.message) == collects
    assert finding.fix.startswith("gc.freeze()") == collects


@pytest.mark.parametrize(
    ("seconds", "collections", "told"),
    [(0.03, 1, True), (3_600.0, 1, False), (0.03, 2, False)],
    ids=["one", "longer than one can take", "several"],
)
def test_what_keeps_the_lock_is_a_collection_if_it_may_have_been_one(monkeypatch, seconds, collections, told):
    """
    An extension may call `gc.collect()` when it has done its work, and a process be stopped. A call that makes very
    many objects collects again and again: it is to blame, as with a large JSON document.
    """
    share = SimpleNamespace(
        began=1, collector=SimpleNamespace(clock=time.perf_counter_ns), left=0, log=None, sightings=None, thread=-1
    )
    monkeypatch.setattr(watchdog, "_shares", lambda: [share])
    monkeypatch.setattr(watchdog, "_collections", lambda: collections)

    watchdog._look(watchdog._Look(), seconds)

    assert (share.sightings is not None and share.sightings.collecting > 0) == told


@thrice
def test_request_that_lets_go_of_the_loop_is_not_seen(no_faults):
    async def endpoint(scope, receive, send):
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            await asyncio.sleep(0)
        await respond(send)

    app, records = observed(endpoint)

    asyncio.run(get(app, "/"))

    assert records["/"].sightings is None


def test_nothing_is_known_before_something_was_seen():
    assert (Sightings().site, Sightings().waited_for_lock) == (None, 0.0)


def test_line_of_the_longest_step_is_told_by_the_time_at_each():
    sightings = Sightings()

    sightings.add(1, FIRST, 0.05, 0.05, 0.05)
    sightings.add(1, FIRST, 0.05, 0.05, 0.05)
    sightings.add(1, SECOND, 0.3, 0.3, 0.3)  # the GIL was kept all the time
    sightings.add(2, FIRST, 0.2, 0.2, 0.2)

    assert sightings.site == SECOND


def test_step_that_changes_its_line_all_the_time_keeps_a_hundred_of_them():
    sightings = Sightings()

    for line in range(1_000):
        sightings.add(1, CallSite("/app/api.py", line, "crunch"), 0.05, 0.05, 0.05)
    sightings.add(1, CallSite("/app/api.py", 7, "crunch"), 0.05, 0.05, 0.05)

    assert sightings.site.line == 7
    assert len(sightings._longest.lines) == 100


@pytest.mark.parametrize(
    ("computed", "together", "share"),
    [
        (0.1, 1.0, 0.9),
        (0.9, 1.0, 0.1),
        (0.1, 4.0, 0.9),  # of threads that let go of the lock while they compute
        (0.5, 0.5, 0.0),
        (0.1, 0.8, 0.875),  # beside another process
        (0.1, 0.4, 0.0),  # what waits for something else, beside threads that compute a little
        (0.0, 1.0, 0.0),  # a call that blocks, beside threads that compute
        (None, 1.0, 0.0),
    ],
)
def test_time_in_which_others_had_the_lock_is_told_by_the_processors(computed, together, share):
    sightings = Sightings()

    sightings.add(1, FIRST, 1.0, computed, together)

    assert sightings.waited_for_lock == pytest.approx(share)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="CPU time of another thread is not known here")
@thrice
def test_request_that_threads_keep_from_the_interpreter_is_not_blamed_alone(no_faults):
    async def endpoint(scope, receive, send):
        recording, done = sqltrace.current_recording(), time.thread_time() + 0.1
        threads = [threading.Thread(target=compute) for _ in range(6)]
        for thread in threads:
            thread.start()
        while time.thread_time() < done:
            pass
        working.clear()
        for thread in threads:
            thread.join()
        assert recording.sightings is not None
        await respond(send)

    def compute():
        while working.is_set():
            pass

    working = threading.Event()
    working.set()
    app, records = observed(endpoint)

    asyncio.run(get(app, "/"))

    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0)])
    assert "other threads had the interpreter's lock" in finding.message
    assert finding.fix.startswith("less work in threads at once")


LIBC = ctypes.CDLL(None) if os.name == "posix" else None


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="CPU time of another thread is not known here")
@pytest.mark.skipif(not hasattr(LIBC, "strfry"), reason="no function at hand that computes in a thread of its own")
def test_threads_that_an_extension_has_for_itself_keep_nobody_from_the_interpreter(no_faults):
    letters = ctypes.create_string_buffer(b"letters" * 500_000)  # some hundredths of a second

    async def endpoint(scope, receive, send):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sum(letters[:500_000])  # its own thread computes a little
            thread = ctypes.c_ulong()
            LIBC.pthread_create(ctypes.byref(thread), None, LIBC.strfry, letters)
            LIBC.pthread_join(thread, None)  # here it hashes, as argon2 does
        await respond(send)

    app, records = observed(endpoint)

    asyncio.run(get(app, "/"))

    [finding] = sqltrace.diagnose(records["/"], [partial(blocked_loop, hold=0)])
    assert finding.call_site == f"tests/test_watchdog.py:{line_of('here it hashes')} in {endpoint.__qualname__}"
    assert finding.fix == "await run_in_threadpool(function) for what computes or blocks"


def test_looking_keeps_nothing_alive(no_faults):
    class Thing:
        pass

    kept, shares = [], len(shares_alive())

    async def endpoint(scope, receive, send):
        thing = Thing()
        kept.append(weakref.ref(thing))
        await held_until_seen(scope, receive, send)

    app, records = observed(endpoint)

    asyncio.run(get(app, "/"))
    seen = records["/"].sightings
    records.take()
    deadline = time.monotonic() + PATIENCE
    while len(shares_alive()) > shares and time.monotonic() < deadline:
        pass

    assert seen is not None
    assert kept[0]() is None
    assert len(shares_alive()) <= shares


def test_request_that_its_loop_has_abandoned_is_not_kept_alive():
    class Thing:
        pass

    kept = []

    async def endpoint(scope, receive, send):
        thing = Thing()
        kept.append(weakref.ref(thing))
        await asyncio.Event().wait()

    app, _ = observed(endpoint)
    loop = asyncio.new_event_loop()
    task = loop.create_task(get(app, "/"))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    del task, loop
    gc.collect()

    assert [reference() for reference in kept] == [None]


def shares_alive():
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, LoopShare)]


@pytest.mark.parametrize(("look", "pause"), [(0.0001, 0.05), (0.002, 0.2)])
def test_looking_takes_no_more_than_a_hundredth_of_a_processor(look, pause):
    assert _pause_after(look) == pytest.approx(pause)


def test_fault_in_looking_is_told_once_and_the_response_sent(monkeypatch, caplog):
    def fail():
        raise RuntimeError("no frames today")

    async def endpoint(scope, receive, send):
        deadline = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < deadline:
            pass
        await respond(send)

    app, _ = observed(endpoint)
    monkeypatch.setattr(sys, "_current_frames", fail)

    sent = asyncio.run(get(app, "/"))
    asyncio.run(get(app, "/"))

    assert sent[0]["status"] == 200
    assert [record.getMessage() for record in caplog.records] == [
        "looking at the event loop failed and is skipped; the application is not affected"
    ]


def run_script(script, **options):
    path = os.pathsep.join([os.path.dirname(os.path.dirname(HERE)), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        **options,
    )


def test_garbage_collection_while_it_looks_does_not_stop_the_process():
    script = """
import gc, threading
from sqltrace.watchdog import _frame_of

class Cycle:
    def __init__(self):
        self.itself = self
        self.local = threading.local()
        self.local.value = 1

for number in range(2_000):
    gc.set_threshold(2 + number % 9)  # some of the collections begin within
    Cycle()
    assert _frame_of(threading.get_ident()) is not None
print(gc.isenabled())
gc.disable()
_frame_of(threading.get_ident())
print(gc.isenabled())
"""
    assert run_script(script, timeout=30).stdout.split() == ["True", "False"]


def test_nobody_is_looked_at_where_threads_run_without_the_interpreters_lock(monkeypatch):
    async def endpoint(scope, receive, send):
        block(0.3)
        await respond(send)

    monkeypatch.setattr(watchdog, "_has_gil", lambda: False)
    app, records = observed(endpoint)
    asyncio.run(get(app, "/"))

    assert records["/"].sightings is None
    assert records["/"].longest_hold >= 0.3


def test_thread_is_started_by_the_first_request_and_not_before():
    finished = run_script(
        "import asyncio, threading\n"
        "import sqltrace\n"
        "from tests.loops import get, observed, respond\n"
        "async def app(scope, receive, send):\n"
        "    await respond(send)\n"
        "def threads():\n"
        "    return [thread.name for thread in threading.enumerate() if thread.name.startswith('sqltrace')]\n"
        "observer, _ = observed(app)\n"
        "with sqltrace.record('job'):\n"
        "    print(threads())\n"
        "for _ in range(3):\n"
        "    asyncio.run(get(observer, '/'))\n"
        "    print(threads())\n"
    )

    assert finished.stdout.splitlines() == ["[]", *3 * ["['sqltrace-watchdog']"]], finished.stderr


def test_thread_that_could_not_be_started_is_started_by_a_later_request():
    finished = run_script(
        "import asyncio, threading\n"
        "from sqltrace import watchdog\n"
        "from tests.loops import get, observed, respond\n"
        "from tests.test_watchdog import held_until_seen\n"
        "class Scarce(threading.Thread):\n"
        "    left = 1\n"
        "    def start(self):\n"
        "        Scarce.left -= 1\n"
        "        if Scarce.left >= 0:\n"
        '            raise RuntimeError("can\'t start new thread")\n'
        "        super().start()\n"
        "async def at_once(scope, receive, send):\n"
        "    await respond(send)\n"
        "watchdog.Thread = Scarce\n"
        "asyncio.run(get(observed(at_once)[0], '/'))\n"
        "app, records = observed(held_until_seen)\n"
        "asyncio.run(get(app, '/'))\n"
        "print('seen' if records['/'].sightings is not None else 'not seen')\n"
    )

    assert finished.stdout.split() == ["seen"], finished.stderr
    assert "starting the watchdog of the event loop failed" in finished.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_process_that_was_forked_looks_for_itself():
    finished = run_script(
        "import asyncio, os\n"
        "from tests.loops import get, observed\n"
        "from tests.test_watchdog import held_until_seen\n"
        "app, records = observed(held_until_seen)\n"
        "asyncio.run(get(app, '/'))\n"
        "child = os.fork()\n"
        "records.take()\n"
        "asyncio.run(get(app, '/'))\n"
        "print('seen ' if records['/'].sightings is not None else 'not seen ', end='', flush=True)\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
    )

    assert finished.stdout.split() == ["seen", "seen"], finished.stderr
