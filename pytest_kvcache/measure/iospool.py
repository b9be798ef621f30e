"""Where a rank keeps the operations of its I/O trace until its run is over.

Rank-side; imports neither pytest nor MPI. A file without a name, which is gone with its
process whatever ends it, in the directory for temporary files (TMPDIR). A thread writes it, so
that the loop never waits for it; memory is bounded, and a disk that can't keep up is a fault.
"""

from __future__ import annotations

import os
import queue
import struct
import tempfile
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

# What released an operation, of its own request.
AFTER_ARRIVAL = 0
AFTER_ANSWER = 1
AFTER_DELETES = 2
AFTER_WRITES = 3

RECORD = struct.Struct("<bbhiq16sqqqqq")
"""One operation: its kind of row, what released it, part, user, request, key, version, bytes,
and when it was submitted, started and done, in ns of the rank's clock."""

RECORD_TYPE = np.dtype(
    [
        ("kind", "i1"), ("after", "i1"), ("part", "<i2"), ("user", "<i4"), ("request", "<i8"),
        ("key", "V16"), ("version", "<i8"), ("bytes", "<i8"),
        ("submitted_ns", "<i8"), ("started_ns", "<i8"), ("done_ns", "<i8"),
    ]
)  # fmt: skip
"""The same for numpy."""

TIMES = ("submitted_ns", "started_ns", "done_ns")
RECORDS_PER_BUFFER = 4096
_BUFFERS = 256  # that wait to be written at most: 80 MiB
_END = b""


def spool_name(rank: int) -> str:
    """The file of a trial's directory in which the coordinator keeps a rank's records."""
    return f"io-trace-{rank}.bin"


class Spool:
    """A nameless file of records; ``write`` never waits, ``chunks`` gives them back.

    ``directory`` None: the one for temporary files. ``device`` is the
    number of its filesystem. ``fault`` is a sentence on why the trace can't be whole; None: so far
    it is.
    """

    def __init__(self, host: str, directory: str | None = None) -> None:
        self.fault: str | None = None
        self.operations = 0
        self.directory = directory or tempfile.gettempdir()
        self._host = host
        self._waiting: queue.Queue[bytes | bytearray] = queue.Queue(_BUFFERS)
        self._file = tempfile.TemporaryFile(dir=self.directory, buffering=0)  # noqa: SIM115
        self.device = os.fstat(self._file.fileno()).st_dev
        self._thread = threading.Thread(target=self._run, name="kvcache-spool", daemon=True)
        self._thread.start()

    @property
    def spooled_bytes(self) -> int:
        """What was written, or is to be."""
        return self.operations * RECORD.size

    def write(self, records: bytes | bytearray) -> None:
        """Take whole records; where too many wait already, that is the fault."""
        if not records or self.fault is not None:
            return
        try:
            self._waiting.put_nowait(records)
        except queue.Full:
            self.fault = self._sentence("can't be written as fast as operations end")
            return
        self.operations += len(records) // RECORD.size

    def finish(self) -> None:
        """Wait until all is written; nothing is taken any more, and nothing kept with a fault."""
        self._waiting.put(_END)
        self._thread.join()
        if self.fault is not None:
            self.close()

    def chunks(self, origin_ns: int) -> Iterator[bytes]:
        """All records, many at a time, with times since ``origin_ns``; after ``finish``.

        None with a fault.
        """
        if self.fault is not None:
            return
        self._file.seek(0)
        while chunk := self._file.read(RECORD.size * RECORDS_PER_BUFFER):
            records = np.frombuffer(bytearray(chunk), RECORD_TYPE)
            for name in TIMES:
                records[name] -= origin_ns
            yield records.tobytes()

    def close(self) -> None:
        """Give its room back."""
        self._file.close()

    def _run(self) -> None:
        while (records := self._waiting.get()) != _END:
            if self.fault is not None:
                continue
            try:
                self._write_all(memoryview(records))
            except OSError as error:
                self.fault = self._sentence(f"can't be written ({error.strerror or error})")

    def _write_all(self, left: memoryview) -> None:
        while left:
            left = left[self._file.write(left) :]

    def _sentence(self, what: str) -> str:
        return (
            f"{self._host}: the I/O trace {what} into {self.directory} after"
            f" {self.operations:,} operations; name a directory with room for it (TMPDIR), or leave"
            " out --kv-io-trace"
        )
