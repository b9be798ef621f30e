from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.cluster import (
    Cluster,
    ClusterError,
    program,
    why_no_clock_shift,
    why_unavailable,
)
from tests.site import wait_for

if TYPE_CHECKING:
    from tests.cluster.conftest import NewCluster

SHIFT_S = 5_000
CLOCK = "import json, time; print(json.dumps([time.monotonic(), time.clock_gettime(7)]))"
WORLD = "from mpi4py.MPI import COMM_WORLD as w; import os; print(w.gather(os.uname().nodename))"


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


def test_a_host_without_a_carrier_is_silent_until_it_has_one(cluster: Cluster) -> None:
    cluster.carrier("n2", up=False)
    carrier = cluster.run("n2", ["cat", "/sys/class/net/eth0/carrier"], check=True)
    assert carrier.stdout == "0\n"
    assert not ping(cluster, "n2")
    cluster.carrier("n2", up=True)
    wait_for(lambda: ping(cluster, "n2"))


def test_a_stopped_sshd_refuses_and_its_sessions_go_on(cluster: Cluster) -> None:
    with cluster.popen(
        "n0", ["ssh", "n1", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        wait_for(lambda: ("cat",) in [process.argv for process in cluster.processes("n1")])
        cluster.stop_sshd("n1")
        refused = cluster.run("n0", ["ssh", "n1", "true"])
        assert (refused.returncode, session.poll()) == (255, None)
        assert "port 22: Connection refused" in refused.stderr
        assert session.communicate("on\n", timeout=30)[0] == "on\n"
    cluster.start_sshd("n1")
    cluster.start_sshd("n1")
    assert cluster.run("n0", ["ssh", "n1", "true"]).returncode == 0


def test_the_clocks_of_a_shifted_host_and_of_its_children_are_ahead(
    new_cluster: NewCluster,
) -> None:
    reason = why_no_clock_shift()
    if reason is not None:
        pytest.skip(reason)
    cluster = new_cluster(clock_shift_s={"n2": SHIFT_S})
    through_ssh = ["ssh", "n2", f"{sys.executable} -c '{CLOCK}'"]
    child = clocks(cluster, "n2", "sh", "-c", '"$@"; exit $?', "-")
    grandchild = json.loads(cluster.run("n0", through_ssh, check=True).stdout)
    for reading in (clocks(cluster, "n2"), child, grandchild):
        for here, there in zip(clocks(cluster, "n1"), reading, strict=True):
            assert there - here == pytest.approx(SHIFT_S, abs=60)
    wall = cluster.run("n2", ["date", "+%s"], check=True).stdout
    assert int(wall) == pytest.approx(time.time(), abs=60)
    assert clocks(cluster, "n1")[0] == pytest.approx(time.monotonic(), abs=60)


def test_memory_and_private_directories_are_a_host_s_own(cluster: Cluster) -> None:
    for path in ("/dev/shm", "/tmp", "/run", "/mnt/kv"):
        cluster.run("n1", ["touch", f"{path}/of-n1"], check=True)
        assert "of-n1" in names(cluster, "n1", path)
        assert "of-n1" not in names(cluster, "n2", path)
        assert not Path(path, "of-n1").exists()
        assert cluster.path("n1", f"{path}/of-n1").exists()


def test_a_private_directory_is_not_made_on_the_machine(new_cluster: NewCluster) -> None:
    private = (Path("/var/lib/of-a-test/cache"), Path("/mnt/of-a-test"))
    cluster = new_cluster(private=private)
    for path in private:
        assert cluster.run("n1", ["touch", path / "entry"]).returncode == 0
        assert not path.exists()
    assert set(names(cluster, "n1", "/var/lib")) == {*os.listdir("/var/lib"), "of-a-test"}  # noqa: PTH208  names
    assert cluster.leftovers("n1").cache == ("entry", "entry")


def test_a_small_private_directory_fills_up_on_its_host_only(new_cluster: NewCluster) -> None:
    cluster = new_cluster(private_bytes={"n2": 1 << 20})
    write = ["dd", "if=/dev/zero", "of=/mnt/kv/file", "bs=1M", "count=2"]
    assert "No space left on device" in cluster.run("n2", write).stderr
    assert cluster.run("n1", write).returncode == 0


def test_the_shared_directory_is_one_for_all(new_cluster: NewCluster) -> None:
    with tempfile.TemporaryDirectory() as parent:  # which no host sees otherwise
        file = Path(parent, "parallel", "of-n1")
        cluster = new_cluster(shared_dir=file.parent)
        cluster.run("n1", ["touch", file], check=True)
        stat = ["stat", "-c", "%d %i", str(file)]
        ids = {cluster.run(host, stat, check=True).stdout for host in cluster.names}
        assert ids == {f"{file.stat().st_dev} {file.stat().st_ino}\n"}


def test_a_hidden_interpreter_is_missing_until_it_is_revealed(cluster: Cluster) -> None:
    directory = Path(sys.executable).parent
    cluster.hide("n2", directory)
    assert cluster.run("n2", [sys.executable, "-V"]).returncode == 127
    assert cluster.run("n0", ["ssh", "n2", sys.executable, "-V"]).returncode == 127
    assert cluster.run("n1", [sys.executable, "-V"]).returncode == 0
    assert Path(sys.executable).exists()
    cluster.reveal("n2", directory)
    assert cluster.run("n2", [sys.executable, "-V"]).returncode == 0


def test_a_file_can_stand_in_for_another_on_one_host(cluster: Cluster, tmp_path: Path) -> None:
    paths = [tmp_path / "is", tmp_path / "was"]
    for path in paths:
        path.write_text(f"{path.name}\n")
    cluster.hide("n1", paths[1], behind=paths[0])
    assert cluster.run("n1", ["cat", paths[1]]).stdout == "is\n"
    assert cluster.run("n2", ["cat", paths[1]]).stdout == "was\n"
    cluster.reveal("n1", paths[1])
    assert cluster.run("n1", ["cat", paths[1]]).stdout == "was\n"


def test_processes_are_those_of_a_host_but_init_and_sshd(cluster: Cluster) -> None:
    assert [cluster.processes(host) for host in cluster.names] == [[], [], []]
    nested = ["unshare", "--pid", "--fork", "--kill-child", "sleep", "101"]
    expected = {("sleep", "0", "100"), tuple(nested), ("sleep", "101")}
    with (
        cluster.popen("n1", ["sleep", "0", "100"]) as direct,
        cluster.popen("n0", ["ssh", "n1", "exec", *nested]) as remote,
    ):
        wait_for(lambda: {p.argv for p in cluster.processes("n1")} == expected)
        found = {process.argv: process for process in cluster.processes("n1")}
        assert found["sleep", "0", "100"].pid == direct.inside
        assert found["sleep", "0", "100"].state == "S"
        assert [process.argv[0] for process in cluster.processes("n0")] == ["ssh"]
        assert cluster.processes("n2") == []
        cluster.kill("n1", found[tuple(nested)].pid)
        cluster.kill("n1", direct.inside, signal.SIGTERM)
        wait_for(lambda: cluster.pids("n1") == [])
        assert (direct.wait(), remote.wait()) == (-signal.SIGTERM, 255)


def test_a_process_of_another_host_is_not_killed(cluster: Cluster) -> None:
    with cluster.popen("n1", ["sleep", "100"]) as process:
        with pytest.raises(ClusterError, match=f"{process.inside} is no process of n2"):
            cluster.kill("n2", process.inside)
        assert process.poll() is None
        process.kill()


def test_orphans_are_reaped(cluster: Cluster) -> None:
    cluster.run("n1", ["sh", "-c", "(sleep 0.2 & sleep 0.1) &"], check=True)
    wait_for(lambda: cluster.pids("n1") == [])


def test_signals_and_exit_codes_are_those_of_the_command(cluster: Cluster) -> None:
    assert cluster.run("n1", ["sh", "-c", "exit 3"]).returncode == 3
    trap = "trap 'echo caught; exit 4' INT; echo set; while :; do sleep 0.05; done"
    with cluster.popen("n1", ["sh", "-c", trap], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "set\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "caught\n"
        assert process.returncode == 4
        process.send_signal(signal.SIGINT)  # it has ended: to nobody
    with cluster.popen("n1", ["sleep", "100"]) as process:
        process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL


def test_a_command_that_does_not_end_in_time_is_killed(cluster: Cluster) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run("n1", ["sh", "-c", "sleep 100; true"], timeout=0.3)
    assert ("sh", "-c", "sleep 100; true") not in [p.argv for p in cluster.processes("n1")]


def test_a_failed_command_says_so_if_asked(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"n1: .* ended with 2: .*No such file"):
        cluster.run("n1", ["ls", "/none"], check=True)
    assert cluster.run("n1", ["cat"], input="text", cwd="/tmp").stdout == "text"
    assert cluster.run("n1", ["pwd"], cwd="/usr/lib").stdout == "/usr/lib\n"


def test_leftovers_are_what_was_not_there_at_the_start(cluster: Cluster) -> None:
    assert not any(cluster.leftovers(host) for host in cluster.names)
    for path in ("/dev/shm/segment", "/mnt/kv/run-1", "/tmp/session"):
        cluster.run("n1", ["mkdir", path], check=True)
    with cluster.popen("n1", ["sleep", "100"]) as process:
        left = cluster.leftovers("n1")
        assert [found.pid for found in left.processes] == [process.inside]
        assert (left.shared_memory, left.cache, left.temporary) == (
            ("segment",),
            ("run-1",),
            ("session",),
        )
        process.kill()
    assert not cluster.leftovers("n2")


def test_open_mpi_runs_ranks_on_all_hosts(cluster: Cluster, mpirun: str) -> None:
    done = cluster.run(
        "n0",
        [
            *(mpirun, "--allow-run-as-root", "--prtemca", "plm_ssh_agent", cluster.ssh_agent),
            *("--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp"),
            *("--host", "n0:1,n1:1,n2:1", "--map-by", "slot", "-n", "3"),
            *(sys.executable, "-m", "mpi4py", "-c", WORLD),
        ],
    )
    assert sorted(done.stdout.splitlines()) == ["None", "None", "['n0', 'n1', 'n2']"], done.stderr
    wait_for(lambda: not any(cluster.processes(host) for host in cluster.names))


def test_eight_hosts_come_up_together(new_cluster: NewCluster) -> None:
    cluster = new_cluster(8)
    ask = "for host; do ssh $host hostname; done"
    answers = cluster.run("n0", ["sh", "-c", ask, "-", *cluster.names], check=True).stdout
    assert answers.split() == [f"n{number}" for number in range(9)]


def test_two_clusters_do_not_meet(new_cluster: NewCluster) -> None:
    first, second = new_cluster(1), new_cluster(1)
    first.run("n1", ["touch", "/mnt/kv/of-the-first"], check=True)
    assert cluster_of(second, "n1") == []
    second.close()
    assert cluster_of(first, "n1") == ["of-the-first"]


def cluster_of(cluster: Cluster, host: str) -> list[str]:
    """What the launcher's host finds in the cache directory of another by ssh."""
    return cluster.run("n0", ["ssh", host, "ls", "/mnt/kv"], check=True).stdout.split()


# --- the end ------------------------------------------------------------------------------


def namespaces() -> set[str]:
    """All namespaces that a process of the machine is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found |= {str(path.readlink()) for path in (process / "ns").iterdir()}
        except OSError:
            continue  # it has ended, or is not to be looked at
    return found


def own_namespaces(cluster: Cluster) -> set[str]:
    """Those which exist for the cluster only: of each kind and host, and that of the bridge."""
    inside = [
        cluster.run(host, ["sh", "-c", "readlink /proc/self/ns/*"], check=True).stdout.split()
        for host in cluster.names
    ]
    assert cluster._switch is not None
    bridge = str(Path(f"/proc/{cluster._switch.pid}/ns/net").readlink())
    machine = {str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}
    return {bridge, *(name for host in inside for name in host)} - machine


def named_namespaces() -> set[str]:
    """Those that `ip netns` knows."""
    return {f"net:[{path.stat().st_ino}]" for path in Path("/run/netns").glob("*")}


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


def test_close_leaves_nothing(new_cluster: NewCluster) -> None:
    cluster = new_cluster(private=[Path("/mnt/of-a-test")])
    own = own_namespaces(cluster)
    assert len(own) == 5 * 3 + 1  # net, uts, ipc, pid and mnt of each, and the bridge's
    remote = cluster.popen("n0", ["ssh", "n1", "setsid", "sleep", "100"])
    local = cluster.popen("n2", ["sh", "-c", "trap '' TERM INT HUP; sleep 100; true"])
    wait_for(lambda: cluster.pids("n1"))
    assert own <= namespaces()
    cluster.close()
    assert remote.returncode is not None
    assert local.returncode == -signal.SIGKILL
    assert not own & namespaces()
    assert not own & named_namespaces()
    assert not cluster.directory.exists()
    cluster.close()
    with pytest.raises(ClusterError, match="no host n1 is up"):
        cluster.run("n1", ["true"])


def test_the_machine_gets_no_mount_and_no_directory(new_cluster: NewCluster) -> None:
    cluster = new_cluster(private=[Path("/mnt/of-a-test")])
    for _ in range(2):
        assert "of-a-test" not in mounts()
        assert str(cluster.directory) not in mounts()
        assert not devices() & {"n0", "n1", "n2", "br0"}
        assert not Path("/mnt/of-a-test").exists()
        cluster.close()


def devices() -> set[str]:
    """The names of the machine's network devices."""
    return {path.name for path in Path("/sys/class/net").iterdir()}


def own_children() -> set[int]:
    """The child processes of this one."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


@pytest.mark.usefixtures("cluster_share")
def test_a_failed_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    before = own_children()
    cluster = Cluster(tmp_path / "cluster", share=[tmp_path / "none"])
    with pytest.raises(ClusterError, match=r"n0 did not start: .*No such file .*/none"), cluster:
        pass
    assert own_children() == before
    assert not cluster.directory.exists()
    cluster.close()


@pytest.mark.usefixtures("cluster_share")
def test_a_killed_session_takes_its_cluster_with_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from tests.cluster.cluster import Cluster\n"
        "from tests.cluster.test_cluster import own_namespaces\n"
        f"with Cluster(pathlib.Path({str(tmp_path / 'cluster')!r})) as cluster:\n"
        "    process = cluster.popen('n1', ['sleep', '100'])\n"
        "    print(*own_namespaces(cluster), flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as session:
        try:
            assert session.stdout is not None
            own = set(session.stdout.readline().split())
            assert own
            assert own <= namespaces()
        finally:
            session.kill()
    wait_for(lambda: not own & namespaces())


def test_a_host_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{"clock_shift_s": {"n3": 1}}, {"private_bytes": {"n3": 1}}]
    for setting in settings:
        with pytest.raises(ValueError, match="n3 is no host of n0, n1, n2"):
            Cluster(tmp_path / "cluster", **setting)


# --- where none can be made ---------------------------------------------------------------

WHY = "import tests.cluster.cluster as c; print(c.why_unavailable())"


def test_without_root_the_reason_is_given() -> None:
    code = f"import os, tests.cluster.cluster; os.geteuid() or os.setuid(65534); {WHY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "needs root, for namespaces\n"


def test_without_sshd_the_package_is_named(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.run("n1", [sys.executable, "-c", WHY], check=True).stdout == "None\n"
    shutil.copy(program("bridge") or "", tmp_path / "bridge")
    cluster.hide("n1", "/usr/sbin", behind=tmp_path)
    done = cluster.run("n1", [sys.executable, "-c", WHY], check=True)
    assert done.stdout == "no sshd here: apt-get install openssh-server\n"


def test_without_permission_the_reason_is_given(cluster: Cluster) -> None:
    setpriv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = cluster.run("n1", [*setpriv, sys.executable, "-c", WHY], check=True)
    assert done.stdout == "no namespaces here: unshare: unshare failed: Operation not permitted\n"
    assert why_unavailable() is None
