from __future__ import annotations

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
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.datasize import datasize_report
from pytest_kvcache.units import MIB, format_bytes
from tests.recordings import REFERENCE, SHAREGPT, real_trace, trace_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_kvcache.options.options import Options, Origin
    from tests.site import Site

RANKS_ROW = re.compile(r" +(\d+) +(?:\d+ +)?(\d\S* \S+) +(\d\S* \S+) +(\d\S* \S+)")
USERS_ROW = re.compile(r" +(\d+) +(\d+)(?: +\d\S* \S+){3}")
CURVE_ROW = re.compile(r" +(\d+) +\d\S* \S+ +(\d\.\d{4}) +(\d\.\d{4})(?:   your .*)?")


def typed(**texts: str | Sequence[str]) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


def report(**texts: str | Sequence[str]) -> str:
    return datasize_report(typed(backend="null", **texts))


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
    assert text.startswith("From the ini file: context_scale = 0.05, block_tokens = 4. The command")
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
    assert curve[-2:] == [("4", "0.4444", "0.4444"), ("5", "0.4444", "0.4444")]
    blocks = [int(row[0]) for row in curve]
    assert blocks == sorted(blocks)


def test_the_users_own_capacity_has_a_row_of_its_own(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", storage_capacity_gb="24MiB")  # two blocks
    (own,) = [line for line in text.splitlines() if "your" in line]
    assert own.split()[:1] == ["2"]
    assert own.endswith("0.2222            0.2222   your 24 MiB")
    everything = report(trace=trace, model="tiny-1b")
    (own,) = [line for line in everything.splitlines() if "your" in line]
    assert own.endswith(f"   your {format_bytes(5 * 512 * 24_576)}")


def test_a_trace_says_what_it_is_before_it_is_sized(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b")
    assert fact(text, "trace") == "4 requests within 3 s"
    assert fact(text, "timestamps") == "taken for s (--kv-trace-time-unit)"
    given = report(trace=trace, model="tiny-1b", trace_time_unit="ms")
    assert fact(given, "timestamps") == "in ms"
    assert "in milliseconds its 4 requests come within" in text
    assert fact(text, "prompt") == "1,024 to 1,536 tokens, 1,152 on average"
    alone = report(trace=trace, model="tiny-1b", trace_limit="1")
    assert fact(alone, "trace") == "1 request within 0 s"
    assert fact(alone, "prompt") == "1,024 tokens"


def test_the_hit_ratio_of_a_trace_is_that_of_all_its_cycles(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", trace_cycles="3")
    ratio = (4 + 9 + 9) / 27  # from the second one on, every block is there
    assert f"hit ratio by capacity, one rank, 3 cycles; {ratio:.4f} at most" in text
    assert rows(text, CURVE_ROW)[-1][1] == f"{ratio:.4f}"


def test_more_cycles_than_can_be_counted_hit_nearly_always(trace: str) -> None:
    text = report(trace=trace, model="tiny-1b", trace_cycles="9" * 18)
    assert "one rank, 999999999999999999 cycles; 1.0000 at most" in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_row_of_the_hit_ratio_table_is_printed_twice(trace: str) -> None:
    curve = rows(report(trace=trace, model="tiny-1b"), CURVE_ROW)
    assert len(curve) == len(set(curve))


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
    assert f"{reference.distinct_blocks:,} blocks" in fact(text, "working set per rank")


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
