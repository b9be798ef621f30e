from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.cachedir import claim_rank_dir
from pytest_kvcache.errors import LaunchError
from pytest_kvcache.launch import trial as launch
from pytest_kvcache.launch.supervise import LaunchExit, StopLaunch
from pytest_kvcache.launch.trial import HostWatch, Launch
from pytest_kvcache.results.events import EventWriter
from pytest_kvcache.system.cgroups import MemoryKills
from tests.factories import clock_record, layout_of, make_plan
from tests.neighbours import end

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.hosts.cluster import Cluster
    from pytest_kvcache.plan.plan import Plan
    from tests.neighbours import Neighbours

RANKS = [
    {"host": "n1.site", "pid": 11},
    {"host": "n2.site", "pid": 21},
    {"host": "n2.site", "pid": 22},
]


@dataclass
class FakeCluster:
    """What hosts would say (implements what a launch needs of ``Cluster``)."""

    losses: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    ends: list[tuple[str, int]] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    own: str = ""
    kills: dict[str, MemoryKills] = field(default_factory=dict)
    sees_ranks: bool = True
    watched: Mapping[str, Sequence[int]] | None = None
    asked: int = 0
    cleaned: int = 0

    def lost(self, names: Sequence[str]) -> dict[str, str]:
        return {name: why for name, why in self.losses.items() if name in names}

    def ranks(self, names: Sequence[str]) -> dict[str, int | None]:
        self.asked += 1
        return {name: count for name, count in self.counts.items() if name in names}

    def hostname(self, name: str) -> str | None:
        return self.names.get(name)

    def memory_kills(self, names: Sequence[str]) -> dict[str, MemoryKills]:
        return {name: kills for name, kills in self.kills.items() if name in names}

    def watch(self, pids: Mapping[str, Sequence[int]]) -> None:
        self.watched = pids

    def gone(self) -> list[tuple[str, int]]:
        return self.ends

    def diagnose(self, names: Sequence[str]) -> list[str]:
        del names
        return self.reported

    def clean_up(self, names: Sequence[str]) -> list[str]:
        del names
        self.cleaned += 1
        return self.left

    def is_own(self, name: str) -> bool:
        return name == self.own


def plan_of(neighbours: Neighbours, **changes: Any) -> Plan:
    return make_plan(layout=layout_of(n1=1, n2=2), run_id=neighbours.run_id, **changes)


def watch_of(plan: Plan, cluster: FakeCluster | None) -> HostWatch:
    return HostWatch(plan, cluster)  # type: ignore[arg-type]  # as far as it is used


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count at every look, from the first one on."""
    monkeypatch.setattr(launch, "_CENSUS_AFTER_S", 0.0)
    monkeypatch.setattr(launch, "_CENSUS_EVERY_S", 0.0)


# --- hosts that are lost --------------------------------------------------------------------


def test_a_lost_host_stops_the_launch_and_is_named_with_its_ranks(neighbours: Neighbours) -> None:
    cluster = FakeCluster()
    watch = watch_of(plan_of(neighbours), cluster)
    watch.check(together=True)
    cluster.losses = {"n2": "has not answered for 8 s", "n9": "is of no interest"}
    with pytest.raises(StopLaunch) as stop:
        watch.check(together=True)
    assert str(stop.value) == "host n2 with ranks 1-2 is lost: has not answered for 8 s"


def test_all_lost_hosts_are_named(neighbours: Neighbours) -> None:
    watch = watch_of(plan_of(neighbours), FakeCluster(losses={"n1": "a", "n2": "b"}))
    with pytest.raises(
        StopLaunch, match="host n1 with rank 0 is lost: a; host n2 with ranks 1-2 is lost: b"
    ):
        watch.check(together=False)


# --- the census -----------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
def test_ranks_that_are_missing_twice_stop_the_launch(neighbours: Neighbours) -> None:
    watch = watch_of(plan_of(neighbours), FakeCluster(counts={"n1": 1, "n2": 1}))
    watch.check(together=False)
    with pytest.raises(StopLaunch, match="1 of 2 rank processes run on n2, and the ranks are not"):
        watch.check(together=False)


@pytest.mark.usefixtures("at_once")
def test_ranks_that_are_still_beginning_are_left_in_peace(neighbours: Neighbours) -> None:
    cluster = FakeCluster(counts={"n1": 0, "n2": 0})
    watch = watch_of(plan_of(neighbours), cluster)
    watch.check(together=False)
    cluster.counts = {"n1": 1, "n2": 0}
    watch.check(together=False)
    cluster.counts = {"n1": 1, "n2": 1}
    watch.check(together=False)


@pytest.mark.usefixtures("at_once")
def test_a_launcher_on_its_way_to_a_host_is_left_in_peace(
    neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = neighbours.marked_rank()
    on_its_way = {"n2"}
    monkeypatch.setattr(
        "pytest_kvcache.launch.trial.LaunchProcesses.reaches",
        lambda _self, host: host in on_its_way,
    )
    watch = watch_of(plan_of(neighbours), FakeCluster(counts={"n1": 1, "n2": None}))
    for _ in range(3):
        watch.check(together=False)
    on_its_way.clear()  # it has been there, and all has ended
    watch.check(together=False)
    with pytest.raises(StopLaunch, match="0 of 2 rank processes run on n2"):
        watch.check(together=False)
    end(coordinator)


@pytest.mark.usefixtures("at_once")
def test_before_any_rank_runs_nobody_is_short(neighbours: Neighbours) -> None:
    watch = watch_of(plan_of(neighbours), FakeCluster(counts={"n1": 0, "n2": None}))
    for _ in range(3):
        watch.check(together=False)


@pytest.mark.usefixtures("at_once")
def test_ranks_that_are_together_are_not_counted(neighbours: Neighbours) -> None:
    cluster = FakeCluster(counts={"n1": 0, "n2": 0})
    watch = watch_of(plan_of(neighbours), cluster)
    for _ in range(3):
        watch.check(together=True)
    assert cluster.asked == 0


@pytest.mark.usefixtures("at_once")
def test_a_host_that_does_not_answer_the_census_is_not_short(neighbours: Neighbours) -> None:
    coordinator = neighbours.marked_rank()
    watch = watch_of(plan_of(neighbours), FakeCluster(counts={"n1": 1}))
    for _ in range(3):
        watch.check(together=False)
    end(coordinator)
    watch.check(together=False)
    with pytest.raises(StopLaunch, match="0 of 1 rank processes run on this machine"):
        watch.check(together=False)


@pytest.mark.usefixtures("at_once")
def test_on_the_controllers_host_the_coordinator_is_counted_too(neighbours: Neighbours) -> None:
    ranks = [neighbours.marked_rank() for _ in range(2)]
    watch = watch_of(plan_of(neighbours), FakeCluster(counts={"n2": 2}, own="n1"))
    for _ in range(3):
        watch.check(together=False)
    end(ranks[0])
    watch.check(together=False)
    with pytest.raises(StopLaunch, match="1 of 2 rank processes run on this machine"):
        watch.check(together=False)
    end(ranks[1])


@pytest.mark.usefixtures("at_once")
def test_on_one_machine_all_ranks_and_the_coordinator_are_counted(neighbours: Neighbours) -> None:
    rank = neighbours.marked_rank()
    watch = watch_of(make_plan(np=2, run_id=neighbours.run_id), None)
    watch.check(together=False)
    with pytest.raises(StopLaunch, match="1 of 3 rank processes run on this machine"):
        watch.check(together=False)
    end(rank)


def test_ranks_are_not_counted_while_they_are_still_expected(neighbours: Neighbours) -> None:
    cluster = FakeCluster(counts={"n1": 0})
    watch = watch_of(plan_of(neighbours), cluster)
    for _ in range(3):
        watch.check(together=False)  # far sooner than any rank can begin
    assert cluster.asked == 0


# --- where ranks run ------------------------------------------------------------------------


def test_ranks_on_another_host_than_planned_stop_the_launch(neighbours: Neighbours) -> None:
    hosts = [str(rank["host"]) for rank in RANKS]
    here = FakeCluster(names={"n1": hosts[0], "n2": hosts[-1]})
    watch = watch_of(plan_of(neighbours), here)
    watch.ranks_together(RANKS)
    watch.check(together=True)
    swapped = FakeCluster(names={"n1": hosts[-1], "n2": hosts[0]})
    watch = watch_of(plan_of(neighbours), swapped)
    watch.ranks_together(RANKS)
    with pytest.raises(StopLaunch, match=r"rank 0 runs on .*, the plan has it on n1, which calls"):
        watch.check(together=True)


# --- who ended first ------------------------------------------------------------------------


def test_hosts_are_told_which_processes_to_watch(neighbours: Neighbours) -> None:
    cluster = FakeCluster()
    watch_of(plan_of(neighbours), cluster).ranks_together(RANKS)
    assert cluster.watched == {"n1": [11], "n2": [21, 22]}


def test_the_first_rank_to_end_is_named(neighbours: Neighbours) -> None:
    cluster = FakeCluster(ends=[("n2", 22), ("n1", 11)])
    watch = watch_of(plan_of(neighbours), cluster)
    assert watch.first_gone() is None  # nobody knows whose pids these are
    watch.ranks_together(RANKS)
    assert watch.first_gone() == "rank 2 (pid 22) on host n2.site was the first to end"


def test_a_process_of_another_launch_is_not_the_first_to_end(neighbours: Neighbours) -> None:
    cluster = FakeCluster(ends=[("n1", 21), ("n2", 99)])
    watch = watch_of(plan_of(neighbours), cluster)
    watch.ranks_together(RANKS)
    assert watch.first_gone() is None
    cluster.ends.append(("n1", 11))
    assert watch.first_gone() == "rank 0 (pid 11) on host n1.site was the first to end"


def test_without_other_hosts_nobody_is_watched_or_cleaned_up_after() -> None:
    watch = watch_of(make_plan(), None)
    watch.ranks_together(RANKS[:1])
    assert (watch.first_gone(), watch.diagnose(), watch.clean_up()) == (None, [], [])


# --- the cause that is told -----------------------------------------------------------------


def launch_of(
    plan: Plan, directory: Path, cluster: FakeCluster | None = None, *events: dict[str, Any]
) -> Launch:
    """A launch that has heard these events."""
    known: Cluster | None = cluster  # type: ignore[assignment]  # as far as it is used
    one = Launch(["/no/mpirun"], plan, directory, cluster=known, on_event=lambda _event: None)
    writer = EventWriter(directory / "events.jsonl")
    for event in events:
        writer.write(**{"t_s": 0.0, **event})
    writer.close()
    one._read_events()
    return one


def ended(by: Any, exit_code: int | None = None, reason: str = "") -> LaunchExit:
    return LaunchExit(exit_code=exit_code, ended_by=by, elapsed_s=1.0, reason=reason)


def progress(waiting: dict[str, Any] | None) -> dict[str, Any]:
    return {"event": "progress", "waiting": waiting}


WAITING = {"rank": 1, "host": "n2", "s": 41.7}
TOGETHER = {"event": "ranks", "ranks": RANKS}
FAILED = {"event": "failed", "rank": 1, "host": "n2", "error": "it broke"}


def test_a_deadline_names_the_rank_whose_storage_hangs(tmp_path: Path) -> None:
    one = launch_of(make_plan(), tmp_path, None, progress(None), progress(WAITING))
    assert one._cause(ended("deadline")) == (
        "rank 1 on host n2 has waited 42 s for one transfer, and the launch was not over after"
        " 60 s and was ended; look for a storage that hangs there, or raise --kv-deadline"
    )


@pytest.mark.parametrize("events", [[], [progress(WAITING), progress(None)]])
def test_a_deadline_without_a_waiting_rank_blames_none(
    tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    assert launch_of(make_plan(), tmp_path, None, *events)._cause(ended("deadline")) == (
        "the launch was not over after 60 s and was ended; look for a rank that hangs, or raise"
        " --kv-deadline"
    )


def test_what_a_rank_says_itself_counts_before_everything_but_a_lost_host(tmp_path: Path) -> None:
    one = launch_of(make_plan(), tmp_path, None, FAILED, {**FAILED, "error": "so did others"})
    reported = "rank 1 on host n2: it broke"
    assert [one._cause(ended("exit", 9)), one._cause(ended("deadline"))] == [reported, reported]
    assert one._cause(ended("stopped", reason="host n2 is lost")) == "host n2 is lost"


def test_an_exit_code_that_nobody_explains_is_reported_with_what_the_hosts_know(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    cluster = FakeCluster(ends=[("n2", 22)], reported=["host n2: its daemon is gone"])
    one = launch_of(plan_of(neighbours), tmp_path, cluster, TOGETHER)
    assert one._cause(ended("exit", 1)) == (
        "rank 2 (pid 22) on host n2.site was the first to end; host n2: its daemon is gone; the"
        " launcher ended with exit code 1"
    )
    assert str(one._cause(ended("exit", -9))).endswith("the launcher was killed by signal 9")


def test_a_kill_by_the_kernel_for_memory_is_reported_with_its_host(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    none = MemoryKills(in_group=0, on_machine=5, limit_bytes=250 << 20)
    cluster = FakeCluster(kills={"n1": none, "n2": none})
    one = launch_of(plan_of(neighbours), tmp_path, cluster, TOGETHER)
    assert "memory" not in str(one._cause(ended("exit", 1)))
    cluster.kills["n2"] = replace(none, in_group=1)
    assert one._cause(ended("exit", 1)) == (
        "the launcher ended with exit code 1; the kernel of host n2 killed 1 process for memory"
        " (its control group allows 250 MiB) meanwhile; give the ranks more, or lower --kv-np,"
        " --kv-queue-depth or the capacity"
    )
    cluster.kills = {"n1": none}  # n2 does not answer any more
    assert one._cause(ended("exit", 1)) == "the launcher ended with exit code 1"


def test_without_other_hosts_this_kernel_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [MemoryKills(in_group=None, on_machine=n, limit_bytes=None) for n in (3, 4)]
    monkeypatch.setattr(MemoryKills, "now", lambda _groups: counts.pop(0))
    reported = launch_of(make_plan(), tmp_path)._cause(ended("exit", -9))
    assert f"the kernel of host {socket.gethostname()} killed 1 process for memory" in str(reported)


def test_the_controller_s_clock_sees_the_span_of_the_run(tmp_path: Path) -> None:
    one = launch_of(make_plan(), tmp_path, None, {"event": "phase", "phase": "window"})
    time.sleep(0.05)
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("phase", t_s=0.05, phase="clean-up")
    writer.close()
    one._read_events()
    seen = one._span.fill(clock_record(controller_least_s=None, controller_most_s=None))
    assert seen.controller_least_s is not None
    assert seen.controller_most_s is not None
    assert seen.controller_least_s <= 0.05 <= seen.controller_most_s


def test_exit_code_0_without_a_record_is_a_failure(tmp_path: Path) -> None:
    one = launch_of(make_plan(), tmp_path)
    assert "exit code 0, but the ranks left no record" in str(one._cause(ended("exit", 0)))
    (tmp_path / "trial.json").write_text("{}")
    assert one._cause(ended("exit", 0)) is None


def test_what_the_launcher_says_of_a_rank_needs_no_other_host(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    (tmp_path / "mpirun.log").write_text(
        "process rank 2 with PID 21 on node n2 exited on signal 9 (Killed).\n"
    )
    cluster = FakeCluster(reported=["host n2: is of no interest"])
    one = launch_of(plan_of(neighbours), tmp_path, cluster, TOGETHER)
    assert (
        one._cause(ended("exit", 137)) == "rank 1 (pid 21) on host n2.site was killed by signal 9"
    )


def test_that_the_coordinator_gave_up_explains_nothing(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    (tmp_path / "mpirun.log").write_text(
        'process rank 0 with PID 1 on node n0 calling "abort". This may have\n'
    )
    cluster = FakeCluster(ends=[("n1", 11)])
    one = launch_of(plan_of(neighbours), tmp_path, cluster, TOGETHER)
    assert one._cause(ended("exit", 97)) == (
        "rank 0 (pid 11) on host n1.site was the first to end; the coordinator on host n0 gave up"
    )


def test_a_launch_that_fails_is_cleaned_up_after_on_all_hosts(
    tmp_path: Path, neighbours: Neighbours
) -> None:
    cluster = FakeCluster(left=["host n2: pid 7 (python) can't be ended"])
    one = launch_of(plan_of(neighbours), tmp_path, cluster)
    one._argv = ["/bin/false"]
    with pytest.raises(LaunchError) as error:
        one.record({})
    assert "exit code 1" in str(error.value)
    assert "host n2: pid 7 (python) can't be ended" in str(error.value)
    assert cluster.cleaned == 1
    log = (tmp_path / "mpirun.log").read_text()
    assert "[kv] host n2: pid 7 (python) can't be ended\n" in log


def test_what_a_stuck_rank_stored_is_not_waited_for(tmp_path: Path, neighbours: Neighbours) -> None:
    plan = plan_of(neighbours, backend="file", cache_dir=str(tmp_path))
    own = claim_rank_dir(str(tmp_path), plan.run_id, 0, "n1")
    stuck = neighbours.marked_rank()
    one = launch_of(plan, tmp_path)
    (reported,) = one._remove_data()
    assert "is there until its storage answers again" in reported
    assert Path(own).is_dir()
    end(stuck)
    assert one._remove_data() == []
    assert not Path(own).parent.exists()


def test_a_launch_that_is_interrupted_is_cleaned_up_after_too(
    tmp_path: Path, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster()
    one = launch_of(plan_of(neighbours), tmp_path, cluster)
    one._argv = ["/bin/sleep", "1000"]

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_poll", interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.record({})
    assert cluster.cleaned == 1
