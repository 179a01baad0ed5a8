"""Checks of the options that only the middleware has; those of all are in `checks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from typing import Any

from sqltrace.checks import checked_sequence, name_of
from sqltrace.findings import Rule, default_rules
from sqltrace.route import Scope
from sqltrace.sinks import Sink, StructlogSink
from sqltrace.sinks.automatic import OpenTelemetryWhenConfigured

_MOMENTS = {"request_started": "record, scope, app", "response_ready": "record", "request_finished": "record"}
Exclude = tuple[str, ...] | Callable[[Scope], bool]


def checked_sinks(sinks: Any) -> tuple[Sink, ...]:
    if sinks is None:
        return (StructlogSink(), OpenTelemetryWhenConfigured())
    checked = checked_sequence("sinks", sinks, "sinks", "[sink]")
    for sink in checked:
        if isinstance(sink, type):
            raise TypeError(f"sinks must be objects, got the class {sink.__name__}: write {sink.__name__}()")
        for moment, arguments in _MOMENTS.items():
            method = getattr(sink, moment, None)
            if method is None and moment == "request_started":
                continue
            if not callable(method):
                raise TypeError(f"a sink needs a method {moment}({arguments}), got {sink!r:.100}")
            if iscoroutinefunction(method):
                raise TypeError(f"{type(sink).__name__}.{moment}() must be a plain function, got an async one")
    return checked


def checked_rules(rules: Any) -> tuple[Rule, ...] | None:
    """The rules; `None` stands for the default ones, as they are when a request is over."""
    if rules is None:
        return None
    if rules is default_rules:
        raise TypeError("rules must be a sequence of functions, got the function default_rules: write default_rules()")
    checked = checked_sequence("rules", rules, "functions", "[rule]")
    for rule in checked:
        wanted = "a rule must be a function that takes a recording"
        if not callable(rule):
            raise TypeError(f"{wanted}, got {rule!r:.100}")
        if _is_async(rule):
            raise TypeError(f"a rule must be a plain function, got an async one: {name_of(rule)}")
        _check_takes_one(rule, wanted)
    return checked


def checked_exclude(exclude: Any) -> Exclude:
    if exclude is None:
        return ()
    if callable(exclude):
        if _is_async(exclude):
            raise TypeError(f"exclude must be a plain function, got an async one: {exclude!r:.100}")
        _check_takes_one(exclude, "exclude must be a function that takes the scope")
        function: Callable[[Scope], bool] = exclude
        return function
    prefix = exclude if isinstance(exclude, str) else "/health"
    checked = checked_sequence("exclude", exclude, "path prefixes or a callable", f"[{prefix!r:.100}]")
    return tuple(map(_checked_prefix, checked))


def _checked_prefix(prefix: Any) -> str:
    if not isinstance(prefix, str):
        raise TypeError(f"exclude must hold path prefixes as str, got {prefix!r:.100}")
    if not prefix.startswith("/"):
        raise ValueError(f"exclude must hold paths that begin with '/', got {prefix!r:.100}")
    if _is_pattern(prefix):
        below = prefix.removesuffix("/*")
        instead = "" if not below or _is_pattern(below) else f"{below!r:.100} for all that is below it, or "
        raise ValueError(
            f"exclude must hold path prefixes, got the pattern {prefix!r:.100}:"
            f" write {instead}a callable that takes the scope"
        )
    return prefix


def _is_pattern(path: str) -> bool:
    return "*" in path or "{" in path


def _is_async(function: Any) -> bool:
    return any(
        is_one(made) for is_one in (iscoroutinefunction, isasyncgenfunction) for made in (function, function.__call__)
    )


def _check_takes_one(function: Any, wanted: str) -> None:
    """What has no signature, as some builtins, passes."""
    try:
        # Not of what it wraps: a decorator may give that more arguments.
        taken = signature(function.func if isinstance(function, partial) else function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature(function, follow_wrapped=False).bind(None)
    except (TypeError, ValueError) as error:  # the latter of a partial, whose own error is its cause
        got = f"{name_of(function)}({', '.join(taken.parameters)})"
        raise TypeError(f"{wanted}, got {got:.100}: {error.__cause__ or error}") from None
