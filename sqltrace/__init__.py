"""
Where the time of a request went, with the SQL behind it.

    app.add_middleware(sqltrace.SQLTraceMiddleware)  # of each request

    with sqltrace.record("nightly-import") as recording:  # or of a block
        run_import()

Read in this order: `middleware` (what happens around a request), `recording`
(what is kept of it), `capture.engine` (how statements get there),
`time_account` (where the time went), `event_loop` (who held it up), `findings`
(what is worth telling), `sinks.log_line` (what is told).
"""

from sqltrace import sinks
from sqltrace.callsite import CallSite
from sqltrace.capture.instrument import capabilities, instrument, uninstrument
from sqltrace.capture.record import current_recording, record
from sqltrace.connection import ConnectionUse, Holder, PoolWait
from sqltrace.database import Database
from sqltrace.failed_commit import FailedCommit
from sqltrace.failed_load import FailedLoad
from sqltrace.finding import Finding
from sqltrace.findings import diagnose
from sqltrace.idle import IdleStretch
from sqltrace.middleware import SQLTraceMiddleware
from sqltrace.missed import MissedStatements, missed_statements
from sqltrace.origin import Origin, Parents
from sqltrace.recording import Recording
from sqltrace.request import RequestRecord
from sqltrace.statement import Failure, Group, Statement
from sqltrace.thread_waits import ThreadWait
from sqltrace.time_account import TimeAccount
from sqltrace.widening import EagerJoin, Lookup, Widening

__version__ = "0.1.0"

__all__ = [
    "CallSite",
    "ConnectionUse",
    "Database",
    "EagerJoin",
    "FailedCommit",
    "FailedLoad",
    "Failure",
    "Finding",
    "Group",
    "Holder",
    "IdleStretch",
    "Lookup",
    "MissedStatements",
    "Origin",
    "Parents",
    "PoolWait",
    "Recording",
    "RequestRecord",
    "SQLTraceMiddleware",
    "Statement",
    "ThreadWait",
    "TimeAccount",
    "Widening",
    "capabilities",
    "current_recording",
    "diagnose",
    "instrument",
    "missed_statements",
    "record",
    "sinks",
    "uninstrument",
]
