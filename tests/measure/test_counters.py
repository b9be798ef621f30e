from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_kvcache
from pytest_kvcache.measure.counters import (
    MAY_BE_UNKNOWN,
    TABLE,
    AtMost,
    AtMostPlanned,
    Counters,
    CountOf,
    Tally,
    merged,
    nothing_counted,
)
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.results.record import RankResult
from tests.factories import rank_result

COUNTS = st.integers(0, 1 << 50)
COUNTERS = st.builds(
    Counters,
    **{
        name: st.none() | COUNTS if name in MAY_BE_UNKNOWN else COUNTS for name in TABLE
    },
)  # fmt: skip


def counted(**known: Any) -> Counters:
    return Counters(**nothing_counted() | known)


# --- the table ------------------------------------------------------------------------------


def test_what_the_engine_counts_is_in_the_table() -> None:
    assert set(Tally().counted()) <= set(TABLE)


def test_what_the_engine_counts_in_nanoseconds_is_reported_in_seconds() -> None:
    assert Tally(store_stall_ns=1_500_000_000, offered=3).counted()["store_stall_s"] == 1.5


def test_a_law_is_about_what_there_is() -> None:
    for name, row in TABLE.items():
        for law in row.laws:
            if isinstance(law, AtMost):
                assert {law.whole, *law.beside} <= set(TABLE), name
            elif isinstance(law, AtMostPlanned):
                assert hasattr(Plan, law.limit), name
            else:
                assert law.section in SECTIONS, name


def test_no_two_counters_have_one_place_in_a_trial() -> None:
    places = [row.place for row in TABLE.values() if row.place]
    assert len(set(places)) == len(places)
    assert not [row.place for row in TABLE.values() if row.merge == "own" and row.place]


def test_a_name_ends_in_the_unit_of_its_row() -> None:
    suffixes = {"bytes": "_bytes", "tokens": "_tokens", "s": "_s", "ms": "_ms", "per s": "_per_s"}
    for name, row in TABLE.items():
        suffix = suffixes.get(row.unit)
        assert suffix is None or name.endswith(suffix), name


def test_a_rank_s_record_has_every_counter_and_what_the_rank_found() -> None:
    names = list(rank_result().to_json())
    assert sorted(names) == sorted(part.name for part in fields(RankResult))
    assert [name for name in names if name in TABLE] == list(TABLE)


# --- of all ranks ---------------------------------------------------------------------------


@given(st.lists(COUNTERS, min_size=1, max_size=5))
def test_sums_and_extremes_are_those_of_the_ranks(ranks: list[Counters]) -> None:
    together = merged(ranks)
    for name, row in TABLE.items():
        values = [getattr(rank, name) for rank in ranks]
        known = [value for value in values if value is not None]
        found = getattr(together, name)
        if row.merge == "own" or not known or (row.merge == "sum" and len(known) < len(values)):
            assert found is None, name
        elif row.merge == "sum":
            assert found == sum(values), name
        else:
            assert min(known) <= found <= max(known), name
            assert row.merge != "largest" or found == max(known), name


@given(COUNTERS)
def test_one_rank_alone_is_all_ranks(rank: Counters) -> None:
    together = merged([rank])
    for name, row in TABLE.items():
        assert row.merge == "own" or getattr(together, name) == getattr(rank, name), name


@settings(max_examples=40)
@given(COUNTERS, COUNTERS, COUNTERS)
def test_it_is_all_the_same_which_ranks_are_summed_first(
    one: Counters, two: Counters, three: Counters
) -> None:
    left, right = merged([merged([one, two]), three]), merged([one, merged([two, three])])
    for name, row in TABLE.items():
        if row.merge in {"sum", "largest"}:
            assert getattr(left, name) == getattr(right, name), name


def test_a_sum_that_lacks_a_rank_is_not_known() -> None:
    ranks = [counted(device_read_bytes=5), counted(device_read_bytes=None)]
    assert merged(ranks).device_read_bytes is None


def test_the_longest_pause_is_that_of_the_ranks_that_know_theirs() -> None:
    ranks = [counted(longest_pause_s=0.3), counted(longest_pause_s=None)]
    assert merged(ranks).longest_pause_s == 0.3


@pytest.mark.parametrize("law", [AtMost(whole="offered", beside=("dropped",)),
                                 AtMostPlanned(limit="queue_depth"),
                                 CountOf(section="read")])  # fmt: skip
def test_a_law_is_reported_with_what_it_compares(law: AtMost | AtMostPlanned | CountOf) -> None:
    assert str(law) in {
        "with `dropped` at most `offered`",
        "at most the plan's `queue_depth`",
        "in all `read.count`",
    }


# --- one more -------------------------------------------------------------------------------

ROW = """\
    seen: int = field(metadata=_row(
        "requests", "somebody has seen", AtMost(whole="offered"), place="requests.seen"))
"""
WITH_ONE_MORE = """
import json, runpy, sys
from dataclasses import replace
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.results.invariants import check_record, record_faults
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.canned import record_of as canned
from tests.factories import make_plan, rank_result, record_of, registry_of, run_rank
from tests.factories import sound_plan, tireless_scenarios

registry = registry_of(backends={"null": NullBackend}, workloads=tireless_scenarios(50))
plan = make_plan(np=2, duration_s=0.2, capacity_blocks=150)
record = record_of(plan, [run_rank(plan, registry, rank=rank) for rank in range(2)])
check_record(record, plan)
check_record(canned(sound_plan(duration_s=1.0)), sound_plan(duration_s=1.0))
many = tuple(replace(rank, seen=10**9) for rank in record.ranks)
docs = runpy.run_path(sys.argv[1])
print(json.dumps({
    "trial": evaluate_trial(record, plan)[0].to_json(),
    "fault": next(record_faults(replace(record, ranks=many), plan)),
    "factory": rank_result().to_json()["seen"],
    "docs": [line for line in docs["table"]() if "`seen`" in line],
}))
"""


@pytest.mark.thorough
def test_a_counter_more_is_a_row_and_the_place_that_counts(tmp_path: Path) -> None:
    package, checkout = Path(pytest_kvcache.__file__).parent, Path(__file__).parents[2]
    copy = tmp_path / package.name
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    edit(copy / "measure/counters.py", "    read_count: int = field(", ROW, before=True)
    edit(copy / "measure/counters.py", "    read_failed: int = 0\n", "    seen: int = 0\n")
    offering = "self.counters.offered += 1\n"
    (engine,) = (path for path in copy.rglob("*.py") if offering in path.read_text())
    edit(engine, offering, "self.counters.seen += 1; ", before=True)

    done = subprocess.run(
        [sys.executable, "-c", WITH_ONE_MORE, str(checkout / "docs" / "counters.py")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{checkout}"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    requests = found["trial"]["requests"]
    assert requests["seen"] == requests["offered"] > 0
    assert requests["seen"] == sum(rank["seen"] for rank in found["trial"]["ranks"])
    assert "seen is 1000000000; it must be at most offered, which is " in found["fault"]
    assert found["factory"] == 0
    assert len(found["docs"]) == 1


def edit(path: Path, anchor: str, addition: str, *, before: bool = False) -> None:
    text = path.read_text()
    assert anchor in text, f"{path} has no {anchor!r}"
    path.write_text(text.replace(anchor, addition + anchor if before else anchor + addition))
