from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, UnavailableError, UnknownNameError
from pytest_kvcache.hosts.hostlist import HostSpec
from pytest_kvcache.options.options import (
    OPTIONS,
    Options,
    Trials,
    build_options,
    describe_value,
    scenario_names,
)
from pytest_kvcache.plugin import read_options
from pytest_kvcache.workloads.openloop import ARRIVAL_SHAPES
from pytest_kvcache.workloads.scenarios import TABLE
from tests.site import output, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.site import Site

# Every option of the contract with its default; None: not decided by the options alone.
DEFAULTS: dict[str, Any] = {
    "hosts": (HostSpec(name="127.0.0.1"),),
    "np": None,
    "npernode": None,
    "exec_type": "mpi",
    "image": None,
    "mpi_bin": "mpirun",
    "oversubscribe": False,
    "allow_run_as_root": False,
    "mpi_params": (),
    "ssh": ("ssh",),
    "scenario": ("mixed",),
    "model": ("llama3.1-8b",),
    "num_users": 100,
    "load_steps": None,
    "duration": 60.0,
    "ramp": None,
    "trials": Trials(3, 3),
    "gpu_mem_gb": 0,
    "cpu_mem_gb": 0,
    "tier_policy": "write-through",
    "cpu_tier": "memory",
    "storage_capacity_gb": 0,
    "cache_dir": "/var/tmp",
    "backend": "file",
    "io": "direct",
    "sync": None,
    "block_tokens": None,
    "layout": "block",
    "store": "auto",
    "tensor_parallel": 1,
    "queue_depth": 16,
    "transfer_size": 4 << 20,
    "generation_mode": "none",
    "performance_profile": "throughput",
    "phase": "both",
    "trace": None,
    "trace_speedup": 1.0,
    "trace_cycles": 1,
    "trace_limit": None,
    "trace_time_unit": None,
    "trace_ids": None,
    "request_rate": None,
    "arrival": None,
    "precondition": None,
    "reread_factor": 0,
    "requests": None,
    "workload": TABLE,
    "io_trace": None,
    "gpu_backend": None,
    "disable_multi_turn": False,
    "disable_prefix_caching": False,
    "enable_rag": False,
    "rag_num_docs": None,
    "prefill_rate": None,
    "cost": None,
    "power": None,
    "enable_autoscaling": False,
    "autoscaler_mode": None,
    "verify": "sample",
    "data": None,
    "seed": 42,
    "results_dir": "results",
    "closed": False,
    "deadline": None,
    "wait": 0.0,
    "python": None,
    "container_engine": None,
    "keep": False,
    "target_ci": None,
    "allow_inconclusive": False,
    "html": None,
    "datasize": False,
    "datasize_json": None,
    "datasize_write_gib_per_s": None,
    "dry_run": False,
    "allow_invalid": False,
    "plugin": (),
    "metrics": (
        "load.p95_ms",
        "load.p50_ms",
        "read.gib_per_s",
        "write.gib_per_s",
        "requests.per_s",
    ),
    "compare": None,
    "fail": (),
    "slo": (),
}
SELECTING = {
    "np", "npernode", "hosts", "exec_type", "scenario", "model", "trace", "closed",
}  # fmt: skip
DISTRIBUTED = {
    "hosts", "np", "npernode", "exec_type", "mpi_bin", "mpi_params", "oversubscribe",
    "allow_run_as_root",
}  # fmt: skip
# What a later version brings, and what says the same as leaving the option out.
LATER = [
    ("html", "report.html"),
]
NEUTRAL = [
    ("exec_type", "mpi"),
    ("performance_profile", "throughput"),
    ("phase", "both"),
    ("disable_multi_turn", "false"),
    ("disable_prefix_caching", "no"),
    ("enable_rag", "0"),
    ("enable_autoscaling", "off"),
    ("closed", "false"),
]
GOOD = [
    ("hosts", ["n1:2", "n2:4"], (HostSpec(name="n1", slots=2), HostSpec(name="n2", slots=4))),
    ("np", "2", (2,)),
    ("store", "slab", "slab"),
    ("layout", "layer", "layer"),
    ("layout", "kv", "kv"),
    ("gpu_mem_gb", "0", 0),
    ("cpu_mem_gb", "0.5", 1 << 29),
    ("np", "1, 2,4", (1, 2, 4)),
    ("mpi_params", ["--mca a 'b c'", "-q"], ("--mca", "a", "b c", "-q")),
    ("num_users", "100000", 100_000),
    ("load_steps", "8,2, 8", (8, 2, 8)),
    ("reread_factor", "0", 0),
    ("reread_factor", "10000", 10_000),
    ("requests", "1", 1),
    ("load_steps", ",".join(["4"] * 16), (4,) * 16),
    ("duration", "2m", 120.0),
    ("duration", "86400", 86_400.0),
    ("ramp", "0", 0.0),
    ("deadline", "90s", 90.0),
    ("wait", "10m", 600.0),
    ("trials", "5", Trials(5, 5)),
    ("storage_capacity_gb", "1.5", 3 << 29),
    ("storage_capacity_gb", "512MiB", 512 << 20),
    ("scenario", "chat, agent", ("chat", "agent")),
    ("metrics", "read.p99_ms,tokens.per_s", ("read.p99_ms", "tokens.per_s")),
    ("plugin", ["a.b,c", "d"], ("a.b", "c", "d")),
    ("seed", "0", 0),
    ("keep", "on", True),
]
BAD = [
    ("np", "0"),
    ("np", "-1"),
    ("np", "2.5"),
    ("np", "two"),
    ("np", "2,2"),
    ("np", "2,,4"),
    ("np", ""),
    ("npernode", "0"),
    ("num_users", "0"),
    ("load_steps", "8"),
    ("load_steps", "8,,2"),
    ("load_steps", "8,0"),
    ("load_steps", "8,all"),
    ("load_steps", ",".join(["4"] * 17)),
    ("requests", "0"),
    ("requests", "1e3"),
    ("reread_factor", "1.5"),
    ("reread_factor", "-1"),
    ("reread_factor", "10001"),
    ("num_users", "100001"),
    ("duration", "0"),
    ("duration", "-1"),
    ("duration", "86401"),
    ("duration", "nan"),
    ("duration", "inf"),
    ("duration", "a minute"),
    ("ramp", "-1"),
    ("trials", "0"),
    ("trials", "5..3"),
    ("trials", "3.."),
    ("trials", "many"),
    ("target_ci", "0%"),
    ("target_ci", "100%"),
    ("context_scale", "0"),
    ("context_scale", "17"),
    ("block_tokens", "0"),
    ("tensor_parallel", "0"),
    ("queue_depth", "0"),
    ("queue_depth", "1025"),
    ("transfer_size", "0"),
    ("transfer_size", "4"),
    ("transfer_size", "4096"),
    ("transfer_size", "2KiB"),
    ("transfer_size", "6KiB"),
    ("transfer_size", "4MB"),
    ("transfer_size", "5GiB"),
    ("transfer_size", "block"),
    ("deadline", "0"),
    ("wait", "a while"),
    ("wait", "-1"),
    ("seed", "-1"),
    ("storage_capacity_gb", "-1"),
    ("storage_capacity_gb", "5 parsecs"),
    ("trace_cycles", "0"),
    ("trace_limit", "0"),
    ("trace_time_unit", "m"),
    ("trace_ids", "hash"),
    ("trace_speedup", "-1"),
    ("generation_mode", "slow"),
    ("io", "mmap"),
    ("sync", "full"),
    ("verify", "some"),
    ("data", "loose"),
    ("keep", "perhaps"),
    ("cache_dir", ""),
    ("results_dir", " "),
    ("backend", ""),
    ("scenario", "chat,,agent"),
    ("scenario", "chat,chat"),
    ("metrics", "read.p95_ms,read.p95_ms"),
    ("plugin", ["no-module"]),
    ("mpi_params", ["--x 'open"]),
    ("hosts", ["n1:0"]),
    ("hosts", ["n1:four"]),
    ("hosts", ["n1:4:4"]),
    ("hosts", ["n1", "n1"]),
    ("hosts", ["n1:2", "n2"]),
    ("hosts", ["-n1"]),
    ("fail", ["read.p95_ms:10"]),
    ("fail", ["read.p95_ms:0%"]),
    ("slo", ["read.p95_ms=20"]),
]


def built(name: str, text: str | Sequence[str], origin: Any = "command line") -> Options:
    return build_options({name: (text, origin)})


def table() -> dict[str, Any]:
    return {spec.name: spec for spec in OPTIONS}


def test_every_option_of_the_contract_exists_with_its_default() -> None:
    options = Options()
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS
    assert set(DEFAULTS) <= set(table())


def test_every_field_of_the_options_can_be_given_by_the_user() -> None:
    assert set(Options.__dataclass_fields__) - {"texts"} == set(table())


def test_the_benchmark_is_selected_by_what_names_it_and_by_nothing_else() -> None:
    assert {spec.name for spec in OPTIONS if spec.selects} == SELECTING


def test_what_belongs_to_a_launch_is_marked_as_distributed() -> None:
    assert {spec.name for spec in OPTIONS if spec.distributed} == DISTRIBUTED


def test_nothing_given_is_all_defaults_without_origins() -> None:
    options = build_options({})
    assert options == Options()
    assert options.origins == {}


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_text_becomes_a_value(name: str, text: str | list[str], value: object) -> None:
    options = built(name, text)
    assert getattr(options, name) == value
    assert options.given(name)
    assert options.origins == {name: "command line"}


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_refused_by_the_name_it_was_given_under(
    name: str, text: str | list[str]
) -> None:
    with pytest.raises(OptionError, match=f"^{table()[name].flag}"):
        built(name, text)
    if name not in ("fail", "slo"):  # whose rules carry the option's name themselves
        with pytest.raises(OptionError, match=f"^{table()[name].ini}"):
            built(name, text, "ini")


@pytest.mark.parametrize(("name", "text"), LATER)
def test_an_option_of_a_later_version_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UnavailableError) as error:
        built(name, text)
    flag = table()[name].flag
    assert str(error.value).startswith(f"{flag} is {text}; this is not available yet: ")


@pytest.mark.parametrize(("name", "text"), NEUTRAL)
def test_a_value_that_changes_nothing_is_accepted(name: str, text: str) -> None:
    default = DEFAULTS[name] or 0
    assert (getattr(built(name, text), name) or 0) in (default, "file")


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics", "read.p96_ms"), ("fail", ["read.p96_ms:5%"]), ("slo", ["read.p96_ms<5"])],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(name: str, text: str | list[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"read\.p96_ms.*known metric.*read\.p95_ms"):
        built(name, text)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"num_user=…\) is no option \(did you mean 'num_users"):
        build_options({"num_user": ("3", "call")})


@pytest.mark.parametrize(
    ("given_texts", "problem"),
    [
        ({"trials": "3..20"}, "--kv-trials is 3..20; a range needs what ends it: --kv-target-ci"),
        ({"target_ci": "5%"}, "--kv-target-ci needs a range of trials"),
        ({"target_ci": "5%", "trials": "3"}, "--kv-target-ci needs a range of trials"),
        ({"fail": ["read.p95_ms:5%"]}, "--kv-fail needs a baseline"),
        ({"scenario": "trace"}, "--kv-scenario is 'trace'; name the file with --kv-trace"),
        ({"scenario": "chat", "trace": "t"}, "--kv-trace is given but --kv-scenario is chat"),
        ({"trace_speedup": "2"}, "--kv-trace-speedup needs a trace"),
        ({"trace_cycles": "2"}, "--kv-trace-cycles needs a trace"),
        ({"trace_limit": "2"}, "--kv-trace-limit needs a trace"),
        ({"trace_time_unit": "s"}, "--kv-trace-time-unit needs a trace"),
        ({"trace_ids": "content"}, "--kv-trace-ids needs a trace"),
        ({"exec_type": "docker"}, "--kv-exec-type is docker; name the image with --kv-image"),
        ({"image": "kv:1"}, "--kv-image is kv:1; it belongs to containers, so add --kv-exec"),
        ({"container_engine": "podman"}, "--kv-container-engine is podman; it belongs to"),
        ({"arrival": "gamma"}, "--kv-arrival is gamma; it belongs to an open loop, so add"),
        (
            {"metrics": "gpu_read.p95_ms", "cpu_mem_gb": "1"},
            "--kv-metrics names gpu_read.p95_ms, which these memory tiers do not have (cpu, write",
        ),
        (
            {"metrics": "read.p95_ms,demote.gib_per_s", "cpu_mem_gb": "1"},
            "--kv-metrics names demote.gib_per_s, which these memory tiers do not have (cpu, write",
        ),
        (
            {"metrics": "cpu_read.p50_ms", "cpu_mem_gb": "1", "cpu_tier": "index"},
            "--kv-metrics names cpu_read.p50_ms, which these memory tiers do not have (cpu, write",
        ),
        (
            {"metrics": "cache.gpu_hit_ratio"},
            "--kv-metrics names cache.gpu_hit_ratio, which these memory tiers do not have (none)",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    given_texts: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as error:
        build_options({name: (text, "command line") for name, text in given_texts.items()})
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize(
    "asked",
    [
        {"metrics": "cpu_read.p50_ms,cache.cpu_hit_ratio", "cpu_mem_gb": "1"},
        {"metrics": "cache.cpu_hit_ratio,demote.p95_ms", "cpu_mem_gb": "1", "cpu_tier": "index",
         "tier_policy": "demote"},
        {"metrics": "cpu_demote.p95_ms", "cpu_mem_gb": "1", "gpu_mem_gb": "1",
         "tier_policy": "demote"},
        {"metrics": "cache.storage_hit_ratio,cache.hit_ratio"},
    ],
)  # fmt: skip
def test_a_metric_of_a_tier_that_is_asked_for_may_be_asked_for(asked: dict[str, str]) -> None:
    found = build_options({name: (text, "command line") for name, text in asked.items()})
    assert found.metrics == tuple(asked["metrics"].split(","))


def test_whose_metrics_a_test_has_depends_on_no_call_of_it() -> None:
    found = build_options(
        {"metrics": ("cpu_read.p50_ms", "command line"), "cpu_mem_gb": ("0", "call")}
    )
    assert found.metrics == ("cpu_read.p50_ms",)


def test_a_trace_given_alone_is_the_scenario() -> None:
    assert scenario_names(built("trace", "t.jsonl")) == ("trace",)
    assert scenario_names(Options()) == ("mixed",)


def test_the_arrivals_of_an_ini_wait_for_a_rate() -> None:
    assert given_in({"arrival": ("gamma", "ini")}).arrival == "gamma"
    rate, arrival = ("2.5", "command line"), ("gamma", "command line")
    asked = given_in({"request_rate": rate, "arrival": arrival})
    assert (asked.request_rate, asked.arrival) == (2.5, "gamma")


def test_every_arrival_has_a_shape() -> None:
    assert set((table()["arrival"].metavar or "").strip("{}").split(",")) == set(ARRIVAL_SHAPES)


@settings(deadline=None)
@given(name=st.sampled_from(OPTIONS).map(lambda spec: spec.name), text=st.text(max_size=20))
def test_any_text_is_a_value_or_is_refused_as_one(name: str, text: str) -> None:
    raw = [text] if table()[name].kind in ("hosts", "repeat") else text
    try:
        options = built(name, raw)
    except OptionError as error:
        assert str(error).startswith("--kv-")  # noqa: PT017  either end is fine
    else:
        assert options.given(name)


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, unique=True))
def test_a_python_value_says_the_same_as_its_text(counts: list[int]) -> None:
    (first, *_rest) = counts
    assert built("np", describe_value(first), "call").np == (first,)
    assert built("keep", describe_value(first > 500), "call").keep == (first > 500)


# --- on the command line and in an ini file -------------------------------------------------


def test_help_lists_every_option_of_this_version_and_its_ini_twin_and_no_other(site: Site) -> None:
    text = output(site.call("--help"))
    group, _, rest = text.partition("storage benchmark for LLM KV caches")[2].partition("\n\n")
    flags = {
        line.split("=")[0].split()[0] for line in group.splitlines() if line.startswith("  --kv-")
    }
    known = {name for name, spec in table().items() if spec.later is None}
    assert {table()[name].flag for name in known} == flags
    inis = {line.split()[0] for line in rest.splitlines() if line.startswith("  kv_")}
    assert {f"kv_{name}" for name in known} == inis
    assert known < set(table())
    assert "available" not in group


def test_help_shows_percent_signs_once(site: Site) -> None:
    text = output(site.call("--help"))
    assert "--kv-fail=METRIC:N%" in text
    assert "%%" not in text.partition("storage benchmark for LLM KV caches")[2]


def test_every_option_is_none_until_it_is_given(site: Site) -> None:
    config = site.pytester.parseconfig("-p", "no:cacheprovider")
    found = {name: config.getoption(f"kv_{name}") for name in DEFAULTS}
    assert found == dict.fromkeys(DEFAULTS)
    known = [name for name in DEFAULTS if table()[name].later is None]
    assert not any(config.getini(f"kv_{name}") for name in known)


def origin_line(result: pytest.RunResult, field: str) -> str:
    (line,) = (line for line in result.outlines if line.split()[:1] == [field])
    return " ".join(line.split()[1:])


def test_the_command_line_beats_the_ini_file_which_beats_the_default(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_num_users = 7\nkv_seed = 9\nkv_keep = yes\n")
    result = site.canned("--kv-dry-run", "-v", "--kv-seed=11")
    assert result.ret == pytest.ExitCode.OK
    assert origin_line(result, "seed") == "11 (command line)"
    assert origin_line(result, "num_users") == "7 per rank (ini)"
    assert origin_line(result, "keep") == "yes (ini)"
    assert origin_line(result, "queue_depth") == "16 (default)"


def test_the_report_header_says_what_was_given_where(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_num_users = 7\nkv_seed = 9\n")
    result = site.canned("--kv-dry-run", "--kv-seed=11")
    header = " ".join(line.strip() for line in result.outlines).partition("kvcache: ")[2]
    assert "num_users=7 (ini)" in header
    assert "seed=11 (command line)" in header
    assert "9 (ini)" not in header


def test_the_last_one_given_wins(site: Site) -> None:
    result = site.canned("--kv-dry-run", "--kv-hosts", "n1", "--kv-seed=1", "--kv-seed=2",
                         "--kv-hosts=127.0.0.1")  # fmt: skip
    assert result.ret == pytest.ExitCode.OK
    assert origin_line(result, "seed") == "2 (command line)"
    assert origin_line(result, "hosts") == "127.0.0.1:2 (command line)"


def test_hosts_of_an_ini_file_are_words(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_hosts = localhost:4\n")
    result = site.canned("--kv-dry-run")
    assert origin_line(result, "hosts") == "localhost:2 (ini)"


@pytest.mark.parametrize("arguments", [("--kv-html=r.html",), ("--kv-html", "r.html")])
def test_an_unavailable_option_exits_4_and_launches_nothing(
    site: Site, arguments: tuple[str, ...]
) -> None:
    sentence = refusal(site.canned(*arguments))
    assert sentence.startswith(arguments[0].partition("=")[0])
    assert "not available yet" in sentence
    assert site.launches() == []


def test_an_ini_file_has_one_of_several_things_per_line(pytester: pytest.Pytester) -> None:
    (pytester.path / "base.json").touch()
    pytester.makeini(
        """
        [pytest]
        kv_slo =
            load.p95_ms<5

            read.p95_ms<4
        kv_fail = load.p95_ms:5%
            read.p95_ms:4%
        kv_compare = base.json
        kv_metrics =
            load.p95_ms,
            read.p95_ms
            requests.per_s, tokens.per_s
        kv_np = 1
            2
        kv_plugin =
            one
            two, three
        kv_mpi_params =
            --bind-to core
            --map-by 'a b'
        kv_model = tiny-1b
        """
    )
    options = read_options(pytester.parseconfig())
    assert list(map(str, options.slo)) == ["load.p95_ms<5", "read.p95_ms<4"]
    assert list(map(str, options.fail)) == ["load.p95_ms:5%", "read.p95_ms:4%"]
    assert options.metrics == ("load.p95_ms", "read.p95_ms", "requests.per_s", "tokens.per_s")
    assert options.np == (1, 2)
    assert options.plugin == ("one", "two", "three")
    assert options.mpi_params == ("--bind-to", "core", "--map-by", "a b")
    assert options.model == ("tiny-1b",)


def test_an_unavailable_option_is_refused_in_an_ini_file_by_its_ini_name(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_html = report.html\n")
    sentence = refusal(site.canned())
    assert sentence.startswith("kv_html is report.html; this is not available yet")


# -- where a trace and a scenario meet -----------------------------------------------------


def given_in(places: dict[str, tuple[str, str]]) -> Options:
    return build_options({name: (text, origin) for name, (text, origin) in places.items()})  # type: ignore[misc]  # origins as plain text


@pytest.mark.parametrize(
    ("scenario", "trace", "names"),
    [
        (("mixed", "ini"), ("t.jsonl", "command line"), ("trace",)),
        (("agent", "call"), ("t.jsonl", "command line"), ("agent",)),
        (("trace", "command line"), ("t.jsonl", "command line"), ("trace",)),
        (("mixed,trace", "command line"), ("t.jsonl", "ini"), ("mixed", "trace")),
    ],
)
def test_of_a_trace_and_a_scenario_the_stronger_one_wins(
    scenario: tuple[str, str], trace: tuple[str, str], names: tuple[str, ...]
) -> None:
    assert scenario_names(given_in({"scenario": scenario, "trace": trace})) == names


def test_a_trace_and_another_scenario_in_one_place_contradict_each_other() -> None:
    places = {"scenario": ("mixed", "command line"), "trace": ("t.jsonl", "command line")}
    with pytest.raises(OptionError, match="--kv-trace is given but --kv-scenario is mixed"):
        given_in(places)


@pytest.mark.parametrize(
    ("name", "text", "also", "message"),
    [
        ("context_scale", "4", {}, r"--kv-context-scale is 4; a trace is replayed as it was"),
        ("num_users", "7", {}, r"--kv-num-users is 7; .* add --kv-trace-speedup=0"),
        ("load_steps", "8,2", {}, r"--kv-load-steps is 8,2; a trace is replayed by those who"),
        ("request_rate", "7", {}, r"--kv-request-rate is 7; .* out and use --kv-trace-speedup"),
        (
            "arrival",
            "gamma",
            {"request_rate": ("7", "ini")},
            r"--kv-arrival is gamma; .* out and use --kv-trace-speedup",
        ),
    ],
)
def test_what_a_replay_would_ignore_is_refused(
    name: str, text: str, also: dict[str, tuple[str, str]], message: str
) -> None:
    trace = {"trace": ("t.jsonl", "command line")}
    with pytest.raises(OptionError, match=message):
        given_in({**trace, **also, name: (text, "command line")})
    given_in({**trace, **also, name: (text, "ini")})  # serves the checkout's other scenarios


def test_the_users_of_a_replay_as_fast_as_possible_are_the_users_choice() -> None:
    asked = given_in(
        {
            "trace": ("t.jsonl", "command line"),
            "trace_speedup": ("0", "command line"),
            "num_users": ("7", "command line"),
        }
    )
    assert asked.num_users == 7


def test_a_relative_cache_directory_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert given_in({"cache_dir": (".", "command line")}).cache_dir == str(tmp_path)
    assert given_in({"cache_dir": ("a/../b", "ini")}).cache_dir == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("phase", "name", "text"),
    [
        ("prefill", "slo", "read.p95_ms<20"),
        ("prefill", "slo", "load.p50_ms<20"),
        ("decode", "slo", "write.gib_per_s>1"),
        ("decode", "fail", "write.p95_ms:5%"),
    ],
)
def test_a_gate_on_what_a_phase_never_does_is_refused(phase: str, name: str, text: str) -> None:
    given: dict[str, Any] = {
        name: ([text], "command line"),
        "compare": ("old.json", "command line"),
    }
    with pytest.raises(OptionError, match=rf"--kv-{name} judges .*--kv-phase={phase} makes no"):
        given_in({**given, "phase": (phase, "ini")})
    given_in({**given, "phase": ("both", "command line")})


@pytest.mark.parametrize(
    ("name", "text"),
    [("duration", "9"), ("ramp", "1"), ("request_rate", "5"), ("load_steps", "1,2")],
)
def test_a_fixed_amount_of_work_and_a_time_exclude_each_other(name: str, text: str) -> None:
    flag = "--kv-" + name.replace("_", "-")
    refused = rf"--kv-requests is 7 and {flag} is {text}; .* leave one of them out"
    for origin in ("ini", "command line"):
        given: dict[str, Any] = {"requests": ("7", origin), name: (text, origin)}
        with pytest.raises(OptionError, match=refused):
            build_options(given)
    given = {"requests": ("7", "command line"), name: (text, "ini")}
    assert build_options(given).requests == 7


def test_a_trace_has_an_amount_of_its_own() -> None:
    with pytest.raises(OptionError, match="--kv-requests is 7; a trace ends with its last request"):
        build_options({"requests": ("7", "command line"), "trace": ("x", "command line")})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"cpu_mem_gb": "1GiB"}, "can't go with --kv-cpu-mem-gb"),
        ({"phase": "decode"}, "can't go with --kv-phase=decode, which stores nothing"),
        ({"reread_factor": "1"}, "can't go with --kv-reread-factor, which reads all"),
        ({"interference": "true"}, "can't go with --kv-interference, whose sides"),
        ({"full_queue": "skip"}, "--kv-full-queue is 'skip'; it must be one of wait, drop"),
    ],
)
def test_stores_that_something_depends_on_are_not_dropped(texts: dict[str, str], said: str) -> None:
    given = {"full_queue": "drop", **texts}
    with pytest.raises(OptionError, match=re.escape(said)):
        build_options({name: (text, "command line") for name, text in given.items()})
