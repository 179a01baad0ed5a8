"""The case's own table, out of the log lines."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from example_app.log import LogLine
from example_app.replay import Call, Flavour

Lines = Mapping[str, LogLine]

_MAPPINGS = {"guilty": 'guilty: lazy="joined"', "mended": "mended: options in the query"}
_SESSIONS = ("sync", "async")


def print_results(console: Console, calls: tuple[Call, ...], lines: Lines, waited: Mapping[str, float]) -> None:
    """
    Print the table and what to see in it. Every number is from a log line, found by its request id, but for one.

    Args:
        waited: Seconds that the client of a request waited, by request id. A request that the event loop keeps from
            being accepted has not begun for any middleware.
    """
    console.print()
    console.rule("[bold]what the log lines say[/]")
    console.print()
    console.print(_table(calls, lines, wide=console.width >= 90))
    console.print(
        "SQL: statements. Database: executing them and fetching their rows. The refresh is the slowest of several."
    )
    console.print()
    console.print(_findings(calls, lines))
    console.print()
    for session in _SESSIONS:
        slowest = [_slowest(Flavour(mapping, session).request_ids(calls), lines) for mapping in _MAPPINGS]
        guilty, mended = (_cells(line)[0] for line in slowest)
        console.print(f"Slowest request, {session + ':':6} {guilty:>8} guilty, {mended:>7} mended.")
    refreshes = [Flavour(mapping, "async").request_ids(calls, str(calls[0])) for mapping in _MAPPINGS]
    guilty, mended = (_cells(_slowest(ids, lines))[0] for ids in refreshes)
    console.print(f"One-row refresh, async: {guilty:>8} guilty, {mended:>7} mended.")
    guilty, mended = (f"{max(waited.get(request_id, 0.0) for request_id in ids):.3f} s" for ids in refreshes)
    console.print(f"        for its client: {guilty:>8} guilty, {mended:>7} mended: it waits to begin.")
    console.print()


def _table(calls: tuple[Call, ...], lines: Lines, *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, int(wide), 0, 0), pad_edge=False, show_edge=False)
    table.add_column("\nendpoint", overflow="fold")
    for session in _SESSIONS:
        table.add_column(f"{session}\nduration", justify="right", no_wrap=True)
        table.add_column("\nSQL", justify="right", no_wrap=True)
        table.add_column("\ndatabase", justify="right", no_wrap=True)
    for mapping, description in _MAPPINGS.items():
        table.add_row(f"[bold]{description}[/]")
        for call in dict.fromkeys(map(str, calls)):
            cells = [
                _cells(_slowest(Flavour(mapping, session).request_ids(calls, call), lines)) for session in _SESSIONS
            ]
            table.add_row(call, *cells[0], *cells[1])
        table.add_row()
    return table


def _findings(calls: tuple[Call, ...], lines: Lines) -> Table:
    """Each kind of finding, and how many requests of each flavour have it."""
    flavours = [Flavour(mapping, session) for mapping in _MAPPINGS for session in _SESSIONS]
    found = {
        str(flavour): [_kinds(lines.get(request_id)) for request_id in flavour.request_ids(calls)]
        for flavour in flavours
    }
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("finding in … requests")
    for flavour in found:
        table.add_column(flavour, justify="right")
    for kind in sorted({kind for requests in found.values() for kinds in requests for kind in kinds}):
        counts = [sum(kind in kinds for kinds in requests) for requests in found.values()]
        table.add_row(kind, *(f"{count} of {len(calls)}" if count else "–" for count in counts))
    table.add_row(
        "none at all", *(f"{sum(not kinds for kinds in requests)} of {len(calls)}" for requests in found.values())
    )
    return table


def _kinds(line: LogLine | None) -> set[str]:
    return {finding["kind"] for finding in line.get("findings", ())} if line is not None else set()


def _cells(line: LogLine | None) -> tuple[str, str, str]:
    if line is None:
        return ("–", "–", "–")
    return _seconds(line["duration_ms"]), str(line["sql.count"]), _seconds(line["time.database_ms"])


def _slowest(ids: list[str], lines: Lines) -> LogLine | None:
    return max((lines[each] for each in ids if each in lines), key=lambda line: line["duration_ms"], default=None)


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.3f} s"
