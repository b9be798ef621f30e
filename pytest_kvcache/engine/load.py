"""A change of the load that a rank is told beforehand. Rank-side; imports nothing."""

from __future__ import annotations

from typing import Final, NamedTuple

NOTICE_NS: Final = 100_000_000
"""So long before its moment at the latest: a loop with nothing to do sleeps for so long."""


class LoadChange(NamedTuple):
    """From ``at_ns`` of the rank's own clock on, ``users`` of its users take turns."""

    at_ns: int
    users: int
