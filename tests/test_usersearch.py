"""A search for users as whoever types it sees it; canned ranks, whose loads take a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.site import output

if TYPE_CHECKING:
    from tests.site import Site

SEARCH = ("--kv-enable-autoscaling", "--kv-num-users=40", "--kv-allow-invalid")


def test_the_number_is_an_item_and_a_gate_and_its_path_is_shown(site: Site) -> None:
    result = site.canned(*SEARCH, "--kv-slo=load.p95_ms<5", "--kv-slo=users.in_all>=80")
    text = output(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "users per rank     in all" in text
    assert "at least 40 users per rank: the range ended (--kv-num-users)" in text
    assert max(map(len, text.partition("- kvcache -")[2].splitlines())) <= 80
    (case,) = [case for case in site.run()["cases"] if not case["plan"]["search_step"]]
    assert case["summary"]["users.in_all"]["median"] == 80
    assert [step["users"] for step in case["search"]["steps"]] == [2, 4, 8, 16, 32, 40]
    assert text.count("-16-users") == 1  # as it starts, and in no table


def test_a_gate_on_what_was_found_closes(site: Site) -> None:
    result = site.canned(*SEARCH, "--kv-slo=load.p95_ms<5", "--kv-slo=users.per_rank>40")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "users.per_rank" in output(result)


def test_an_objective_that_nobody_keeps_fails_in_one_sentence(site: Site) -> None:
    result = site.canned(*SEARCH, "--kv-slo=load.p95_ms<0.1")
    text = " ".join(output(result).split())
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "1 user on each of 2 ranks break the objectives already: load.p95_ms<0.1 (it is" in text


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ((), "nothing says which load is too much; add an objective"),
        (("--kv-slo=users.in_all>1",), "nothing says which load is too much"),
        (("--kv-slo=requests.per_s>1",), "nothing says which load is too much"),
        (("--kv-slo=load.p95_ms<5", "--kv-io-trace=io.csv"), "--kv-io-trace has its own load"),
        (
            ("--kv-slo=load.p95_ms<5", "--kv-fail=users.in_all:10%", "--kv-compare=b.json"),
            "--kv-fail judges users.in_all, whose noise one search does not tell",
        ),
        (
            ("--kv-slo=load.p95_ms<5", "--kv-load-steps=1,2"),
            "--kv-load-steps has its own load",
        ),
        (("--kv-slo=load.p95_ms<5", "--kv-request-rate=5"), "--kv-request-rate has its own load"),
        (("--kv-slo=load.p95_ms<5", "--kv-scenario=mlperf-1"), "mlperf-1 has those of the"),
    ],
)
def test_a_search_that_can_not_be_made_is_refused(
    site: Site, arguments: tuple[str, ...], reported: str
) -> None:
    result = site.canned(*SEARCH, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert reported in " ".join(output(result).split())
    assert site.launches() == []
