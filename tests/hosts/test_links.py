from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts import links as hostlinks
from pytest_kvcache.hosts.agent import REPLY_MARK
from pytest_kvcache.hosts.facts import HostQuestion
from pytest_kvcache.hosts.links import HostLinks
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS
from pytest_kvcache.version import VERSION
from tests.factories import PATIENCE_S, wait_for
from tests.neighbours import N1, N2, end, greeting, is_alive, was_killed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.neighbours import Neighbours

PYTHON = "/opt/venv/bin/python"
PROGRAM = [PYTHON, "-m", "pytest_kvcache.hosts.agent"]
# Reads lines for ever: a host that hears and never answers.
DEAF = "while read -r line; do :; done"


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostLinks]:
    monkeypatch.setattr(hostlinks, "_POLL_S", 0.01)
    links = HostLinks()
    yield links
    links.close()


def scripts(links: HostLinks, **bodies: str) -> None:
    """Connect to hosts that are shell scripts."""
    links.open({host: ["sh", "-c", body] for host, body in bodies.items()}, PROGRAM)


def agents(links: HostLinks, neighbours: Neighbours, *hosts: str) -> None:
    """Connect to hosts with real agents."""
    command = f"exec {neighbours.python}"
    links.open({host: [neighbours.ssh, host, command] for host in hosts}, PROGRAM)


def why(links: HostLinks, host: str) -> str:
    """Wait until it is lost; the reason."""
    wait_for(lambda: links.lost([host]))
    return links.lost([host])[host]


def pid_of(links: HostLinks, host: str) -> int:
    process = links._links[host].process
    assert process is not None
    return process.pid


# --- answers --------------------------------------------------------------------------------


def test_all_hosts_are_asked_and_each_answers_for_itself(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1, N2)
    rank = neighbours.marked_rank()
    requests = {
        N1: {"do": "orphans", "run_id": neighbours.run_id},
        N2: {"do": "orphans", "run_id": "another"},
    }
    answers = links.ask(requests, PATIENCE_S)
    assert {host: answer.value for host, answer in answers.items()} == {N1: 1, N2: 0}
    assert [links.version(host) for host in (N1, N2)] == [VERSION, VERSION]
    end(rank)


def test_what_an_agent_refuses_is_a_problem(links: HostLinks, neighbours: Neighbours) -> None:
    agents(links, neighbours, N1)
    mark = {"do": "mark", "directory": "/no/directory", "token": "t"}
    answer = links.ask({N1: mark}, PATIENCE_S)[N1]
    assert answer.value is None
    assert answer.problem is not None
    assert "No such file" in answer.problem


def test_a_host_that_prints_a_banner_first_is_understood(links: HostLinks) -> None:
    reply = f"""echo '{REPLY_MARK}{{"id": 1, "value": 7}}'"""
    scripts(links, n1=f"echo Welcome; printf 'no newline: '; echo; {greeting()}; {reply}; {DEAF}")
    answer = links.ask({"n1": {"do": "orphans"}}, PATIENCE_S)["n1"]
    assert (answer.value, links.version("n1")) == (7, VERSION)


def test_a_reply_that_comes_in_pieces_is_put_together(links: HostLinks) -> None:
    pieces = f"""printf '{REPLY_MARK}{{"id": 1,'; sleep 0.05; echo ' "value": "ä"}}'"""
    scripts(links, n1=f"{greeting()}; {pieces}; {DEAF}")
    assert links.ask({"n1": {"do": "x"}}, PATIENCE_S)["n1"].value == "ä"


def test_a_host_that_does_not_answer_in_time_is_reported_with_what_it_is_doing(
    links: HostLinks,
) -> None:
    stage = f"""echo '{REPLY_MARK}{{"id": -1, "stage": "looking at /data"}}'"""
    scripts(links, n1=f"{greeting()}; {stage}; {DEAF}")
    wait_for(lambda: links._links["n1"].stage != "starting")
    answer = links.ask({"n1": {"do": "facts"}}, 0.05)["n1"]
    assert answer.problem == (
        "gave no answer within 0.05 s while looking at /data; look for a storage that hangs there"
    )
    assert links.lost(["n1"]) == {}


def test_an_answer_that_comes_too_late_is_not_that_to_the_next_question(links: HostLinks) -> None:
    answer = f"""echo '{REPLY_MARK}{{"id": 1, "value": "old"}}'"""
    # Only once the second question is there; pings are lines as well.
    waits = """while read -r line; do case "$line" in *'"id": 2'*) break;; esac; done"""
    scripts(links, n1=f"{greeting()}; {waits}; {answer}; {DEAF}")
    wait_for(lambda: links.version("n1"))
    assert links.ask({"n1": {"do": "x"}}, 0.0)["n1"].problem is not None
    assert links.ask({"n1": {"do": "x"}}, 0.05)["n1"].value is None


def test_ends_of_processes_are_reported_in_their_order(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1, N2)
    first, second = neighbours.marked(), neighbours.marked()
    links.send(N1, {"do": "watch", "pids": [first.pid]})
    links.send(N2, {"do": "watch", "pids": [second.pid]})
    end(second)
    wait_for(lambda: len(links.ends()) == 1)
    end(first)
    wait_for(lambda: len(links.ends()) == 2)
    assert [reported[1:] for reported in sorted(links.ends())] == [
        (N2, second.pid),
        (N1, first.pid),
    ]
    links.forget_ends()
    assert links.ends() == []


# --- why there is no connection -------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "echo 'ssh: connect to host n1 port 22: Connection refused' >&2; exit 255",
            (
                "can't be reached over ssh (ssh: connect to host n1 port 22: Connection refused);"
                " see to it that 'ssh n1 true' works without a question, or name another command by"
                " --kv-ssh"
            ),
        ),
        (
            "exit 255",
            (
                "can't be reached over ssh (no message); see to it that 'ssh n1 true' works without"
                " a question, or name another command by --kv-ssh"
            ),
        ),
        (
            f"echo 'sh: 1: {PYTHON}: not found' >&2; exit 127",
            (
                f"has no {PYTHON} (sh: 1: {PYTHON}: not found); install Python and pytest-kvcache"
                " at the same path on every host, or name the path by --kv-python"
            ),
        ),
        (
            "echo 'Permission denied' >&2; exit 126",
            (
                f"has no {PYTHON} (Permission denied); install Python and pytest-kvcache at the"
                " same path on every host, or name the path by --kv-python"
            ),
        ),
        (
            "echo \"python: No module named 'pytest_kvcache'\" >&2; exit 1",
            (
                f"has no fitting pytest-kvcache in {PYTHON} (python: No module named"
                " 'pytest_kvcache'); install this version there"
            ),
        ),
        (
            (
                "echo 'srun: error: n1: task 0: Exited with exit code 1' >&2;"
                " echo \"python: No module named 'pytest_kvcache'\" >&2;"
                " echo 'srun: error: n1: task 0: Exited with exit code 1' >&2; exit 1"
            ),
            (
                f"has no fitting pytest-kvcache in {PYTHON} (python: No module named"
                " 'pytest_kvcache'); install this version there"
            ),
        ),
        (
            "printf 'Traceback:\\nSyntaxError: no\\n\\n' >&2; exit 1",
            f"its agent ended with exit code 1 (SyntaxError: no); see what {PYTHON} lacks there",
        ),
        (
            f"{greeting()}; echo 'Connection reset by peer' >&2; exit 255",
            "the connection to it broke (exit code 255: Connection reset by peer)",
        ),
        (f"{greeting()}; exit 1", "the connection to it broke (exit code 1: no message)"),
    ],
)
def test_the_end_of_a_connection_is_explained(links: HostLinks, body: str, reason: str) -> None:
    scripts(links, n1=body)
    assert why(links, "n1") == reason


def test_of_long_last_words_the_last_count(links: HostLinks) -> None:
    scripts(links, n1="i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 255")
    assert "(line 2999)" in why(links, "n1")


def test_a_command_that_can_not_be_started_is_reported(links: HostLinks) -> None:
    links.open({"n1": ["/no/ssh", "n1"]}, PROGRAM)
    reported = "can't be reached: /no/ssh can't be started (No such file or directory)"
    assert links.lost(["n1"]) == {"n1": reported}
    assert links.ask({"n1": {"do": "facts"}}, PATIENCE_S)["n1"].problem == reported


def test_a_question_to_a_host_that_is_lost_meanwhile_is_answered_by_the_reason(
    links: HostLinks,
) -> None:
    scripts(links, n1=f"{greeting()}; read -r question; exit 3")
    began_s = time.monotonic()
    problem = links.ask({"n1": {"do": "facts"}}, PATIENCE_S)["n1"].problem
    assert problem == "the connection to it broke (exit code 3: no message)"
    assert time.monotonic() - began_s < PATIENCE_S  # at once, that is


def test_one_lost_host_keeps_no_other_from_answering(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1)
    scripts(links, n2="exit 255")
    question = {"do": "orphans", "run_id": "r"}
    answers = links.ask({N1: question, "n2": question}, PATIENCE_S)
    assert (answers[N1].value, answers["n2"].value) == (0, None)
    assert list(links.lost([N1, "n2"])) == ["n2"]


def test_a_host_that_never_says_anything_is_given_up(
    links: HostLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlinks, "_START_S", 0.05)
    scripts(links, n1=DEAF)
    assert why(links, "n1") == "has not answered for 0.05 s; look at its network"
    wait_for(lambda: not is_alive(pid_of(links, "n1")))


def test_a_host_that_falls_silent_is_given_up(
    links: HostLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts(links, n1=f"{greeting()}; {DEAF}")
    wait_for(lambda: links.version("n1"))
    assert links.lost(["n1"]) == {}
    monkeypatch.setattr(hostlinks, "_SILENT_S", 0.05)
    assert why(links, "n1") == "has not answered for 0.05 s; look at its network"
    wait_for(lambda: not is_alive(pid_of(links, "n1")))


def test_a_request_that_does_not_fit_is_reported_and_not_sent_in_part(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1)
    wait_for(lambda: links.version(N1))
    see = {"do": "see", "directory": "/", "names": ["n" * 4096] * 1024}
    answer = links.ask({N1: see}, PATIENCE_S)[N1]
    assert answer.problem is not None
    assert "bytes at once; raise fs.pipe-max-size" in answer.problem


def test_hosts_hear_from_us_whatever_the_controller_is_busy_with(
    links: HostLinks, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostlinks, "_PING_S", 0.01)
    agents(links, neighbours, N1)
    wait_for(lambda: links.version(N1))
    last_received_s = links._links[N1].last_received_s
    wait_for(lambda: links._links[N1].last_received_s > last_received_s)  # its answer to a ping


# --- opening again, and closing -------------------------------------------------------------


def test_a_lost_host_can_be_opened_again(links: HostLinks, neighbours: Neighbours) -> None:
    scripts(links, **{N1: "exit 255"})
    why(links, N1)
    agents(links, neighbours, N1)
    answer = links.ask({N1: {"do": "orphans", "run_id": "r"}}, PATIENCE_S)[N1]
    assert (answer.value, answer.problem) == (0, None)


def test_a_host_with_a_connection_is_not_opened_again(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1)
    first = pid_of(links, N1)
    agents(links, neighbours, N1, N2)
    assert pid_of(links, N1) == first


def test_closing_lets_agents_clean_up_and_leaves_no_process(neighbours: Neighbours) -> None:
    links = HostLinks()
    agents(links, neighbours, N1, N2)
    claim = {
        "do": "claim",
        "run_id": neighbours.run_id,
        "cache_dir": None,
        "keep": False,
        "leaves": BUILT_IN_LEFTOVERS.to_json(),
    }
    assert links.ask(dict.fromkeys((N1, N2), claim), PATIENCE_S)[N2].problem is None
    rank = neighbours.marked()
    pids = [pid_of(links, host) for host in (N1, N2)]
    links.close()
    assert was_killed(rank)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert [neighbours.lock(host).exists() for host in (N1, N2)] == [False, False]


def test_closing_does_not_wait_for_a_host_that_does_not_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hostlinks, "_CLOSE_S", 0.05)
    links = HostLinks()
    scripts(links, n1=f"{greeting()}; exec sleep 1000", n2="exit 255")
    wait_for(lambda: links.version("n1"))
    pid = pid_of(links, "n1")
    links.close()
    assert not is_alive(pid)


def test_connections_that_were_never_opened_can_be_closed() -> None:
    assert HostLinks().close() == []


# --- this machine ---------------------------------------------------------------------------


def test_this_machine_is_asked_like_any_other_without_a_connection(
    links: HostLinks, neighbours: Neighbours
) -> None:
    agents(links, neighbours, N1)
    links.answer_here(["here"])
    request = {"do": "orphans", "run_id": neighbours.run_id}
    answers = links.ask({"here": request, N1: request}, PATIENCE_S)
    assert (answers["here"].value, answers[N1].value) == (0, 0)
    process = neighbours.marked()
    links.send("here", {"do": "watch", "pids": [process.pid]})
    end(process)
    wait_for(lambda: [(host, pid) for _at_s, host, pid in links.ends()] == [("here", process.pid)])


def test_this_machine_says_what_it_hangs_at_and_is_never_given_up(
    links: HostLinks, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()

    def look(_question: object, stage: Callable[[str], None]) -> None:
        stage("looking at /data")
        hangs.wait(PATIENCE_S)
        raise PreflightError("too late for anybody")

    monkeypatch.setattr("pytest_kvcache.hosts.agent.collect", look)
    monkeypatch.setattr(hostlinks, "_PING_S", 0.0)
    monkeypatch.setattr(hostlinks, "_SILENT_S", 0.0)
    links.answer_here(["here"])
    agents(links, neighbours)  # nobody else: what is tried is the thread
    asked = HostQuestion(cache_dir="/data", programs=())
    question = {"do": "facts", "question": asked.to_json()}
    answer = links.ask({"here": question}, 0.5)["here"]
    hangs.set()
    assert answer.problem == (
        "gave no answer within 0.5 s while looking at /data; look for a storage that hangs there"
    )
    assert links.lost(["here"]) == {}
