"""A closed run gives the storage a rest between two workloads."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from tests.desk import Desk


def rests_of(desk: Desk, monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> list[float]:
    """The long rests of two cases, each asked for twice as two metrics do."""
    rests: list[float] = []
    really_sleep = time.sleep

    def sleep(seconds: float) -> None:
        if seconds > 10:
            rests.append(seconds)
        else:
            really_sleep(seconds)

    with desk.benchmark_session("--kv-scenario=chat,agent") as found:
        options = replace(found.options, closed=closed, results_dir="/proc/none")
        with monkeypatch.context() as patched:
            patched.setattr(time, "sleep", sleep)
            for name in found.names:
                for _ in range(2):
                    found.run(name, options)
    return rests


def test_a_closed_run_waits_90_s_between_two_workloads_and_others_do_not(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rests_of(desk, monkeypatch, closed=False) == []
    assert rests_of(desk, monkeypatch, closed=True) == [90.0]
