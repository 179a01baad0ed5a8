"""`python -m example_app`: seed, serve, replay the case, and tell what the log lines say."""

import asyncio
import io
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from fastapi import FastAPI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.exc import SQLAlchemyError

from example_app.app import create_app
from example_app.data import SIZES, USER_ID, Size, generate, refresh_token, seed_database
from example_app.database import SCHEMA, Database, open_postgresql, open_sqlite
from example_app.loading import STRATEGIES
from example_app.log import JSONLines, LogLine, configure_logging
from example_app.replay import FLAVOURS, Call, page_load, replay
from example_app.report import print_results
from example_app.server import listen, serve, stop_signals
from sqltrace.sinks import Sink, StructlogSink


class BadOption(click.ClickException):
    """An option that turned out bad in use: one line, and the exit code of a usage error."""

    exit_code = 2


def parse_size(_: click.Context, __: click.Parameter, value: str) -> Size:
    if value in SIZES:
        return SIZES[value]
    # Rows grow with the fourth power: beyond 60 contents a guilty request takes minutes and gigabytes.
    if value.isdecimal() and 4 <= int(value) <= 60:
        return Size.of(int(value))
    raise click.BadParameter(f"expected {', '.join(SIZES)} or a number from 4 to 60, got {value!r}")


@click.command()
@click.option(
    "--database-url",
    metavar="URL",
    help=f"postgresql://user@host/database; uses its schema {SCHEMA}, made and dropped. Default: SQLite in a temp dir.",
)
@click.option(
    "--size",
    default="case",
    show_default=True,
    callback=parse_size,
    metavar="small|case|large|N",
    help="How much data: N contents for each user, and a third as many tags, comments and articles.",
)
@click.option("--seed", default=303, show_default=True, help="Same seed, same data.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: a free one.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the JSON log lines go. Default: a new file in the temp dir.",
)
@click.option(
    "--otlp",
    metavar="URL",
    help="Send traces, metrics and logs over OTLP/HTTP, too: http://localhost:4318 is where most receivers listen.",
)
@click.option("--serve", "keep_serving", is_flag=True, help="Keep serving after the replay, until Ctrl-C.")
def main(
    database_url: str | None,
    size: Size,
    seed: int,
    port: int,
    log_file: Path | None,
    otlp: str | None,
    keep_serving: bool,
) -> None:
    """Replay a page load over a guilty and a mended mapping, and show what each request's log line tells."""
    console = _console()
    try:
        with (
            _listen(port) as listener,
            _open_otlp(console, otlp),
            _open_database(database_url) as database,
            _open_log(console, log_file) as log,
        ):
            configure_logging(console, log)
            _seed(console, database, size, seed)
            app = create_app(database, sinks=None if otlp is None else _telling_sinks())
            calls = page_load(refresh_token(USER_ID, seed))
            failures = _run(console, app, log, calls, listener, keep_serving)
    except KeyboardInterrupt:
        sys.exit(130)
    for failure in failures:
        click.echo(f"Error: {failure}", err=True)
    sys.exit(1 if failures else 0)


def _run(
    console: Console,
    app: FastAPI,
    log: JSONLines,
    calls: tuple[Call, ...],
    listener: socket.socket,
    keep_serving: bool,
) -> list[str]:
    """Serve and replay; what failed, one sentence each."""
    with serve(app, listener) as server:
        try:
            failures, lines, waited = _replay_all(console, log, server.url, calls)
        except KeyboardInterrupt:
            _say_last(console, "Interrupted.")
            raise
        print_results(console, calls, lines, waited)
        if keep_serving:
            with stop_signals() as asked:
                _print_urls(console, server.url, calls)
                server.wait(asked)
            if asked:
                _say_last(console, "Stopping.")
    return failures


def _say_last(console: Console, word: str) -> None:
    console.print(f"{word} Requests under way are finished first; Ctrl-C again ends at once.")
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _replay_all(
    console: Console, log: JSONLines, url: str, calls: tuple[Call, ...]
) -> tuple[list[str], dict[str, LogLine], dict[str, float]]:
    """What failed; and by request id the log lines, and the seconds that the clients waited."""
    failures: list[str] = []
    lines: dict[str, LogLine] = {}
    waited: dict[str, float] = {}
    for flavour in FLAVOURS:
        console.print()
        console.rule(f"[bold]{flavour}[/]: a page of {len(calls)} requests")
        request_ids = flavour.request_ids(calls)
        log.await_requests(request_ids)
        with _progress(console) as progress:
            task = progress.add_task(f"{flavour}", total=len(calls))

            def answered(request_id: str, seconds: float) -> None:
                waited[request_id] = seconds
                progress.advance(task)  # noqa: B023  # called before the loop goes on

            failures += asyncio.run(replay(url, flavour, calls, answered))
            lines |= log.take(request_ids)
    asked = [request_id for flavour in FLAVOURS for request_id in flavour.request_ids(calls)]
    failures += [f"{request_id}: no log line" for request_id in asked if request_id not in lines]
    return failures, lines, waited


def _seed(console: Console, database: Database, size: Size, seed: int) -> None:
    rows = generate(size, seed)
    with _progress(console) as progress:
        task = progress.add_task("seeding", total=sum(map(len, rows.values())))
        for _, count in seed_database(database.sync_engine, rows):
            progress.advance(task, count)
    database.analyze()
    total = sum(map(len, rows.values()))
    console.print(f"{database.name}: {total:,} rows in {len(rows)} tables, made from seed {seed}.", soft_wrap=True)
    console.print(
        f"User {USER_ID} has {size.contents} contents × {size.tags} tags × {size.comments} comments: joined, "
        f"{size.rows_per_article:,} rows for each article.",
        soft_wrap=True,
    )


def _print_urls(console: Console, url: str, calls: tuple[Call, ...]) -> None:
    console.print(f"Serving on {url} until Ctrl-C:", soft_wrap=True)
    for flavour in FLAVOURS:
        for call in calls:
            if call.method == "GET":
                console.print(f"  {url}{flavour.prefix}{call.path}", soft_wrap=True)
    for session in ("sync", "async"):
        console.print(f"  {url}/{session}/loading/{{{','.join(STRATEGIES)}}}", soft_wrap=True)
    console.print()


def _listen(port: int) -> socket.socket:
    try:
        return listen(port)
    except OSError as error:
        raise BadOption(f"--port {port}: {error.strerror}") from None


@contextmanager
def _open_log(console: Console, path: Path | None) -> Iterator[JSONLines]:
    """Tells at the end where the lines are, also of a run that was interrupted."""
    own = path is None
    if path is None:
        handle, name = tempfile.mkstemp(prefix="sqltrace-example-", suffix=".jsonl")
        os.close(handle)
        path = Path(name)
    try:
        log = JSONLines(path)
    except OSError as error:
        raise BadOption(f"--log-file {path}: {error.strerror}") from None
    try:
        yield log
    finally:
        log.close()
        if log.begun:
            console.print(f"JSON log lines: {path}", soft_wrap=True, highlight=False)
        elif own:
            path.unlink(missing_ok=True)


@contextmanager
def _open_otlp(console: Console, url: str | None) -> Iterator[None]:
    """Export what the block makes."""
    if url is None:
        yield
        return
    try:
        from example_app import telemetry
    except ImportError as error:
        raise BadOption(f"--otlp: {error.name} is missing; the extra `otlp` has it.") from None
    try:
        url = telemetry.check_url(url)
    except ValueError as error:
        raise BadOption(f"--otlp: {error}") from None
    with telemetry.export_to(url) as warning:
        yield
    if not warning.told:
        console.print(f"OTLP: {', '.join(warning.signals)} sent to {url}", soft_wrap=True, highlight=False)


def _telling_sinks() -> list[Sink]:
    """The default sinks, and the log line as a log record."""
    from sqltrace.sinks import OpenTelemetrySink

    return [StructlogSink(), OpenTelemetrySink(log_line=True)]


@contextmanager
def _open_database(url: str | None) -> Iterator[Database]:
    """The database with empty tables, which are gone after the block."""
    with tempfile.TemporaryDirectory(prefix="sqltrace-example-") as directory:
        try:
            database = open_postgresql(url) if url is not None else open_sqlite(Path(directory, "example.sqlite"))
        except ModuleNotFoundError as error:
            raise BadOption(f"{error.name} is missing; the extra `example` has it.") from None
        except (ValueError, ImportError) as error:
            raise BadOption(f"--database-url: {error}") from None
        try:
            database.create_tables()
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise BadOption(f"{'--database-url ' if url else ''}{database.name}: {reason}") from None
        try:
            yield database
        finally:
            database.drop_tables()
            database.sync_engine.dispose()


def _console() -> Console:
    # A legacy encoding lacks × and –: a question mark is better than a crash.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    return console


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    # So that a container's stop cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(prog_name="python -m example_app")
