from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.cluster import Cluster, ClusterError, why_no_clock_shift, why_unavailable
from tests.site import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import NewCluster

SHIFT_S = 5_000
CLOCK = "import json, time; print(json.dumps([time.monotonic(), time.clock_gettime(7)]))"


def ping(cluster: Cluster, host: str) -> bool:
    """Whether a connection to the sshd of a host can be made from the launcher's in a second."""
    probe = f"import socket; socket.create_connection(('{host}', 22), 1)"
    return cluster.run("n0", [sys.executable, "-c", probe]).returncode == 0


def clocks(cluster: Cluster, host: str, *before: str) -> list[float]:
    """CLOCK_MONOTONIC and CLOCK_BOOTTIME of a host."""
    done = cluster.run(host, [*before, sys.executable, "-c", CLOCK], check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def names(cluster: Cluster, host: str, path: str) -> list[str]:
    return cluster.run(host, ["ls", path], check=True).stdout.split()


def test_hosts_reach_each_other_by_ssh(cluster: Cluster) -> None:
    for command in (["ssh"], cluster.ssh_command, [cluster.ssh_agent]):
        for source, target in (("n0", "n1"), ("n0", "n2"), ("n1", "n2"), ("n2", "n0")):
            done = cluster.run(source, [*command, target, "hostname"])
            assert (done.stdout, done.stderr, done.returncode) == (f"{target}\n", "", 0)


def test_a_machine_without_the_key_is_refused(cluster: Cluster) -> None:
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    words = [word for option in options for word in ("-o", option)]
    done = cluster.run("n0", ["ssh", "-F", "/dev/null", *words, "n1", "true"])
    assert "Permission denied (publickey)" in done.stderr


def test_a_cut_host_is_silent_but_its_carrier_is_up(cluster: Cluster) -> None:
    assert ping(cluster, "n2")
    cluster.cut("n2")
    assert not ping(cluster, "n2")
    assert ping(cluster, "n1")
    carrier = cluster.run("n2", ["cat", "/sys/class/net/eth0/carrier"], check=True)
    assert carrier.stdout == "1\n"


def test_a_healed_host_answers(cluster: Cluster) -> None:
    cluster.cut("n2")
    assert not ping(cluster, "n2")
    cluster.heal("n2")
    wait_for(lambda: ping(cluster, "n2"))
