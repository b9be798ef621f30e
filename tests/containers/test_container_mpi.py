"""A launcher in a real container: how it ends, and that nothing is left of it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.launch.containers.command import (
    ContainerSpec,
    Mount,
    RelayConfig,
    held_argv,
    relay_argv,
    rsh_agent_argv,
)
from pytest_kvcache.launch.containers.runtimes import identify_engine, image_problem, start_problem
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.protocol import LaunchJob
from tests.containers.engine import IMAGE, PYTHON
from tests.site import PATIENCE_S, storage_directory, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.containers.engine import Docker

pytestmark = pytest.mark.containers

HELLO = """
import os, sys, time
from mpi4py import MPI
size = MPI.COMM_WORLD.allreduce(1)
with open(f"{sys.argv[1]}/{MPI.COMM_WORLD.rank}", "w") as file:
    file.write(f"{size} {os.getuid()}")
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]) if MPI.COMM_WORLD.rank == 1 else 0)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for anyone, which is mounted."""
    with storage_directory("place") as path:
        path.parent.chmod(0o755)
        path.chmod(0o777)
        yield path


def container(engine: Docker, place: Path, **changes: Any) -> ContainerSpec:
    program = "docker"
    values: dict[str, Any] = {
        "engine": identify_engine(program, run=engine_client(engine)),
        "image": IMAGE,
        "name": "kvcache-test",
        "uid": 0,
        "gid": 0,
        "mounts": (Mount(path=str(place)),),
        "env": {"HOME": "/tmp", "SHELL": "/bin/sh"},
        "passed_env": ("PYTEST_KVCACHE_AGENT",),
    }
    return ContainerSpec(**{**values, **changes})


def engine_client(engine: Docker) -> Any:
    """``subprocess.run`` with the address of the tests' engine."""
    environ = {**os.environ, "DOCKER_HOST": engine.address}
    return functools.partial(subprocess.run, env=environ)


def launcher(spec: ContainerSpec, place: Path, seconds: float, code: int) -> list[str]:
    """More ranks than this machine may have cores."""
    (place / "hello.py").write_text(HELLO)
    ranks = (os.cpu_count() or 1) + 1
    job = LaunchJob(
        hosts=(("localhost", ranks),),
        controller_host="localhost",
        local_hosts=frozenset({"localhost"}),
        program=(
            PYTHON, "-m", "mpi4py", str(place / "hello.py"), str(place), str(seconds), str(code),
        ),
        env={"OMPI_MCA_mpi_yield_when_idle": "1"},
        params=(),
        allow_run_as_root=spec.uid == 0,
        remote_shell=rsh_agent_argv(PYTHON),
    )  # fmt: skip
    mpirun = f"{PYTHON.rpartition('/')[0]}/mpirun"
    return OpenMPILauncher(path=mpirun, flavour="openmpi-5", environ={}).argv(job)


@contextmanager
def held(
    engine: Docker, place: Path, spec: ContainerSpec, *, seconds: float = 0, code: int = 0
) -> Iterator[subprocess.Popen[str]]:
    inside = held_argv(PYTHON, PATIENCE_S, launcher(spec, place, seconds, code))
    file = place / "relay.json"
    file.write_text(json.dumps(RelayConfig(argv=tuple(spec.argv(inside)), remotes={}).to_json()))
    with subprocess.Popen(
        relay_argv(sys.executable, file),
        env={**os.environ, "DOCKER_HOST": engine.address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            wait_for(lambda: spec.name not in engine.containers())


def ranks_reported(place: Path) -> list[str]:
    return [path.read_text() for path in place.glob("[0-9]*")]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, text


@pytest.mark.parametrize("uid", [0, 1234])
def test_ranks_run_as_the_user_and_may_be_more_than_cores(
    engine: Docker, place: Path, uid: int
) -> None:
    with held(engine, place, container(engine, place, uid=uid, gid=uid)) as process:
        code, text = ended(process)
    assert (code, text) == (0, "")
    size = (os.cpu_count() or 1) + 2
    assert ranks_reported(place) == [f"{size} {uid}"] * size


def test_the_exit_code_of_a_rank_comes_out(engine: Docker, place: Path) -> None:
    with held(engine, place, container(engine, place), code=5) as process:
        found, text = ended(process)
    # Open MPI 5.0.11 has told everything when it now and then crashes in its own end (139).
    assert found in (5, 139), text
    assert "Errorcode: 5" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_container_outlives_its_holder(
    engine: Docker, place: Path, number: signal.Signals
) -> None:
    with held(engine, place, container(engine, place), seconds=300) as process:
        wait_for(lambda: all(ranks_reported(place)) and len(ranks_reported(place)) > 1)
        assert engine.containers() == ["kvcache-test"]
        process.send_signal(number)
        process.wait(PATIENCE_S)


def test_a_container_that_is_killed_ends_the_launch(engine: Docker, place: Path) -> None:
    spec = container(engine, place)
    with held(engine, place, spec, seconds=300) as process:
        wait_for(lambda: ranks_reported(place))
        engine.call("kill", spec.name)
        assert ended(process)[0] == 137


@pytest.mark.parametrize("missing", ["image", "directory"])
def test_what_is_missing_is_reported(engine: Docker, place: Path, missing: str) -> None:
    absent = {"image": "nowhere/kv:1"} if missing == "image" else {}
    spec = container(engine, place, **absent)
    if missing == "directory":
        spec = container(engine, place, mounts=(Mount(path=f"{place}/absent"),))
    done = engine.call(*spec.argv(["true"])[1:], check=False)
    assert done.returncode == 125
    problem = str(start_problem(spec.engine, spec.name, "n1", done.stderr))
    if missing == "image":
        asked = engine.call(*spec.engine.image_argv(spec.image)[1:], check=False)
        problem = str(image_problem(spec.engine, spec.image, "n1", asked.stderr))
        assert problem.startswith("--kv-image is 'nowhere/kv:1', which docker on host n1 does not")
    else:
        assert problem.startswith(f"host n1 has no directory {place}/absent for a container")


def test_a_name_that_is_taken_is_reported(engine: Docker, place: Path) -> None:
    spec = container(engine, place)
    engine.call("create", "--name", spec.name, IMAGE, "true")
    try:
        done = engine.call(*spec.argv(["true"])[1:], check=False)
        assert done.returncode == 125
        problem = str(start_problem(spec.engine, spec.name, "n1", done.stderr))
        assert problem.startswith("the container name kvcache-test is taken on host n1")
    finally:
        engine.call(*spec.engine.remove_argv(spec.name)[1:])
