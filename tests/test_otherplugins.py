"""Beside other plugins: what they write is checked first, and costs no report; canned ranks."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.otherplugins import check_outputs
from tests.site import output, refusal, runs_as_root

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site import Site

ONE = "--kv-metrics=read.p95_ms"


# --- outputs --------------------------------------------------------------------------------


class Outputs:
    """What pytest's configuration says of the files that plugins are going to write."""

    def __init__(self, **options: object) -> None:
        self._options = options
        self.pluginmanager = SimpleNamespace(get_plugins=set)

    def getoption(self, name: str, default: object = None) -> object:
        return self._options.get(name, default)


@pytest.mark.parametrize(
    ("options", "flag", "problem"),
    [
        ({"benchmark_json": "no/such/dir/x.json"}, "--benchmark-json",
         "no/such/dir does not exist, so make it"),
        ({"benchmark_json": "file/x.json"}, "--benchmark-json",
         "file is no directory, so make it"),
        ({"benchmark_json": "folder"}, "--benchmark-json",
         "it is a directory; give it the name of a file"),
        ({"benchmark_histogram": ["file/deep/x"]}, "--benchmark-histogram",
         "file is no directory"),
        ({"benchmark_autosave": True, "benchmark_storage": "file:///dev/null/deep"},
         "--benchmark-storage", "/dev/null is no directory"),
        ({"xmlpath": "file/deep/j.xml"}, "--junit-xml", "file is no directory"),
    ],
)  # fmt: skip
def test_an_output_that_can_not_be_written_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    flag: str,
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError) as refused:
        check_outputs(cast("pytest.Config", Outputs(**options)))
    assert str(refused.value).startswith(f"{flag} is ")
    assert problem in str(refused.value)


def test_an_output_that_can_be_written_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = Outputs(
        benchmark_json="x.json", benchmark_histogram=["deep/down/x"], xmlpath="more/j.xml",
        benchmark_storage="elsewhere/no", htmlpath=None,
    )  # fmt: skip
    check_outputs(cast("pytest.Config", good))


@pytest.mark.parametrize(
    "option", ["--benchmark-json=no/x.json", "--benchmark-histogram=file/deep/x"]
)
def test_an_output_that_can_not_be_written_is_refused_before_the_launch(
    site: Site, option: str
) -> None:
    (site.path / "file").touch()
    sentence = refusal(site.canned_apart(ONE, option))
    assert site.launches() == []
    if "can't open" not in sentence:  # older versions of pytest-benchmark say so themselves
        assert sentence.startswith(f"{option.partition('=')[0]} is ")


def test_a_dry_run_refuses_an_output_as_well(site: Site) -> None:
    (site.path / "file").touch()
    sentence = refusal(site.canned(ONE, "--junitxml=file/deep/j.xml", "--kv-dry-run"))
    assert sentence.startswith("--junit-xml is ")


@pytest.mark.skipif(runs_as_root(), reason="root may write everywhere")
def test_an_output_in_a_directory_of_others_is_refused(site: Site) -> None:
    (site.path / "locked").mkdir(mode=0o500)
    assert "not writable" in refusal(site.canned(ONE, "--benchmark-json=locked/x.json"))


def test_an_output_whose_directory_is_made_by_its_plugin_is_accepted(site: Site) -> None:
    args = ("--benchmark-histogram=deep/down/h", "--junitxml=more/j.xml")
    site.canned_apart(ONE, *args).assert_outcomes(passed=1)
    (drawn,) = site.path.glob("deep/down/*.svg")
    assert not set(drawn.name) & set(" ,")
    assert (site.path / "more" / "j.xml").exists()


def test_a_histogram_without_what_draws_it_is_refused_with_what_to_install(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygal", None)
    sentence = refusal(site.canned(ONE, "--benchmark-histogram=h"))
    assert "pip install 'pytest-benchmark[histogram]'" in sentence


def test_a_limit_of_pytest_benchmark_that_has_nothing_to_compare_with_is_refused(
    site: Site,
) -> None:
    limit = "--benchmark-compare-fail=mean:5%"
    sentence = refusal(site.canned(ONE, limit))
    assert sentence.startswith("--benchmark-compare-fail is given without --benchmark-compare")
    assert site.launches() == []
    assert site.canned(ONE, limit, "-p", "no:benchmark").ret != pytest.ExitCode.OK  # unknown
    site.canned(ONE, "--benchmark-save=base")
    assert site.canned(ONE, "--benchmark-compare=0001", limit).ret == pytest.ExitCode.OK


COMPARED = ("--benchmark-compare=0001", "--benchmark-compare-fail=mean:1%")
OTHERS = """
    from time import sleep

    def test_other(benchmark):
        benchmark.pedantic(sleep, args=({seconds},), rounds=3)
"""


@pytest.fixture
def slower(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved run, and a storage that has become slower."""
    site.canned(ONE, "--benchmark-save=base").assert_outcomes(passed=1)
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")


@pytest.mark.usefixtures("slower")
def test_an_entry_beyond_a_limit_of_pytest_benchmark_is_a_failed_gate(site: Site) -> None:
    result = site.canned(ONE, *COMPARED, "--benchmark-columns=mean", "--junitxml=j.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    text = output(result)
    assert "Traceback" not in text
    assert "PerformanceRegression" not in text
    result.stdout.fnmatch_lines(
        [
            "mixed-tiny-1b-np2-read.p95_ms: Field 'mean' has failed PercentageRegressionCheck: *",
            "FAILED kvcache::gate[[]--benchmark-compare-fail] - mixed-*",
            "*1 failed, 1 passed*",
        ]
    )
    assert len(tables(text)) == 1
    assert 'failures="1"' in (site.path / "j.xml").read_text()


@pytest.mark.usefixtures("slower")
def test_without_a_summary_a_limit_of_pytest_benchmark_is_reported_too(site: Site) -> None:
    result = site.canned_apart(ONE, *COMPARED, "-p", "no:terminal")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    reported = "gate closed: --benchmark-compare-fail: mixed-tiny-1b-np2-read.p95_ms: Field 'mean'"
    assert reported in output(result)


def test_an_entry_within_the_limits_of_pytest_benchmark_passes_its_gate(site: Site) -> None:
    site.canned(ONE, "--benchmark-save=base").assert_outcomes(passed=1)
    site.canned(ONE, *COMPARED).assert_outcomes(passed=2)
    other = site.canned("--kv-metrics=read.p50_ms", *COMPARED)
    other.assert_outcomes(passed=1, skipped=1)
    assert other.ret == pytest.ExitCode.OK


def test_limits_of_pytest_benchmark_are_its_own_for_other_benchmarks(site: Site) -> None:
    site.pytester.makepyfile(test_mine=OTHERS.format(seconds=0))
    site.canned(ONE, "test_mine.py", "--benchmark-save=base").assert_outcomes(passed=2)
    site.pytester.makepyfile(test_mine=OTHERS.format(seconds=0.01))
    result = site.canned_apart(ONE, "test_mine.py", *COMPARED)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = output(result)
    assert "PerformanceRegression: Performance has regressed" in text
    assert "read.p95_ms - Field" not in text


def test_a_comparison_with_a_run_that_nobody_saved_is_refused_before_the_launch(site: Site) -> None:
    sentence = refusal(site.canned_apart("--benchmark-compare=0007"))
    assert sentence.startswith("--benchmark-compare is '0007'; --benchmark-storage (")
    assert not site.launches()
    first = site.canned_apart(
        "--benchmark-compare", "--benchmark-autosave"
    )  # as in a CI's first run
    assert first.ret == pytest.ExitCode.OK


def test_an_own_test_is_not_launched_either_where_an_output_is_wrong(site: Site) -> None:
    (site.path / "file").touch()
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", "--junitxml=file/deep/j.xml")
    assert "--junit-xml is " in refusal(result)


def test_a_session_without_the_benchmark_is_not_looked_at(site: Site) -> None:
    site.pytester.makeconftest(
        "def pytest_addoption(parser): parser.addoption('--json-report-file')"
    )
    option = "--json-report-file=no/x.json"
    site.pytester.makepyfile("def test_one(): pass")
    assert site.call(option).ret == pytest.ExitCode.OK
    assert "--json-report-file is no/x.json" in refusal(site.canned(ONE, option))


# --- another benchmark fixture, or none -------------------------------------------------------


def test_another_plugins_benchmark_fixture_is_refused_before_the_launch(site: Site) -> None:
    site.pytester.makeconftest(
        """
        import pytest

        class Other: pass

        @pytest.fixture
        def benchmark(): return Other()
        """
    )
    result = site.canned(ONE)
    result.assert_outcomes(failed=1)
    assert "the fixture benchmark is conftest.Other, which is not pytest-benchmark's" in output(
        result
    )
    assert site.launches() == []


def test_a_plugin_that_pushes_pytest_benchmark_out_is_refused_before_the_launch(
    site: Site,
) -> None:
    site.pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(config): config.pluginmanager.set_blocked("pytest-benchmark")
        """
    )
    assert "as pytest-codspeed does with --codspeed" in refusal(site.canned_apart(ONE))
    assert site.launches() == []
    site.pytester.makepyfile(test_mine="def test_one(): pass")
    assert site.call("test_mine.py").ret == pytest.ExitCode.OK


def test_without_pytest_benchmark_everything_runs_and_is_in_the_run_file(site: Site) -> None:
    result = site.canned("-p", "no:benchmark", "-W", "error", "--strict-markers")
    result.assert_outcomes(passed=5)
    assert len(site.case()["summary"]) > 5
    assert "run file: " in output(result)


def test_without_any_plugin_that_was_not_named_everything_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    args = ("-p", "pytest_kvcache.plugin", "-W", "error", "--strict-markers", ONE)
    result = site.canned_apart(*args)
    result.assert_outcomes(passed=1)


# --- pytest-benchmark's tables ----------------------------------------------------------------

OTHER = "def test_other(benchmark): benchmark(sum, range(10))"
QUICK = ("--kv-metrics=read.p95_ms,read.gib_per_s",)


def tables(text: str) -> list[str]:
    return re.findall(r"^-+ (benchmark.*: \d+ tests) -+$", text, re.MULTILINE)


def test_tables_of_our_metrics_are_shown_to_nobody_who_does_not_ask(site: Site) -> None:
    assert tables(output(site.canned(*QUICK))) == []


@pytest.mark.parametrize(
    "option", ["--benchmark-columns=mean", "--benchmark-sort=name", "--benchmark-json=x.json"]
)
def test_an_option_of_pytest_benchmark_asks_for_them(site: Site, option: str) -> None:
    names = ["benchmark 'read.p95_ms': 1 tests", "benchmark 'read.s_per_gib': 1 tests"]
    assert tables(output(site.canned(*QUICK, option))) == names


def test_one_in_the_environment_or_a_file_asks_for_them_as_well(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pytester.makeini("[pytest]\naddopts = --benchmark-min-rounds=3\n")
    assert len(tables(output(site.canned(*QUICK)))) == 2
    site.pytester.makeini("[pytest]\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--benchmark-verbose")
    assert len(tables(output(site.canned(*QUICK)))) == 2


def test_a_file_that_says_how_tables_look_asks_for_none(site: Site) -> None:
    looks = "--benchmark-columns=mean,ops --benchmark-sort=fullname"
    site.pytester.makeini(f"[pytest]\naddopts = {looks}\n")
    assert tables(output(site.canned(*QUICK))) == []


def test_other_benchmarks_of_the_session_keep_their_tables(site: Site) -> None:
    site.pytester.makepyfile(test_mine=OTHER)
    text = output(site.canned(*QUICK, "test_mine.py"))
    assert len(tables(text)) == 1
    assert "test_other" in text.partition("benchmark:")[2]


def test_times_of_a_table_have_the_unit_of_the_name(site: Site) -> None:
    result = site.canned(*QUICK, "--benchmark-columns=mean,ops", "--benchmark-json=x.json")
    latency, rate = (
        line.split() for line in result.outlines if line.startswith("mixed-tiny-1b-np2-read.")
    )
    assert float(latency[1]) == pytest.approx(1.45, rel=0.01)  # ms
    assert float(rate[1]) == pytest.approx(0.5)  # s per GiB
    assert float(rate[2]) == pytest.approx(2.0)  # GiB/s, not thousands of them
    entries = json.loads((site.path / "x.json").read_text())["benchmarks"]
    assert {e["extra_info"]["metric"] for e in entries} == {"read.p95_ms", "read.gib_per_s"}


# --- limits of time ---------------------------------------------------------------------------


def test_a_projects_limit_per_test_is_not_the_benchmarks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "slow")
    site.pytester.makeini("[pytest]\ntimeout = 1\n")
    site.canned_apart(ONE).assert_outcomes(passed=1)


def test_a_limit_that_a_test_has_of_its_own_stands(site: Site) -> None:
    site.pytester.makeini("[pytest]\ntimeout = 1\n")
    source = """
        import pytest
        from pytest_kvcache.suite.test_kvcache import test_kvcache as test_all

        pytestmark = pytest.mark.timeout(7)

        def test_limit(request):
            limits = [i.get_closest_marker("timeout").args for i in request.session.items]
            assert limits == [(7,)] * 2
    """
    site.canned_tests(source, ONE).assert_outcomes(passed=2)


# --- the report -------------------------------------------------------------------------------

BROKEN = {
    "summary": "def pytest_terminal_summary(): raise OSError('broken')",
    "finish": "def pytest_sessionfinish(): raise OSError('broken')",
    "wrapper": (
        "import pytest\n@pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        "def pytest_sessionfinish():\n    raise OSError('broken')\n    yield"
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_another_plugins_broken_end_costs_no_report(site: Site, kind: str) -> None:
    site.pytester.makeconftest(BROKEN[kind])
    text = output(site.canned_apart(ONE))
    assert "broken" in text
    assert f"run file: {site.run_file().relative_to(site.path)}" in text
    assert "mixed-tiny-1b-np2" in text


@pytest.mark.parametrize("quiet", [("--no-summary",), ("-p", "no:terminal")])
def test_without_a_summary_the_run_file_and_closed_gates_are_reported(
    site: Site, quiet: tuple[str, ...]
) -> None:
    result = site.canned_apart(ONE, "--kv-slo=read.p95_ms<0.1", "--kv-allow-invalid", *quiet)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = output(result)
    assert f"run file: {site.run_file().relative_to(site.path)}" in text
    assert "read.p95_ms 1.449 ms, limit < 0.1 ms" in text


def test_nothing_selected_is_reported_without_a_terminal_too(site: Site) -> None:
    result = site.pytester.runpytest_subprocess("-p", "no:terminal", "--kv-np=2")
    assert "no benchmark was selected" in result.stderr.str()


def test_quiet_is_a_line_per_case_and_the_run_file(site: Site) -> None:
    result = site.canned("-q", "--kv-np=1,2", *QUICK)
    lines = [line for line in result.outlines if line and not line.startswith("  ")]
    assert lines[0].startswith("....")
    assert [line.partition(":")[0] for line in lines[1:-1]] == [
        "mixed-tiny-1b-np1", "mixed-tiny-1b-np2", "run file",
    ]  # fmt: skip
    assert lines[1].startswith("mixed-tiny-1b-np1: read.p95 1.449 ms, read 1.000 GiB/s")


def test_quiet_lines_fit_the_terminal(site: Site) -> None:
    metrics = "load.p50_ms,load.p95_ms,read.gib_per_s,write.gib_per_s,requests.per_s,read.p95_ms"
    result = site.canned("-q", f"--kv-metrics={metrics}", "--benchmark-disable")
    assert max(map(len, result.outlines)) < 80
    assert "mixed-tiny-1b-np2: " in output(result)
    assert " (NOT_STORAGE, " in " ".join(output(result).split())


def test_quieter_is_the_run_file_alone(site: Site) -> None:
    result = site.canned("-qq", *QUICK)
    lines = [line for line in result.outlines if line and not line.startswith("..")]
    assert [line.partition(":")[0] for line in lines] == ["run file"]


def test_quiet_says_what_went_wrong(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "short-window")
    result = site.canned("-q", *QUICK)
    result.stdout.fnmatch_lines("mixed-tiny-1b-np2: SKEWED: *")


def test_our_report_is_the_first_of_the_plugins(site: Site) -> None:
    site.pytester.makeconftest(
        "def pytest_terminal_summary(terminalreporter): terminalreporter.write_line('other')"
    )
    text = output(site.canned(ONE))
    assert 0 < text.index("run file: ") < text.index("\nother\n")
