"""A run's operations, written down and asked of other storages, by real ranks and pytest."""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.traces.ioformat import COLUMNS
from tests.site import PATIENCE_S, PYTEST, SUITE, refusal

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.site import Site

pytestmark = pytest.mark.mpi

RUN = ("ramp", "window", "drain")
SMALL = "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
RECORDED = (
    "--kv-scenario=chat", "--kv-model=small.toml", "--kv-num-users=6", "--kv-duration=1.5",
    "--kv-ramp=0.1", "--kv-block-tokens=16", "--kv-storage-capacity-gb=280KiB",
    "--kv-context-scale=0.1",
)  # fmt: skip


def run(site: Site, *more: str, passed: int = 1) -> dict[str, Any]:
    """The case of a run of two ranks and one trial."""
    (site.path / "small.toml").write_text(SMALL)
    for old in site.run_files():
        old.unlink()
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=2", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-trials=1", "--kv-allow-invalid", "--kv-metrics=write.gib_per_s",
        "--kv-cache-dir=.", *more, timeout=PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=passed)
    case: dict[str, Any] = site.case()
    return case


def operations(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = text.decode().splitlines()[2:-1]
    return [dict(zip(COLUMNS, line.split(","), strict=True)) for line in lines]


def asked(path: Path, *phases: str) -> Counter[tuple[str, ...]]:
    """How often each rank did what with which object, by its key without its version."""
    return Counter(
        (each["rank"], each["operation"], each["key"].partition(".")[0], each["bytes"])
        for each in operations(path)
        if each["phase"] in phases
    )


@pytest.mark.thorough
def test_a_run_on_files_is_asked_again_of_memory_of_nothing_and_of_files(real_site: Site) -> None:
    first = real_site.path / "first.csv.gz"
    case = run(real_site, *RECORDED, f"--kv-io-trace={first}")
    (trial,) = case["trials"]
    in_window = Counter(
        (int(e["rank"]), e["operation"]) for e in operations(first) if e["phase"] == "window"
    )
    for rank in trial["ranks"]:
        for kind in ("read", "write", "delete"):
            assert in_window[rank["rank"], kind] == rank[f"{kind}_count"] > 0
        assert rank["io_trace"]["operations"] == sum(
            int(each["rank"]) == rank["rank"] for each in operations(first)
        )
    assert "TRACED" in {verdict["code"] for verdict in trial["verdicts"]}
    assert case["plan"]["io_trace"]
    assert not [p.name for p in real_site.path.rglob("*io-trace*") if p != first]
    for backend, speedup in (("memory", 0), ("null", 5), ("file", 0)):
        again = real_site.path / f"{backend}.csv"
        case = run(
            real_site, f"--kv-trace={first}", f"--kv-trace-speedup={speedup}",
            f"--kv-backend={backend}", f"--kv-io-trace={again}",
            # In the milliseconds of one ranks may have no moment together.
            f"--kv-metrics={'write.gib_per_s' if speedup else 'run.s'}",
        )  # fmt: skip
        assert case["plan"]["users"] == 6  # of each rank, as recorded
        assert asked(again, "population") == asked(first, "population")
        done, wanted = asked(again, *RUN), asked(first, *RUN)
        assert sums(done) == sums(wanted)
        assert speedup or (done - wanted).total() <= late(first)
        (trial,) = case["trials"]
        assert trial["error"] is None
        assert trial["cache"]["hit_ratio"] == 1
        assert trial["tokens"]["per_s"] is None


def sums(what: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Of each rank, how many operations of each kind and size."""
    found = Counter[tuple[str, ...]]()
    for (rank, operation, _key, size), count in what.items():
        found[rank, operation, size] += count
    return dict(found)


def late(path: Path) -> int:
    """Operations on objects that were stored again before the one before them was gone."""
    spans: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for each in operations(path):
        key, _dot, version = each["key"].partition(".")
        at = int(each["submitted_ns"])
        of_key = spans.setdefault((each["rank"], key), {})
        first, last = of_key.get(version, (at, at))
        of_key[version] = min(first, at), max(last, at)
    again = set[tuple[str, str, str]]()
    for (rank, key), of_key in spans.items():
        versions = sorted(of_key, key=int)
        for before, after in pairwise(versions):
            if of_key[after][0] < of_key[before][1] or (rank, key, before) in again:
                again.add((rank, key, after))
    return sum((each["rank"], *each["key"].split(".")) in again for each in operations(path))


def test_a_file_holds_one_case_and_what_can_not_be_written_is_found_first(
    real_site: Site,
) -> None:
    lists = real_site.real("--kv-np=1,2", "--kv-io-trace=io.csv", "--kv-backend=null")
    assert "a file holds one case" in refusal(lists)
    nowhere = real_site.real("--kv-np=1", "--kv-io-trace=no/io.csv", "--kv-backend=null")
    assert "no can't be written to (No such file or directory)" in refusal(nowhere)
    assert not real_site.run_files()
