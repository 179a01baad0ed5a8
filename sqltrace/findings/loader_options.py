"""Which loader options to add to which query: the text of a fix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

from sqltrace.findings.paths import (
    ALIAS,
    GET,
    INSTEAD,
    ONE_OF,
    OR,
    TO_ALIAS,
    WITH,
    Asked,
    Path,
    ends_at_class,
    loaded_subclasses,
    missed_subclasses,
    of_subclass,
    others,
    paths_from_query,
    takes_joins,
)
from sqltrace.findings.wording import listed
from sqltrace.origin import Origin, Parents
from sqltrace.recording import Recording
from sqltrace.statement import Group

Chosen = tuple[Path, str]
_LEVELS = 3  # as many, and it is a tree; fewer may have been written one by one
_FOR_ALL_LEVELS = "selectinload({}, recursion_depth=-1)"


def options(chosen: Iterable[Chosen]) -> str:
    """
    ``.options(defaultload(Author.books).selectinload(Book.topics))``: the last of each path is loaded that way.

    Args:
        chosen: Paths, and what to do with the last relationship of each: ``selectinload({})``.
    """
    below: dict[Path, list[str]] = {}
    notes: dict[str, None] = {}
    got: set[str] = set()
    loaders: dict[Path, str] = {}
    for path, loader in chosen:
        loaders[path] = max(loader, loaders.get(path, ""), key=len)  # of two, the one with a recursion
    for asked, loader in loaders.items():
        path, names = _as_written(asked)
        below.setdefault(path[:-1], []).append(loader.format(path[-1]))
        notes.update(dict.fromkeys(names))
        if loader == _FOR_ALL_LEVELS:
            notes["a statement for each level; a recursive CTE is one for all"] = None
        got.add(asked[0] if isinstance(asked[0], Asked) and asked[0].startswith(GET) else "")
    text = ", ".join(_under(above, names) for above, names in below.items())
    written = f".options({text})"
    if len(got) == 1 and "" not in got:
        written = f"{got.pop()[:-1]}, …, options=[{text}])  # session.merge() takes them, too"
    got.discard("")
    notes.update(dict.fromkeys(f"{get[:-1]}, …) takes them as options=[…]" for get in sorted(got)))
    return written + "".join(f"  # {note}" for note in notes)


def _as_written(path: Path) -> tuple[Path, list[str]]:
    """A path in the names of its query and of the mapping, and notes on what these are."""
    steps, notes = list(path), list[str]()
    if isinstance(path[0], Asked):
        del steps[0]
        steps[0], notes = _below_query(path[0], steps[0])
    for place, written in enumerate(steps):
        step, beside, subclasses = written.partition(WITH)
        found = TO_ALIAS.fullmatch(step)
        if found is None:
            continue
        steps[place] = found["relationship"]
        if place + 1 < len(steps):
            name = found["relationship"].rpartition(".")[2] + "_alias"
            steps[place] += f".of_type({name})" if found["of_type"] else ""
            if beside:
                steps[place] += beside + name + subclasses.removeprefix(found["entity"])
            else:
                steps[place + 1] = _of_alias(name, found, steps[place + 1])
            called = found["called"] if INSTEAD in step else f"the {found['written']}"
            notes.append(f"{name}: {called} of {found['relationship']}")
    return tuple(steps), notes


def _below_query(asked: Asked, step: str) -> tuple[str, list[str]]:
    """The first step of a path in the name that its query gives to what it asks for, and notes on that."""
    owner, several = step.partition(".")[0], asked.startswith((ONE_OF, OR))
    own = [alias for alias in ALIAS.finditer(asked) if alias["entity"] == owner or not several]
    if asked.startswith(OR):
        return step, [f"or the same of the {alias['written']} of the query" for alias in own]
    if not own or asked.startswith(GET):
        return step, []
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", own[0]["entity"]).lower() + "_alias"
    called = asked if INSTEAD in asked else f"the {own[0]['written']}"
    return _of_alias(name, own[0], step), [f"{name}: {called} of the query"]


def _of_alias(name: str, alias: re.Match[str], step: str) -> str:
    """``book_alias.topics`` in place of ``Book.topics``, ``book_alias`` of ``Book``."""
    owner, _, key = step.partition(".")
    if owner in others(alias):
        return f"{name}.{step}"
    return f"{name}.{key}" if key else name


def _under(above: Path, loaders: list[str]) -> str:
    for step in reversed(above):
        relationship, beside, subclasses = step.partition(WITH)
        if beside:
            loaders = [f"selectin_polymorphic({subclasses})", *loaders]
        chained = len(loaders) == 1 and not loaders[0].startswith("selectin_polymorphic")
        below = loaders[0] if chained else f"options({', '.join(loaders)})"
        loaders = [f"defaultload({relationship}).{below}"]
    return ", ".join(loaders)


def loaders_for(recording: Recording, origin: Origin, parents: Parents | None, above: Path) -> list[Chosen]:
    """
    What loads a relationship or columns along with their objects, for `options`.

    Args:
        parents: What loaded these objects.
        above: From the query to them.
    """
    chosen: list[Chosen] = []
    above, again = _without_repeats(above, origin.relationship)
    loaded = loaded_subclasses(recording, parents)
    if origin.base is not None:
        missed = missed_subclasses(recording, origin.base) | loaded
        if origin.kind != "subclass" and not ends_at_class(above):  # no option names it there
            above = of_subclass(above, origin.entity, origin.base, missed)
        elif origin.entity not in loaded:
            chosen.append(((*above, origin.base), f"selectin_polymorphic({{}}, [{', '.join(sorted(missed))}])"))
    if origin.relationship is not None:
        loader = loader_for(origin.uselist, joins=takes_joins(recording, parents)) if not again else _FOR_ALL_LEVELS
        chosen.append(((*above, origin.relationship), loader))
    elif origin.kind != "subclass":
        chosen += [((*above, f"{origin.entity}.{name}"), "undefer({})") for name in origin.attributes]
    return chosen


def in_place_of(recording: Recording, origin: Origin, parents: Parents | None, above: Path) -> str:
    """
    For the end of a fix: which options it replaces, as SQLAlchemy takes no second one for the same attribute.

    Args:
        above: As for `loaders_for`.
    """
    return (
        _in_place_of_levels(origin, parents, above)
        + _in_place_of_options(origin)
        + _in_place_of_subclasses(recording, origin, parents)
    )


def _in_place_of_options(origin: Origin) -> str:
    if not origin.by_options:
        return ""
    criteria = ", with its and_(…)" if any(".and_(" in option for option in origin.by_options) else ""
    return f"  # in place of {listed(list(origin.by_options))}{criteria}"


def _in_place_of_levels(origin: Origin, parents: Parents | None, above: Path) -> str:
    """Of a tree, all levels of which are loaded."""
    if parents is None or origin.relationship is None or parents.origin.kind == "lazy":
        return ""
    if parents.origin.relationship == origin.relationship:
        option = f"{parents.origin.kind}load"
    elif above[-1:] == (origin.relationship,):
        option = "joinedload"
    else:
        return ""
    return f"  # in place of {option}({origin.relationship}), if the query has that"


def _without_repeats(above: Path, relationship: str | None) -> tuple[Path, bool]:
    """A path with one step for all levels of a tree, and whether the relationship at its end is the next level."""
    again = relationship is not None and above[-1:] == (relationship,)
    while again and above[-1:] == (relationship,):
        above = above[:-1]
    steps: list[str] = []
    for step, run in groupby(above):
        length = len(list(run))
        steps += [step] * (length if length < _LEVELS else 1)
    return tuple(steps), again


def _in_place_of_subclasses(recording: Recording, origin: Origin, parents: Parents | None) -> str:
    """There is one option for all subclasses of a base."""
    loaded = loaded_subclasses(recording, parents)
    if origin.base is None or not loaded or origin.entity in loaded:
        return ""
    missed = sorted(missed_subclasses(recording, origin.base) - loaded)
    return f"  # in place of one without {', '.join(missed)}, if there is one"


def loader_for(uselist: bool | None, *, joins: bool = True) -> str:
    """The loader that loads all at once, with any session: of a collection, or of a single object."""
    return "selectinload({})" if uselist or not joins else "joinedload({})"


def loader_for_unused(group: Group) -> str:
    """Leaves a relationship out. Under `AsyncSession` a plain lazy load would be a ``MissingGreenlet``."""
    return "raiseload({}, sql_only=True)" if group.is_async else "lazyload({})"


def left_out(recording: Recording, group: Group) -> str:
    """The option for a query that loads no relationship along which the mapping loads with its objects."""
    leave, declaration = loader_for_unused(group), group.origin.declaration
    text = options((path, leave) for path in paths_from_query(recording, group))
    declared = declaration.find() if declaration is not None else None
    always = f', or lazy="raise_on_sql" at {declared} for all' if declared is not None else ""
    return f"{text}  # where nobody needs them{always}"
