"""A Slurm on the hosts of a test cluster: its daemons, and what is wanted of a user's side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.cluster.cluster import program
from tests.site import wait_for

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.processes import HostProcess

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sinfo")
STEP = "slurmstepd"  # ends some time after its step
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmscriptd")
CONFIGURATION = """\
ClusterName=kvcache
SlurmctldHost=n0({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge
StateSaveLocation=/run/slurmctld
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def why_no_slurm() -> str | None:
    """What is missing of Slurm here; None: nothing."""
    absent = [name for name in PROGRAMS if program(name) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else None


class Slurm:
    """slurmctld on n0, slurmd on every host; their state is in each host's own /run."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._daemons: list[HostProcess] = []
        directory = cluster.directory
        self.environ = {
            "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin"]),
            "SLURM_CONF": str(directory / "slurm.conf"),
        }
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={cluster.address(name)} CPUs=2 State=UNKNOWN"
            for name in cluster.names
        )
        text = CONFIGURATION.format(address=cluster.address("n0"), nodes=nodes)
        (directory / "slurm.conf").write_text(text)
        key = directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)

    def start(self) -> None:
        """Bring all daemons up, and wait for the nodes."""
        for host in self.cluster.names:
            self._start(
                host, "munged", "--foreground", "--force", "--socket=/run/munge",
                f"--key-file={self.cluster.directory}/munge.key",
                "--pid-file=/run/munged.pid", "--seed-file=/run/munge.seed",
            )  # fmt: skip
        for host in self.cluster.names:
            wait_for(self.cluster.path(host, "/run/munge").exists)
        self._start("n0", "slurmctld", "-D")
        for host in self.cluster.names:
            self._start(host, "slurmd", "-D", "-N", host)
        wait_for(lambda: self.states() == dict.fromkeys(self.cluster.names, "idle"))

    def _start(self, host: str, name: str, *args: str) -> None:
        for directory in ("slurmctld", "slurmd"):
            self.cluster.path(host, f"/run/{directory}").mkdir(exist_ok=True)
        with (self.cluster.directory / f"{host}.{name}.log").open("wb") as log:
            self._daemons.append(
                self.cluster.popen(
                    host,
                    [program(name) or name, *args],
                    stdout=log,
                    stderr=log,
                    env={**clean_environ(), **self.environ},
                )
            )

    def states(self) -> dict[str, str]:
        """The state of each node."""
        command = ["sinfo", "--noheader", "--Node", "--format=%N %t"]
        done = self.cluster.run("n0", command, env={**clean_environ(), **self.environ})
        return dict(line.split() for line in done.stdout.splitlines())


def clean_environ() -> dict[str, str]:
    """Ours without what an allocation of the machine's own would say."""
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
