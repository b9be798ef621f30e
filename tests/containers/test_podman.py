"""The benchmark with podman, which has no daemon: the tests only give it a storage of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.session import Session
from tests.site import PATIENCE_S, machine_to_oneself, storage_directory, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.containers

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
"""
# What works in a container, too: there are neither systemd nor all of the machine's limits.
SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@dataclass(frozen=True)
class Podman:
    """A storage with the test image in it."""

    env: dict[str, str]

    def call(self, *args: object) -> str:
        """Run the client; what it printed."""
        words = ["podman", *map(str, args)]
        environ = {**os.environ, **self.env}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"podman {args[0]} failed: {done.stdout}\n{done.stderr}")
        return done.stdout

    def containers(self) -> list[str]:
        """The names of all, running or not."""
        return self.call("ps", "--all", "--format", "{{.Names}}").split()


@pytest.fixture(scope="module")
def podman(image: Path) -> Iterator[Podman]:
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with tempfile.TemporaryDirectory(prefix="kvcache-podman-", dir="/var/tmp") as directory:
        files = {
            "CONTAINERS_STORAGE_CONF": STORAGE.format(directory=directory),
            "CONTAINERS_CONF": SETTINGS,
        }
        env = {name: f"{directory}/{name.lower()}" for name in files}
        for name, text in files.items():
            Path(env[name]).write_text(text)
        engine = Podman(env)
        try:
            engine.call("load", "--input", image)
            yield engine
        finally:
            subprocess.run(["umount", f"{directory}/graph/overlay"], check=False)


def started(podman: Podman, place: Path, *args: str) -> Session:
    return Session(place, podman.env, ("--kv-container-engine=podman", *args))


def test_a_run_with_podman_gives_the_same_results(podman: Podman) -> None:
    with storage_directory("place") as place, machine_to_oneself("containers"):
        session = started(podman, place, "--kv-allow-invalid")
        text = session.end()
        assert session.process.returncode == 0, text
        (trial,) = session.trials()
        assert trial["proof"]["verdict"] == "PROVEN"
        assert session.run()["environment"]["container_engine"].startswith("podman ")
        assert podman.containers() == []
        assert session.nothing_is_left()


def test_a_killed_pytest_leaves_no_container_of_podman(podman: Podman) -> None:
    with storage_directory("place") as place, machine_to_oneself("containers"):
        session = started(podman, place, "--kv-duration=60")
        session.wait_for_window()
        assert len(podman.containers()) == 2
        session.process.send_signal(signal.SIGKILL)
        session.process.wait(PATIENCE_S)
        session.close()
        wait_for(lambda: podman.containers() == [])
        wait_for(session.nothing_is_left)


def test_an_image_that_podman_does_not_have_is_refused(podman: Podman) -> None:
    with storage_directory("place") as place:
        session = started(podman, place, "--kv-image=nowhere/kv:1")
        assert "which podman on host" in session.end()
        assert session.process.returncode == 4
