"""`row_fan_out`: a joined collection that repeats its parents' columns in every row."""

from __future__ import annotations

from collections.abc import Iterator

from sqltrace.finding import Finding
from sqltrace.findings.widened import asked_and_sent, finding, repeats_parents, times
from sqltrace.findings.wording import plural
from sqltrace.recording import Recording


def row_fan_out(
    recording: Recording, *, rows: int = 500, ratio: float = 10.0, values: int = 10_000
) -> Iterator[Finding]:
    """
    Joined collections that repeat their parents' columns in every row.

    Args:
        rows: Least number of rows of a group.
        ratio: Least number of rows for each object that was asked for.
        values: Least number of values that were sent again: rows too many × columns asked for.
    """
    for group in recording.groups:
        widening = group.widening
        if widening is None or not repeats_parents(group, rows=rows, ratio=ratio):
            continue
        roots, sent = group.roots or 0, group.rows or 0
        again = (sent - roots) * widening.asked_columns
        if again >= values:
            yield finding(
                "row_fan_out",
                recording,
                group,
                f"{asked_and_sent(group, widening)}; {plural(sent, 'row')} for"
                f" {plural(roots, widening.entities[0] if widening.entities else 'object')} sent {again:,} values"
                f" again and again, {times(group)}.",
                widening.collections,
            )
