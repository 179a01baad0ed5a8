"""Programs of others, for as long as a check needs them."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import httpx2

from example_app.server import listen


def find_program(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise click.ClickException(f"{name} is not installed: {remedy}")
    return path


def free_port() -> int:
    with listen(0) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    command: list[str], ready: str, log: Path, *, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> Iterator[None]:
    """
    Run a program while the block runs.

    Args:
        ready: A URL that answers 200 when the program has started.
        log: Where its output goes. Its end is told where it does not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)  # noqa: S603  # the checks' own commands
        try:
            if not wait_until(lambda: process.poll() is not None or _answers(ready), timeout) or process.poll():
                last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
                raise click.ClickException("\n".join([f"{command[0]} did not start:", *last]))
            yield
        finally:
            process.terminate()
            process.wait(30)


def wait_until(reached: Callable[[], bool], timeout: float) -> bool:
    """Whether it came to that in so many seconds."""
    end = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5, trust_env=False).is_success
    except httpx2.HTTPError:
        return False
