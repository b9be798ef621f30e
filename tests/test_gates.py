"""What closes the gate of a session, and what the user is told of it; canned ranks."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.site import output, refusal

if TYPE_CHECKING:
    from tests.site import Site

METRICS = "--kv-metrics=read.p95_ms,read.gib_per_s"
ONE = "--kv-metrics=read.p95_ms"
BASE = "base.json"


@pytest.fixture(scope="module")
def recorded() -> dict[str, str]:
    """The baselines of the first test that needs them, for all others."""
    return {}


@pytest.fixture
def baseline(site: Site, recorded: dict[str, str]) -> None:
    """A run file and a pytest-benchmark file of two trials at usual speed."""
    if not recorded:
        gated(site, "--benchmark-json=benchmarks.json").assert_outcomes(passed=2)
        recorded["benchmarks.json"] = (site.path / "benchmarks.json").read_text()
        recorded[BASE] = site.run_file().read_text()
        shutil.rmtree(site.path / "results")
    for name, text in recorded.items():
        (site.path / name).write_text(text)


def gated(site: Site, *args: str) -> pytest.RunResult:
    return site.canned(METRICS, "--kv-trials=2", *args)


@pytest.mark.parametrize("metric", ["read.p95_ms", "read.gib_per_s"])
@pytest.mark.usefixtures("baseline")
def test_a_gate_closes_in_the_metrics_own_direction(
    site: Site, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    result = gated(site, f"--kv-compare={BASE}", f"--kv-fail={metric}:20%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(f"{metric} * worse * 20% WORSE")
    assert "INTERNALERROR" not in output(result)


@pytest.mark.usefixtures("baseline")
def test_better_is_never_worse(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "0.5")
    gates = ("--kv-fail=read.p95_ms:1%", "--kv-fail=read.gib_per_s:1%")
    result = gated(site, f"--kv-compare={BASE}", *gates, "--kv-allow-inconclusive")
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.usefixtures("baseline")
def test_too_few_trials_are_inconclusive_and_close_the_gate(site: Site) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%")
    result = site.canned(METRICS, *gate)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["read.p95_ms * INCONCLUSIVE", "*is inconclusive: *", "*raise --kv-trials"]
    )
    allowed = site.canned(METRICS, *gate, "--kv-allow-inconclusive")
    assert allowed.ret == pytest.ExitCode.OK
    assert "INCONCLUSIVE" in output(allowed)


@pytest.mark.usefixtures("baseline")
def test_another_plan_than_the_baselines_is_said(site: Site) -> None:
    for gate in ([], ["--kv-fail=read.p95_ms:5%"]):
        text = output(site.canned(ONE, f"--kv-compare={BASE}", *gate, "--kv-queue-depth=8"))
        assert "the plan differs from the baseline's (plan_digest)" in text


def test_a_result_of_no_storage_passes_no_gate_against_storage(site: Site) -> None:
    on_storage = ("--kv-backend=file", "--kv-cache-dir=/var/tmp", "--kv-storage-capacity-gb=1")
    recording = gated(site, *on_storage, "--benchmark-json=benchmarks.json")
    recording.assert_outcomes(passed=2)
    (site.path / BASE).write_text(site.run_file().read_text())
    for kind in (BASE, "benchmarks.json"):
        gate = (f"--kv-compare={kind}", "--kv-fail=read.p95_ms:20%", "--kv-allow-inconclusive")
        same = gated(site, *on_storage, *gate)
        assert same.ret == pytest.ExitCode.OK, output(same)
        result = gated(site, *gate)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(
            ["read.p95_ms * INCOMPARABLE", "read.p95_ms of mixed-tiny-1b-np2 is incomparable: *"]
        )


@pytest.mark.usefixtures("baseline")
def test_a_comparison_without_a_gate_is_shown_and_closes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    result = gated(site, f"--kv-compare={BASE}")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "metric*baseline*now*change*limit verdict",
            "mixed-tiny-1b-np2",
            "read.p95_ms * 30.0% worse * - worse",
            "read.gib_per_s * worse * - worse",
        ]
    )
    _, _, table = output(result).partition("metric                 baseline")
    assert max(map(len, table.partition("run file:")[0].splitlines())) <= 80
    few = site.canned(ONE, f"--kv-compare={BASE}", "--kv-slo=read.p95_ms<20")
    assert few.ret == pytest.ExitCode.OK
    few.stdout.fnmatch_lines(["read.p95_ms * - —", "read.p95_ms * <20 ok"])


@pytest.mark.usefixtures("baseline")
def test_an_older_baseline_is_compared_and_said_to_tell_too_little(site: Site) -> None:
    path = site.path / "benchmarks.json"
    data = json.loads(path.read_text())
    for entry in data["benchmarks"]:
        del entry["extra_info"]["is_storage"], entry["extra_info"]["verdicts"]
    path.write_text(json.dumps(data))
    result = gated(site, f"--kv-compare={path}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["read.p95_ms * ok", "the baseline does not tell whether its values are of storage*"]
    )


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (("--kv-np=3", "--kv-fail=read.p95_ms:5%"), "mixed-tiny-1b-np3"),
        (("--kv-np=2,3", "--kv-fail=read.p95_ms:5%"), "mixed-tiny-1b-np3"),
        (("--kv-fail=read.p999_ms:5%",), "read.p999_ms"),
    ],
)
@pytest.mark.usefixtures("baseline")
def test_a_missing_baseline_is_found_before_the_run(
    site: Site, args: tuple[str, ...], missing: str
) -> None:
    sentence = refusal(gated(site, f"--kv-compare={BASE}", *args))
    assert sentence.startswith(f"--kv-compare={BASE} has no ")
    assert missing in sentence
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_gate_that_can_never_close_is_found_before_the_run(site: Site) -> None:
    result = gated(site, f"--kv-compare={BASE}", "--kv-fail=read.gib_per_s:100%")
    assert "the gate would never close" in refusal(result)
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_baseline_in_another_unit_is_found_before_the_run(site: Site) -> None:
    path = site.path / BASE
    path.write_text(path.read_text().replace('"unit":"ms"', '"unit":"s"'))
    refusal(gated(site, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%"))
    assert site.launches() == []


OWN = "def test_one(kvcache): kvcache.run(trials=2)"


def test_a_baseline_that_can_not_be_read_is_found_before_any_test(site: Site) -> None:
    sentence = refusal(site.canned_tests(OWN, "--kv-compare=nonexistent.json"))
    assert sentence.startswith("--kv-compare is nonexistent.json; it must be a readable JSON")
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_gate_judges_the_cases_of_a_users_own_tests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    same = site.canned_tests(OWN, *gate)
    assert same.ret == pytest.ExitCode.OK
    same.stdout.fnmatch_lines("read.p95_ms * ok")
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    slower = site.canned_tests(OWN, *gate)
    slower.assert_outcomes(passed=1)
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.stdout.fnmatch_lines("read.p95_ms * WORSE")


@pytest.mark.usefixtures("baseline")
def test_a_users_own_case_that_the_baseline_lacks_is_missing_and_closes_the_gate(
    site: Site,
) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)"
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    result = site.canned_tests(source, *gate, "--kv-allow-inconclusive")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("read.p95_ms * MISSING")
    assert "INTERNALERROR" not in output(result)


def test_a_run_file_of_one_case_under_two_plans_is_a_baseline(site: Site) -> None:
    source = """
        def test_short(kvcache): kvcache.run(duration=1, trials=2)
        def test_long(kvcache): kvcache.run(duration=2, trials=2)
    """
    site.canned_tests(source).assert_outcomes(passed=2)
    (site.path / BASE).write_text(site.run_file().read_text())
    result = site.canned_tests(source, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert "plan_digest" not in output(result)
    other = source.replace("duration=2", "duration=2.5")  # of another length: pytest caches
    result = site.canned_tests(other, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "2 results of this case, none with this" in " ".join(output(result).split())


@pytest.mark.usefixtures("baseline")
def test_a_gate_that_can_never_close_is_refused_for_a_users_own_tests_too(site: Site) -> None:
    result = site.canned_tests(OWN, f"--kv-compare={BASE}", "--kv-fail=read.gib_per_s:100%")
    assert "the gate would never close" in refusal(result)


@pytest.mark.usefixtures("baseline")
def test_a_run_that_failed_does_not_pass_its_gate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    result = gated(site, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:50%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "MISSING" in output(result)


@pytest.mark.parametrize(
    ("slo", "code"),
    [
        ("read.gib_per_s>1", pytest.ExitCode.OK),
        ("read.gib_per_s>=100", pytest.ExitCode.TESTS_FAILED),
        ("read.p999_ms<1000", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_an_slo_judges_in_its_own_direction(site: Site, slo: str, code: pytest.ExitCode) -> None:
    result = site.canned(ONE, f"--kv-slo={slo}")
    assert result.ret == code
    result.assert_outcomes(passed=1)


def test_several_slos_must_all_hold_and_their_table_fits_the_terminal(site: Site) -> None:
    result = site.canned(ONE, "--kv-slo=read.p95_ms<20", "--kv-slo=write.p95_ms<0.1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["read.p95_ms * ok", "write.p95_ms * WORSE"])
    _, _, table = output(result).partition("metric                 baseline")
    table = table.partition("run file:")[0]
    assert table
    assert max(map(len, table.splitlines())) <= 80


def test_an_slo_of_a_users_own_test_is_judged(site: Site) -> None:
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", "--kv-slo=read.p95_ms<0.1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
