"""What is known of SQL that ran: one statement, and the group of its equals. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sqltrace.callsite import CallSite
from sqltrace.clock import SECOND
from sqltrace.database import Database
from sqltrace.origin import QUERY, Origin, Parents
from sqltrace.samples import Samples
from sqltrace.widening import Widening

Phase = Literal["response", "after_response"]


@dataclass(frozen=True, slots=True)
class Failure:
    """
    Why the driver did not finish a statement.

    Attributes:
        type:
            Dotted class name of the driver's own exception
            (``psycopg.errors.UniqueViolation``), not of SQLAlchemy's wrapper.
            ``asyncio.exceptions.CancelledError`` for a cancelled statement.

        code:
            SQLSTATE, or the database's own error code as text.
            `None` where the driver tells neither.
    """

    type: str
    code: str | None = None

    def __str__(self) -> str:
        """``psycopg.errors.UniqueViolation (23505)``."""
        name = self.type.removeprefix("builtins.")
        return name if self.code is None else f"{name} ({self.code})"


@dataclass(slots=True)
class Statement:
    """
    One execution of SQL, as the database driver ran it.

    Attributes:
        sql:
            Text with its placeholders, as handed to the driver, cut at
            `max_sql_length`. Literals written into raw SQL are still in it.

        fingerprint: 16 hex digits, equal for statements that differ in values only.

        summary: ``SELECT contents tags``, the form of ``db.query.summary``.

        start: Seconds from the start of the recording.

        execute:
            Seconds between handing the statement to the driver and getting
            control back, without `loop_wait` and `gil_wait`. Async drivers fetch the rows
            within that time, sync drivers usually do not: `fetch` has the rest.
            Of a server-side cursor the first row counts here, with which the
            database begins to work on it.

        fetch: Seconds spent on fetching rows after that.

        objects:
            Seconds spent on making ORM objects of the rows, without `fetch`
            and without the statements of relationships that are loaded meanwhile.
            `None` where it cannot be measured.

        loop_wait:
            Seconds in which the reply was there, and the event loop busy with
            something else. An estimate where `Recording.loop_wait_estimated` says
            so. `None` where that cannot be known.

        gil_wait:
            Seconds in which the reply was there, and the thread of a synchronous
            statement waited for the interpreter's lock, or for a processor. 0.0
            for none, and where it cannot be known: elsewhere than over TCP on Linux.

        rows:
            Rows taken from the driver's cursor, also if the application did
            not ask for them all. `None` for a statement that returns none, or
            where nothing could count them.

        entities:
            ORM objects made of the rows, by class name; objects that the
            session had before are not among them. `None` for anything but an
            ORM query, and where it could not be known.

        roots:
            Different objects that were asked for, where eager joins can repeat
            them in many rows: `rows` / `roots` is the fan-out. `None` for other statements.

        on_loop: Whether synchronous SQL ran on an event loop, which stood still meanwhile.

        system: The database in the words of ``db.system.name``.

        phase: Whether it began before or after the last byte of the response.

        failure: `None` for a statement that ended well.

        executemany: Whether the driver's ``executemany()`` ran it.

        batch_size:
            Parameter sets of an executemany, or rows of one insertmanyvalues
            batch. `None` for a single set, and where it could not be known.

        call_site:
            The application's line that led here. `None` when not taken: it is taken
            for the 1st, 2nd, 4th, 9th, 16th … of its kind and for slow statements.

        parameters: A shortened `repr`, with ``capture_parameters=True`` only.

        origin: Why it ran.

        parents: What loaded the objects that it was a load for; `None` for a query, and where it is not known.

        widening:
            What eager joins made of an ORM SELECT, and what it looks for; `None` where
            they added nothing, it contains none, and has neither conditions nor aliases.

        database: Which one, as far as the engine's URL says. `None` where it was not noted.

        span: Whatever a sink has had noted with it (`Collector.note_spans`). Not part of the data.
    """

    sql: str
    fingerprint: str
    summary: str
    start: float
    execute: float
    fetch: float
    objects: float | None
    loop_wait: float | None
    rows: int | None
    system: str
    entities: dict[str, int] | None = None
    roots: int | None = None
    on_loop: bool = False
    gil_wait: float = 0.0
    phase: Phase = "response"
    failure: Failure | None = None
    executemany: bool = False
    batch_size: int | None = None
    call_site: CallSite | None = None
    parameters: str | None = None
    origin: Origin = QUERY
    parents: Parents | None = None
    widening: Widening | None = None
    database: Database | None = None
    span: Any = field(default=None, repr=False, compare=False)

    @property
    def duration(self) -> float:
        """Seconds of the database: `execute` and `fetch`."""
        return self.execute + self.fetch

    @property
    def failed(self) -> bool:
        return self.failure is not None


@dataclass(slots=True)
class Group:
    """
    The statements of one recording with the same fingerprint, system, phase and origin.

    `count`, `failed`, `total` and `max` are exact, also where the single
    statements were too many to keep.

    Attributes:
        sql: Text of the first of them, cut at `max_sql_length`.
        total: Seconds, all durations (execute and fetch) added up; overlapping ones count twice.
        rows: All rows that reached Python; `None` where no statement returned any, or nothing could count them.
        objects: Seconds spent on making ORM objects of them.
        entities: ORM objects made, by class name; `None` where no statement made any, or it could not be known.
        roots: Different objects asked for, added up over the statements; `None` where no eager join can repeat them.
        loop_wait: Seconds in which replies lay ready and the event loop was busy with something else.
        gil_wait: Seconds in which replies lay ready and threads waited for the interpreter's lock, or for a processor.
        on_loop: How many ran synchronously on an event loop.
        is_async: Whether an asynchronous driver ran them.
        failure: Of the first that failed.
        call_site: Of the first of them that has one.
        parameters: Of the first, a shortened `repr`; with ``capture_parameters=True`` only.
        longest_at, failed_at: Of the longest, and of the first that failed; `None` where that was not taken.
        parents: As `call_site`.
        samples: What is noted of some of them only.
        ended: Reading of the clock at the end of the last beyond `max_statements`; `None` where all were kept.
    """

    sql: str
    fingerprint: str
    summary: str
    system: str
    phase: Phase
    count: int = 0
    failed: int = 0
    total: float = 0.0
    rows: int | None = None
    objects: float = 0.0
    entities: dict[str, int] | None = None
    roots: int | None = None
    loop_wait: float = 0.0
    gil_wait: float = 0.0
    on_loop: int = 0
    _longest: int = 0
    call_site: CallSite | None = None
    longest_at: CallSite | None = None
    failed_at: CallSite | None = None
    failure: Failure | None = None
    parameters: str | None = None
    origin: Origin = QUERY
    parents: Parents | None = None
    widening: Widening | None = None
    is_async: bool = False
    samples: Samples = field(default_factory=lambda: Samples(0), repr=False, compare=False)
    ended: int | None = None

    @property
    def max(self) -> float:
        """Seconds, the longest."""
        return self._longest / SECOND

    @property
    def site(self) -> CallSite | None:
        """The line that one of them spent most of the time for; else the line that most of them came from."""
        if self.longest_at is not None and 2 * self.max > self.total:
            return self.longest_at
        busiest = self.samples.busiest(self.count)
        return busiest[0] if busiest is not None else self.call_site


_SYSTEMS = {
    "clickhousedb": "clickhouse",
    "firebird": "firebirdsql",
    "hana": "sap.hana",
    "ibm_db_sa": "ibm.db2",
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
    "redshift": "aws.redshift",
    "spanner+spanner": "gcp.spanner",
    "teradatasql": "teradata",
    **{name: name for name in ("clickhouse", "cockroachdb", "mariadb", "mysql", "postgresql", "sqlite", "trino")},
}


def system_name(dialect: Any) -> str:
    """The ``db.system.name`` of the semantic conventions for a SQLAlchemy dialect."""
    if dialect.name == "mysql" and getattr(dialect, "is_mariadb", False):
        return "mariadb"
    return _SYSTEMS.get(dialect.name, "other_sql")
