"""The whole benchmark with its ranks in containers, and what goes wrong with them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.containers.engine import IMAGE, PYTHON
from tests.containers.session import Session
from tests.site import PATIENCE_S, machine_to_oneself, storage_directory, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.containers.engine import Docker

pytestmark = pytest.mark.containers
LONG = "--kv-duration=60"
HOST = re.escape(os.uname().nodename)


class Start(Protocol):
    """Starts a session against the tests' engine."""

    def __call__(self, *args: str, **env: str) -> Session: ...


@pytest.fixture
def place() -> Iterator[Path]:
    with storage_directory("place") as path:
        yield path


@pytest.fixture
def start(engine: Docker, place: Path) -> Iterator[Start]:
    """Whatever a session did, nothing of it is left on the machine."""
    with machine_to_oneself("containers"), ExitStack() as stack:

        def started(*args: str, **env: str) -> Session:
            session = Session(place, {"DOCKER_HOST": engine.address, **env}, args)
            stack.callback(wait_for, session.nothing_is_left)
            stack.callback(wait_for, lambda: not engine.containers())
            stack.callback(session.close)
            return session

        yield started


def verified(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pytest_kvcache", "verify", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_run_in_a_container_gives_the_same_results(start: Start, engine: Docker) -> None:
    session = start("--kv-allow-invalid")  # how busy the machine is, is no question
    text = session.end()
    assert session.process.returncode == 0, text
    assert verified(session.run_file()).returncode == 0, verified(session.run_file()).stdout
    (trial,) = session.trials()
    assert trial["proof"]["verdict"] == "PROVEN"
    assert trial["proof"]["io_mode"] == "direct"
    assert trial["integrity"]["failed"] == 0
    assert [rank["host"] for rank in trial["ranks"]] == [os.uname().nodename] * 2
    found = session.run()["environment"]
    assert found["image"] == IMAGE
    assert found["image_id"] == engine.call("inspect", "-f", "{{.Id}}", IMAGE).stdout.strip()
    assert found["container_engine"].startswith("docker ")
    assert found["launcher"].startswith(PYTHON.removesuffix("python") + "mpirun ")


def test_a_dry_run_shows_the_container(start: Start) -> None:
    session = start("--kv-dry-run")
    text = session.end()
    assert session.process.returncode == 0, text
    name = r"kvcache-\S+-mixed-tiny-1b-np2-trial-1"
    assert re.search(rf"docker run --interactive --rm --pull never --name {name} ", text), text
    assert f" {IMAGE} {PYTHON} -m pytest_kvcache.launch.containers.init " in text
    assert not any(session.place.glob("results/*"))


def test_a_container_that_is_killed_fails_its_trial(start: Start, engine: Docker) -> None:
    session = start(LONG, "--kv-trials=2")
    directory = session.wait_for_window()
    (name,) = (name for name in engine.containers() if name.endswith(directory.name))
    engine.call("kill", name)
    text = session.end()
    assert session.process.returncode == 1, text
    (trial,) = session.trials()
    assert re.match(
        rf"the container on host {HOST}, with the launcher in it, ended: it was killed",
        text_of(trial),
    )


def text_of(trial: dict[str, object]) -> str:
    return str(trial["error"])


def test_a_name_that_is_taken_fails_the_trial_and_stays(start: Start, engine: Docker) -> None:
    session = start("--kv-trials=2", "--kv-duration=2", "--kv-allow-invalid")
    directory = session.wait_for_window()
    (first,) = (name for name in engine.containers() if name.endswith(directory.name))
    taken = f"{first.removesuffix('trial-1')}trial-2"
    engine.call("create", "--name", taken, IMAGE, "true")
    try:
        text = session.end()
        assert engine.containers() == [taken]
    finally:
        engine.call("rm", "--force", taken)
    assert session.process.returncode == 1, text
    done, failed = session.trials()
    assert done["ok"], done["error"]
    assert re.match(rf"the container name {taken} is taken on host {HOST}; ", text_of(failed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_container(
    start: Start, engine: Docker, number: signal.Signals
) -> None:
    session = start(LONG)
    session.wait_for_window()
    assert len(engine.containers()) == 2  # the agent's and the launcher's
    session.process.send_signal(number)
    session.process.wait(PATIENCE_S)
    assert session.process.returncode == (2 if number == signal.SIGINT else -number)


def refusal(session: Session) -> str:
    text = session.end()
    assert session.process.returncode == 4, text
    assert not any(session.place.glob("results/*"))
    (line,) = (line for line in text.splitlines() if line.startswith("ERROR: "))
    return line.removeprefix("ERROR: ")


def test_an_image_that_is_missing_is_refused(start: Start) -> None:
    assert re.fullmatch(
        rf"--kv-image is 'nowhere/kv:1', which docker on host {HOST} does not have; build or load"
        r" it there \(images are never pulled\)",
        refusal(start("--kv-image=nowhere/kv:1")),
    )


def test_an_engine_that_does_not_run_is_refused(start: Start) -> None:
    said = refusal(start("--kv-container-engine=docker", DOCKER_HOST="unix:///nowhere.sock"))
    assert re.fullmatch(
        r"the container engine /\S*docker here does not answer \(.*\); start it", said
    )


def test_what_the_image_lacks_is_refused(start: Start) -> None:
    assert refusal(start("--kv-python=/usr/bin/python4")) == (
        f"--kv-image is {IMAGE}, which has no /usr/bin/python4; build the image as in"
        " docs/containers.md, or name its interpreter by --kv-python"
    )
    said = refusal(start("--kv-mpi-bin=mpiexec.hydra"))
    assert said.startswith(f"in the image {IMAGE}: --kv-mpi-bin is mpiexec.hydra, which is neither")


def test_a_cache_directory_that_is_missing_is_reported(start: Start) -> None:
    session = start("--kv-cache-dir=/var/tmp/none-of-this-name")
    text = session.end()
    assert session.process.returncode == 1, text
    said = " ".join(text.split())
    assert "has no directory /var/tmp/none-of-this-name for a container to see" in said
