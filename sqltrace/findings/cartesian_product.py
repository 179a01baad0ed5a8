"""`cartesian_product`: collections joined side by side, whose rows multiply each other."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.widened import asked_and_sent, finding, multiplied, object_count, times
from sqltrace.findings.wording import plural
from sqltrace.recording import Recording


def cartesian_product(recording: Recording, *, rows: int = 100, ratio: float = 3.0) -> Iterator[Finding]:
    """
    Collections joined side by side, whose rows multiply each other.

    Args:
        rows: Least number of rows of a group.
        ratio: Least number of rows for each object: with fewer, the collections were too small to matter.
    """
    for group in recording.groups:
        widening = group.widening
        if widening is not None and multiplied(group, rows=rows, ratio=ratio):
            crossed = [join for join in widening.collections if any(join in pair for pair in widening.siblings)]
            product = " × ".join(dict.fromkeys(join.relationship for join in crossed))
            yield finding(
                "cartesian_product",
                recording,
                group,
                f"{asked_and_sent(group, widening)}; {product} multiply each other into"
                f" {plural(group.rows or 0, 'row')} for {plural(object_count(group), 'object')}, {times(group)}.",
                crossed,
                relationship=group.origin.relationship,
            )
