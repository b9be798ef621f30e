"""Hosts whose agents run in containers, with canned answers of ssh and engines."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.launch.containers.access import IMAGE_PYTHON, ContainerAccess
from pytest_kvcache.launch.containers.execution import ContainerExecution
from pytest_kvcache.options.options import build_options
from pytest_kvcache.version import VERSION
from tests.factories import make_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.options.options import Options

ID = "sha256:0123456789abcdef"
OTHER = "n1.invalid"  # no machine has this name
FACTS = {
    "version": VERSION, "python": "3.12.1", "error": None, "mpi_library": "Open MPI v5.0.11",
    "launcher": "/opt/kvcache/bin/mpirun", "flavour": "openmpi-5", "family": "openmpi",
    "launcher_version": "5.0.11",
}  # fmt: skip
NO_IMAGE = (1, "", "Error: No such image: kv:1")


class Answers:
    """Takes the place of ``subprocess.run``: (exit code, output, errors) by what is asked."""

    def __init__(self, here: Any = (0, ID, ""), there: Any = (0, ID, "")) -> None:
        self.images = {False: here, True: there}
        self.inside: Any = (0, FACTS, "")
        self.asked: list[list[str]] = []

    def __call__(self, argv: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        words = list(argv)
        self.asked.append(words)
        code, text, errors = self.answer(words, shlex.join(words))
        return subprocess.CompletedProcess(words, code, text, errors)

    def answer(self, words: list[str], line: str) -> tuple[int, str, str]:
        if words[1:] == ["--version"]:
            return 0, "Docker version 20.10.24, build 1", ""
        if words[1] in ("version", "info"):
            return 0, "[]", ""
        if "image inspect" in line:
            code, image_id, errors = self.images[OTHER in words]
            ids = "7\n8\n8 9\n" if OTHER in words else f"{os.getuid()}\n{os.getgid()}\n0\n"
            return code, "" if code else f"{ids}{image_id}\n", errors
        code, facts, errors = self.inside
        return code, facts if isinstance(facts, str) else json.dumps(facts), errors


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with an engine on it, whose answers are canned."""
    program = tmp_path / "docker"
    program.touch(mode=0o755)
    return str(tmp_path)


def chosen(**texts: str) -> Options:
    given = {"exec_type": "docker", "image": "kv:1", "ssh": "/nonexistent/ssh", **texts}
    return build_options({name: (text, "command line") for name, text in given.items()})


CHOSEN = chosen()


def access(answers: Answers, path: str) -> ContainerAccess:
    return ContainerAccess(CHOSEN, "run1", {"PATH": path}, answers)


def execution(
    answers: Answers, path: str, *, environ: Mapping[str, str] = {}, options: Options = CHOSEN
) -> ContainerExecution:
    return ContainerExecution(options, "run1", {"PATH": path, **environ}, answers)


def refusal(answers: Answers, path: str, **texts: str) -> str:
    with pytest.raises(PreflightError) as error:
        execution(answers, path, options=chosen(**texts)).setup()
    return str(error.value)


def test_an_agent_here_is_a_container_with_the_cache_and_the_locks(path: str) -> None:
    here = access(Answers(), path)
    assert here.prepare(["localhost"], "/mnt/kv") == {}
    argv = here.argv("localhost", ["py", "-m", "agent"], {"A": "1"})
    assert argv[:2] == [f"{path}/docker", "run"]
    assert argv[-4:] == ["kv:1", "py", "-m", "agent"]
    assert "type=bind,source=/mnt/kv,target=/mnt/kv" in argv
    assert "type=bind,source=/dev/shm,target=/dev/shm" in argv
    assert "A=1" in argv
    assert argv != here.argv("localhost", ["py", "-m", "agent"], {"A": "1"}), "one name twice"


def test_an_agent_elsewhere_is_one_behind_ssh_as_the_user_there(path: str) -> None:
    there = access(Answers(), path)
    assert there.prepare([OTHER], None) == {}
    *shell, host, command = there.argv(OTHER, ["py"], {})
    assert (shell, host) == (["/nonexistent/ssh"], OTHER)
    words = shlex.split(command)
    assert words[words.index("docker") :][:2] == ["docker", "run"]
    assert "--user 7:8 --group-add 8 --group-add 9" in command
    assert "source=/dev/shm" in command


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NO_IMAGE, f"--kv-image is 'kv:1', which docker on host {OTHER} does not have; "),
        ((0, "a\nb", ""), "answers '7\\n8\\n8 9\\na\\nb' when asked for ids and image; its login"),
        ((255, "", "ssh: connect: refused"), "can't be reached over ssh (ssh: connect: refused)"),
        (
            (127, "", "sh: 1: docker: not found"),
            "has no docker (sh: 1: docker: not found); install",
        ),
        (
            (0, "sha256:fedcba9876543210", ""),
            "has another image as kv:1 (fedcba987654, this machine 0123456789ab); load the same",
        ),
    ],
)
def test_a_host_that_can_not_be_used_says_why(path: str, answer: Any, said: str) -> None:
    problems = access(Answers(there=answer), path).prepare([OTHER], None)
    assert list(problems) == [OTHER]
    assert problems[OTHER].startswith(said)


def test_containers_have_one_cache_directory_in_a_session(path: str) -> None:
    here = access(Answers(), path)
    here.prepare(["localhost"], "/mnt/kv")
    with pytest.raises(OptionError, match="a test asks for /mnt/other where others use /mnt/kv; "):
        here.prepare(["localhost"], "/mnt/other")


def test_launcher_and_library_are_those_of_the_image(path: str) -> None:
    setup = execution(Answers(), path).setup()
    assert setup.launcher_path == "/opt/kvcache/bin/mpirun"
    assert setup.daemon == "/opt/kvcache/bin/prted"
    assert setup.python == IMAGE_PYTHON
    assert setup.environment == {
        "container_engine": "docker 20.10.24", "image": "kv:1", "image_id": ID,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((127, "", "no such file"), "--kv-image is kv:1, which has no /opt/kvcache/bin/python; "),
        ((1, "", "x\nNo module named y"), "--kv-image is kv:1, whose /opt/kvcache/bin/python has"),
        ((0, {**FACTS, "version": "0"}, ""), "--kv-image is kv:1, which has pytest-kvcache 0, "),
        ((0, {**FACTS, "error": "no mpirun"}, ""), "in the image kv:1: no mpirun"),
        (
            (0, {**FACTS, "flavour": "hydra", "family": "hydra"}, ""),
            "--kv-mpi-bin is /opt/kvcache/bin/mpirun, which",
        ),
        ((125, "", "docker: Error response from daemon: out of luck."), "docker on host "),
    ],
)
def test_an_image_that_does_not_fit_is_refused(path: str, answer: Any, said: str) -> None:
    answers = Answers()
    answers.inside = answer
    assert refusal(answers, path).startswith(said)


def test_what_this_machine_lacks_is_refused(path: str, tmp_path: Path) -> None:
    name = os.uname().nodename
    said = f"--kv-image is 'kv:1', which docker on host {name} does not have; "
    assert refusal(Answers(here=NO_IMAGE), path).startswith(said)
    assert refusal(Answers(), str(tmp_path / "none")).startswith(
        "--kv-container-engine is not given"
    )
    assert refusal(Answers(), path, mpi_bin="/usr/bin/srun").startswith("--kv-mpi-bin is srun, ")


def test_the_launcher_runs_in_the_container_of_this_host(path: str, tmp_path: Path) -> None:
    plan, chosen_by_user = make_plan(), {"OMPI_MCA_pml": "ucx", "PMIX_RANK": "1", "HOME": "/h"}
    runs = execution(Answers(), path, environ=chosen_by_user)
    directory = tmp_path / "case" / "trial-0"
    argv = runs.shown(["mpirun", "-n", "3"], plan, directory)
    assert argv[argv.index("--name") + 1] == "kvcache-run1-case-trial-0"
    assert argv[-3:] == ["mpirun", "-n", "3"]
    assert argv[argv.index("kv:1") + 1 :][:3] == [
        IMAGE_PYTHON, "-m", "pytest_kvcache.launch.containers.init",
    ]  # fmt: skip
    limit_s = float(argv[argv.index("pytest_kvcache.launch.containers.init") + 1])
    assert limit_s > plan.deadline_s
    assert "OMPI_MCA_pml=ucx" in argv
    assert not any(word.startswith(("PMIX_RANK", "HOME=/h")) for word in argv)
    assert f"type=bind,source={directory},target={directory}" in argv


def test_the_end_of_the_container_is_explained_where_the_launcher_says_nothing(
    path: str, tmp_path: Path
) -> None:
    after = execution(Answers(), path).cleanup(make_plan(), tmp_path / "case" / "trial-0")
    host = os.uname().nodename
    assert str(after.cause(137, [])).startswith(f"the container on host {host}, with the launcher")
    assert after.cause(1, []) is None
    clash = (
        'docker: Error response from daemon: Conflict. The container name "/x" is already in use'
    )
    assert str(after.cause(125, [clash])).startswith("the container name kvcache-run1-case-trial-0")


def test_what_a_failed_launch_left_is_removed_but_not_what_had_the_name_before(
    path: str, tmp_path: Path
) -> None:
    answers = Answers()
    after = execution(answers, path).cleanup(make_plan(), tmp_path / "case" / "trial-0")
    answers.inside = (1, "", "Error: No such container: kvcache-run1-case-trial-0")
    assert after.clean_up(['the container name "/x" is already in use']) == []
    assert not any("rm" in words for words in answers.asked)
    assert after.clean_up([]) == []
    assert answers.asked[-1][1:] == ["rm", "--force", "kvcache-run1-case-trial-0"]
    answers.inside = (1, "", "device or resource busy")
    (left,) = after.clean_up([])
    assert left.endswith("kvcache-run1-case-trial-0 can't be removed: device or resource busy")


def test_every_host_has_a_link_this_one_too(path: str) -> None:
    here = access(Answers(), path)
    assert here.is_linked(socket.gethostname())
    assert not here.is_remote(socket.gethostname())
    assert not here.sees_ranks
