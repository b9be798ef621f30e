"""I/O traces: what ``--kv-io-trace`` writes, and the CSV of the MLPerf KV cache benchmark.

Ours is described field by field in docs/iotrace.md. The benchmark's (``--io-trace-log`` of
mlcommons/storage) is ``Timestamp,Operation,Object_Size_Bytes,Tier,Key,Phase``: seconds since
1970, ``Read`` or ``Write``, and ``Tier-2`` for what reached the storage; other tiers are left
out. It says neither who waited for what nor what was deleted.

Rank-side; imports numpy and the errors.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import ioformat
from pytest_kvcache.traces.fields import csv_rows
from pytest_kvcache.traces.operations import (
    DELETE,
    NOBODY,
    READ,
    STORED,
    WRITE,
    Names,
    Recording,
    found_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_kvcache.traces.recorded import Asked, Recorded
    from pytest_kvcache.traces.source import Source

CSV_COLUMNS = ("Timestamp", "Operation", "Object_Size_Bytes", "Tier", "Key", "Phase")
STORAGE_TIER = "Tier-2"
_TIERS = ("Tier-0", "Tier-1", STORAGE_TIER)
_CSV_KINDS = {"Read": READ, "Write": WRITE}
_KINDS = {"read": READ, "write": WRITE, "demote": WRITE, "delete": DELETE}
_OUR_KEY = re.compile(r"([0-9a-f]{16})([0-9a-f]{16})\.(\d{1,12})(?:\.(\d{1,5}))?")
_MOST_BYTES = 1 << 40
_LAST_NS = 1 << 62


def read_own(source: Source, asked: Asked) -> Recorded:
    """Read a trace of ours: its first trial."""
    del asked  # it says all of itself
    recording, left_out, path = Recording(), 0, source.path
    trial = ""
    for number, values in _own_rows(source.lines(), path):
        trial = trial or values[0]
        if values[0] != trial:
            left_out += 1
            continue
        try:
            _add_own(recording, values, number)
        except ValueError as error:
            raise TraceError(path, number, str(error)) from error
    if not any(kind != STORED for kind in recording.kind):
        raise TraceError(path, 0, "it has no operation beyond a population; name another trace")
    names = Names(size="bytes", key="key")
    return found_in(recording, path, names=names, has_ranks=True, left_out=left_out)


def _own_rows(lines: Iterable[bytes], path: str) -> Iterator[tuple[int, list[str]]]:
    """Every operation's line number and values; TraceError for a file that is not whole."""
    count, end, number = 0, None, 0
    for number, line in enumerate(lines, start=1):
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if number == 1:
            _check_version(text, path)
        elif number == 2:  # noqa: PLR2004  the header
            if text != ",".join(ioformat.COLUMNS):
                problem = f"the columns are {text:.200}; they must be {','.join(ioformat.COLUMNS)}"
                raise TraceError(path, number, problem)
        elif end is not None:
            raise TraceError(path, number, "the line stands behind the last one; remove it")
        elif text.startswith(ioformat.LAST_LINE):
            end = text.removeprefix(ioformat.LAST_LINE).partition(" ")[0]
        else:
            values = text.split(",")
            if len(values) != len(ioformat.COLUMNS):
                problem = f"the line has {len(values)} fields; it must have"
                raise TraceError(path, number, f"{problem} {len(ioformat.COLUMNS)}")
            count += 1
            yield number, values
    if end != str(count):
        has = "no last line" if end is None else f"a last line that tells of {end:.20} operations"
        problem = f"it has {count} operations and {has}, so it was cut off; copy the file again"
        raise TraceError(path, number, problem)


def _check_version(text: str, path: str) -> None:
    version = text.removeprefix(ioformat.FIRST_LINE).partition(":")[0]
    if version != str(ioformat.VERSION):
        problem = f"the version is {version:.20}; {ioformat.VERSION} is read, record it anew"
        raise TraceError(path, 1, problem)


def _add_own(recording: Recording, values: list[str], line: int) -> None:
    """Note an operation; ValueError names the field that is wrong."""
    _trial, rank, phase, operation, key, size, request, user, waits_for, *times = values
    if phase not in ioformat.PHASES:
        raise ValueError(f"phase is {phase!r}; it must be one of {', '.join(ioformat.PHASES)}")
    if operation not in _KINDS:
        raise ValueError(f"operation is {operation!r}; it must be one of {', '.join(_KINDS)}")
    if waits_for not in ioformat.RELEASES:
        known = ", ".join(ioformat.RELEASES)
        raise ValueError(f"waits_for is {waits_for!r}; it must be one of {known}")
    kind = _KINDS[operation]
    if phase == ioformat.POPULATION:
        if kind != WRITE:
            raise ValueError(f"operation is {operation!r}; a population only writes")
        kind = STORED
    submitted, started, completed = (
        _whole(text, name, -_LAST_NS, _LAST_NS)
        for text, name in zip(times, ioformat.COLUMNS[-3:], strict=True)
    )
    if not submitted <= started <= completed:
        raise ValueError(
            f"started_ns is {started}; it must lie between submitted_ns and completed_ns"
        )
    high, low, version = _key(key, "key")
    recording.kind.append(kind)
    recording.submitted_ns.append(submitted)
    recording.high.append(high)
    recording.low.append(low)
    recording.version.append(version)
    recording.size.append(_whole(size, "bytes", 1, _MOST_BYTES))
    recording.request.append(_whole(request, "request", 0, (1 << 31) - 1))
    number = _whole(user, "user", 0, (1 << 31) - 1)
    recording.user.append(NOBODY if waits_for == ioformat.CLOCK else number)
    recording.rank.append(_whole(rank, "rank", 0, (1 << 20) - 1))
    recording.line.append(line)


def _key(text: str, name: str) -> tuple[int, int, int]:
    """The two words of a key, and which object of it: the words of ours, of others a hash's."""
    match = _OUR_KEY.fullmatch(text)
    if match:
        high, low, version, part = match.groups()
        return int(high, 16), int(low, 16), int(version) | int(part or 0) << 48
    if not text:
        raise ValueError(f"{name} is empty; every operation is of an object")
    digest = blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big"), 0


def _whole(text: str, name: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ValueError(f"{name} is {text:.40}; it must be a whole number from {low} to {high}")
    return value


def read_csv(source: Source, asked: Asked) -> Recorded:
    """Read the benchmark's CSV: what its storage was asked for."""
    del asked  # it says all of itself
    recording, left_out, path = Recording(), 0, source.path
    for line, values in csv_rows(source, CSV_COLUMNS):
        try:
            left_out += not _add_csv(recording, values, line)
        except ValueError as error:
            raise TraceError(path, line, str(error)) from error
    if not recording.kind:
        problem = f"Tier is {STORAGE_TIER} in none of its lines; name a trace whose storage was"
        raise TraceError(path, 0, f"{problem} asked for something")
    names = Names(size="Object_Size_Bytes", key="Key")
    return found_in(recording, path, names=names, has_ranks=False, left_out=left_out)


def _add_csv(recording: Recording, values: list[str], line: int) -> bool:
    """Note an operation, unless it is another tier's; ValueError names the field that is wrong."""
    stamp, operation, size, tier, key, _phase = values
    if tier not in _TIERS:
        raise ValueError(f"Tier is {tier!r}; it must be one of {', '.join(_TIERS)}")
    if tier != STORAGE_TIER:
        return False
    if operation not in _CSV_KINDS:
        raise ValueError(f"Operation is {operation!r}; it must be one of {', '.join(_CSV_KINDS)}")
    high, low, version = _key(key, "Key")
    recording.kind.append(_CSV_KINDS[operation])
    recording.submitted_ns.append(_since_1970_ns(stamp))
    recording.high.append(high)
    recording.low.append(low)
    recording.version.append(version)
    recording.size.append(_whole(size, "Object_Size_Bytes", 1, _MOST_BYTES))
    recording.request.append(len(recording.request))
    recording.user.append(NOBODY)
    recording.rank.append(0)
    recording.line.append(line)
    return True


def _since_1970_ns(text: str) -> int:
    """Nanoseconds of a decimal number of seconds, exactly: a float would lose some."""
    whole, dot, rest = text.strip().partition(".")
    if not whole.isdecimal() or (dot and not rest.isdecimal()) or len(whole) > 10:  # noqa: PLR2004
        raise ValueError(f"Timestamp is {text:.40}; it must be seconds since 1970")
    return int(whole) * 1_000_000_000 + int(rest[:9].ljust(9, "0") if rest else 0)
