"""The text of an I/O trace: its first line, its columns, its last line; docs/iotrace.md. Pure.

Rank-side and controller side; imports nothing but the standard library.
"""

from __future__ import annotations

VERSION = 1
FIRST_LINE = "# pytest-kvcache I/O trace "  # the version follows, a colon and where it is from
LAST_LINE = "# end: "  # the number of operations follows: a file without it was cut off

COLUMNS = (
    "trial", "rank", "phase", "operation", "key", "bytes", "request", "user", "waits_for",
    "submitted_ns", "started_ns", "completed_ns",
)  # fmt: skip

POPULATION = "population"
PHASES = (POPULATION, "ramp", "window", "drain")
"""Of a trial, by when an operation was started."""

OPERATIONS = ("read", "write", "delete", "demote")

TURN, CLOCK, USER, ANSWER, DELETES, WRITES = RELEASES = (
    "turn", "clock", "user", "answer", "deletes", "writes",
)  # fmt: skip
"""What an operation waited for: its turn in the population; the time at which its request was to
come; the answer to its user's request before; the answer of its own request; the deletes of it,
or the writes."""
