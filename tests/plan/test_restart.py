"""The plan of a restart: how much is stored, in what, for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.forecast import describe_forecast, forecast
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.dryrun import time_needed
from pytest_kvcache.report.tables import describe_plan
from tests.factories import SMALL, sound_restart_plan
from tests.plan.planned import facts, plan_of

if TYPE_CHECKING:
    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.plan.plan import Plan
    from tests.desk import Desk

RESTART = ("--kv-phase=restart", "--kv-backend=file")
TIMED = ("--kv-duration", "--kv-ramp")


def planned(model: ModelSpec = SMALL, found: dict[str, Any] | None = None, **texts: str) -> Plan:
    given: dict[str, Any] = {name: (text, "command line") for name, text in texts.items()}
    asked = build_options({"phase": ("restart", "command line"), **given})
    return plan_of(asked, model=model, **found or {})


def test_all_that_users_need_is_stored_as_far_as_there_is_room_or_so_much_as_is_told() -> None:
    plan = planned()
    assert (plan.fill_blocks, plan.capacity_blocks) == (1_000, 1_000)
    room = plan.stored_bytes * 40
    capped = planned(storage_capacity_gb=f"{room}B")
    assert (capped.fill_blocks, capped.capacity_blocks) == (40, 40)
    wide = planned(storage_capacity_gb=f"{plan.stored_bytes * 4_000}B")
    assert (wide.fill_blocks, wide.capacity_blocks) == (1_000, 4_000)
    told = planned(storage_capacity_gb=f"{plan.stored_bytes * 4_000}B", fill="50%")
    assert told.fill_blocks == 2_000
    with pytest.raises(OptionError, match="400 blocks per rank, and --kv-phase=restart stores the"):
        planned(storage_capacity_gb=f"{plan.stored_bytes * 4_000}B", fill="10%")
    assert plan.origins["fill_blocks"] == "phase"
    assert told.origins["fill_blocks"] == "command line"


def test_it_has_a_file_for_each_object_and_no_time() -> None:
    plan = planned()
    assert plan.object_stored_bytes <= 1 << 20  # which would go into slabs
    assert plan.store == "file"
    assert (plan.duration_s, plan.ramp_s, plan.requests) == (None, 0.0, None)
    assert plan.origins["duration_s"] == "phase"


def test_the_way_and_the_caches_are_those_that_were_asked_for() -> None:
    assert (planned().restart_by, planned().drop_caches) == ("scan", False)
    asked = planned(restart_by="lookups", drop_caches="true")
    assert (asked.restart_by, asked.drop_caches) == ("lookups", True)
    brought = planned(engine="vllm-fs")
    assert (brought.restart_by, brought.origins["restart_by"]) == ("lookups", "vllm-fs")
    assert "restart_by" not in brought.changed
    assert "restart_by" in planned(engine="vllm-fs", restart_by="scan").changed


def test_another_phase_has_none_of_it_even_where_an_ini_or_an_engine_says_so() -> None:
    texts: dict[str, Any] = {"drop_caches": ("true", "ini"), "restart_by": ("lookups", "ini")}
    plan = plan_of(build_options(texts))
    assert (plan.restart_by, plan.drop_caches, plan.fill_blocks) == (None, False, 0)
    plan = plan_of(build_options({"engine": ("vllm-fs", "command line")}))
    assert plan.restart_by is None
    assert "restart_by" not in plan.changed


def test_its_deadline_grows_with_the_objects_that_are_found_again() -> None:
    few = planned(found={"need": facts().need})
    twice = planned(storage_capacity_gb=f"{few.stored_bytes * 2_000}B", fill="100%")
    assert twice.deadline_s > few.deadline_s + 1_000 * 2 / 200


def test_a_dry_run_tells_what_is_stored_and_no_hits() -> None:
    plan = sound_restart_plan(np=2)
    family = build_registry().workload(plan.scenario, plan.scenarios_of_its_own)
    found = forecast(plan, None, family)
    assert found.population_bytes == 2 * 500 * plan.stored_bytes
    assert (found.written_bytes, found.read_bytes, found.window_s) == (0, 0, None)
    told = [*describe_forecast(found, plan, 3)]
    assert len(told) == 1
    assert told[0].startswith("writes ")
    needed = time_needed(plan, found, build_options({}))
    assert needed.startswith("as long as the storage needs for it: 3 trials")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "restart by a scan of their directories, metadata warm, of what was stored for"),
        ({"restart_by": "lookups", "drop_caches": True}, "by a lookup of each key, caches dro"),
    ],
)
def test_the_sentence_on_what_runs_says_how(changes: dict[str, Any], said: str) -> None:
    text = describe_plan(sound_restart_plan(**changes))
    assert said in text
    assert text.endswith("window until the index of each rank is usable again")


def test_a_scenario_of_whole_objects_has_requests_that_read_what_they_stored(desk: Desk) -> None:
    said = desk.refusal("--kv-scenario=mlperf-1", *RESTART, without=TIMED)
    assert "--kv-phase is restart" in said
    assert "each request reads what it has stored" in said


def test_slabs_are_refused(desk: Desk) -> None:
    said = desk.refusal("--kv-store=slab", *RESTART, without=TIMED)
    assert said.startswith("--kv-store is slab, and --kv-phase=restart finds objects by the names")
