"""Real ranks whose number of active users changes within the window."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.__main__ import main
from tests.leftovers import leaving_nothing
from tests.site import PATIENCE_S, output

if TYPE_CHECKING:
    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

HOST = os.uname().nodename
STEPPED = (
    "--kv-num-users=8", "--kv-load-steps=8,2,8", "--kv-allow-invalid",
    "--kv-metrics=read.gib_per_s", "--kv-trials=1",
)  # fmt: skip


def test_all_ranks_change_their_load_together_and_each_part_has_figures_of_its_own(
    real_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    with leaving_nothing(real_site):
        result = real_site.real(*STEPPED, "--kv-duration=6.3", "--kv-ramp=0.5")
    text = output(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert main(["verify", str(real_site.run_file())]) == 0
    assert capsys.readouterr().out.endswith(": sound, and as the record of 1 trial says\n")
    (trial,) = real_site.case()["trials"]
    steps = trial["load_steps"]
    bounds_s = [(step["begin_s"], step["end_s"]) for step in steps]
    assert bounds_s == [(0, 2.1), (2.1, 4.2), (4.2, 6.3)]
    assert [step["users_in_all"] for step in steps] == [16, 4, 16]
    first, second, third = (step["answered_users"] for step in steps)
    assert second <= 4 < first <= 16
    assert 12 <= third <= 16  # those that rested ask at once
    for step in steps:
        assert step["read"]["gib_per_s"] == pytest.approx(step["read"]["bytes"] / 2.1 / (1 << 30))
        assert step["read"]["count"] > 0
        assert step["requests_per_s"] > 0
        assert 0 < step["hit_ratio"] <= 1
    for section in ("read", "write", "load", "request"):
        counts = [step[section]["count"] for step in steps]
        assert sum(counts) == trial[section]["count"], section
    for rank in trial["ranks"]:
        assert [step["users"] for step in rank["load_steps"]] == [8, 2, 8]
        assert [step["answered_users"] <= 2 for step in rank["load_steps"]] == [False, True, False]
    for number in (1, 2):  # by the clock that they have agreed on; before the step was over
        obeyed_s = [rank["load_steps"][number]["obeyed_s"] for rank in trial["ranks"]]
        assert all(steps[number]["begin_s"] <= at_s < steps[number]["end_s"] for at_s in obeyed_s)
    assert "NOT_STEADY" not in [verdict["code"] for verdict in trial["verdicts"]]
    (line,) = [line for line in text.splitlines() if line.startswith("  2.1 to 4.2 s ")]
    assert line.split()[4] == "4"


def test_a_rank_that_is_killed_when_the_load_has_changed_is_named(real_site: Site) -> None:
    args = real_site.real_args(*STEPPED, "--kv-backend=file", "--kv-duration=60", "--kv-ramp=0",
                               "--kv-load-steps=8,2" + ",8" * 14)  # fmt: skip
    with leaving_nothing(real_site), real_site.started(*args) as process:
        *_others, rank = real_site.wait_for_window(process)
        time.sleep(5)  # the first change is at 3.75 s
        os.kill(rank, signal.SIGKILL)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"rank 1 (pid {rank}) on host {HOST} was killed by signal 9" in text


def test_a_rank_that_hears_of_a_change_too_late_fails_the_case_and_is_named(
    real_site: Site,
) -> None:
    args = real_site.real_args(*STEPPED, "--kv-backend=file", "--kv-duration=9", "--kv-ramp=0")
    with leaving_nothing(real_site), real_site.started(*args) as process:
        *_others, rank = real_site.wait_for_window(process)
        os.kill(rank, signal.SIGSTOP)
        time.sleep(4)  # the change is at 3 s
        os.kill(rank, signal.SIGCONT)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    reported = " ".join(text.split())
    assert f"rank 1 on host {HOST} was to change its load to 2 users, and heard of it" in reported
    (trial,) = real_site.case()["trials"]
    assert not trial["ok"]
    assert "load_steps" not in trial
