"""A rank whose storage is full of what nobody asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.results.invariants import record_faults
from tests.factories import (
    make_plan,
    rank_result,
    registry_of,
    run_rank,
    sound_plan,
    sound_record,
    tireless_scenarios,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.results.record import RankResult

CAPACITY = 400


def finished(directory: Path, **changes: Any) -> RankResult:
    plan = make_plan(**{
        "backend": "file", "cache_dir": str(directory), "keep": True, "capacity_blocks": CAPACITY,
        "users": 3, "requests": 60, "duration_s": None, **changes,
    })  # fmt: skip
    registry = registry_of(backends={"file": StoreBackend}, workloads=tireless_scenarios())
    result = run_rank(plan, registry).result
    assert result.error is None
    return result


@pytest.mark.parametrize("fill_blocks", [300, 400])
def test_a_full_storage_is_as_full_as_was_asked_for_and_makes_room_at_every_store(
    tmp_path: Path, fill_blocks: int
) -> None:
    fresh = finished(tmp_path)
    full = finished(tmp_path, fill_blocks=fill_blocks)
    assert fresh.populated_blocks < fill_blocks == full.populated_blocks
    assert (fresh.evictions, fresh.delete_count) == (0, 0)
    stored = full.storage_stored_blocks
    assert full.evictions == full.delete_count == stored - (CAPACITY - fill_blocks)
    assert full.cached_blocks == CAPACITY
    assert (full.hit_blocks, full.prompt_blocks) == (fresh.hit_blocks, fresh.prompt_blocks)


def test_a_storage_that_is_too_small_for_the_contexts_is_filled_all_the_same(
    tmp_path: Path,
) -> None:
    result = finished(tmp_path, users=30, capacity_blocks=97, fill_blocks=97)
    assert result.populated_blocks == 97


def test_less_than_was_to_be_filled_is_a_fault() -> None:
    plan = sound_plan(capacity_blocks=50, fill_blocks=40)
    for populated, faults in ((39, 1), (40, 0)):
        record = sound_record(plan, [rank_result(0, populated_blocks=populated)])
        told = [fault for fault in record_faults(record, plan) if "populated_blocks" in fault]
        assert len(told) == faults
