"""The raw figures of `storage.py` against the targets. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.figures import MIB, Figure, ratios, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    # Part → row → one entry per round. Any: parsed JSON.
    Raw = dict[str, dict[str, list[Any]]]

RATIO = "× fio"
KIB = 1 << 10
GIB = 1 << 30
OPERATION_TARGETS_PER_S = {16 * KIB: 100_000, 64 * KIB: 50_000, 256 * KIB: 17_000}
COLUMNS = ("p50", "p95", "p99", "p999")


def figures_of(raw: Raw) -> list[Figure]:
    """Every target in the order of the table; a part that was left out has no row."""
    return [
        *_bandwidths(raw.get("bandwidth", {})),
        *_bandwidths(raw.get("new files", {}), ", new files"),
        *_single(raw.get("single", {})),
        *_cpu(raw.get("bandwidth", {})),
        *_cpu(raw.get("new files", {}), ", new files"),
        *_memory(raw.get("bandwidth", {})),
        *_operations(raw.get("operations", {})),
        *_overheads(raw.get("operations", {})),
        *_seconds(raw),
    ]


def size_text(size: int) -> str:
    """In KiB or MiB."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def _named(row: str) -> tuple[str, int, str]:
    """Kind, size and both as text, of a row's key."""
    kind, size = row.split()
    return kind, int(size), f"{kind} {size_text(int(size))}"


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


def _bandwidths(rows: Mapping[str, list[Any]], how: str = "") -> Iterator[Figure]:
    for row, rounds in rows.items():
        _, size, text = _named(row)
        target, name = 0.95 if size >= MIB else 0.90, f"bandwidth, {text}{how}"
        yield _against(rounds, name, "gib_per_s", target=target, at_least=True)


def _single(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for rounds in rows.values():
        name = "one 32 MiB object, beside readahead"
        yield _against(rounds, name, "gib_per_s", target=1.0, at_least=True)


def _cpu(rows: Mapping[str, list[Any]], how: str = "") -> Iterator[Figure]:
    for row, rounds in rows.items():
        _, size, text = _named(row)
        if size >= MIB:
            name = f"CPU per GiB, {text}{how}"
            yield _against(rounds, name, "cpu_s_per_gib", target=1.5, at_least=False)


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


def _operations(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for row, rounds in rows.items():
        _, size, text = _named(row)
        ours, theirs = (_column(rounds, side, "ops_per_s") for side in ("ours", "fio"))
        yield Figure(
            name=f"1 thread, tmpfs, {text}", unit="k/s",
            target=OPERATION_TARGETS_PER_S[size] / 1000, at_least=True,
            values=tuple(rate / 1000 for rate in ours),
            details={"fio_k_per_s": [rate / 1000 for rate in theirs]},
        )  # fmt: skip


def _overheads(rows: Mapping[str, list[Any]]) -> Iterator[Figure]:
    for row, rounds in rows.items():
        _, _, text = _named(row)
        ours = [1e6 / rate for rate in _column(rounds, "ours", "null_ops_per_s")]
        theirs = [1e6 / rate for rate in _column(rounds, "fio_null", "ops_per_s")]
        yield Figure(
            name=f"above fio's, null, {text}", unit="µs", target=10, at_least=False,
            values=tuple(mine - other for mine, other in zip(ours, theirs, strict=True)),
            details={"ours_us": ours, "fio_us": theirs},
        )  # fmt: skip


def _seconds(raw: Raw) -> Iterator[Figure]:
    for part, name, target in (
        ("start", "start to first operation, 2 ranks", 1.5),
        ("gather", "gather of 64 ranks", 2.0),
    ):
        for values in raw.get(part, {}).values():
            yield Figure(name=name, unit="s", target=target, at_least=False, values=tuple(values))


def percentile_table(raw: Raw) -> str:
    """Service times of reads in µs, medians of the rounds: fio's clat beside our backends."""
    lines = [
        f"{'reads, µs':<28}" + "".join(f"{name:>11}" for name in ("p50", "p95", "p99", "p99.9"))
    ]
    for row, rounds in raw.get("percentiles", {}).items():
        kind, size, np = row.split()
        for side in rounds[0]:
            values = [_median_us([entry[side] for entry in rounds], column) for column in COLUMNS]
            lines.append(
                _percentile_line(f"{kind} {size_text(int(size))}, np {np}, {side}", values)
            )
    return "\n".join(lines)


def _percentile_line(text: str, cells: Sequence[str]) -> str:
    return f"{text:<32}" + "".join(f"{cell:>11}" for cell in cells)


def _median_us(rounds: Sequence[Sequence[Mapping[str, Any]]], column: str) -> str:
    """Of each round the slowest rank's; a dash where too few operations were made."""
    found = [[rank["ms"][column] for rank in ranks] for ranks in rounds]
    if any(value is None for values in found for value in values):
        return "-"
    return short(statistics.median(max(values) for values in found) * 1000)
