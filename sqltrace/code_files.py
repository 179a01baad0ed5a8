"""Whose code a file holds: the application's, a library's, or of what every statement passes through."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from typing import Final

from sqltrace.libraries import HELPERS, INFRASTRUCTURE

SKIP, HELPER, LIBRARY, APPLICATION, END, ROUTER = range(6)  # the first is falsy, the better is greater

# As code names its file: in a frozen program that is another name than `__file__`.
_PACKAGE = os.path.dirname(sys._getframe().f_code.co_filename) + os.sep
_LIBRARIES = tuple(
    os.path.join(path, "")
    for key in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")  # the last has what starts servers
    if (path := sysconfig.get_path(key))
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_KNOWN: Final = INFRASTRUCTURE | HELPERS

# Whoever is above these has called the server, or the event loop, and knows nothing of the statement.
_OUTERMOST = (
    os.path.join(_PACKAGE, "event_loop.py"),
    *(os.sep + os.path.join(*parts) for parts in (("asyncio", "events.py"), ("asyncio", "runners.py"))),
    *(os.sep + os.path.join("trio", "_core", file) for file in ("_run.py", "_generated_run.py")),
)

FLUSHING = os.path.join(_PACKAGE, "capture", "sessions.py")  # whoever is above has flushed

# Whoever is above these is middleware, and has not called the endpoint, nor touched what an answer is made of.
_ROUTERS = tuple(os.sep + os.path.join(framework, "routing.py") for framework in ("starlette", "fastapi"))

_MAX_FILES = 10_000


class _Kinds(dict[str, int]):
    """The kinds of code files, by name: each is looked at once."""

    def __missing__(self, filename: str) -> int:
        if len(self) >= _MAX_FILES:
            self.clear()  # only code that makes files as it runs gets here
        return self.setdefault(filename, _kind(filename))


kinds = _Kinds()


@lru_cache(maxsize=1_024)
def package_of(filename: str) -> str | None:
    """Of an installed file, or of a known library that is frozen, the package, else `None`."""
    path = _absolute(filename)
    for marker in _INSTALLED:
        _, found, inside = path.rpartition(marker)
        if found:
            return inside.partition(os.sep)[0].removesuffix(".py")
    frozen = _frozen(filename)
    return frozen if frozen in _KNOWN else None


@lru_cache(maxsize=1_024)
def shorten(path: str) -> str:
    """
    The path from the import root it lies under, with ``/``, so that it reads the same on every machine.

    Found once for a file: a process that changes its directory keeps what was said before.
    """
    roots = [os.path.join(root, "") for root in (_absolute(os.curdir), *sys.path) if os.path.isabs(root)]
    inside = [root for root in roots if path.startswith(root)]
    return (path[len(max(inside, key=len)) :] if inside else path).replace(os.sep, "/")


def _kind(filename: str) -> int:
    if filename.startswith("<"):
        return SKIP
    path = _absolute(filename)
    if path.endswith(_OUTERMOST):
        return END
    if filename.startswith(_PACKAGE) or not (os.path.splitext(filename)[1] or os.path.exists(filename)):
        return SKIP  # some libraries name the code that they make as they run, without brackets around
    package = package_of(filename)
    if package is not None:
        if package in INFRASTRUCTURE:
            return ROUTER if path.endswith(_ROUTERS) else SKIP
        return HELPER if package in HELPERS else LIBRARY
    return SKIP if path.startswith(_LIBRARIES) or _frozen(filename) in sys.stdlib_module_names else APPLICATION


def _absolute(path: str) -> str:
    """Of a script that was started by a relative path; as it is where the working directory has been removed."""
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def _frozen(filename: str) -> str:
    """
    The package of code that lies in a program or an archive, as PyInstaller makes them: it has no path.

    An application that has one of a name of the standard library is taken for that.
    """
    if os.path.isabs(filename) or os.path.exists(filename):
        return ""
    return filename.partition(os.sep)[0].removesuffix(".py")
