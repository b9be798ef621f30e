from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.posix.cachedir import claim_rank_dir, run_dir
from pytest_kvcache.hosts import links as hostlinks
from pytest_kvcache.hosts.access import SshAccess
from pytest_kvcache.hosts.cluster import Cluster, Survey
from pytest_kvcache.hosts.facts import HostQuestion
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.hosts.lock import Patience
from pytest_kvcache.version import VERSION
from tests.factories import FILESYSTEM, host_facts, layout_of, survey_of, wait_for
from tests.neighbours import N1, N2, N3, end, greeting, was_killed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.neighbours import Neighbours

HERE = "127.0.0.1"
# An agent of another version does answer, in its own way.
ANSWERS = """echo 'kvcache-agent {"id": 1, "value": {}}'; cat >/dev/null"""
NO_DIRECTORY = HostQuestion(cache_dir=None, programs=())


@pytest.fixture
def cluster(neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(hostlinks, "_POLL_S", 0.01)
    monkeypatch.setattr(sys, "executable", neighbours.fake_python)  # asked for its MPI
    cluster = cluster_of(neighbours)
    yield cluster
    cluster.close()


def cluster_of(neighbours: Neighbours, ssh: str | None = None) -> Cluster:
    return Cluster(neighbours.run_id, SshAccess([ssh or neighbours.ssh]), neighbours.python, {})


def ask(cluster: Cluster, *names: str, question: HostQuestion = NO_DIRECTORY) -> Survey:
    return cluster.survey(names, question, keep=False)


# --- a survey -------------------------------------------------------------------------------


def test_all_hosts_are_asked_this_one_among_them(cluster: Cluster, neighbours: Neighbours) -> None:
    survey = ask(cluster, HERE, N1, N2)
    assert survey.names == (HERE, N1, N2)
    assert survey.problems == {}
    assert [survey.facts[name].hostname for name in (N1, N2)] == [
        f"{neighbours.name}-{N1}", f"{neighbours.name}-{N2}",
    ]  # fmt: skip
    assert survey.facts[HERE].mpi_library == survey.facts[N1].mpi_library
    assert survey.groups == ()


def test_hosts_that_can_be_used_are_held_for_the_run(
    cluster: Cluster, neighbours: Neighbours
) -> None:
    ask(cluster, HERE, N1, N2)
    second = Cluster("another", SshAccess([neighbours.ssh]), neighbours.python, {})
    problems = ask(second, N1).problems[N1]
    assert "a benchmark runs on" in problems[0]
    second.close()
    cluster.close()
    assert [neighbours.lock(host).exists() for host in (N1, N2)] == [False, False]


@pytest.mark.thorough
def test_hosts_of_another_run_are_waited_for(cluster: Cluster, neighbours: Neighbours) -> None:
    ask(cluster, N1, N2)
    reported: list[str] = []

    def end_the_other(problem: str, _waited_s: float, _limit_s: float) -> None:
        reported.append(problem)
        cluster.close()

    second = Cluster(
        "another", SshAccess([neighbours.ssh]), neighbours.python, {}, Patience(60.0, end_the_other)
    )
    survey = ask(second, N1, N2)
    assert survey.problems == {}
    assert set(survey.facts) == {N1, N2}
    assert reported
    assert reported[0].startswith("a benchmark runs on ")
    assert json.loads(neighbours.lock(N2).read_text())["run_id"] == "another"
    second.close()


def test_a_host_with_a_problem_is_not_held(cluster: Cluster, neighbours: Neighbours) -> None:
    survey = ask(cluster, N1, question=HostQuestion(cache_dir=None, programs=("/no/prted",)))
    assert "/no/prted is missing" in survey.problems[N1][0]
    assert not neighbours.lock().exists()


def test_a_survey_can_be_made_again(cluster: Cluster, neighbours: Neighbours) -> None:
    ask(cluster, N1)
    assert ask(cluster, N1, N2).problems == {}
    assert neighbours.lock().exists()


def test_two_names_of_one_other_host_are_refused(neighbours: Neighbours) -> None:
    same = f'shift; exec {neighbours.ssh} {N1} "$@"'
    ssh = neighbours.program("alias", f"[ $1 = -G ] && exit 1; {same}")
    cluster = cluster_of(neighbours, ssh)
    problems = ask(cluster, N1, N2).problems
    cluster.close()
    assert problems == {
        N2: (f"is the same machine as {N1}; name it once, with its ranks as {N2}:2",)
    }


def test_another_name_of_this_machine_is_refused(
    neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Over ssh to an address that leads back here.
    monkeypatch.setattr(sys, "executable", neighbours.fake_python)
    monkeypatch.setattr("socket.gethostname", lambda: f"{neighbours.name}-{N1}")
    cluster = cluster_of(neighbours)
    problems = ask(cluster, HERE, N1).problems
    cluster.close()
    assert list(problems) == [N1]
    assert problems[N1][0].startswith("is the same machine as this machine; name it once")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "reported"),
    [
        ("echo 'ssh: no route' >&2; exit 255", "can't be reached over ssh (ssh: no route)"),
        (f"{greeting('0.0.1')}; {ANSWERS}", f"the controller has {VERSION}; install the same"),
        (
            f"""{greeting()}; echo 'kvcache-agent {{"id": 1, "value": {{"os": "x"}}}}'; cat >&2""",
            "its agent answers with other fields than ours: cores",
        ),
    ],
)
def test_a_host_that_can_not_be_used_is_reported_and_the_others_stand(
    neighbours: Neighbours, body: str, reported: str
) -> None:
    ssh = neighbours.program(
        "broken", f'[ $1 = -G ] && exit 1; [ $1 = {N2} ] && exec {neighbours.ssh} "$@"; {body}'
    )
    cluster = cluster_of(neighbours, ssh)
    survey = ask(cluster, N1, N2)
    cluster.close()
    assert reported in survey.problems[N1][0]
    assert list(survey.problems) == [N1]
    assert list(survey.facts) == [N2]


def test_a_lost_host_is_reported_and_can_come_back(
    cluster: Cluster, neighbours: Neighbours
) -> None:
    ask(cluster, N1, N2)
    process = cluster._links._links[N1].process
    assert process is not None
    process.kill()
    wait_for(lambda: cluster.lost([N1, N2]))
    assert cluster.lost([HERE, N1, N2]) == {
        N1: "the connection to it broke (exit code -9: no message)"
    }
    assert ask(cluster, N1, N2).problems == {}
    assert cluster.lost([N1, N2]) == {}
    assert neighbours.lock().exists()


# --- which hosts share a directory ----------------------------------------------------------


def test_hosts_that_see_each_others_files_are_one_group(cluster: Cluster, tmp_path: Path) -> None:
    question = HostQuestion(cache_dir=str(tmp_path), programs=())
    survey = ask(cluster, HERE, N1, N2, question=question)
    assert survey.groups == (frozenset({HERE, N1, N2}),)
    assert survey.group_of(N1) == {HERE, N1, N2}
    assert [facts.direct is not None for facts in survey.facts.values()] == [True] * 3
    assert list(tmp_path.glob(".kvcache*")) == []  # neither marks nor probes


def test_hosts_with_directories_of_their_own_are_groups_of_their_own(
    neighbours: Neighbours, tmp_path: Path
) -> None:
    # One name, which is another directory for each host: N1 and N2 share theirs.
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    ssh = neighbours.program(
        "ssh-in",
        f"[ $1 = -G ] && exit 1; d={shared}; [ $1 = {N3} ] && d={own}; KVCACHE_TEST_CWD=$d"
        f' exec {neighbours.ssh} "$@"',
    )
    neighbours.python = neighbours.program(
        "python-in", f'cd "$KVCACHE_TEST_CWD"; exec {neighbours.python} "$@"'
    )
    cluster = cluster_of(neighbours, ssh)
    question = HostQuestion(cache_dir="/proc/self/cwd", programs=())
    survey = ask(cluster, N1, N2, N3, question=question)
    cluster.close()
    assert survey.problems == {}
    assert set(survey.groups) == {frozenset({N1, N2}), frozenset({N3})}


def test_a_host_with_a_problem_is_in_no_group(neighbours: Neighbours, tmp_path: Path) -> None:
    ssh = neighbours.program("ssh-broken", f'[ $1 = {N1} ] && exec {neighbours.ssh} "$@"; exit 255')
    cluster = cluster_of(neighbours, ssh)
    survey = ask(cluster, N1, N2, question=HostQuestion(cache_dir=str(tmp_path), programs=()))
    cluster.close()
    assert survey.groups == (frozenset({N1}),)
    assert survey.group_of(N2) == {N2}


# --- while ranks run ------------------------------------------------------------------------


def test_ranks_are_counted_on_every_host_that_answers(
    cluster: Cluster, neighbours: Neighbours
) -> None:
    ask(cluster, HERE, N1)
    rank = neighbours.marked_rank()  # on one machine, so that all hosts see it
    assert cluster.ranks([HERE, N1]) == {HERE: 1, N1: 1}
    end(rank)


def has_grown(cluster: Cluster, reported: int) -> bool:
    return len(cluster.gone()) > reported


def test_ends_are_reported_with_their_hosts_in_their_order(
    cluster: Cluster, neighbours: Neighbours
) -> None:
    ask(cluster, HERE, N1, N2)
    processes = {host: neighbours.marked() for host in (HERE, N1, N2)}
    cluster.watch({host: [process.pid] for host, process in processes.items()})
    assert cluster.gone() == []
    order = [N2, HERE, N1]
    for host in order:
        reported = len(cluster.gone())
        end(processes[host])
        wait_for(partial(has_grown, cluster, reported))
    assert cluster.gone() == [(host, processes[host].pid) for host in order]
    cluster.watch({})
    assert cluster.gone() == []


def test_clean_up_ends_the_run_on_other_hosts(
    cluster: Cluster, neighbours: Neighbours, tmp_path: Path
) -> None:
    ask(cluster, HERE, N1, question=HostQuestion(cache_dir=str(tmp_path), programs=()))
    claim_rank_dir(str(tmp_path), neighbours.run_id, 0, "n1")
    rank = neighbours.marked()
    assert cluster.clean_up([HERE, N1]) == []
    assert was_killed(rank)
    assert not run_dir(str(tmp_path), neighbours.run_id).exists()


def test_what_can_not_be_cleaned_up_is_reported_with_its_host(
    cluster: Cluster, neighbours: Neighbours, tmp_path: Path
) -> None:
    ask(cluster, N1, question=HostQuestion(cache_dir=str(tmp_path), programs=()))
    run_dir(str(tmp_path), neighbours.run_id).mkdir()
    (reported,) = cluster.clean_up([N1])
    assert reported.startswith(f"host {N1}: clean-up failed: ")
    run_dir(str(tmp_path), neighbours.run_id).rmdir()


def test_a_host_that_is_lost_is_asked_nothing(cluster: Cluster, neighbours: Neighbours) -> None:
    del neighbours
    ask(cluster, N1)
    process = cluster._links._links[N1].process
    assert process is not None
    process.kill()
    wait_for(lambda: cluster.lost([N1]))
    assert cluster.clean_up([N1]) == []
    assert cluster.diagnose([N1]) == []


def test_a_diagnosis_names_hosts_whose_launcher_has_gone_and_new_problems(
    cluster: Cluster, neighbours: Neighbours, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    ask(cluster, HERE, N1, question=HostQuestion(cache_dir=str(data), programs=()))
    assert cluster.diagnose([HERE, N1]) == []
    data.rmdir()
    rank = neighbours.marked_rank()
    problem, orphan = cluster.diagnose([HERE, N1])
    assert problem.startswith(f"host {N1}: --kv-cache-dir is {data}, which does not exist")
    assert orphan == f"host {N1}: the launcher's daemon there is gone, and left 1 rank alone"
    end(rank)


# --- the values -----------------------------------------------------------------------------


@st.composite
def surveys(draw: st.DrawFn) -> tuple[Survey, RankLayout]:
    """Hosts with ranks, in groups that share a directory."""
    ranks = draw(st.lists(st.integers(1, 64), min_size=1, max_size=8))
    names = [f"n{number}" for number in range(len(ranks))]
    group = {name: draw(st.integers(0, 3)) for name in names}
    facts = {
        name: host_facts(name, filesystem=free(draw(st.integers(0, 1 << 50)))) for name in names
    }
    groups = [[n for n in names if group[n] == number] for number in set(group.values())]
    layout = RankLayout(
        hosts=tuple(HostRanks(name=n, ranks=count) for n, count in zip(names, ranks, strict=True))
    )
    return survey_of(facts, *groups), layout


def free(size_bytes: int) -> dict[str, Any]:
    return {**FILESYSTEM, "available_bytes": size_bytes, "available_inodes": None}


@settings(deadline=None)
@given(surveys())
def test_no_group_has_less_for_a_rank_than_the_tightest_share(
    made: tuple[Survey, RankLayout],
) -> None:
    survey, layout = made
    tightest = survey.tightest_share(layout)
    assert tightest is not None
    free_bytes, sharers = tightest
    shares = []
    for group in survey.groups:
        count = sum(host.ranks for host in layout.hosts if host.name in group)
        for name in group:
            filesystem = survey.facts[name].filesystem
            assert filesystem is not None
            shares.append((filesystem["available_bytes"], count))
    assert all(free_bytes * count <= own * sharers for own, count in shares)
    assert (free_bytes, sharers) in shares


def test_the_tightest_share_is_that_of_a_rank_and_not_of_a_host() -> None:
    facts = {"n1": host_facts(filesystem=free(100)), "n2": host_facts(filesystem=free(60))}
    assert survey_of(facts).tightest_share(layout_of(n1=4, n2=2)) == (100, 4)
    assert survey_of(facts, ["n1", "n2"]).tightest_share(layout_of(n1=4, n2=2)) == (60, 6)


def test_without_a_directory_there_is_no_tightest_share() -> None:
    survey = replace(survey_of({"n1": host_facts(filesystem=None)}), groups=())
    assert survey.tightest_share(layout_of(n1=1)) is None


def test_more_problems_are_added_to_those_that_are_known() -> None:
    survey = survey_of({"n1": host_facts()}, problems={"n1": ["a"], "n2": ["b"]})
    more = survey.with_problems({"n1": ["c"], "n3": ["d"]})
    assert more.problems == {"n1": ("a", "c"), "n2": ("b",), "n3": ("d",)}
    assert survey.problems == {"n1": ["a"], "n2": ["b"]}


def test_what_was_asked_long_ago_is_old() -> None:
    survey = survey_of({"n1": host_facts()})
    assert not survey.is_old()
    assert replace(survey, made_s=survey.made_s - 6).is_old()
