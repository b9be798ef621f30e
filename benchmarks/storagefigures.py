"""The raw figures of `storage.py` against the targets. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.figures import MIB, Figure, ratios

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    # Part → row → one entry per round. Any: parsed JSON.
    Raw = dict[str, dict[str, list[Any]]]

RATIO = "× fio"
KIB = 1 << 10
GIB = 1 << 30
SAME_PATTERN_BYTES = 4 * MIB  # up to here an operation is one transfer, as fio's is
# Percentile → the most that it may be of fio's, from 64 KiB on; below, p99 alone, twice.
LATENCY_TARGETS = {"p50": 1.1, "p99": 1.2, "p999": 1.3}
SMALL_LATENCY_TARGETS = {"p99": 2.0}


def row_name(kind: str, size: int, shape: tuple[int, int]) -> str:
    """How a row is called: ``read 64 KiB 1×16``."""
    return f"{kind} {size_text(size)} {shape[0]}×{shape[1]}"


def size_text(size: int) -> str:
    """A size in KiB or MiB."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def size_of(row: str) -> int:
    """Bytes of an object, from the name of its row."""
    _, number, unit, _ = row.split()
    return int(number) * {"KiB": KIB, "MiB": MIB}[unit]


def figures_of(raw: Raw) -> list[Figure]:
    """Every target in the order of the table; a part that was left out has no row."""
    reads, writes = raw.get("reads", {}), raw.get("writes", {})
    unverified = raw.get("unverified", {})
    return [
        *_bandwidths({**reads, **writes}),
        *_cpu(reads, _cpu_target),
        *_cpu(unverified, _unverified_cpu_target, ", unverified"),
        *_absolute_cpu(reads),
        *_latencies(reads),
        *_memory({**reads, **writes}),
        *_rates(raw),
        *_seconds(raw),
        *_before(reads),
    ]


def _column(rounds: Sequence[Mapping[str, Any]], side: str, name: str) -> list[float]:
    return [entry[side][name] for entry in rounds]


def _against(
    rounds: Sequence[Mapping[str, Any]], name: str, field: str, *, target: float, at_least: bool
) -> Figure:
    """The rounds' ratios of one field."""
    ours, theirs = _column(rounds, "ours", field), _column(rounds, "fio", field)
    return Figure(
        name=name, unit=RATIO, target=target, at_least=at_least, values=ratios(ours, theirs),
        details={"ours": ours, "fio": theirs, "field": field},
    )  # fmt: skip


def _bandwidths(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for row, rounds in rows.items():
        size = size_of(row)
        target = 0.95 if size >= MIB else 0.92 if size >= 64 * KIB else 0.85
        name = f"bandwidth, {row}"
        yield _against(rounds, name, "gib_per_s", target=target, at_least=True)


def _cpu_target(row: str) -> float | None:
    alone, size = row.endswith("1×16"), size_of(row)
    if size < 64 * KIB or size > SAME_PATTERN_BYTES:
        return None
    if size < MIB:
        return 2.0 if alone else 2.4
    return 3.0 if alone else 4.0


def _unverified_cpu_target(row: str) -> float | None:
    return 1.8 if size_of(row) < MIB else 2.6


def _cpu(rows: Mapping[str, list[Any]], target_of: Any, how: str = "") -> Iterator[Figure]:
    for row, rounds in rows.items():
        target = target_of(row)
        if target is not None:
            name = f"CPU, {row}{how}"
            yield _against(rounds, name, "cpu_s_per_gib", target=target, at_least=False)


def _absolute_cpu(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for row, rounds in rows.items():
        if size_of(row) >= MIB:
            yield Figure(
                name=f"CPU, {row}", unit="s/GiB", target=0.05, at_least=False,
                values=tuple(_column(rounds, "ours", "cpu_s_per_gib")),
            )  # fmt: skip


def _latencies(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for row, rounds in rows.items():
        if size_of(row) > SAME_PATTERN_BYTES:
            continue
        targets = LATENCY_TARGETS if size_of(row) >= 64 * KIB else SMALL_LATENCY_TARGETS
        for percentile, target in targets.items():
            ours, theirs = ([e[side]["ms"][percentile] for e in rounds] for side in ("ours", "fio"))
            if None not in ours:  # too few operations for it
                yield Figure(
                    name=f"{percentile}, {row}", unit=RATIO, target=target, at_least=False,
                    values=ratios(ours, theirs), details={"ours_ms": ours, "fio_ms": theirs},
                )  # fmt: skip


def _memory(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    peaks: dict[int, float] = {}
    for rounds in rows.values():
        for number, peak in enumerate(_column(rounds, "ours", "peak_rss_bytes")):
            peaks[number] = max(peaks.get(number, 0.0), peak / GIB)
    if peaks:
        yield Figure(
            name="memory of the largest rank", unit="GiB", target=0.25, at_least=False,
            values=tuple(peaks.values()),
        )  # fmt: skip


def _rates(raw: Raw) -> Iterator[Figure]:
    for part, name, field, target in (
        ("null", "one rank, null, no payload", "ops_per_s", 400.0),
        ("checked", "one rank, null, stamped and checked", "null_ops_per_s", 250.0),
    ):
        for rounds in raw.get(part, {}).values():
            yield Figure(
                name=name, unit="k/s", target=target, at_least=True,
                values=tuple(entry[field] / 1000 for entry in rounds),
            )  # fmt: skip


def _seconds(raw: Raw) -> Iterator[Figure]:
    for part, name, target in (
        ("start", "start to first operation, 2 ranks", 1.0),
        ("gather", "gather of 64 ranks", 2.0),
    ):
        for values in raw.get(part, {}).values():
            yield Figure(name=name, unit="s", target=target, at_least=False, values=tuple(values))


def _before(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    """What the engine of choice gains over threads, in the same rounds; at least nothing."""
    for row, rounds in rows.items():
        ours, threads = (_column(rounds, side, "gib_per_s") for side in ("ours", "threads"))
        yield Figure(
            name=f"bandwidth, {row}", unit="× thr.", target=1.0, at_least=True,
            values=ratios(ours, threads),
        )  # fmt: skip
