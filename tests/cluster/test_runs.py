"""Runs on several hosts that go well: one command, whatever the hosts share."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.cluster import why_no_clock_shift
from tests.cluster.session import CACHE_DIR, RESULTS, Session
from tests.cluster.test_faults import left_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.conftest import NewCluster

ONE_TRIAL = ("--kv-trials=1", "--kv-duration=2")


def run(cluster: Cluster, *args: str) -> dict[str, Any]:
    """The run file of a session that passed and left nothing behind."""
    session = Session(cluster, (*ONE_TRIAL, *args))
    text = session.end()
    assert session.process.returncode == pytest.ExitCode.OK, text
    assert left_on(cluster, *cluster.names) == []
    assert session.run_file is not None
    check = [sys.executable, "-m", "pytest_kvcache", "verify", str(session.run_file)]
    subprocess.run(check, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(session.run_file.read_text())
    return found


def only_trial(run_file: dict[str, Any]) -> dict[str, Any]:
    (case,) = run_file["cases"]
    (trial,) = case["trials"]
    return dict(trial)


def test_ranks_run_on_other_hosts_that_share_nothing_with_the_launcher(cluster: Cluster) -> None:
    whole = run(cluster, "--kv-hosts", "n1", "n2", "--kv-np=4")
    trial = only_trial(whole)
    assert [rank["host"] for rank in trial["ranks"]] == ["n1", "n1", "n2", "n2"]
    assert set(whole["environment"]["hosts"]) == {"n0", "n1", "n2"}
    for host in ("n1", "n2"):
        facts = trial["proof"]["filesystem"][host]
        assert facts["mount_point"] == CACHE_DIR
        assert "rw" in facts["options"].split(",")
        assert not cluster.path(host, RESULTS).exists()
    assert cluster.path("n0", RESULTS).exists()


def test_the_launcher_may_be_one_of_the_hosts(cluster: Cluster) -> None:
    trial = only_trial(run(cluster, "--kv-hosts", "n1", "n0", "--kv-np=3"))
    assert sorted(rank["host"] for rank in trial["ranks"]) == ["n0", "n0", "n1"]


@pytest.mark.parametrize("hosts", [["n0-ib0"], ["n1", "n0-ib0"]], ids=len)
def test_the_launchers_host_may_have_another_name(cluster: Cluster, hosts: list[str]) -> None:
    """As that of an interface: mpirun knows its own host by fewer names than the user."""
    trial = only_trial(run(cluster, "--kv-hosts", *hosts, "--kv-np=2"))
    assert {rank["host"] for rank in trial["ranks"]} == {host.partition("-")[0] for host in hosts}


def test_hosts_come_from_a_file_as_well(cluster: Cluster) -> None:
    cluster.path("n0", f"{RESULTS}.hosts").write_text("n1 slots=1\nn2 slots=2  # the big one\n")
    trial = only_trial(run(cluster, f"--kv-hosts=@{RESULTS}.hosts", "--kv-np=3"))
    assert [rank["host"] for rank in trial["ranks"]] == ["n1", "n2", "n2"]


def test_each_rank_has_its_share_of_what_is_really_shared(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    cluster = new_cluster(shared_dir=shared)
    hosts = ("--kv-hosts", "n1", "n2", "--kv-np=4", "--kv-dry-run", "--kv-num-users=20000", "-v")
    free_gib = (1 << 30) * 0.9
    own = Session(cluster, hosts).end()
    together = Session(cluster, (*hosts, f"--kv-cache-dir={shared}")).end()
    assert "tmpfs      yes    no host" in own
    assert "yes    n2" in together
    (blocks,) = re.findall(r"per rank,\s+([\d,]+)\s+blocks", own)
    assert int(blocks.replace(",", "")) == pytest.approx(free_gib / 2 / (384 << 10), rel=0.01)


def test_a_shared_directory_is_left_as_it_was(new_cluster: NewCluster, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    cluster = new_cluster(shared_dir=shared)
    trial = only_trial(
        run(cluster, "--kv-hosts", "n1", "n2", "--kv-np=4", f"--kv-cache-dir={shared}")
    )
    assert len(trial["ranks"]) == 4
    assert list(shared.iterdir()) == []


SHARED = (
    "--kv-trials=1", "--kv-hosts", "n1", "n2", "--kv-np=2", "--kv-sharing=run",
    "--kv-scenario=agent", "--kv-block-tokens=64", "--kv-context-scale=0.1", "--kv-num-users=4",
    "--kv-requests=20",
)  # fmt: skip
TIMED = ("--kv-duration=2", "--kv-ramp=0")


def shared_by(cluster: Cluster, *args: str) -> dict[str, Any]:
    """The only trial of two hosts that share a store; the run file is sound."""
    session = Session(cluster, (*SHARED, *args), without=TIMED)
    text = session.end()
    assert session.process.returncode == pytest.ExitCode.OK, text
    assert session.run_file is not None
    check = [sys.executable, "-m", "pytest_kvcache", "verify", str(session.run_file)]
    subprocess.run(check, check=True, stdout=subprocess.DEVNULL)
    return only_trial(json.loads(session.run_file.read_text()))


@pytest.mark.parametrize("shift_s", [0, 5000])
def test_hosts_that_share_a_store_hit_what_the_other_one_has_stored(
    new_cluster: NewCluster, tmp_path: Path, shift_s: int
) -> None:
    if shift_s and (reason := why_no_clock_shift()) is not None:
        pytest.skip(reason)
    shared = tmp_path / "shared"
    cluster = new_cluster(shared_dir=shared, clock_shift_s={"n2": shift_s} if shift_s else {})
    trial = shared_by(cluster, f"--kv-cache-dir={shared}")
    assert left_on(cluster, *cluster.names) == []
    sharing, seen = trial["sharing"], trial["visibility"]
    assert sharing["other_hit_blocks"] > 0
    assert sharing["others_objects"] > 0
    assert (sharing["lost_blocks"], sharing["stale_lookups"]) == (0, 0)
    assert seen["count"] > 0
    assert seen["ms"]["max"] < 60_000  # by one clock, however far the hosts' are apart
    assert list(shared.iterdir()) == []


SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")  # where Debian has it


@pytest.fixture
def network_directory(cluster: Cluster) -> Iterator[str]:
    """The cache directory of n1, which n2 has over the network: by SFTP, through FUSE."""
    if shutil.which("sshfs") is None or not SFTP_SERVER.exists() or not Path("/dev/fuse").exists():
        pytest.skip("sshfs, an SFTP server or /dev/fuse is not here")
    mount = ["sshfs", "-F", str(cluster.ssh_config), f"n1:{CACHE_DIR}", CACHE_DIR]
    cluster.run("n2", [*mount, "-o", f"sftp_server={SFTP_SERVER}"], check=True)
    yield CACHE_DIR
    cluster.run("n2", ["umount", CACHE_DIR], check=True)


@pytest.mark.parametrize("publish", ["link", "rename"])
def test_hosts_may_share_a_store_over_the_network(
    cluster: Cluster, network_directory: str, publish: str
) -> None:
    trial = shared_by(cluster, f"--kv-publish={publish}", "--kv-io=buffered")
    assert cluster.run("n1", ["ls", network_directory]).stdout == ""
    sharing, seen = trial["sharing"], trial["visibility"]
    assert sharing["other_hit_blocks"] > 0
    assert sharing["lost_blocks"] == 0
    assert trial["integrity"]["failed"] == 0
    # Who renames last has it, and the other one finds that by reading, not by a lookup.
    assert seen["count"] > 0 or (publish == "rename" and sharing["races_lost"] > 0)


def test_a_store_of_each_host_is_seen_by_none_of_the_others(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    cluster = new_cluster(shared_dir=shared)
    trial = shared_by(cluster, f"--kv-cache-dir={shared}", "--kv-sharing=host")
    assert trial["sharing"]["own_hit_blocks"] > 0
    assert trial["sharing"]["other_hit_blocks"] == 0
    assert trial["visibility"] is None


def test_a_directory_that_hosts_do_not_share_is_found_before_anything_begins(
    cluster: Cluster,
) -> None:
    session = Session(cluster, SHARED, without=TIMED)
    text = " ".join(session.end().split())
    assert session.process.returncode == pytest.ExitCode.TESTS_FAILED, text
    assert f"preflight: host n2: does not see what n1 writes in {CACHE_DIR}, which" in text
    assert not cluster.path("n1", CACHE_DIR).joinpath("kvcache").exists()


def test_a_host_with_another_clock_gives_the_same_result(new_cluster: NewCluster) -> None:
    if (reason := why_no_clock_shift()) is not None:
        pytest.skip(reason)
    cluster = new_cluster(clock_shift_s={"n2": 5000})
    trial = only_trial(run(cluster, "--kv-hosts", "n1", "n2", "--kv-np=2"))
    assert trial["window_s"] == pytest.approx(2.0, abs=0.2)
    assert abs(trial["start_skew_s"]) < 1
    for rank in trial["ranks"]:
        assert abs(rank["start_s"]) < 1
        assert rank["stop_s"] == pytest.approx(2.0, abs=1.5)


def test_a_trace_needs_to_be_on_the_launchers_host_only(cluster: Cluster) -> None:
    lines = [
        {"timestamp": 10 * n, "input_length": 512, "output_length": 4, "hash_ids": [n % 7, 100 + n]}
        for n in range(200)
    ]
    trace = "".join(f"{json.dumps(line)}\n" for line in lines)
    cluster.path("n0", "/tmp/trace.jsonl").write_text(trace)
    args = ("--kv-hosts", "n1", "n2", "--kv-np=2", "--kv-trace=/tmp/trace.jsonl")
    own = ("--kv-block-tokens=16", "--kv-duration=1", "--kv-ramp=0", "--kv-context-scale=0.05")
    session = Session(
        cluster,
        (*args, "--kv-trials=1", "--kv-trace-speedup=0"),
        without=(*own, "--kv-num-users=2"),
    )
    text = session.end()
    (trial,) = session.trials()
    assert trial["ok"], text
    assert trial["requests"]["completed"] == len(lines)
    assert {rank["host"] for rank in trial["ranks"]} == {"n1", "n2"}


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_whose_agent_was_killed_or_stopped_is_given_back_all_the_same(
    cluster: Cluster, sig: signal.Signals
) -> None:
    session = Session(cluster, (*ONE_TRIAL, "--kv-hosts", "n1", "n2", "--kv-np=2"))
    session.wait_for_phase("window", trial=0)
    cluster.kill("n2", session.find("n2", "pytest_kvcache.hosts.agent").pid, sig)
    text = session.end()
    (trial,) = session.trials()
    if sig == signal.SIGKILL:  # a stopped one is not noticed in so short a run, and hurts nothing
        assert "host n2 with rank 1 is lost: the connection to it broke" in trial["error"], text
    assert left_on(cluster, *cluster.names) == []
