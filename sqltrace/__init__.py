"""
Where the time of a request went, with the SQL behind it.

Read in this order: `middleware` (what happens around a request), `recording`
(what is kept of it), `capture.engine` (how statements get there),
`sinks.log_line` (what is told).
"""

from sqltrace import sinks
from sqltrace.callsite import CallSite
from sqltrace.capture.instrument import capabilities, instrument, uninstrument
from sqltrace.capture.record import record
from sqltrace.collector import MissedStatements
from sqltrace.middleware import SQLTraceMiddleware
from sqltrace.recording import Recording, current_recording, missed_statements
from sqltrace.request import RequestRecord
from sqltrace.statement import Failure, Group, Statement

__version__ = "0.1.0"

__all__ = [
    "CallSite",
    "Failure",
    "Group",
    "MissedStatements",
    "Recording",
    "RequestRecord",
    "SQLTraceMiddleware",
    "Statement",
    "capabilities",
    "current_recording",
    "instrument",
    "missed_statements",
    "record",
    "sinks",
    "uninstrument",
]
