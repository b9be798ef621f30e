"""A fault is told whole once, wherever it is read; canned ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.site import output

if TYPE_CHECKING:
    from tests.site import Site

TWO = "--kv-metrics=read.p95_ms,write.p95_ms"
FIRST, SECOND = (f"test_kvcache[mixed-tiny-1b-np2-{m}.p95_ms]" for m in ("read", "write"))
WHOLE = "the launcher ended with exit code 3"

# What pytest-rerunfailures does: reports of attempts that are followed by another one are
# logged as "rerun", which shows nothing of them.
RERUNS = """
    import pytest
    from _pytest.runner import runtestprotocol

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item, nextitem):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for attempt in (1, 2):
            item._initrequest()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                if attempt == 1 and report.failed:
                    report.outcome = "rerun"
                item.ihook.pytest_runtest_logreport(report=report)
            if not any(report.outcome == "rerun" for report in reports):
                break
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_report_teststatus(report):
        if report.outcome == "rerun":
            return "rerun", "R", ("RERUN", {"yellow": True})
"""


@pytest.fixture(autouse=True)
def fault(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    del site  # which clears the environment first
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "exit-3")


def test_the_first_metric_tells_it_whole_and_the_next_one_refers_to_it(site: Site) -> None:
    text = output(site.canned(TWO))
    assert text.count(f"\n{WHOLE}") == 1
    assert text.count("    a line of rank 0 in trial 0") == 1
    assert f"\nfailed: see {FIRST}, which tells it whole\n" in text


def test_a_fault_of_a_test_that_runs_again_is_told_by_the_last_attempt(site: Site) -> None:
    site.pytester.makeconftest(RERUNS)
    result = site.canned(TWO)
    assert len(site.launches()) == 1
    text = output(result)
    assert text.count("    a line of rank 0 in trial 0") == 1
    assert f"see {FIRST}" in text


def test_the_second_metric_alone_tells_it_whole(site: Site) -> None:
    text = output(site.canned(TWO, "-k", "write.p95_ms"))
    assert text.count("    a line of rank 0 in trial 0") == 1
    assert "which tells it whole" not in text


def test_an_expected_failure_tells_nothing(site: Site) -> None:
    source = """
        import pytest

        @pytest.mark.xfail
        def test_first(kvcache): kvcache.run()
        def test_second(kvcache): kvcache.run()
        def test_third(kvcache): kvcache.run()
    """
    text = output(site.canned_tests(source))
    assert text.count("    a line of rank 0 in trial 0") == 1
    assert "see test_second, which tells it whole" in text


def test_junit_says_it_once_and_without_pytests_head(site: Site) -> None:
    site.canned(TWO, "--junitxml=j.xml")
    cases = ET.parse(site.path / "j.xml").getroot().iter("testcase")
    messages = [case[0].attrib["message"] for case in cases]
    assert messages[0].startswith(WHOLE)
    assert messages[1].startswith("failed: see ")


def test_the_short_summary_begins_with_the_verdict(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "short-window")
    monkeypatch.setenv("COLUMNS", "300")
    summary = output(site.canned(TWO)).partition("short test summary info")[2]
    assert f"{FIRST} - SKEWED: all ranks were active together for 0.5 s" in summary
    assert f"{SECOND} - SKEWED: see {FIRST}" in summary
