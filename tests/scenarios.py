"""
Scenarios of everyday code, and what is told of them: each with a `Session` and, under `run_sync`, with an `AsyncSession`.

A scenario is a function ``(session, shelf)``: see `tests.shelf`.
"""

from types import SimpleNamespace

import pytest
from sqlalchemy import select

import sqltrace
from tests import shelf as shelves

OF_A_STATEMENT = frozenset(
    "n_plus_one cartesian_product row_fan_out eager_join refresh_after_commit repeated_statement slow_statement".split()
)
RECORDERS = pytest.mark.parametrize("record", [shelves.record_sync, shelves.record_async], ids=["sync", "async"])


class Scenarios(list):
    """Parameters of a test."""

    def add(self, *kinds, fix=None, session=None, **lazy):
        """
        Add a function.

        Args:
            kinds: Of the findings, all of them.
            fix: A part of that of the most expensive one.
            session: Options of the session.
            lazy: Of the mapping, by relationship.
        """

        def add(work):
            case = SimpleNamespace(work=work, kinds=sorted(kinds), fix=fix, session=session or {}, lazy=lazy)
            self.append(pytest.param(case, id=work.__name__))
            return work

        return add


def check(case, record):
    recording = record(case.work, shelves.mapping(**case.lazy), **case.session)

    findings = sqltrace.diagnose(recording)

    assert sorted(finding.kind for finding in findings) == case.kinds, findings
    about = [finding.fingerprint for finding in findings if finding.kind in OF_A_STATEMENT]
    assert set(about) <= {group.fingerprint for group in recording.groups}
    if case.fix is not None:
        assert case.fix in findings[0].fix


def innermost(site):
    """A call site without the lines that called it."""
    return site.partition(", from ")[0]


def authors(session, shelf, *options):
    return session.scalars(select(shelf.Author).options(*options)).unique().all()
