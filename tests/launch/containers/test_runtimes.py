from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.launch.containers.runtimes import (
    ContainerEngine,
    exit_meaning,
    find_engine,
    identify_engine,
    image_problem,
    is_absent,
    start_problem,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCKER = ContainerEngine(name="docker", program="docker", version="28.2.2", rootless=False)
DOCKER_SAYS = {
    "--version": "Docker version 28.2.2, build e6534b4",
    "version": '{"Components":[{"Name":"ContainerEngine"},{"Name":"containerd"}]}',
    "info": '["name=seccomp,profile=default"]',
}
PODMAN_SAYS = {"--version": "podman version 4.3.1", "info": "false"}
NO_DAEMON = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    " Is the docker daemon running?"
)
DENIED = (
    "WARNING: Error loading config file: open /root/.docker/config.json: permission denied\n"
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/"
    "docker.sock"
)


class Engines:
    """Stands in for ``subprocess.run``: programs by name, and what they answer to what."""

    def __init__(self, **programs: dict[str, str]) -> None:
        self.programs = programs
        self.asked: list[str] = []

    def __call__(self, argv: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        name = os.path.basename(argv[0])  # noqa: PTH119
        self.asked.append(" ".join([name, *argv[1:2]]))
        answer = self.programs[name].get(argv[1])
        if answer is None:
            return subprocess.CompletedProcess(argv, 1, "", NO_DAEMON)
        if answer.startswith("fails: "):
            return subprocess.CompletedProcess(argv, 1, "", answer.removeprefix("fails: "))
        return subprocess.CompletedProcess(argv, 0, answer + "\n", "")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory with programs named docker and podman, which are never started."""
    for name in ("docker", "podman"):
        program = tmp_path / name
        program.touch()
        program.chmod(0o755)
    return tmp_path


def test_docker_comes_first(installed: Path) -> None:
    engines = Engines(docker=DOCKER_SAYS, podman=PODMAN_SAYS)
    engine = find_engine(None, path=str(installed), run=engines)
    assert engine == ContainerEngine(
        name="docker", program=str(installed / "docker"), version="28.2.2", rootless=False
    )


def test_podman_is_taken_where_docker_does_not_answer(installed: Path) -> None:
    engines = Engines(docker={"--version": DOCKER_SAYS["--version"]}, podman=PODMAN_SAYS)
    assert find_engine(None, path=str(installed), run=engines).name == "podman"


def test_the_engine_that_was_asked_for_is_taken(installed: Path) -> None:
    engines = Engines(docker=DOCKER_SAYS, podman=PODMAN_SAYS)
    engine = find_engine("podman", path=str(installed), run=engines)
    assert (engine.name, engine.version, engine.rootless) == ("podman", "4.3.1", False)


@pytest.mark.parametrize(
    ("says", "rootless"),
    [
        (PODMAN_SAYS, False),
        ({**PODMAN_SAYS, "info": "true"}, True),
        (DOCKER_SAYS, False),
        ({**DOCKER_SAYS, "info": '["name=seccomp","name=rootless","name=cgroupns"]'}, True),
    ],
)
def test_rootless_engines_are_known(says: dict[str, str], rootless: bool) -> None:  # noqa: FBT001
    assert identify_engine("/bin/engine", run=Engines(engine=says)).rootless is rootless


def test_podman_in_dockers_place_is_podman() -> None:
    assert identify_engine("/usr/bin/docker", run=Engines(docker=PODMAN_SAYS)).name == "podman"


def test_dockers_client_at_podmans_service_is_refused() -> None:
    says = {**DOCKER_SAYS, "version": '{"Components":[{"Name":"Podman ContainerEngine"}]}'}
    with pytest.raises(PreflightError, match="loses exit codes; use --kv-container-engine=podman"):
        identify_engine("/usr/bin/docker", run=Engines(docker=says))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            None,
            (
                "--kv-container-engine is not given, and neither docker nor podman is on PATH;"
                " install an engine, or use --kv-exec-type=mpi"
            ),
        ),
        (
            "podman",
            (
                "--kv-container-engine is podman, which is not on PATH; install it, or use"
                " --kv-exec-type=mpi"
            ),
        ),
    ],
)
def test_no_engine_at_all(tmp_path: Path, name: str | None, text: str) -> None:
    with pytest.raises(PreflightError) as caught:
        find_engine(name, path=str(tmp_path))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("stderr", "text"),
    [
        (
            NO_DAEMON,
            (
                "the container engine /bin/docker here does not answer (Cannot connect to the"
                " Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?);"
                " start it"
            ),
        ),
        (
            DENIED,
            (
                "the container engine /bin/docker here does not answer (permission denied while"
                " trying to connect to the Docker daemon socket at unix:///var/run/docker.sock);"
                " let this user use it (docker's group, or a rootless engine)"
            ),
        ),
    ],
)
def test_an_engine_that_does_not_answer(stderr: str, text: str) -> None:
    says = {**DOCKER_SAYS, "version": f"fails: {stderr}"}
    with pytest.raises(PreflightError) as caught:
        identify_engine("/bin/docker", run=Engines(docker=says))
    assert str(caught.value) == text


def test_an_engine_that_hangs() -> None:
    def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(argv, options["timeout"])

    with pytest.raises(PreflightError, match=r"no answer in 20 s"):
        identify_engine("/bin/docker", run=run)


def test_another_program_is_no_engine() -> None:
    with pytest.raises(PreflightError, match="it must be docker or podman"):
        identify_engine("/bin/x", run=Engines(x={"--version": "nerdctl version 2.0"}))


@pytest.mark.parametrize(
    "stderr",
    [
        "Error response from daemon: no such image: kv:1: No such image: kv:1",
        "Error: inspecting object: kv:1: image not known",
        "[]\nError: No such image: kv:1",
    ],
)
def test_an_image_that_is_missing(stderr: str) -> None:
    assert str(image_problem(DOCKER, "kv:1", "n2", stderr)) == (
        "--kv-image is 'kv:1', which docker on host n2 does not have; build or load it there"
        " (images are never pulled)"
    )


def test_an_engine_that_stopped_is_no_missing_image() -> None:
    assert "on host n2 does not answer" in str(image_problem(DOCKER, "kv:1", "n2", NO_DAEMON))


def test_what_starting_a_container_can_meet() -> None:
    clash = (
        'docker: Error response from daemon: Conflict. The container name "/kv-1" is already in'
        ' use by container "06ff". You have to remove (or rename) that container.'
    )
    assert str(start_problem(DOCKER, "kv-1", "n2", clash)) == (
        "the container name kv-1 is taken on host n2; remove that one (docker rm -f kv-1), or"
        " wait for the run that owns it"
    )
    missing = (
        'docker: Error response from daemon: invalid mount config for type "bind": bind source'
        " path does not exist: /mnt/kv\n\nRun 'docker run --help' for more information"
    )
    assert str(start_problem(DOCKER, "kv-1", "n2", missing)) == (
        "host n2 has no directory /mnt/kv for a container to see; make it there, or name another"
        " (--kv-cache-dir, KVCACHE_LOCK_DIR)"
    )


def test_removing_what_is_not_there_is_no_failure() -> None:
    assert is_absent("Error response from daemon: No such container: kv-1")
    assert not is_absent(NO_DAEMON)


def test_exit_codes_have_meanings() -> None:
    assert exit_meaning(137) == "it was killed (exit code 137)"
    assert exit_meaning(3) == "exit code 3"


def test_the_commands_that_ask_an_engine() -> None:
    assert DOCKER.image_argv("kv:1") == [
        "docker",
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        "kv:1",
    ]
    assert DOCKER.remove_argv("kv-1") == ["docker", "rm", "--force", "kv-1"]
