"""What the preflight finds on hosts: which host, what, and what helps; nothing is launched."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache
from tests.cluster.session import CACHE_DIR, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.cluster import Cluster

TWO = ("--kv-hosts", "n1", "n2", "--kv-np=2")


def dry_run(cluster: Cluster, *args: str) -> tuple[int, str]:
    """Exit code and text of a dry run, its lines joined as they were before they were wrapped."""
    session = Session(cluster, ("--kv-dry-run", *args))
    text = session.end()
    assert "INTERNALERROR" not in text, text
    assert "starting" not in text, text
    return session.process.returncode, " ".join(text.split())


def hide_package(cluster: Cluster) -> None:
    """The installed one, and the checkout's, which lies behind it for the tests' helpers."""
    checkout = Path(__file__).parents[2] / "pytest_kvcache"
    for package in {Path(pytest_kvcache.__file__).parent, checkout}:
        cluster.hide("n2", package)


def hide_metadata(cluster: Cluster) -> None:
    """Another version of the package on n2, as far as its metadata say."""
    site = Path(sysconfig.get_path("purelib"))
    metadata = next(site.glob("pytest_kvcache-*.dist-info")) / "METADATA"
    other = cluster.directory / "METADATA"
    other.write_text(re.sub(r"(?m)^Version: .*", "Version: 0.0.9", metadata.read_text()))
    cluster.hide("n2", metadata, behind=other)


def make_read_only(cluster: Cluster) -> None:
    cluster.run("n2", ["mount", "-o", "remount,ro", CACHE_DIR], check=True)


FOUND: tuple[tuple[str, Callable[[Cluster], None], str], ...] = (
    (
        "cut off",
        lambda c: c.cut("n2"),
        r"can't be reached over ssh \(.*(timed out|No route to host)\); see to it",
    ),
    ("no sshd", lambda c: c.stop_sshd("n2"), r"can't be reached over ssh \(.*refused\); see to it"),
    (
        "no interpreter",
        lambda c: c.hide("n2", Path(sys.prefix) / "bin"),
        r"has no \S+/python\S* \(.*\); install Python and pytest-kvcache at the same path",
    ),
    (
        "no package",
        hide_package,
        r"has no fitting pytest-kvcache in \S+/python\S* \(.*No module named .*install this",
    ),
    (
        "another version",
        hide_metadata,
        r"has pytest-kvcache 0\.0\.9 in \S+, the controller has \S+; install the same version",
    ),
    (
        "no cache directory",
        lambda c: c.path("n2", f"{CACHE_DIR}/own").rmdir(),
        r"--kv-cache-dir is /mnt/kv/own, which does not exist; create it first",
    ),
    (
        "a cache directory that can't be written",
        make_read_only,
        r"--kv-cache-dir is /mnt/kv/own.*(writable|[Rr]ead-only)",
    ),
)


@pytest.mark.parametrize(("inject", "said"), [row[1:] for row in FOUND], ids=[r[0] for r in FOUND])
def test_a_host_that_can_not_be_used_is_named_with_what_helps(
    cluster: Cluster, inject: Callable[[Cluster], None], said: str
) -> None:
    for host in cluster.names:
        cluster.path(host, f"{CACHE_DIR}/own").mkdir()
    inject(cluster)
    code, text = dry_run(cluster, *TWO, f"--kv-cache-dir={CACHE_DIR}/own")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert re.search(rf"host n2: {said}", text), text
    assert "host n1: " not in text


def test_hosts_that_can_be_used_are_shown_in_a_table(cluster: Cluster) -> None:
    code, text = dry_run(cluster, *TWO)
    assert code == pytest.ExitCode.OK, text
    assert re.search(r"n1 \d+ [\d.]+ GiB 1 GiB tmpfs yes no host", text), text


def test_one_host_under_two_names_is_refused(cluster: Cluster) -> None:
    code, text = dry_run(cluster, "--kv-hosts", "n1", cluster.address("n1"), "--kv-np=2")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert f"host {cluster.address('n1')}: is the same machine as n1; name it once" in text


def test_more_ranks_than_cores_of_another_host_need_a_word(cluster: Cluster) -> None:
    ranks = (os.cpu_count() or 1) + 1
    args = ("--kv-hosts=n1", f"--kv-np={ranks}")
    session = Session(cluster, ("--kv-dry-run", *args), without=("--kv-oversubscribe",))
    text = " ".join(session.end().split())
    assert re.search(rf"host n1: has \d+ cores for {ranks} ranks; lower --kv-np, or add", text), (
        text
    )
    code, _ = dry_run(cluster, *args)
    assert code == pytest.ExitCode.OK


HOLDER = """
import sys, time
from pytest_kvcache.hosts.lock import HostLock
with HostLock("n2", run_id="another"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_host_where_another_benchmark_runs_is_refused(cluster: Cluster) -> None:
    holder = cluster.popen("n2", [sys.executable, "-c", HOLDER], stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    code, text = dry_run(cluster, *TWO)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"host n2: a benchmark runs on n2 already \(pid \d+, run another", text)
    holder.kill()
    holder.communicate()
