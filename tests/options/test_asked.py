"""What is asked for and comes to nothing is said, with what to type instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.options.asked import nothing_selected
from tests.factories import options
from tests.site import SUITE, output, refusal

if TYPE_CHECKING:
    from tests.site import Site

ONE = "--kv-metrics=read.p95_ms"
OWN = "def test_mine(): pass\ndef test_mine_too(): pass"


def reported_by(result: pytest.RunResult) -> str:
    """What is on the terminal, which breaks it into lines."""
    return " ".join(output(result).split())


def test_in_an_empty_directory_the_command_that_works_is_said(site: Site) -> None:
    result = site.call("--kv-np=2")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert (
        "kvcache: no benchmark was selected: --kv-np is given, but nothing here uses the fixture"
        " kvcache; add --pyargs pytest_kvcache.suite for the shipped benchmark: pytest --pyargs"
        " pytest_kvcache.suite " in reported_by(result)
    )
    (first,) = (number for number, line in enumerate(result.outlines) if "kvcache: no" in line)
    assert all(len(line) < 80 for line in result.outlines[first:] if " no tests ran" not in line)
    assert "--kv-np=2" in output(result).partition("for the shipped benchmark")[2]


@pytest.mark.parametrize("option", ["--kv-num-users=3", "--kv-slo=read.p95_ms<1", "--kv-dry-run"])
def test_any_typed_option_asks_for_a_benchmark(site: Site, option: str) -> None:
    site.pytester.makepyfile(OWN)
    result = site.call(option)
    assert "none of the 2 tests that were selected uses the fixture kvcache" in reported_by(result)


def test_own_tests_without_the_benchmark_pass_and_are_told_apart_from_it(site: Site) -> None:
    site.pytester.makepyfile(OWN)
    result = site.call("--kv-np=2", "-q")
    assert result.ret == pytest.ExitCode.OK
    assert output(result).count("no benchmark was selected") == 1


def test_everything_deselected_is_said(site: Site) -> None:
    result = site.canned(ONE, "-k", "nothing_like_it")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "but all items of the benchmark (1) were deselected; look at -k and" in reported_by(
        result
    )


def test_of_what_could_not_be_collected_nothing_is_said(site: Site) -> None:
    site.pytester.makepyfile("def broken(:")
    result = site.call("--kv-np=2")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "no benchmark" not in output(result)


def test_an_option_of_an_ini_asks_for_nothing(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_np = 2\n")
    site.pytester.makepyfile(OWN)
    assert "kvcache: " not in output(site.call()).partition("collected")[2]


def test_a_benchmark_that_ran_or_was_skipped_was_selected(site: Site) -> None:
    for args in ((), ("--benchmark-skip",), ("--collect-only",)):
        assert "no benchmark" not in output(site.canned(ONE, *args))


def test_an_option_that_every_test_replaces_is_said_to_have_had_no_effect(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)\ndef test_two(kvcache): kvcache.run(np=3)"
    text = reported_by(site.canned_tests(source))
    reported = "kvcache: --kv-np had no effect: every kvcache.run() of these tests gives its own np"
    assert reported in text
    assert text.count("had no effect") == 1


def test_an_option_that_one_test_lets_through_had_an_effect(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)\ndef test_two(kvcache): kvcache.run()"
    assert "had no effect" not in output(site.canned_tests(source))


def test_a_dry_run_says_which_tests_it_could_not_look_at(site: Site) -> None:
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", "--kv-dry-run")
    assert "1 test with kvcache.run() not looked at" in output(result)
    assert site.launches() == []


def test_the_suite_is_named_once_in_the_command_to_type() -> None:
    asked = options(np="2")
    reported = nothing_selected(asked, ["pytest_kvcache.suite", "--kv-np=2"], tests=0, deselected=0)
    assert reported is not None
    assert reported.endswith(": pytest --pyargs pytest_kvcache.suite --kv-np=2")


def test_slots_that_no_number_of_ranks_asks_for_are_reported(site: Site) -> None:
    args = [*site.canned_args(without=["--kv-np"]), ONE]
    reported = "gives 2 slots, of which one per host is used"
    for more in (("--kv-dry-run",), ("-q",), ()):
        result = site.call(*SUITE, *args, "--kv-hosts=localhost:2", *more)
        assert result.ret == pytest.ExitCode.OK
        text = " ".join(output(result).split())
        assert reported in text
        assert "--kv-np=2 fills them" in text
    for asked in ("--kv-np=1", "--kv-npernode=1"):
        text = output(site.call(*SUITE, *args, "--kv-hosts=localhost:2", asked))
        assert "slots, of which" not in text
    assert "slots, of which" not in output(site.call(*SUITE, *args, "--kv-hosts=localhost:1"))


@pytest.mark.parametrize("dry", [(), ("--kv-dry-run",)])
def test_metrics_that_a_phase_can_not_have_are_reported_at_the_start(
    site: Site, dry: tuple[str, ...]
) -> None:
    result = site.canned("--kv-phase=decode", "--kv-metrics=write.gib_per_s,read.p95_ms", *dry)
    text = " ".join(output(result).partition("collected")[0].split())
    assert "kvcache: write.gib_per_s is skipped: --kv-phase=decode makes no writes" in text
    text = " ".join(output(site.canned("--kv-phase=prefill", "--kv-dry-run")).split())
    assert "load.p95_ms, load.p50_ms, read.gib_per_s are skipped: --kv-phase=prefill makes" in text


@pytest.mark.parametrize(
    ("phase", "metric", "why"),
    [("decode", "write.gib_per_s", "makes no writes"), ("prefill", "read.p95_ms", "no reads")],
)
def test_a_phase_that_has_none_of_the_typed_metrics_is_refused(
    site: Site, phase: str, metric: str, why: str
) -> None:
    for dry in ((), ("--kv-dry-run",)):
        result = site.canned(f"--kv-phase={phase}", f"--kv-metrics={metric}", *dry)
        sentence = refusal(result)
        assert sentence.startswith(f"--kv-metrics is {metric}, but --kv-phase={phase} ")
        assert why in sentence
    assert site.launches() == []
    site.pytester.makeini(f"[pytest]\nkv_metrics = {metric}\n")
    assert site.canned(f"--kv-phase={phase}", "--kv-dry-run").ret == pytest.ExitCode.OK
