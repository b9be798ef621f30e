from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.cachedir import claim_rank_dir, run_dir
from pytest_kvcache.hosts import agent as hostagent
from pytest_kvcache.hosts.agent import Agent
from pytest_kvcache.hosts.facts import HostFacts, HostQuestion
from pytest_kvcache.hosts.lock import HostLock
from pytest_kvcache.hosts.sessiondirs import SessionDirs
from pytest_kvcache.hosts.sharedmemory import Segments
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS
from pytest_kvcache.version import VERSION
from tests.factories import PATIENCE_S
from tests.neighbours import N1, AgentProcess, end, is_alive, was_killed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.neighbours import Neighbours


LEAVES = BUILT_IN_LEFTOVERS.to_json()


@pytest.fixture
def agent(neighbours: Neighbours) -> Iterator[AgentProcess]:
    agent = neighbours.agent()
    yield agent
    agent.discard()


def claim(
    agent: AgentProcess,
    neighbours: Neighbours,
    cache_dir: Path | None = None,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Let it guard the run."""
    directory = None if cache_dir is None else str(cache_dir)
    return agent.ask(
        "claim", run_id=neighbours.run_id, cache_dir=directory, keep=keep, leaves=LEAVES
    )


def leavings(neighbours: Neighbours, cache_dir: Path) -> list[Path]:
    """What a launch leaves: data, a segment, a directory of a daemon that is gone."""
    cache_dir.mkdir(exist_ok=True)
    claim_rank_dir(str(cache_dir), neighbours.run_id, 0, "n1")
    segment = neighbours.home() / "sm_segment.n1.0.1"
    segment.touch()
    session = neighbours.home() / "prted.99999999"
    session.mkdir()
    return [run_dir(str(cache_dir), neighbours.run_id), segment, session]


# --- what it answers ------------------------------------------------------------------------


def test_an_agent_says_first_of_which_version_it_is(agent: AgentProcess) -> None:
    assert agent.greeting == {"id": 0, "value": VERSION}


def test_facts_are_those_of_the_agents_host(agent: AgentProcess, neighbours: Neighbours) -> None:
    question = HostQuestion(cache_dir=None, programs=("/no/prted",))
    facts = HostFacts.from_json(agent.ask("facts", question=question.to_json())["value"])
    assert facts.hostname == f"{neighbours.name}-{N1}"
    assert facts.mpi_library.startswith("Open MPI")
    (problem,) = facts.problems
    assert problem.startswith("/no/prted is missing")


def test_a_ping_is_answered_with_what_the_agent_is_doing(agent: AgentProcess) -> None:
    assert agent.ask("ping")["stage"] == "starting"
    agent.ask("facts", question=HostQuestion(cache_dir=None, programs=()).to_json())
    assert agent.ask("ping")["stage"] == "loading MPI"


def test_a_request_that_hangs_stops_no_other(agent: AgentProcess, neighbours: Neighbours) -> None:
    sleeper = neighbours.marked()
    agent.send("watch", pids=[sleeper.pid])
    assert agent.ask("ping")["stage"] == "starting"
    end(sleeper)


def test_a_request_that_fails_is_answered_with_the_reason(agent: AgentProcess) -> None:
    answer = agent.ask("mark", directory="/no/directory", token="t")
    assert "No such file or directory" in answer["error"]


def test_ranks_are_counted_and_so_are_those_without_a_daemon(
    agent: AgentProcess, neighbours: Neighbours
) -> None:
    rank = neighbours.marked_rank()
    assert agent.ask("ranks", run_id=neighbours.run_id)["value"] == 1
    assert agent.ask("orphans", run_id=neighbours.run_id)["value"] == 1
    assert agent.ask("ranks", run_id="another")["value"] in (0, None)  # by who else runs MPI
    end(rank)


def test_ends_are_reported_in_their_order(agent: AgentProcess, neighbours: Neighbours) -> None:
    first, second, third = (neighbours.marked() for _ in range(3))
    agent.send("watch", pids=[first.pid, second.pid, third.pid])
    agent.ask("ping")
    for process in (second, third, first):
        end(process)
        reported = agent.reply()
        while "value" in reported:  # of the watch itself, which ends with its last process
            reported = agent.reply()
        assert reported == {"id": -1, "gone": process.pid}


def test_a_process_that_is_gone_already_is_reported_at_once(
    agent: AgentProcess, neighbours: Neighbours
) -> None:
    gone = neighbours.marked()
    end(gone)
    agent.send("watch", pids=[gone.pid])
    assert agent.reply() == {"id": -1, "gone": gone.pid}


# --- the run that it guards -----------------------------------------------------------------


def test_without_a_run_there_is_nothing_to_clean_up(agent: AgentProcess) -> None:
    assert agent.ask("clean up")["value"] == []
    assert agent.hang_up() == 0


def test_clean_up_ends_the_run_and_removes_its_files_and_nothing_else(
    agent: AgentProcess, neighbours: Neighbours, tmp_path: Path
) -> None:
    foreign = neighbours.marked(f"{neighbours.run_id}-2")
    before = neighbours.home() / "sm_segment.n1.0.2"
    before.touch()
    claim(agent, neighbours, tmp_path / "data")
    left = leavings(neighbours, tmp_path / "data")
    rank = neighbours.marked()
    assert agent.ask("clean up")["value"] == []
    assert was_killed(rank)
    assert [path for path in left if path.exists()] == []
    assert before.exists()
    assert is_alive(foreign.pid)
    assert neighbours.lock().exists()  # the run goes on
    end(foreign)


@pytest.mark.parametrize("keep", [True, False])
def test_an_agent_whose_controller_has_gone_cleans_up_and_gives_the_host_back(
    agent: AgentProcess, neighbours: Neighbours, tmp_path: Path, *, keep: bool
) -> None:
    claim(agent, neighbours, tmp_path / "data", keep=keep)
    data, segment, session = leavings(neighbours, tmp_path / "data")
    agent.ask("mark", directory=str(tmp_path / "data"), token="t")
    rank = neighbours.marked()
    assert json.loads(neighbours.lock().read_text())["run_id"] == neighbours.run_id
    assert agent.hang_up() == 0
    assert was_killed(rank)
    assert not segment.exists()
    assert not session.exists()
    assert data.exists() == keep
    assert not neighbours.lock().exists()
    assert list((tmp_path / "data").glob(".kvcache-mark*")) == []


def test_an_agent_that_hears_nothing_for_too_long_does_the_same(
    neighbours: Neighbours, tmp_path: Path
) -> None:
    agent = neighbours.agent()
    claim(agent, neighbours, tmp_path / "data")
    left = leavings(neighbours, tmp_path / "data")
    rank = neighbours.marked()
    agent.lose_patience()
    assert agent.process.wait(PATIENCE_S) == 0  # its input is open all the time
    assert was_killed(rank)
    assert [path for path in left if path.exists()] == []
    assert not neighbours.lock().exists()
    agent.discard()


def test_an_agent_whose_allocation_ends_does_the_same_and_is_not_hurried(
    neighbours: Neighbours, tmp_path: Path
) -> None:
    agent = neighbours.agent()
    claim(agent, neighbours, tmp_path / "data")
    left = leavings(neighbours, tmp_path / "data")
    rank = neighbours.marked()
    agent.process.send_signal(signal.SIGTERM)
    agent.process.send_signal(signal.SIGTERM)  # as Slurm may, while it cleans up
    assert agent.process.wait(PATIENCE_S) == 0
    assert was_killed(rank)
    assert [path for path in left if path.exists()] == []
    assert not neighbours.lock().exists()
    agent.discard()


def test_whether_data_is_kept_may_change(
    agent: AgentProcess, neighbours: Neighbours, tmp_path: Path
) -> None:
    claim(agent, neighbours)
    data, *_others = leavings(neighbours, tmp_path / "data")
    claim(agent, neighbours, tmp_path / "data", keep=True)
    agent.ask("clean up")
    assert data.exists()
    claim(agent, neighbours, tmp_path / "data")
    agent.ask("clean up")
    assert not data.exists()


def test_a_directory_that_is_not_the_runs_is_left_and_told(
    agent: AgentProcess, neighbours: Neighbours, tmp_path: Path
) -> None:
    claim(agent, neighbours, tmp_path)
    run_dir(str(tmp_path), neighbours.run_id).mkdir()
    assert "no readable marker file" in agent.ask("clean up")["error"]
    run_dir(str(tmp_path), neighbours.run_id).rmdir()


# --- one run per host -----------------------------------------------------------------------


def test_another_runs_host_is_refused(agent: AgentProcess, neighbours: Neighbours) -> None:
    claim(agent, neighbours)
    second = neighbours.agent()
    refused = second.ask("claim", run_id="another", cache_dir=None, keep=False, leaves=LEAVES)
    assert "a benchmark runs on" in refused["error"]
    assert neighbours.run_id in refused["error"]
    assert second.hang_up() == 0
    assert agent.ask("ping")["stage"] == "starting"  # it has not been touched
    assert neighbours.lock().exists()


def test_an_agent_of_the_same_run_takes_over_from_one_that_was_cut_off(
    agent: AgentProcess, neighbours: Neighbours
) -> None:
    claim(agent, neighbours)
    second = neighbours.agent()
    number = second.send(
        "claim", run_id=neighbours.run_id, cache_dir=None, keep=False, leaves=LEAVES
    )
    assert agent.process.wait(PATIENCE_S) == -9  # reaped, as its sshd would do
    assert second.reply() == {"id": number, "value": None}
    assert json.loads(neighbours.lock().read_text())["pid"] == second.process.pid
    assert second.hang_up() == 0
    assert not neighbours.lock().exists()


# --- in this process ------------------------------------------------------------------------


def test_leaving_gives_up_on_a_storage_that_never_lets_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lock is given back although the directory can't be removed."""
    monkeypatch.setattr(hostagent, "_LAST_CLEAN_UP_S", 0.05)
    monkeypatch.setattr(hostagent, "_RETRY_S", 0.01)
    lock = HostLock("n1", run_id="r", directories=[tmp_path])
    lock.acquire()
    run_dir(str(tmp_path), "r").mkdir()
    agent = Agent(lambda _answer: None)
    agent._cleanup = hostagent.HostCleanup(
        run_id="r", cache_dir=str(tmp_path), keep=False, lock=lock,
        segments=Segments.now(tmp_path), sessions=SessionDirs.now(tmp_path),
    )  # fmt: skip
    agent.leave()
    assert not lock.path.exists()
    assert run_dir(str(tmp_path), "r").exists()


def test_an_agent_imports_neither_pytest_nor_mpi() -> None:
    program = (
        "import sys, pytest_kvcache.hosts.agent;"
        "sys.exit(bool({'pytest', 'mpi4py', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
