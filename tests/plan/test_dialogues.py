"""What the users of synthetic scenarios are asked to do, and can't: refused before a launch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.plan.building import default_deadline_s
from pytest_kvcache.plan.forecast import describe_forecast, forecast
from pytest_kvcache.workloads.protocol import Need
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import make_plan, options

if TYPE_CHECKING:
    from pathlib import Path

    from tests.desk import Desk


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--kv-disable-prefix-caching", "--kv-scenario=chat"],
            "the scenario chat would read nothing: --kv-disable-prefix-caching lets no request",
        ),
        (
            ["--kv-disable-multi-turn", "--kv-scenario=chat", "--kv-block-tokens=600"],
            "the scenario chat would read nothing: --kv-disable-multi-turn ends every conversation",
        ),
        (
            ["--kv-scenario=chat", "--kv-block-tokens=5000"],
            "the scenario chat would read nothing: no prompt goes on after a whole block of 5000",
        ),
        (
            ["--kv-scenario=rag", "--kv-block-tokens=12001"],
            "no document that the users of the scenario rag retrieve from is of a whole block of",
        ),
        (
            ["--kv-disable-prefix-caching", "--kv-phase=decode"],
            "--kv-disable-prefix-caching lets no request find what was stored before it, and",
        ),
        (
            ["--kv-enable-rag", "--kv-phase=prefill"],
            "--kv-enable-rag reads chunks of documents, and --kv-phase=prefill makes no reads;",
        ),
        (
            ["--kv-enable-rag", "--kv-scenario=rag"],
            "--kv-enable-rag is given, and all users of the scenario rag retrieve already; leave",
        ),
        (
            ["--kv-rag-num-docs=3", "--kv-scenario=chat"],
            "--kv-rag-num-docs is 3, and nobody of the scenario chat retrieves; add",
        ),
        (["--kv-rag-num-docs=0", "--kv-enable-rag"], "--kv-rag-num-docs is 0; it must be at least"),
        (["--kv-rag-num-docs=100001", "--kv-enable-rag"], "--kv-rag-num-docs is 100001; it must"),
        (["--kv-rag-num-docs=1.5", "--kv-enable-rag"], "--kv-rag-num-docs is '1.5'; it must be a"),
        (
            ["--kv-enable-rag", "--kv-trace=t.jsonl"],
            "--kv-enable-rag changes the users of synthetic scenarios, and --kv-scenario is trace;",
        ),
    ],
)
def test_what_users_can_not_do_is_refused(desk: Desk, words: list[str], sentence: str) -> None:
    refused = desk.refusal(
        *words, without=["--kv-scenario", "--kv-block-tokens", "--kv-context-scale"]
    )
    assert refused.startswith(sentence)


@pytest.mark.parametrize(
    "words",
    [
        ["--kv-disable-prefix-caching", "--kv-phase=prefill"],
        ["--kv-disable-prefix-caching", "--kv-enable-rag"],
        ["--kv-disable-prefix-caching", "--kv-scenario=rag"],
        ["--kv-disable-multi-turn"],
        ["--kv-rag-num-docs=3", "--kv-scenario=rag"],
        ["--kv-scenario=rag,chat", "--kv-enable-rag"],
    ],
)
def test_what_users_can_do_is_planned(desk: Desk, words: list[str]) -> None:
    desk.accept(*words)


def test_an_ini_file_serves_other_scenarios_too(desk: Desk) -> None:
    desk.accept("--kv-scenario=chat", ini={"rag_num_docs": "4"})


def test_a_scenario_of_a_file_is_planned_with_every_effective_value(
    desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[profiles.mine]\nsystem_prompts = 1\nsystem_tokens = 300\nopening_tokens = [20, 200]\n"
        "message_tokens = [10, 100]\noutput_tokens = [50, 300]\ncontext_tokens = 8192\n"
        "think_s = [0, 0]\nretrieval_ratio = 0.5\n[retrieval]\ntop_k = 2\n"
    )
    words = [f"--kv-workload={path}", "--kv-scenario=mine", "--kv-rag-num-docs=3"]
    with desk.benchmark_session(*words) as session:
        session.check(session.names)
        (name,) = session.names
        plan = session.plan(name).plan
    assert plan.dialogues is not None
    assert plan.dialogues.file == "mine.toml"
    assert plan.dialogues.weights == {"mine": 1.0}
    assert plan.dialogues.retrieval is not None
    assert (plan.dialogues.retrieval.documents, plan.dialogues.retrieval.top_k) == (3, 2)
    assert plan.origins["dialogues"] == plan.origins["rag_num_docs"] == "command line"
    assert type(plan).from_json(plan.to_json()) == plan


def test_an_unknown_scenario_is_refused_with_those_of_the_file(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[profiles.chat]\ncontext_tokens = 8192\n")
    refused = desk.refusal(f"--kv-workload={path}", "--kv-scenario=chat,mine")
    assert refused.startswith("--kv-scenario is 'mine'")


def test_what_is_not_asked_for_is_not_changed() -> None:
    assert options().workload.dialogues("mixed").retrieval is None


# -- preconditioning -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kv-precondition=10"], "--kv-precondition is '10'; it must be a size above 0 with its"),
        (["--kv-precondition=0GiB"], "--kv-precondition is '0GiB'; it must be a size above 0"),
        (["--kv-precondition=-1GiB"], "--kv-precondition is '-1GiB'; it must be a size above 0"),
        (["--kv-precondition=much"], "--kv-precondition is 'much'; it must be a size above 0"),
        (
            ["--kv-precondition=1MiB"],
            "--kv-precondition is 1 MiB, and --kv-backend=null is no storage that it could be",
        ),
        (
            ["--kv-precondition=1MiB", "--kv-backend=file", "--kv-io=buffered", "--kv-sync=none"],
            "--kv-precondition is 1 MiB, which must reach the storage, and --kv-io is buffered",
        ),
    ],
)
def test_a_precondition_that_can_not_reach_the_storage_is_refused(
    desk: Desk, words: list[str], sentence: str
) -> None:
    assert desk.refusal(*words).startswith(sentence)


def test_what_is_written_before_takes_its_time_and_is_told() -> None:
    plan = make_plan(backend="file", cache_dir="/data", duration_s=10.0)
    more = replace(plan, precondition_bytes=20_000_000_000)
    need = Need(working_set_blocks=1)
    assert default_deadline_s(more, need) - default_deadline_s(plan, need) >= 1_000
    assert plan.phases_before_window == ("calibration", "population")
    assert more.phases_before_window == ("calibration", "precondition", "population")
    (first, _hits) = describe_forecast(forecast(more, None, SyntheticFamily()), more, 3)
    assert first.startswith("writes about 55.")
    assert ", 55.88 GiB of it to precondition, of which at most " in first
    (plain, _hits) = describe_forecast(forecast(plan, None, SyntheticFamily()), plan, 3)
    assert "precondition" not in plain


def test_what_is_overwritten_before_is_there_at_a_time_as_well() -> None:
    plan = make_plan(backend="file", capacity_blocks=1_000, need_blocks=10, precondition_bytes=1)
    for asked_bytes, there in ((1, "40 KiB"), (400 * 4096, "1.56 MiB"), (10**9, "3.91 MiB")):
        more = replace(plan, precondition_bytes=asked_bytes)
        (first, _hits) = describe_forecast(forecast(more, None, SyntheticFamily()), more, 1)
        assert first.endswith(f"of which at most {there} are there at a time")


# -- objectives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--kv-performance-profile=latency", "--kv-phase=prefill"],
            "--kv-performance-profile is latency, which judges answers by the reads that they wait",
        ),
        (
            ["--kv-metrics=requests.goodput_per_s"],
            "--kv-metrics names requests.goodput_per_s, which needs requests with objectives;",
        ),
        (
            ["--kv-slo=requests.compliance_ratio>0.9"],
            "--kv-slo names requests.compliance_ratio, which needs requests with objectives; add",
        ),
        (
            ["--kv-performance-profile=both"],
            "--kv-performance-profile is 'both'; it must be one of latency, throughput",
        ),
    ],
)
def test_objectives_that_could_not_be_kept_are_refused(
    desk: Desk, words: list[str], sentence: str
) -> None:
    assert desk.refusal(*words).startswith(sentence)


def test_the_profile_has_gates_of_its_own() -> None:
    def gates(**given: str) -> list[str]:
        return [str(rule) for rule in options(**given).slo]

    assert gates() == []
    assert gates(performance_profile="latency") == ["requests.compliance_ratio>=0.95"]
    assert gates(performance_profile="throughput") == ["read.gib_per_s>0", "write.gib_per_s>0"]
    assert gates(performance_profile="throughput", phase="prefill") == ["write.gib_per_s>0"]
    assert gates(performance_profile="throughput", phase="decode") == ["read.gib_per_s>0"]


def test_the_objectives_are_in_the_plan_where_they_judge(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[objectives]\ncompliance_ratio = 0.9\n")
    words = [f"--kv-workload={path}", "--kv-performance-profile=latency", "--kv-allow-invalid"]
    with desk.benchmark_session(*words) as session:
        plan = session.plan(session.names[0]).plan
        assert [str(rule) for rule in session.options.slo] == ["requests.compliance_ratio>=0.9"]
    assert plan.service is not None
    assert plan.service.compliance_ratio == 0.9
    assert plan.origins["service"] == "command line"
    assert type(plan).from_json(plan.to_json()) == plan
    with desk.benchmark_session() as session:
        assert session.plan(session.names[0]).plan.service is None
