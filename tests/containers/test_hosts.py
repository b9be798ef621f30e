"""Ranks in containers on several hosts: namespaces of this machine, each with its own engine."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache
from tests.cluster.cluster import Cluster, why_unavailable
from tests.cluster.launchers import COLUMNS
from tests.cluster.session import CACHE_DIR, RESULTS, Session
from tests.containers.engine import IMAGE, Docker, docker
from tests.site import machine_to_oneself, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]
NAMES = ("n0", "n1", "n2")
CHECKOUT = Path(__file__).parents[2]
COLUMN = replace(COLUMNS[0], launcher="mpirun", exports=False)  # the image's


@dataclass(frozen=True)
class Hosts:
    """A cluster and the engine of each of its hosts."""

    cluster: Cluster
    engines: dict[str, Docker]

    def session(self, *args: str) -> Session:
        """A session on n0."""
        self.cluster.run("n0", ["rm", "-rf", RESULTS])
        return Session(
            self.cluster, ("--kv-exec-type=docker", f"--kv-image={IMAGE}", *args), COLUMN
        )

    def containers(self, host: str) -> list[str]:
        """The names of all of a host's."""
        return self.engines[host].containers()

    def nothing_is_left(self) -> bool:
        """No container, no data, no lock, anywhere."""
        found = [*map(self.containers, NAMES)]
        for host in NAMES:
            left = self.cluster.leftovers(host)
            found += [list(left.cache), list(left.shared_memory)]
        return not any(found)


@pytest.fixture(scope="module")
def hosts(image: Path) -> Iterator[Hosts]:
    reason = why_unavailable()
    if reason is not None:
        pytest.skip(reason)
    package = Path(pytest_kvcache.__file__).parents[1]
    share = {Path(sys.base_prefix), Path(sys.prefix), package, CHECKOUT}
    with machine_to_oneself("containers", own_locks=False), ExitStack() as stack:
        parent = tempfile.TemporaryDirectory(prefix="kvcache-hosts-", dir="/var/tmp")
        place = Path(stack.enter_context(parent))
        cluster = stack.enter_context(Cluster(place / "cluster", share=(*sorted(share), place)))
        yield Hosts(cluster, stack.enter_context(engines_of(cluster, place, image)))


@contextmanager
def engines_of(cluster: Cluster, place: Path, image: Path) -> Iterator[dict[str, Docker]]:
    """One on each host, begun and ended at the same time; plain ``docker`` there calls it."""
    starting = {}
    for name in NAMES:
        (place / name).mkdir()
        starting[name] = docker(place / name, cluster.enter(name, ()))
        cluster.path(name, "/run/docker.sock").symlink_to(place / name / "sock")
    with ThreadPoolExecutor() as pool:
        engines = dict(
            zip(NAMES, pool.map(lambda it: it.__enter__(), starting.values()), strict=True)
        )
        try:
            list(pool.map(lambda engine: engine.call("load", "--input", image), engines.values()))
            yield engines
        finally:
            list(pool.map(lambda it: it.__exit__(None, None, None), starting.values()))


def test_ranks_run_in_containers_of_other_hosts(hosts: Hosts) -> None:
    session = hosts.session("--kv-hosts", "n1", "n2", "--kv-np=3", "--kv-trials=1")
    text = session.end()
    assert session.process.returncode == 0, text
    (trial,) = session.trials()
    assert [rank["host"] for rank in trial["ranks"]] == ["n1", "n1", "n2"]
    assert set(trial["proof"]["filesystem"]) == {"n1", "n2"}
    assert trial["proof"]["filesystem"]["n1"]["mount_point"] == CACHE_DIR
    wait_for(hosts.nothing_is_left)


def test_the_launchers_host_may_be_one_of_them(hosts: Hosts) -> None:
    session = hosts.session("--kv-hosts", "n1", "n0", "--kv-np=3", "--kv-trials=1")
    text = session.end()
    assert session.process.returncode == 0, text
    (trial,) = session.trials()
    assert sorted(rank["host"] for rank in trial["ranks"]) == ["n0", "n0", "n1"]
    wait_for(hosts.nothing_is_left)


def test_a_container_that_is_killed_on_another_host_fails_its_trial(hosts: Hosts) -> None:
    session = hosts.session(
        "--kv-hosts", "n1", "n2", "--kv-np=2", "--kv-duration=60", "--kv-trials=1"
    )
    session.wait_for_phase("window", trial=0)
    (name,) = (name for name in hosts.containers("n2") if name.endswith("trial-1"))
    hosts.engines["n2"].call("kill", name)
    text = session.end()
    assert session.process.returncode == 1, text
    (trial,) = session.trials()
    assert trial["error"].startswith(
        "the container on host n2 ended: it was killed (exit code 137)"
    )
    wait_for(hosts.nothing_is_left)


def test_a_controller_that_is_killed_leaves_no_container_anywhere(hosts: Hosts) -> None:
    session = hosts.session(
        "--kv-hosts", "n1", "n0", "--kv-np=2", "--kv-duration=60", "--kv-trials=1"
    )
    session.wait_for_phase("window", trial=0)
    session.kill()
    session.end()
    wait_for(hosts.nothing_is_left)


def test_a_host_without_the_image_is_reported_by_name(hosts: Hosts) -> None:
    hosts.engines["n2"].call("tag", IMAGE, "kept")
    hosts.engines["n2"].call("rmi", IMAGE)
    try:
        text = hosts.session("--kv-hosts", "n1", "n2", "--kv-np=2").end()
    finally:
        hosts.engines["n2"].call("tag", "kept", IMAGE)
    said = " ".join(text.split())
    assert f"host n2: --kv-image is '{IMAGE}', which docker on host n2 does not have" in said, text
    assert "host n1:" not in said
