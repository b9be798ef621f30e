"""The one table of a trial's latency sections: what is timed. Pure; known to everyone.

docs/results.md says of each from when to when it goes, and what is in it.
"""

from __future__ import annotations

from typing import Final

SECTIONS: Final = ("read", "write", "delete", "queue", "device", "load", "request", "wakeup")
"""Every section has a histogram in the record of a trial, and metrics of its own."""

OPERATIONS: Final = ("read", "write", "delete")
"""Those of an operation on the storage; each rank counts them as well."""

CENSORED: Final = ("load", "request")
"""Those of what may have begun without being seen to end."""
