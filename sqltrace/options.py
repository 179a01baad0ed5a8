"""Checks of the middleware's options. Each says what was got and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any

from sqltrace.capture.instrument import dialect_of
from sqltrace.checks import checked_flag, checked_sequence, checked_size
from sqltrace.findings import Rule
from sqltrace.route import Scope
from sqltrace.sinks import Sink, StructlogSink
from sqltrace.sinks.automatic import OpenTelemetryWhenConfigured

__all__ = ["checked_engines", "checked_exclude", "checked_flag", "checked_rules", "checked_sinks", "checked_size"]

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
    checked = checked_sequence("rules", rules, "functions", "[rule]")
    for rule in checked:
        if not callable(rule):
            raise TypeError(f"a rule must be a function that takes a recording, got {rule!r:.100}")
        if iscoroutinefunction(rule) or isasyncgenfunction(rule):
            raise TypeError(f"a rule must be a plain function, got an async one: {getattr(rule, '__name__', rule)}")
    return checked


def checked_exclude(exclude: Any) -> Exclude:
    wanted = "exclude must be a sequence of path prefixes or a callable"
    if callable(exclude):
        if iscoroutinefunction(exclude) or iscoroutinefunction(exclude.__call__):
            raise TypeError(f"exclude must be a plain function, got an async one: {exclude!r:.100}")
        function: Callable[[Scope], bool] = exclude
        return function
    if isinstance(exclude, (str, bytes)):
        raise TypeError(f"{wanted}, got {exclude!r:.100}: write [{exclude!r:.100}]")
    if not isinstance(exclude, Iterable):
        raise TypeError(f"{wanted}, got {exclude!r:.100}")
    prefixes = tuple(exclude)
    for prefix in prefixes:
        if not isinstance(prefix, str):
            raise TypeError(f"exclude must hold path prefixes as str, got {prefix!r:.100}")
        if not prefix.startswith("/"):
            raise ValueError(f"exclude must hold paths that begin with '/', got {prefix!r:.100}")
    return prefixes


def checked_engines(engines: Any) -> tuple[Any, ...]:
    """The engines; none stands for all."""
    if engines is None:
        return ()
    checked = checked_sequence("engines", engines, "engines", "[engine]")
    for engine in checked:
        dialect_of(engine)
    if not checked:
        raise ValueError("engines is empty: leave it out to record every engine")
    return checked
