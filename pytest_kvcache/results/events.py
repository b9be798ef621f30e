"""Events that the coordinator tells the controller while ranks run: one JSON line each.

``EventWriter`` is used on the coordinator, ``EventTail`` on the controller; both sides
share the file only because the coordinator runs on the controller's own host. Imports
neither pytest nor mpi4py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError

if TYPE_CHECKING:
    from pathlib import Path


class EventWriter:
    """Appends events to a file; each is readable as soon as ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, *, t_s: float, **fields: Any) -> None:
        """Append one event: its name, the writer's monotonic time and plain JSON values.

        Raises ``ValueError`` for a number that is not finite, ``TypeError`` for a value
        that JSON does not know; nothing is written then.
        """
        record = {"event": event, "t_s": t_s, **fields}
        self._file.write(json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; closing twice is harmless (``contextlib.closing`` fits)."""
        self._file.close()


class EventTail:
    """Reads a file of events while it grows, from its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_bytes = 0
        self._lines = 0

    def poll(self) -> list[dict[str, Any]]:
        """Return the events that were completed since the last call.

        No file yet means no events; a last line without its end waits for the next call.
        Raises ``ResultError`` for a line that is no event; what comes after it is not
        read.
        """
        return [self._parse(line) for line in self._new_lines()]

    def _new_lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset_bytes)
                complete, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset_bytes += len(complete) + len(end)
        return complete.split(b"\n") if end else []

    def _parse(self, line: bytes) -> dict[str, Any]:
        self._lines += 1
        try:
            event = json.loads(line)
        except ValueError as error:
            raise self._garbled(line) from error
        if not isinstance(event, dict) or "event" not in event or "t_s" not in event:
            raise self._garbled(line)
        return event

    def _garbled(self, line: bytes) -> ResultError:
        return ResultError(
            f"{self._path}, line {self._lines} is {line[:80]!r}; it must be a JSON object with"
            f" event and t_s, written by one coordinator only"
        )
