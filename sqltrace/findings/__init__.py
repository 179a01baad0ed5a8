"""
What is worth telling about a recording, and what to do about it: one file per rule.

A rule is a function that takes a recording and answers `Finding` objects. It
reads no clock and no database; its thresholds are keyword arguments with
defaults, to be changed with `functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqltrace.checks import name_of
from sqltrace.faults import report_fault
from sqltrace.finding import Finding
from sqltrace.findings.after_response_sql import after_response_sql
from sqltrace.findings.blocked_loop import blocked_loop
from sqltrace.findings.cartesian_product import cartesian_product
from sqltrace.findings.detached_instance import detached_instance
from sqltrace.findings.eager_join import eager_join
from sqltrace.findings.gil_wait import gil_wait
from sqltrace.findings.idle_in_transaction import idle_in_transaction, is_idle_of_hold
from sqltrace.findings.missing_greenlet import missing_greenlet
from sqltrace.findings.n_plus_one import n_plus_one
from sqltrace.findings.pool_wait import pool_wait
from sqltrace.findings.raise_load import raise_load
from sqltrace.findings.refresh_after_commit import refresh_after_commit
from sqltrace.findings.repeated_statement import repeated_statement
from sqltrace.findings.row_fan_out import row_fan_out
from sqltrace.findings.slow_statement import slow_statement
from sqltrace.findings.thread_wait import thread_wait
from sqltrace.findings.waited_for_loop import waited_for_loop
from sqltrace.findings.widened import is_told_by_rows
from sqltrace.recording import Recording

__all__ = [
    "Rule",
    "after_response_sql",
    "blocked_loop",
    "cartesian_product",
    "default_rules",
    "detached_instance",
    "diagnose",
    "eager_join",
    "gil_wait",
    "idle_in_transaction",
    "missing_greenlet",
    "n_plus_one",
    "pool_wait",
    "raise_load",
    "refresh_after_commit",
    "repeated_statement",
    "row_fan_out",
    "slow_statement",
    "thread_wait",
    "waited_for_loop",
]

Rule = Callable[[Recording], Iterable[Finding]]


# Below the default thresholds of all rules: of what takes seconds, and of what takes several statements of a group.
_QUICK, _FEW = 0.05, 4


def default_rules() -> list[Rule]:
    """The rules that apply where no others are given. A new list each time, to be changed at will."""
    return [
        missing_greenlet,
        raise_load,
        detached_instance,
        n_plus_one,
        cartesian_product,
        row_fan_out,
        eager_join,
        refresh_after_commit,
        repeated_statement,
        slow_statement,
        blocked_loop,
        waited_for_loop,
        thread_wait,
        gil_wait,
        pool_wait,
        idle_in_transaction,
        after_response_sql,
    ]


def diagnose(recording: Recording, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """
    What is worth telling about a recording, the most expensive first. Of one statement what says least is left out
    where another finding says more: that it is slow, where its rows are too many.

    A rule that raises is reported once on the logger ``sqltrace``, and skipped.

    Args:
        rules: By default `default_rules`.

    Raises:
        TypeError: something else than a recording is given to the default rules.

    .. versionadded:: 0.1.0
    """
    if rules is None:
        if _is_quiet(_checked_recording(recording)):
            return []
        rules = default_rules()
    findings: list[Finding] = []
    for rule in rules:
        try:
            findings += _checked(rule(recording))
        except Exception as fault:
            report_fault(f"the rule {name_of(rule)}()", fault)
    once = [
        finding
        for finding in findings
        if not is_told_by_rows(finding, findings) and not is_idle_of_hold(finding, findings, recording)
    ]
    return sorted(once, key=lambda finding: -finding.cost)


def _checked_recording(recording: Any) -> Recording:
    if isinstance(recording, Recording):
        return recording
    if isinstance(getattr(recording, "recording", None), Recording):
        raise TypeError(f"diagnose() needs a recording, got a {type(recording).__name__}: write record.recording")
    raise TypeError(
        f"diagnose() needs a recording, as `with sqltrace.record() as recording` gives one, got {recording!r:.100}"
    )


def _is_quiet(recording: Recording) -> bool:
    """Whether no default rule can have anything to tell, as of most short requests: to ask them all takes longer."""
    if recording.failed_loads or recording.duration + recording.after_response >= _QUICK:
        return False
    for group in recording.groups:
        # No rule adds groups up.
        if group.count >= _FEW or (group.widening is not None and group.widening.joins) or group.phase != "response":
            return False
    connections = recording.connections
    return not (connections.waits or connections.failed_commits) and (connections.idle_in_transaction or 0.0) < _QUICK


def _checked(findings: Iterable[Finding]) -> list[Finding]:
    checked = list(findings)
    for finding in checked:
        if not isinstance(finding, Finding):
            raise TypeError(f"a rule must answer Finding objects, got {finding!r:.100}")
    return checked
