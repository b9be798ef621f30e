"""Whether the storage pays: what can be computed by hand from the ranks' counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.measure.worth import LengthCounts
from pytest_kvcache.report.worth import describe_worth
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.invariants import record_faults
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.canned import case_of
from tests.factories import rank_result, sound_plan, sound_record

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import TrialRecord
    from pytest_kvcache.results.trial import Worth

RATE = 100.0  # tokens/s; a rank of the canned ones asks for 20,000 tokens in 60 s and hits half
LENGTHS = (
    LengthCounts(tokens=10, loads=120, useful=20),
    LengthCounts(tokens=100, loads=80, useful=80),
)


def counted(**changes: Any) -> dict[str, Any]:
    values = {"loaded_tokens": 9_200, "useful_tokens": 8_200, "load_lengths": LENGTHS}
    return values | changes


def record_of(plan: Plan, ranks: int = 1, **changes: Any) -> TrialRecord:
    return sound_record(plan, [rank_result(rank, **counted(**changes)) for rank in range(ranks)])


def worth_of(plan: Plan, **changes: Any) -> Worth:
    trial, _ = evaluate_trial(record_of(plan, plan.np, **changes), plan)
    return trial.worth


def computing(**changes: Any) -> Plan:
    return sound_plan(prefill_tokens_per_s=RATE, **changes)


def test_useful_tokens_are_a_share_of_all_that_prompts_have() -> None:
    worth = worth_of(computing())
    assert worth.useful_hit_ratio == 8_200 / 20_000


def test_the_gpus_that_are_saved_are_those_that_computed_the_useful_tokens_all_the_time() -> None:
    worth = worth_of(computing(np=2))
    assert worth.gpus_saved == pytest.approx(2 * 8_200 / 60 / RATE)
    assert worth.gpus_busy == pytest.approx(2 * 10_000 / 60 / RATE)


def test_gpus_that_share_a_model_compute_together_what_each_rank_loads_a_part_of() -> None:
    alone, shared = worth_of(computing()), worth_of(computing(tensor_parallel=2))
    assert alone.gpus_saved is not None
    assert alone.turning_gib_per_s is not None
    assert shared.gpus_saved == pytest.approx(alone.gpus_saved / 2)
    # Each must load as fast as both compute: all of it, for the one KV head is on either.
    assert shared.turning_gib_per_s == pytest.approx(2 * alone.turning_gib_per_s)


def test_loads_pay_from_the_length_on_that_tells_them_apart() -> None:
    assert worth_of(computing()).turning_tokens == 100
    assert worth_of(computing(np=3)).lengths == tuple(
        replace(each, loads=3 * each.loads, useful=3 * each.useful) for each in LENGTHS
    )


def test_where_nothing_was_worth_loading_all_is_computed() -> None:
    worth = worth_of(computing(), load_lengths=(), loaded_tokens=0, useful_tokens=0, hit_tokens=0)
    assert (worth.useful_hit_ratio, worth.gpus_saved) == (0.0, 0.0)
    assert worth.gpus_busy == pytest.approx(20_000 / 60 / RATE)
    prefill = worth_of(computing(phase="prefill"), load_lengths=(), loaded_tokens=0)
    assert (prefill.useful_hit_ratio, prefill.gpus_saved) == (None, None)
    assert prefill.gpus_busy == worth.gpus_busy


def test_what_lies_beside_a_prefix_is_asked_for_as_well() -> None:
    worth = worth_of(computing(block_tokens=4), beside_blocks=2_500, beside_hit_blocks=1_000)
    assert worth.useful_hit_ratio == 8_200 / 30_000
    assert worth.gpus_busy == pytest.approx((10_000 + 6_000) / 60 / RATE)
    cost = worth_of(sound_plan(block_tokens=4, cost_per_hour=3.0), beside_blocks=2_500,
                    beside_hit_blocks=1_000, **NOTHING)  # fmt: skip
    assert cost.cost_per_mtok == pytest.approx(3.0 / (14_000 / 60 * 3_600) * 1e6)


def test_gpus_that_share_a_model_have_the_cost_of_its_tokens_once() -> None:
    alone = worth_of(sound_plan(cost_per_hour=3.0), **NOTHING)
    shared = worth_of(sound_plan(cost_per_hour=3.0, np=2, tensor_parallel=2), **NOTHING)
    assert shared.cost_per_mtok == pytest.approx(alone.cost_per_mtok)


def test_cost_and_energy_are_those_of_a_million_hit_tokens() -> None:
    worth = worth_of(sound_plan(cost_per_hour=3.0, power_w=50.0), **NOTHING)
    hit_per_s = 10_000 / 60
    assert worth.cost_per_mtok == pytest.approx(3.0 / (hit_per_s * 3_600) * 1e6)
    assert worth.joules_per_mtok == pytest.approx(50.0 / hit_per_s * 1e6)


def test_a_capacity_that_is_written_once_a_day_has_one_drive_write_per_day() -> None:
    plan = sound_plan()
    written_per_s = rank_result(0).write_bytes / 60
    assert worth_of(plan, **NOTHING).dwpd == pytest.approx(
        written_per_s * 86_400 / plan.capacity_bytes
    )


NOTHING: dict[str, Any] = {"loaded_tokens": None, "useful_tokens": None, "load_lengths": ()}


def test_what_nobody_gave_an_option_for_is_not_known() -> None:
    worth = worth_of(sound_plan(), **NOTHING)
    known = {name for name in worth.__dataclass_fields__ if getattr(worth, name)}
    assert known == {"dwpd"}
    assert describe_worth(sound_plan(), []) == ""


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        (NOTHING, "loaded_tokens is None; by the plan it must not be null"),
        ({"useful_tokens": 9_201}, "useful_tokens is 9201"),
        ({"useful_tokens": 8_199}, "useful_tokens is 8199; by its load_lengths it must be at"),
        ({"loaded_tokens": 9_400}, "loaded_tokens is 9400; by its load_lengths it must be at"),
        ({"load_lengths": LENGTHS[::-1]}, "load_lengths are not in the order of their tokens"),
        (
            {"load_lengths": (replace(LENGTHS[0], useful=121), LENGTHS[1])},
            "of 120 loads of 10 tokens 121 are useful",
        ),
        ({"load_lengths": LENGTHS[1:], "loaded_tokens": 8_000, "useful_tokens": 8_000},
         "load_lengths are those of 80 loads; they must be those of load.count"),
    ],
)  # fmt: skip
def test_loads_that_contradict_each_other_are_found(changes: dict[str, Any], reported: str) -> None:
    plan = computing()
    assert any(reported in fault for fault in record_faults(record_of(plan, **changes), plan))


def test_loads_without_contradiction_are_sound() -> None:
    assert [*record_faults(record_of(computing()), computing())] == []


def test_ranks_count_no_loads_that_the_plan_does_not_judge() -> None:
    faults = [*record_faults(record_of(sound_plan()), sound_plan())]
    assert any("loaded_tokens is 9200; by the plan it must be null" in fault for fault in faults)


@pytest.mark.parametrize(
    ("plan", "metric", "changes", "reason"),
    [
        (sound_plan(), "worth.gpus_saved", NOTHING, "nobody says what it is made of; add --kv-pre"),
        (sound_plan(), "worth.joules_per_mtok", NOTHING, "add --kv-power"),
        (
            computing(),
            "worth.turning_tokens",
            {"load_lengths": (replace(LENGTHS[0], useful=120), LENGTHS[1]), "useful_tokens": 9_200},
            "10 each: every length pays, for of 200 loads of 10 to 100 tokens 200 were sooner",
        ),
        (computing(), "worth.turning_tokens",
         {"load_lengths": (), "loaded_tokens": 0, "useful_tokens": 0},
         "no load was completed in the window of a trial"),
    ],
)  # fmt: skip
def test_what_loads_are_worth_is_absent_for_a_reason(
    plan: Plan, metric: str, changes: dict[str, Any], reason: str
) -> None:
    measured, verdicts = evaluate_trial(record_of(plan, **changes), plan)
    trial = TrialResult(index=0, error=None, verdicts=verdicts, measured=measured)
    assert reason in why_absent(case_of(plan, trial), metric)


def test_a_sentence_tells_all_of_it() -> None:
    plan = computing(cost_per_hour=3.0, power_w=50.0)
    measured, verdicts = evaluate_trial(record_of(plan), plan)
    trial = TrialResult(index=0, error=None, verdicts=verdicts, measured=measured)
    text = describe_worth(plan, [trial])
    assert text.startswith(
        "Worth: 41.0% of the tokens asked for came sooner than 100 tokens/s compute; that saves"
        " 1.37 GPUs, and computing the rest keeps 1.67 busy; a load moves "
    )
    assert text.endswith(
        "loads pay from 100 tokens on; a million hit tokens cost 5; a million hit tokens take"
        " 300,000 J."
    )
