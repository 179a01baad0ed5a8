"""What the findings about eager joins share: when rows are too many, and how to say what was joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqltrace.finding import Finding
from sqltrace.findings.costs import cost
from sqltrace.findings.loader_options import loader_for_unused, options
from sqltrace.findings.paths import Path, paths_from_query, way_of_join
from sqltrace.findings.wording import listed, name_and_line, place, plural, subject, time
from sqltrace.recording import Recording
from sqltrace.statement import Group
from sqltrace.widening import EagerJoin, Widening

_BETTER = {
    "row_fan_out": ("cartesian_product",),
    "eager_join": ("cartesian_product", "row_fan_out"),
    "slow_statement": ("cartesian_product", "row_fan_out"),
}
FEWER_OBJECTS = "fewer rows or columns at once: LIMIT, load_only(), or yield_per"


def finding(
    kind: str,
    recording: Recording,
    group: Group,
    message: str,
    joins: Sequence[EagerJoin],
    relationship: str | None = None,
) -> Finding:
    """
    Args:
        joins: Those that the fix is about.
        relationship: By default that of the first of them.
    """
    return Finding(
        kind,
        message,
        cost(group),
        place(group),
        relationship=relationship or joins[0].relationship,
        parents=name_and_line(group.parents),
        fix=_fix(recording, group, joins),
        fingerprint=group.fingerprint,
    )


def object_count(group: Group) -> int:
    """Objects made of the rows; at least those asked for, which the session may have had before."""
    return max(sum((group.entities or {}).values()), group.roots or 0)


def multiplied(group: Group, *, rows: int = 100, ratio: float = 3.0) -> bool:
    """Whether sibling collections made many more rows than there are objects."""
    widening = group.widening
    if widening is None or not widening.siblings or group.rows is None:
        return False
    return group.rows >= rows and group.rows >= ratio * object_count(group)


def repeats_parents(group: Group, *, rows: int = 500, ratio: float = 10.0) -> bool:
    """Whether a joined collection repeats the columns of its parents in many rows."""
    widening = group.widening
    if widening is None or not widening.collections or not group.rows or not group.roots:
        return False
    return group.rows >= rows and group.rows >= ratio * group.roots


def asked_and_sent(group: Group, widening: Widening) -> str:
    """``SELECT contents asked for 1 table and 8 columns but was sent with 7 tables and 28 columns, as …``."""
    joined = [
        f"{who} {_tree(joins, ())}"
        for who, by_option in (("the mapping joins", False), ("the query's options join", True))
        if (joins := [join for join in widening.joins if join.by_option is by_option])
    ]
    return (
        f"{subject(group)} asked for {plural(widening.asked_tables, 'table')} and"
        f" {plural(widening.asked_columns, 'column')} but was sent with"
        f" {plural(widening.sent_tables, 'table')} and {plural(widening.sent_columns, 'column')}, as {listed(joined)}"
    )


def is_told_by_rows(one: Finding, findings: Iterable[Finding]) -> bool:
    """Whether another finding says more about the same statement: that its rows are too many."""
    better = _BETTER.get(one.kind, ())
    if one.kind == "slow_statement" and (one.fix or "").endswith(FEWER_OBJECTS):
        better += ("eager_join",)  # which has the time of making objects, too
    about = one.fingerprint, one.parents
    return any(other.kind in better and (other.fingerprint, other.parents) == about for other in findings)


def times(group: Group) -> str:
    text = f"{time(group.total)} in the database"
    if group.objects:
        text += f" and {time(group.objects)} making objects"
        if group.is_async:
            text += " on the event loop"
    return text


def _fix(recording: Recording, group: Group, joins: Iterable[EagerJoin]) -> str:
    """
    Loader options instead of these joins, for the query of the application, and where the mapping could be changed.

    A collection of what was asked for, or that the query's own options join, is
    loaded by a statement of its own. What only came along with something else is left out.
    """
    outermost = _outermost(joins)
    unwanted = [join for join in outermost if not _is_wanted(group, join)]
    text = options(
        (way_of_join(above, join, group.widening), loader_for_unused(group) if join in unwanted else "selectinload({})")
        for above in paths_from_query(recording, group)
        for join in outermost
    )
    if unwanted:
        text += "  # selectinload() where they are needed"
    # SQLAlchemy takes no second option for the same relationship.
    replaced = dict.fromkeys(f"joinedload({join.relationship})" for join in outermost if join.named)
    if replaced:
        text += f"  # in place of {listed(list(replaced))}"
    declared = [found for join in outermost if not join.by_option and (found := _declared(join))]
    if declared:
        others = " for the others" if replaced else ""
        text += f'  # or{others} lazy="raise_on_sql" at {listed(list(dict.fromkeys(declared)))}'
    return text


def _declared(join: EagerJoin) -> str | None:
    """``app/models.py:23``."""
    return join.declaration.find() if join.declaration is not None else None


def _is_wanted(group: Group, join: EagerJoin) -> bool:
    """Whether it is probably needed: what only came along with something else mostly is not."""
    return join.by_option or (join.uselist and len(join.path) == 1 and group.origin.relationship is None)


def _outermost(joins: Iterable[EagerJoin]) -> list[EagerJoin]:
    chosen = list(joins)
    paths = {join.path for join in chosen}
    return [join for join in chosen if not any(join.path[:length] in paths for length in range(1, len(join.path)))]


def _tree(joins: list[EagerJoin], above: Path) -> str:
    """``Article.user (app/models.py:83) → (User.contents (…) → …, User.tags (…))``."""
    branches = []
    for step in dict.fromkeys(join.path[len(above)] for join in joins):
        path = (*above, step)
        below = [join for join in joins if join.path[: len(path)] == path and join.path != path]
        places = [found for join in joins if join.path == path and (found := _declared(join))]
        text = f"{step} ({places[0]})" if places else step
        if below:
            inner = _tree(below, path)
            text += f" → ({inner})" if len({join.path[len(path)] for join in below}) > 1 else f" → {inner}"
        branches.append(text)
    return ", ".join(branches)
