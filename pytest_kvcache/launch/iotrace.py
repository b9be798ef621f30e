"""The file of ``--kv-io-trace``: checked before the launch, whole or not there after it.

Controller side; imports neither pytest nor MPI. Written between trials, when nothing is
measured. A case has one file, and a file one case.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.measure.iospool import (
    AFTER_ANSWER,
    AFTER_ARRIVAL,
    AFTER_DELETES,
    AFTER_WRITES,
    RECORD,
    RECORD_TYPE,
    RECORDS_PER_BUFFER,
    spool_name,
)
from pytest_kvcache.measure.recorder import DELETE, DEMOTE, READ, REREAD, WRITE
from pytest_kvcache.traces.ioformat import (
    ANSWER,
    CLOCK,
    COLUMNS,
    DELETES,
    FIRST_LINE,
    LAST_LINE,
    POPULATION,
    TURN,
    USER,
    VERSION,
    WRITES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan

_NAMES = {READ: "read", REREAD: "read", WRITE: "write", DELETE: "delete", DEMOTE: "demote"}


class IoTraceFiles:
    """The files that cases of a session write; each belongs to the first case that names it."""

    def __init__(self) -> None:
        self._owners: dict[Path, tuple[str, str]] = {}  # the plan's identity, and its case

    def claim(self, options: Options, plan: Plan) -> Path | None:
        """The file of a case, None without one; OptionError where it can't be written."""
        if options.io_trace is None:
            return None
        path = Path(options.io_trace).absolute()
        _check_writable(path, options)
        identity, case = self._owners.setdefault(path, (plan.identity, plan.case))
        if identity != plan.identity:
            raise OptionError(
                f"--kv-io-trace is {options.io_trace!r}, into which {case} is written; a file"
                f" holds one case, so ask for {plan.case} by itself, with a file of its own"
            )
        return path


def _check_writable(path: Path, options: Options) -> None:
    if options.trace is not None and path == Path(options.trace).absolute():
        raise OptionError(
            f"--kv-io-trace is {options.io_trace!r}, which is what --kv-trace replays; name"
            " another file"
        )
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise OptionError(f"--kv-io-trace is {options.io_trace!r}, which is no file; name one")
    try:  # what access(2) tells is not true of root, /proc and read-only filesystems
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OptionError(
            f"--kv-io-trace is {options.io_trace!r}; {path.parent} can't be written to"
            f" ({error.strerror or error}), name a file in a directory that can"
        ) from error


class IoTraceFile:
    """One case's trace: trials are added to a file beside ``path``, which gets its name last."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self._plan = plan
        self._operations = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._raw: IO[bytes] | None = None
        self._text: IO[bytes] | None = None

    def add(self, plan: Plan, directory: Path) -> None:
        """Write what the coordinator has kept of a trial; ResultError where that fails."""
        try:
            text = self._text or self._begun()
            for rank in range(plan.np):
                with (directory / spool_name(rank)).open("rb") as spool:
                    for chunk in iter(lambda: spool.read(RECORD.size * RECORDS_PER_BUFFER), b""):
                        lines = list(_lines(chunk, plan, rank))
                        text.write("".join(lines).encode())
                        self._operations += len(lines)
            self._sync()
        except OSError as error:
            self.discard()
            raise self._failure(error) from error

    def finish(self) -> None:
        """Give it its name; ResultError where that fails. Without a trial there is no file."""
        if self._text is None or self._raw is None:
            return
        try:
            self._text.write(f"{LAST_LINE}{self._operations} operations\n".encode())
            if self._text is not self._raw:
                self._text.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing that has no name yet."""
        for stream in (self._text, self._raw):
            if stream is not None:
                with suppress(OSError):  # what it could not write is not wanted any more
                    stream.close()
        self._text = self._raw = None
        self._temporary.unlink(missing_ok=True)

    def _begun(self) -> IO[bytes]:
        self._raw = self._text = self._temporary.open("wb")
        if self.path.suffix == ".gz":
            self._text = gzip.GzipFile(fileobj=self._raw, mode="wb", mtime=0)  # type: ignore[assignment]
        plan = self._plan
        origin = {
            "run_id": plan.run_id, "case": plan.case, "np": plan.np, "backend": plan.backend,
            "version": plan.version,
        }  # fmt: skip
        first = f"{FIRST_LINE}{VERSION}: {json.dumps(origin)}\n{','.join(COLUMNS)}\n"
        assert self._text is not None
        self._text.write(first.encode())
        return self._text

    def _sync(self) -> None:
        """A full disk is found now, while there is a trial that can fail."""
        assert self._text is not None
        assert self._raw is not None
        self._text.flush()
        self._raw.flush()
        os.fsync(self._raw.fileno())

    def _failure(self, error: OSError) -> ResultError:
        return ResultError(
            f"--kv-io-trace is {self.path}, which can't be written ({error.strerror or error});"
            " nothing is left of it, so make room or name another file"
        )


def _lines(chunk: bytes, plan: Plan, rank: int) -> Iterator[str]:
    """The lines of some records, in the order in which the operations ended."""
    releases = {
        AFTER_ARRIVAL: CLOCK if plan.open_loop else USER,
        AFTER_ANSWER: ANSWER,
        AFTER_DELETES: DELETES,
        AFTER_WRITES: WRITES,
    }
    head = f"{plan.trial + 1},{rank}"
    several = plan.objects_per_block > 1
    ramp_ns = int(plan.ramp_s * 1e9)
    end_ns = None if plan.duration_s is None else ramp_ns + int(plan.duration_s * 1e9)
    records = np.frombuffer(chunk, RECORD_TYPE)
    for (
        kind,
        after,
        part,
        user,
        request,
        key,
        version,
        size,
        submitted,
        started,
        done,
    ) in records.tolist():
        if started < 0:
            phase, released = POPULATION, TURN
        else:
            late = end_ns is not None and started >= end_ns
            phase = "drain" if late else "ramp" if started < ramp_ns else "window"
            released = releases[after]
        name = f"{key.hex()}.{version}" + (f".{part}" if several else "")
        yield (
            f"{head},{phase},{_NAMES[kind]},{name},{size},{request},{user},{released},"
            f"{submitted},{started},{done}\n"
        )
