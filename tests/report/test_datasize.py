from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.models import MODELS
from pytest_kvcache.options.options import OPTIONS, build_options
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.datasize import (
    DECIDES,
    SCHEMA,
    UNUSED,
    UNUSED_BY_A_TRACE,
    Screen,
    datasize_report,
)
from pytest_kvcache.units import MIB, format_bytes
from tests.recordings import REFERENCE, SHAREGPT, real_trace, trace_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_kvcache.options.options import Options, Origin
    from tests.site import Site

RANKS_ROW = re.compile(r" +(\d+) +(?:\d+ +)?(\d\S* \S+) +(\d\S* \S+) +(\d\S* \S+)")
USERS_ROW = re.compile(r" +(\d+) +(\d+)(?: +\d\S* \S+){3}")
CURVE_ROW = re.compile(
    r" +(\d+ %|yours) +(\d[\d,]*) +\d\S* \S+ +(\d\.\d{4}) +(\d\.\d{4}) +(\d\.\d{4}|-)"
)
BEHIND_ROW = re.compile(
    r" +(\d+ %|yours|) +(\d[\d,]*) +\d\S* \S+ +(\d\.\d{4}) +(\d\.\d{4}) +\d\S* \S+"
)
SHARED_ROW = re.compile(r"  (shared|\d+ ranks)((?: +\d\.\d{4})+)")


def typed(**texts: str | Sequence[str]) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


def report(**texts: str | Sequence[str]) -> str:
    return datasize_report(typed(backend="null", datasize="true", **texts))


def rows(text: str, pattern: re.Pattern[str]) -> list[tuple[str, ...]]:
    return [match.groups() for line in text.splitlines() if (match := pattern.fullmatch(line))]


def fact(text: str, name: str) -> str:
    (found,) = re.findall(rf"^  {name} +(.*)$", text, re.MULTILINE)
    return str(found)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Four requests of one rank: 4 of 9 blocks are hits where nothing is evicted."""
    path = tmp_path / "t.jsonl"
    prompts = ([1, 2], [3, 4], [1, 2], [1, 2, 5])
    lines = [
        {"timestamp": i, "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("llama3.1-8b", "131,072"),
        ("llama3.1-70b-instruct", "327,680"),
        ("qwen3-32b", "262,144"),
        ("deepseek-v3", "70,272"),
        ("tiny-1b", "24,576"),
    ],
)
def test_bytes_per_token_are_the_models(model: str, bytes_per_token: str) -> None:
    assert fact(report(model=model), "bytes per token") == bytes_per_token


def test_a_model_with_windows_tells_what_a_token_costs_beyond_them_and_its_objects() -> None:
    text = report(model="gpt-oss-20b")
    assert fact(text, "bytes per token") == "49,152"
    assert fact(text, "beyond the windows") == "24,576"
    assert "12 MiB in 2 objects: full 6 MiB, sliding 6 MiB" in " ".join(text.split())
    layers = " ".join(report(model="gpt-oss-20b", layout="layer").split())
    assert "12 MiB in 24 objects: full 12 × 512 KiB, sliding 12 × 512 KiB" in layers


def test_a_model_with_a_state_tells_its_size_and_the_type_of_the_rest() -> None:
    text = report(model="jamba-v0.1", kv_dtype="fp8")
    assert fact(text, "stored as") == "fp8"
    assert fact(text, "bytes per token") == "8,192"
    assert fact(text, "state of a context") == "8.31 MiB, stored per block"


def test_tensor_parallelism_divides_what_a_rank_holds_up_to_its_kv_heads() -> None:
    text = report(model="llama3.1-8b", tensor_parallel="16")
    assert fact(text, "bytes per token") == "131,072, 16,384 per rank of 16"


def test_the_latent_of_a_model_with_mla_is_not_divided() -> None:
    text = report(model="deepseek-v3", tensor_parallel="8")
    assert fact(text, "bytes per token") == "70,272"
    assert "replicated" in fact(text, "note")


def test_the_table_goes_by_powers_of_two_and_adds_up() -> None:
    text = report(num_users="3", context_scale="0.1")
    table = rows(text, RANKS_ROW)
    assert [int(ranks) for ranks, *_ in table] == [1, 2, 4, 8, 16, 32, 64]
    need = fact(text, "working set per rank").partition(" (")[0]
    assert {largest for _, largest, *_ in table} == {need}
    assert table[0][1] == table[0][2]


def test_a_working_set_grows_with_the_users() -> None:
    few = fact(report(num_users="1"), "working set per rank")
    many = fact(report(num_users="50"), "working set per rank")
    assert int(few.split()[-2].replace(",", "")) < int(many.split()[-2].replace(",", ""))
    assert "(1 user, " in few


def test_the_calculation_is_the_plans() -> None:
    text = report(num_users="3", block_tokens="64", model="tiny-1b")
    blocks = int(fact(text, "working set per rank").split()[-2])
    assert fact(text, "block") == f"64 tokens (command line), {format_bytes(64 * 24_576)}"
    assert fact(text, "working set per rank").startswith(format_bytes(blocks * 64 * 24_576))


def test_every_scenario_and_model_gets_its_part() -> None:
    text = report(scenario="chat,agent", model="tiny-1b,qwen3-32b", num_users="2")
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads == [f"{s} · {m}" for s in ("chat", "agent") for m in ("tiny-1b", "qwen3-32b")]


def test_counts_of_ranks_in_an_ini_file_do_not_repeat_the_part() -> None:
    options = build_options(
        {
            "backend": ("null", "command line"),
            "num_users": ("2", "command line"),
            "np": ("1,2,4", "ini"),
            "hosts": (["n1:9"], "ini"),
        }
    )
    assert datasize_report(options).count("mixed · llama3.1-8b") == 1


def test_a_cap_says_where_it_comes_from() -> None:
    text = report(num_users="3", storage_capacity_gb="1")
    assert fact(text, "storage capacity per rank") == "1 GiB (from the command line)"


def test_what_does_not_fit_says_what_is_free(tmp_path: Path) -> None:
    text = datasize_report(typed(cache_dir=str(tmp_path), num_users="3000", model="llama2-7b"))
    assert fact(text, "storage capacity per rank").endswith(f"(90 % of what is free in {tmp_path})")


# --- who the users are ----------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.sampled_from(["mixed", "chat", "agent"]), st.integers(16, 512))
def test_all_ranks_need_as_many_times_what_one_needs(
    users: int, scenario: str, tokens: int
) -> None:
    asked = typed(backend="null", num_users=str(users), scenario=scenario, block_tokens=str(tokens))
    registry = build_registry()
    planner = Planner(registry, "datasize", launches=False)
    (one,) = name_cases(asked, registry)
    single, _ = planner.size(asked, one)
    for ranks in (2, 7):
        layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=ranks),))
        assert planner.size(asked, replace(one, layout=layout)) == (single, ranks * single)


def test_users_are_counted_per_rank_and_in_total() -> None:
    text = report(num_users="7", context_scale="0.1")
    assert fact(text, "users per rank") == "7 (command line)"
    assert rows(text, USERS_ROW) == [(str(n), str(7 * n)) for n in (1, 2, 4, 8, 16, 32, 64)]


def test_contexts_and_think_times_are_those_of_the_scenario() -> None:
    text = report(scenario="chat", num_users="3")
    assert fact(text, "longest context of a user") == "4,096 tokens"
    assert fact(text, "think time") == "0.1 to 0.5 s"
    mixed = report(num_users="20")  # 8 chat, 5 coding, 3 document, 4 agent
    mean = (8 * 4_096 + 5 * 25_000 + 3 * 16_384 + 4 * 32_768) / 20
    assert fact(mixed, "longest context of a user") == (
        f"4,096 to 32,768 tokens, {mean:,.0f} on average"
    )
    assert fact(mixed, "think time") == "0.1 to 1.5 s"


def test_contexts_of_any_length_are_sized_for_one_user_and_for_all() -> None:
    text = report(model="llama3.1-70b-instruct", num_users="200")
    size = 32_768 * 327_680
    assert fact(text, "context of a user, tokens").split() == [
        "4,096",
        "8,192",
        "32,768",
        "131,072",
    ]
    assert format_bytes(size) in fact(text, "one user")
    assert f"{format_bytes(200 * size)} " in f"{fact(text, '200 users')} "


def test_what_comes_from_an_ini_file_is_said_before_anything_else() -> None:
    given_texts: dict[str, tuple[str, Origin]] = {
        "backend": ("null", "ini"),
        "num_users": ("50", "command line"),
        "context_scale": ("0.05", "ini"),
        "block_tokens": ("4", "ini"),
    }
    text = datasize_report(build_options(given_texts))
    assert text.startswith(
        "From the ini file: context_scale = 0.05, block_tokens = 4, backend = null."
    )
    assert fact(text, "users per rank") == "50 (command line)"
    assert fact(text, "context scale") == "0.05 (ini file)"
    assert fact(text, "block").startswith("4 tokens (ini file), ")


def test_defaults_are_called_so_and_no_ini_file_is_named() -> None:
    text = report()
    assert "ini file" not in text
    assert fact(text, "users per rank") == "100 (default)"
    assert fact(text, "context scale") == "1 (default)"


def test_a_capacity_below_the_working_set_says_what_part_it_holds() -> None:
    text = report(num_users="3", storage_capacity_gb="1")
    need = int(fact(text, "working set per rank").split()[-2])
    assert f"{32 / need:.0%} of the working set; how much is hit then depends" in text
    assert "of the working set; how" not in report(num_users="3")


# --- traces ---------------------------------------------------------------------------------


def test_a_trace_gets_its_hit_ratio_by_capacity(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b")
    assert "0.4444 at most" in text
    curve = rows(text, CURVE_ROW)
    # With two blocks the third request misses, for [3 4] lie between: the optimum declines those.
    assert curve[0] == ("50 %", "2", "0.2222", "0.2222", "0.4444")
    assert curve[-2] == ("100 %", "4", "0.4444", "0.4444", "0.4444")
    assert curve[-1] == ("yours", "5", "0.4444", "0.4444", "0.4444")
    assert [row[0] for row in curve if row[0] != "yours"] == [
        f"{share} %" for share in (50, 80, 90, 95, 99, 100)
    ]


def test_a_curve_of_lru_is_not_called_that_of_buckets(trace: str) -> None:
    told = "mooncake-bucket displaces whole buckets, the oldest first, and hits other"
    assert told in report(trace=trace, model="tiny-1b", engine="mooncake-bucket")
    assert "displaces whole buckets" not in report(trace=trace, model="tiny-1b")


def test_the_users_own_capacity_has_a_row_of_its_own(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", storage_capacity_gb="24MiB")  # two blocks
    (own,) = [row for row in rows(text, CURVE_ROW) if row[0] == "yours"]
    assert own == ("yours", "2", "0.2222", "0.2222", "0.4444")


def test_a_trace_says_what_it_is_before_it_is_sized(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b")
    assert fact(text, "trace") == "4 requests within 3 s"
    assert fact(text, "timestamps") == "taken for s (--kv-trace-time-unit)"
    given = report(trace=trace, model="tiny-1b", trace_time_unit="ms")
    assert fact(given, "timestamps") == "in ms"
    assert "in milliseconds its 4 requests come within" in text
    assert fact(text, "prompt") == "1,024 to 1,536 tokens, 1,152 on average"
    alone = report(trace=trace, model="tiny-1b", trace_limit="1")
    assert fact(alone, "trace") == "1 request"
    assert fact(alone, "prompt") == "1,024 tokens"


def test_the_hit_ratio_of_a_trace_is_that_of_all_its_cycles(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", trace_cycles="3")
    ratio = (4 + 9 + 9) / 27  # from the second one on, every block is there
    assert f"hit ratio by capacity, one cache, 3 cycles; {ratio:.4f} at most" in text
    assert rows(text, CURVE_ROW)[-1][2:] == (f"{ratio:.4f}", f"{ratio:.4f}", "-")


def test_more_cycles_than_can_be_counted_hit_nearly_always(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", trace_cycles="9" * 18)
    assert "one cache, 999999999999999999 cycles; 1.0000 at most" in text
    assert max(map(len, text.splitlines())) <= 80


def test_memory_tiers_are_sized_as_they_are_asked_for() -> None:
    bare, need = report(), fact(report(), "working set per rank").partition(" (")[0]
    assert fact(bare, "tiers per rank") == f"gpu 0 B, cpu 0 B, storage {need}"
    tiered = report(cpu_mem_gb="512", cpu_tier="index", tier_policy="demote")
    reported = f"cpu 512 GiB (index only, which holds nothing), storage {need}; demote"
    assert reported in " ".join(tiered.split())
    assert max(map(len, tiered.splitlines())) < 80


def test_what_memory_leaves_to_the_storage_is_told_at_every_capacity(trace: str) -> None:
    text = report(trace=trace, cpu_mem_gb="0.125")  # two blocks of 64 MiB
    assert "storage behind cpu 128 MiB, write-through" in text
    found = rows(text, BEHIND_ROW)
    assert found[-1] == ("yours", "5", "0.2222", "0.2222")
    assert [row[0] for row in found] == [
        *(f"{share} %" for share in (50, 80, 90, 95, 99, 100)),
        "yours",
    ]
    assert "yours" not in [row[0] for row in rows(text, CURVE_ROW)]


def test_a_demoting_memory_is_counted_through_at_the_listed_capacities(trace: str) -> None:
    text = report(trace=trace, cpu_mem_gb="0.125", tier_policy="demote")
    assert "storage behind cpu 128 MiB, demote" in text
    assert [row[0] for row in rows(text, BEHIND_ROW)] == ["", "", "yours"]
    assert rows(text, BEHIND_ROW)[-1] == ("yours", "5", "0.0000", "0.4444")  # none is promoted


def test_two_memory_tiers_have_their_own_capacity_counted(trace: str) -> None:
    sizes = {"cpu_mem_gb": "0.125", "gpu_mem_gb": "0.0625", "gpu_backend": "simulated"}
    text = " ".join(report(trace=trace, **sizes).split())
    assert "behind two memory tiers only your own capacity is counted" in text
    assert "through these tiers hit ratio 0.4444 (gpu 0.1111, cpu 0.1111, storage 0.2222)" in text


def test_tiers_that_hold_all_are_called_larger_than_needed(trace: str) -> None:
    enough, too_little = "0.3125", "0.25"  # five blocks, and four
    told = "memory holds all that a rank asks for: the storage"
    through = " ".join(report(trace=trace, cpu_mem_gb=enough).split())
    assert f"{told} is read never" in through
    demoted = " ".join(report(trace=trace, cpu_mem_gb=enough, tier_policy="demote").split())
    assert f"{told} is read or written never" in demoted
    users = " ".join(report(num_users="1", cpu_mem_gb="512").split())
    assert f"{told} is read seldom, if at all" in users
    assert told not in " ".join(report(trace=trace, cpu_mem_gb=too_little).split())


def test_ranks_that_share_a_cache_are_told_from_ranks_with_a_part_each(trace: str) -> None:
    found = rows(report(trace=trace, model="tiny-1b"), SHARED_ROW)
    assert [label for label, _ in found] == ["shared", "2 ranks", "4 ranks"]
    ratios = {label: shown.split() for label, shown in found}
    assert ratios["shared"][-1] == "0.4444"  # four blocks for all
    assert ratios["2 ranks"][-1] == "0.2222"  # the longest prompt is on the other rank
    assert ratios["4 ranks"][-1] == "0.0000"  # the three that share a prefix are torn apart


def test_a_trace_is_counted_for_as_many_ranks_as_it_has_conversations(trace: str) -> None:
    table = rows(report(trace=trace, model="tiny-1b"), RANKS_ROW)
    assert [int(ranks) for ranks, *_ in table] == [1, 2, 4]


def test_the_working_set_of_a_trace_is_its_distinct_blocks(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b")
    size = format_bytes(5 * 512 * 24_576)
    assert fact(text, "working set per rank") == f"{size} (the trace, 5 blocks)"


def test_a_recorded_trace_has_the_hit_ratio_of_its_reference() -> None:
    real_trace(SHAREGPT)  # skips where the traces are not
    reference = REFERENCE[SHAREGPT]
    text = report(trace=str(trace_path(SHAREGPT)))
    best = reference.infinite_hit_blocks / reference.prompt_blocks
    assert f"{best:.4f} at most" in text
    assert max(map(len, text.splitlines())) <= 80
    assert f"{reference.distinct_blocks:,} blocks" in fact(text, "working set per rank")


# --- time to fill, JSON, picture ------------------------------------------------------------


def test_the_time_to_fill_is_that_of_the_rate_that_is_given() -> None:
    text = report(num_users="3", storage_capacity_gb="1", datasize_write_gib_per_s="0.5")
    assert fact(text, "time to fill") == "2 s to write 1 GiB at 0.5 GiB/s"
    untold = " ".join(report(num_users="3").split())
    assert "depends on what is written per second; --kv-datasize-write-gib-per-s=X" in untold


def test_the_time_to_fill_is_when_the_trace_has_asked_for_as_much(trace: str) -> None:
    sizes = {"trace": trace, "model": "tiny-1b", "trace_time_unit": "s"}
    full = report(**sizes, storage_capacity_gb="36MiB", trace_speedup="2")  # three blocks
    assert fact(full, "time to fill").startswith("0.5 s at the trace's own times, until 36 MiB")
    assert "depends on what is written" in report(**sizes, trace_speedup="0")
    assert "depends on what is written" in report(**sizes, storage_capacity_gb="1")


def test_json_has_what_the_text_has(trace: str, tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    text = report(trace=trace, cpu_mem_gb="0.125", datasize_json=str(path))
    assert f"Written to {path}." in text
    written = json.loads(path.read_text())
    assert written["schema"] == SCHEMA
    (case,) = written["cases"]
    assert case["need_blocks"] == 5
    assert case["need_bytes"] == 5 * case["block_bytes"]
    assert [row["ranks"] for row in case["hosts"]] == [1, 2, 4]
    assert case["run"] is None
    assert case["users_per_rank"] is None
    found = case["trace"]
    assert found["reachable_hit_ratio"] == pytest.approx(4 / 9)
    curve = {row["of_reachable_percent"]: row for row in found["curve"]}
    assert curve[100]["capacity_blocks"] == 4
    assert curve[50]["optimal_hit_ratio"] == pytest.approx(4 / 9)
    assert found["behind"]["points"][-1]["storage_hit_ratio"] == pytest.approx(2 / 9)
    assert [part["ranks"] for part in found["parts"]] == [1, 2, 4]


def test_json_of_users_says_null_where_a_trace_would_know(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    report(num_users="2", scenario="chat,agent", model="tiny-1b", datasize_json=str(path))
    chat, agent = json.loads(path.read_text())["cases"]
    assert (chat["scenario"], agent["scenario"]) == ("chat", "agent")
    assert (chat["trace"], chat["fill_s"], chat["users_per_rank"]) == (None, None, 2)
    assert chat["run"]["population_bytes"] > 0


def test_json_that_has_no_place_is_refused_before_anything_is_calculated(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "sizes.json"
    with pytest.raises(OptionError, match="lies in a directory that does not exist; name a file"):
        report(trace="no-such-trace", datasize_json=str(nowhere))
    with pytest.raises(OptionError, match="is a directory; name a file"):
        report(trace="no-such-trace", datasize_json=str(tmp_path))


@pytest.mark.parametrize("name", ["datasize_json", "datasize_write_gib_per_s"])
def test_what_belongs_to_sizes_is_refused_without_them(name: str) -> None:
    flag = "--kv-" + name.replace("_", "-")
    with pytest.raises(OptionError, match=f"^{flag} is .*add --kv-datasize or leave it out"):
        build_options({name: ("1", "command line")})
    build_options({name: ("1", "ini")})


def test_two_things_instead_of_a_run_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^--kv-dry-run is given together with --kv-datasize"):
        typed(datasize="true", dry_run="true")


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them() -> None:
    screen = _Terminal()
    assert Screen.of(screen, {"TERM": "xterm"}) == Screen(plain=False, coloured=True)
    assert not Screen.of(screen, {"TERM": "xterm", "NO_COLOR": "1"}).coloured
    assert Screen.of(screen, {"TERM": "xterm", "NO_COLOR": ""}).coloured
    assert not Screen.of(screen, {"TERM": "dumb"}).coloured
    assert not Screen.of(io.StringIO(), {"TERM": "xterm"}).coloured


# --- what is not used -----------------------------------------------------------------------


def test_what_was_typed_and_changes_nothing_is_named(trace: str) -> None:
    text = report(num_users="2", verify="off", trials="7", duration="5")
    assert "Not used, since sizes do not depend on it: --kv-trials, --kv-verify." in text
    assert "Not used" not in report(num_users="2", duration="5")
    replayed = report(trace=trace, num_users="2", trace_speedup="0", model="tiny-1b")
    assert "Not used, since sizes do not depend on it: --kv-num-users." in replayed
    given_texts: dict[str, tuple[str, Origin]] = {
        "trials": ("7", "ini"), "num_users": ("1", "ini"), "backend": ("null", "ini"),
    }  # fmt: skip
    assert "Not used" not in datasize_report(build_options(given_texts))


def test_every_option_decides_or_is_unused_or_is_refused() -> None:
    """A new option must be put into one of the lists: what an ini decides is never silent."""
    own = {"datasize", "datasize_json", "datasize_write_gib_per_s"}
    refused = {spec.name for spec in OPTIONS if spec.distributed} | {"dry_run"}
    groups = (own, refused, set(DECIDES), set(UNUSED))
    assert sorted(name for group in groups for name in group) == sorted(s.name for s in OPTIONS)
    assert set(UNUSED_BY_A_TRACE) <= set(DECIDES)
    for name, text in (("np", "1"), ("dry_run", "true")):
        with pytest.raises(OptionError, match="--kv-" + name.replace("_", "-")):
            report(**{name: text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("enable_rag", "true"),
        ("disable_multi_turn", "true"),
        ("disable_prefix_caching", "true"),
        ("phase", "prefill"),
        ("requests", "8"),
        ("reread_factor", "2"),
        ("kv_dtype", "fp8"),
        ("queue_depth", "3"),
        ("seed", "7"),
    ],
)
def test_what_an_ini_file_decides_is_named(name: str, text: str) -> None:
    given_texts: dict[str, tuple[str, Origin]] = {
        "num_users": ("2", "command line"), "backend": ("null", "command line"),
        "model": ("tiny-1b", "command line"), name: (text, "ini"),
    }  # fmt: skip
    assert f"From the ini file: {name} = {text}." in datasize_report(build_options(given_texts))


def test_what_an_ini_file_has_for_other_runs_is_not_named_of_a_trace(trace: str) -> None:
    given_texts: dict[str, tuple[str, Origin]] = {
        "trace": (trace, "command line"), "backend": ("null", "command line"),
        "num_users": ("2", "ini"), "duration": ("5", "ini"), "trace_cycles": ("2", "ini"),
    }  # fmt: skip
    text = datasize_report(build_options(given_texts))
    assert text.startswith("From the ini file: trace_cycles = 2. The command line wins over it.")


def test_a_scenario_of_a_workload_file_has_sizes(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text("[scenarios.mine]\nchat = 1.0\n")
    text = report(workload=str(file), scenario="mine", num_users="2")
    assert text.startswith("mine · llama3.1-8b")


def test_what_a_rank_overwrites_first_is_told(tmp_path: Path) -> None:
    given_texts: dict[str, tuple[str, Origin]] = {
        "precondition": ("1GiB", "ini"), "cache_dir": (str(tmp_path), "command line"),
        "model": ("tiny-1b", "command line"), "num_users": ("1", "command line"),
    }  # fmt: skip
    text = datasize_report(build_options(given_texts))
    assert text.startswith("From the ini file: precondition = 1GiB.")
    assert fact(text, "precondition").startswith("writes 1 GiB, in whole blocks, before all else")


def test_documents_are_told_where_users_retrieve() -> None:
    text = report(enable_rag="true", num_users="3", rag_num_docs="20", scenario="chat")
    told = " ".join(text.split())
    assert "documents 20 (command line) of each of 3 users: " in told
    without = fact(report(num_users="3", scenario="chat"), "working set per rank")
    blocks = 3 * 20 * (12_000 // 512 * 2 + 12_000 % 512 // 256)
    assert f"of each of 3 users: {format_bytes(blocks * 32 * MIB)} of the working set" in told
    assert fact(text, "working set per rank") != without
    assert "documents" not in report(num_users="3", scenario="chat")


def test_every_option_that_is_called_unused_is_one_and_changes_no_size() -> None:
    known = {spec.name for spec in OPTIONS}
    assert {*UNUSED, *UNUSED_BY_A_TRACE} <= known
    assert not {"model", "trace", "storage_capacity_gb", "cpu_mem_gb", "phase"} & {*UNUSED}
    plain = report(num_users="2").splitlines()
    samples = {"trials": "9", "verify": "full", "io_engine": "threads", "sync": "none",
               "data": "strict", "io": "buffered", "deadline": "9"}  # fmt: skip
    for name, text in samples.items():
        assert name in UNUSED
        assert report(num_users="2", **{name: text}).splitlines()[2:] == plain


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hosts", ["n1"]),
        ("np", "1"),
        ("npernode", "1"),
        ("exec_type", "mpi"),
        ("mpi_bin", "mpirun"),
        ("mpi_params", ["-q"]),
        ("oversubscribe", "true"),
        ("allow_run_as_root", "true"),
    ],
)
def test_a_distributed_option_counts_only_where_it_was_typed(
    name: str, text: str | list[str]
) -> None:
    with pytest.raises(OptionError, match=f"^--kv-{name.replace('_', '-')} is given together"):
        report(**{name: text})
    given_texts = {name: (text, "ini"), "num_users": ("1", "ini"), "backend": ("null", "ini")}
    assert "working set" in datasize_report(build_options(given_texts))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(sorted(MODELS)),
    st.integers(1, 20),
    st.integers(64, 2000),
    st.sampled_from([1, 2, 4, 8]),
)
def test_every_line_fits_the_terminal(model: str, users: int, tokens: int, ranks: int) -> None:
    text = report(
        model=model, num_users=str(users), block_tokens=str(tokens), tensor_parallel=str(ranks)
    )
    assert max(map(len, text.splitlines())) <= 80


# --- on the command line --------------------------------------------------------------------


def test_the_calculation_replaces_the_tests(site: Site) -> None:
    site.pytester.makepyfile("def test_never(): raise SystemExit(99)")
    result = site.call("--kv-datasize", "--kv-num-users=2", "--kv-backend=null")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["mixed · llama3.1-8b", "  bytes per token * 131,072"])
    assert "test session starts" not in result.stdout.str()
    assert not (site.path / "results").exists()


def test_the_calculation_of_an_unknown_name_exits_4(site: Site) -> None:
    result = site.call("--kv-datasize", "--kv-model=nope")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_calculation_takes_ini_values(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_model = tiny-1b\nkv_np = 2\nkv_backend = null\n")
    result = site.call("--kv-datasize")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines("mixed · tiny-1b")


def test_help_comes_before_the_calculation(site: Site) -> None:
    result = site.call("--kv-datasize", "--help")
    assert "working set per rank" not in result.stdout.str()


def test_sizes_are_binary() -> None:
    assert fact(report(num_users="2"), "block").endswith(format_bytes(32 * MIB))
