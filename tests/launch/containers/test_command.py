from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launch.containers.command import (
    ContainerSpec,
    Mount,
    RelayConfig,
    Remote,
    held_argv,
    relay_argv,
    rsh_agent_argv,
)
from pytest_kvcache.launch.containers.runtimes import ContainerEngine

DOCKER = ContainerEngine(name="docker", program="/usr/bin/docker", version="28.2.2", rootless=False)
PODMAN = ContainerEngine(name="podman", program="/usr/bin/podman", version="5.4.0", rootless=True)


def spec(**changes: Any) -> ContainerSpec:
    values: dict[str, Any] = {
        "engine": DOCKER,
        "image": "kvcache:1",
        "name": "kvcache-run-1-t0",
        "uid": 0,
        "gid": 0,
        "mounts": (Mount(path="/mnt/kv"),),
        "env": {"HOME": "/tmp"},
    }
    return ContainerSpec(**{**values, **changes})


def words(command: list[str]) -> str:
    return " ".join(command)


def test_the_command_of_a_container() -> None:
    assert spec(passed_env=("PYTEST_KVCACHE_AGENT",)).argv(["mpirun", "-n", "3"]) == [
        "/usr/bin/docker",
        "run",
        "--interactive",
        "--rm",
        "--pull",
        "never",
        "--name",
        "kvcache-run-1-t0",
        "--log-driver",
        "none",
        "--network",
        "host",
        "--uts",
        "host",
        "--shm-size",
        "4g",
        "--security-opt",
        "label=disable",
        "--mount",
        "type=bind,source=/mnt/kv,target=/mnt/kv",
        "--env",
        "HOME=/tmp",
        "--env",
        "PYTEST_KVCACHE_AGENT",
        "kvcache:1",
        "mpirun",
        "-n",
        "3",
    ]


def test_a_container_of_docker_runs_as_the_user() -> None:
    command = words(spec(uid=1000, gid=100, groups=(27, 44)).argv(["true"]))
    assert " --user 1000:100 --group-add 27 --group-add 44 " in command


def test_root_of_a_rootless_docker_is_the_user() -> None:
    engine = ContainerEngine(name="docker", program="docker", version="28.2.2", rootless=True)
    command = words(spec(engine=engine, uid=1000, gid=100).argv(["true"]))
    assert "--user" not in command


def test_a_rootless_podman_keeps_the_user() -> None:
    command = words(spec(engine=PODMAN, uid=1000, gid=100).argv(["true"]))
    assert " --userns keep-id " in command
    assert "--user " not in command


def test_a_path_with_a_comma_is_quoted_and_one_that_is_only_read_is_marked() -> None:
    mount = Mount(path='/data/a,b "c"', read_only=True)
    assert mount.argument == (
        'type=bind,"source=/data/a,b ""c""","target=/data/a,b ""c""",readonly'
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image": "--privileged"}, "--kv-image is '--privileged'"),
        ({"image": ""}, "--kv-image is ''"),
    ],
)
def test_an_image_that_would_be_an_option_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(OptionError, match=error):
        spec(**changes)


def test_impossible_containers_are_bugs() -> None:
    with pytest.raises(ValueError, match="container's name"):
        spec(name="a b")
    with pytest.raises(ValueError, match="must be absolute"):
        Mount(path="cache")


def test_programs_around_a_container() -> None:
    assert held_argv("/opt/kvcache/bin/python", 75.5, ["mpirun", "-n", "3"]) == [
        "/opt/kvcache/bin/python",
        "-m",
        "pytest_kvcache.launch.containers.init",
        "75.5",
        "mpirun",
        "-n",
        "3",
    ]
    assert (
        words([*rsh_agent_argv("python3")])
        == "python3 -m pytest_kvcache.launch.containers.rshagent"
    )
    assert words(relay_argv("/venv/bin/python", Path("/run 1/relay.json"))) == (
        "/venv/bin/python -m pytest_kvcache.launch.containers.relay /run 1/relay.json"
    )


def test_a_remote_container_gets_the_launchers_command_as_it_is() -> None:
    run = tuple(spec().argv(held_argv("python", 60, [])))
    config = RelayConfig(argv=("true",), remotes={"n1": Remote(shell=("ssh", "n1"), run=run)})
    command = "( PRTE_PREFIX='/a b'; \"$X\" prted --daemonize )"
    argv = config.remote_argv("n1", command)
    assert argv[:2] == ["ssh", "n1"]
    assert len(argv) == 3
    assert shlex.split(argv[2]) == [*run, "sh", "-c", command]


def test_a_holding_survives_json() -> None:
    config = RelayConfig(
        argv=("docker", "run"), remotes={"n1": Remote(shell=("ssh", "n1"), run=("docker",))}
    )
    assert RelayConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
