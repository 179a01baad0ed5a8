"""Checks of options: of the middleware, of `record()` and of sinks. Each says what was got and what is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_URL = re.compile(r"(?<=://)[^'\"].*", re.DOTALL)


def name_of(function: Any) -> str:
    """Of what it calls, for a `functools.partial`; of its class, for an object without a name."""
    inner = getattr(function, "func", function)
    return getattr(inner, "__name__", type(inner).__name__)


def shown(value: Any) -> str:
    """What was got, for a message: its `repr`, shortened. Of a URL only its scheme: a password may follow."""
    return f"{_URL.sub('…', repr(value)):.100}"


def checked_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r:.100}")
    return value


def checked_size(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r:.100}")
    checked_number(name, value, least)
    return value


def checked_number(name: str, value: Any, least: float, most: float | None = None) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r:.100}")
    if not value >= least or (most is not None and value > most):  # not `value < least`: that lets a NaN pass
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return value


def checked_sequence(name: str, value: Any, of: str, remedy: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a sequence of {of}, got {shown(value)}: write {remedy}")
    return tuple(value)


def checked_engines(engines: Any) -> tuple[Any, ...]:
    """None stands for all. Whether each is an engine, `dialect_of` checks."""
    if engines is None:
        return ()
    checked = checked_sequence("engines", engines, "engines", "[engine]")
    if not checked:
        raise ValueError("engines is empty: leave it out to record every engine")
    return checked
