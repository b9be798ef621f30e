from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.series import coarse_index
from pytest_kvcache.ranks.coordinator import _misplaced, _Watch
from pytest_kvcache.results.events import EventTail, EventWriter
from tests.factories import S, layout_of, make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_kvcache.plan.plan import Plan


def plan_of(**ranks: int) -> Plan:
    return make_plan(layout=layout_of(**ranks))


# --- where ranks run ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hosts",
    [
        ["n1", "n1", "n2"],
        ["n1.site", "n1.site", "n2.site"],
        ["ip-10-0-0-1", "ip-10-0-0-1", "ip-10-0-0-2"],
        ["n1.site", "n1.site", "n2"],
    ],
)
def test_hosts_may_call_themselves_otherwise_than_the_user_does(hosts: list[str]) -> None:
    assert _misplaced(plan_of(n1=2, n2=1), hosts) is None


@pytest.mark.parametrize(
    ("hosts", "rank"),
    [
        (["n1", "n1", "n1"], 2),  # all on one host
        (["alias", "alias", "alias"], 2),
        (["n1", "n2", "n2"], 1),  # one on the wrong host
        (["n1", "n2", "n1"], 1),  # round-robin
        (["a", "b", "a"], 1),
        (["a", "b", "c"], 1),  # on a host that nobody named
        (["n2", "n2", "n1"], 0),  # the hosts have been swapped
    ],
)
def test_a_rank_on_another_host_than_planned_is_found(hosts: list[str], rank: int) -> None:
    found = _misplaced(plan_of(n1=2, n2=1), hosts)
    assert found is not None
    assert found[0] == rank
    assert found[1].startswith(f"runs on {hosts[rank]}, ")
    assert f"the plan has it on {'n2' if rank == 2 else 'n1'}" in found[1]


def test_hosts_that_were_swapped_are_found_by_their_names() -> None:
    found = _misplaced(plan_of(n1=1, n2=1), ["n2", "n1"])
    assert found is not None
    assert found[1].startswith("runs on n2, where the ranks of n2 are or belong; the plan has")


def test_ranks_of_one_host_that_run_on_two_are_named_with_both() -> None:
    found = _misplaced(plan_of(n1=2, n2=1), ["a", "b", "c"])
    assert found is not None
    assert found[1].startswith("runs on b, and others of its host on a; the plan has it on n1")


def test_a_machine_by_whatever_name_has_its_ranks_where_they_belong() -> None:
    assert _misplaced(make_plan(np=3), ["n7", "n7", "n7"]) is None


# --- who waits ------------------------------------------------------------------------------


class Reports:
    """Of two ranks, without MPI (as far as `_Watch` needs it)."""

    size = 3

    def __init__(self) -> None:
        self.sent: list[tuple[int, dict[str, Any]]] = []

    def progress_reports(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from self.sent
        self.sent.clear()


def reported(tmp_path: Path, *waits_s: float) -> dict[str, Any] | None:
    """Whom the controller hears to be waiting."""
    comm, events = Reports(), EventWriter(tmp_path / "events.jsonl")
    watch = _Watch(comm, plan_of(n1=1, n2=1), events, ["n1", "n2"])  # type: ignore[arg-type]
    comm.sent = [
        (rank, {"phase": "set-up", "error": None, "waiting_s": wait_s})
        for rank, wait_s in enumerate(waits_s, start=1)
    ]
    watch.tick()
    events.close()
    (event,) = EventTail(tmp_path / "events.jsonl").poll()
    waiting: dict[str, Any] | None = event["waiting"]
    return waiting


def test_the_rank_that_waits_longest_for_its_storage_is_reported(tmp_path: Path) -> None:
    assert reported(tmp_path, 2.5, 7.0) == {"rank": 1, "host": "n2", "s": 7.0}


def test_a_wait_of_two_seconds_is_worth_telling(tmp_path: Path) -> None:
    assert reported(tmp_path, 2.0) == {"rank": 0, "host": "n1", "s": 2.0}


@pytest.mark.parametrize("waits_s", [(), (1.99, 0.0)])
def test_ranks_that_get_answers_do_not_wait(tmp_path: Path, waits_s: tuple[float, ...]) -> None:
    assert reported(tmp_path, *waits_s) is None


# --- the live line --------------------------------------------------------------------------


def window_reports(at_ns: int, reads: int, *free: int | None) -> list[tuple[int, dict[str, Any]]]:
    """Of two ranks in the window, each of which has completed so many reads of 1 GiB."""
    found = []
    for rank in (1, 2):
        recent = Recent()
        recent.add("read", coarse_index(np.full(reads, 1_000)), np.full(reads, 1 << 30))
        recent.publish(at_ns)
        report: dict[str, Any] = {"phase": "window", "error": None, "recent": recent.take(at_ns)}
        if len(free) >= rank:
            report["free_bytes"] = free[rank - 1]
        found.append((rank, report))
    return found


def lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *batches: list[tuple[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The progress events of a window, one after each batch of reports."""
    monkeypatch.setattr("pytest_kvcache.ranks.coordinator._PROGRESS_S", 0.0)
    comm, events = Reports(), EventWriter(tmp_path / "events.jsonl")
    watch = _Watch(comm, plan_of(n1=1, n2=1), events, ["n1", "n2"])  # type: ignore[arg-type]
    watch.enter("window")
    for batch in batches:
        comm.sent = batch
        watch.tick()
    events.close()
    reported = EventTail(tmp_path / "events.jsonl").poll()
    return [event for event in reported if event["event"] == "progress"]


def test_figures_of_the_last_second_are_summed_over_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lines(
        tmp_path, monkeypatch, window_reports(S, 1_000), window_reports(3 * S, 60)
    )
    assert first["recent"] is None
    assert second["recent"]["operations_per_s"] == 60
    assert second["recent"]["read_gib_per_s"] == 60
    assert second["recent"]["read_p99_ms"] == pytest.approx(0.001, rel=1 / 16)


def test_an_interval_is_averaged_over_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("pytest_kvcache.ranks.coordinator.time.monotonic", lambda: now_s[0])
    comm, events = Reports(), EventWriter(tmp_path / "events.jsonl")
    watch = _Watch(comm, plan_of(n1=1, n2=1), events, ["n1", "n2"])  # type: ignore[arg-type]
    watch.enter("window")
    for second in range(1, 32):  # nothing but in the 5th second, and in the 20th
        now_s[0] += 1.0
        comm.sent = window_reports(second * S, {5: 70, 20: 700}.get(second, 0))
        watch.tick()
    events.close()
    reported = [e for e in EventTail(tmp_path / "events.jsonl").poll() if e["event"] == "progress"]
    intervals = {round(e["t_s"]): e["interval"] for e in reported if e["interval"] is not None}
    assert list(intervals) == [15, 30]
    # The first report only says from when on it counts: 14 s and 15 s.
    rates = [figures["read_gib_per_s"] for figures in intervals.values()]
    assert rates == [pytest.approx(2 * 70 / 14), pytest.approx(2 * 700 / 15)]
    assert intervals[15]["read_p99_ms"] is not None
    assert reported[14]["recent"]["read_gib_per_s"] == 0.0


def test_reports_of_another_phase_are_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = window_reports(3 * S, 60)
    late[0][1]["phase"] = "population"
    _first, second = lines(tmp_path, monkeypatch, window_reports(S, 0), late)
    assert second["recent"] is None


@pytest.mark.parametrize(
    ("free", "reported_bytes"), [((), None), ((7,), 7), ((7, 5), 5), ((7, None), None)]
)
def test_the_free_space_is_that_of_the_host_with_the_least(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: tuple[int | None, ...],
    reported_bytes: int | None,
) -> None:
    (line,) = lines(tmp_path, monkeypatch, window_reports(S, 1, *free))
    assert line["free_bytes"] == reported_bytes
