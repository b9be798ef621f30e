"""Hydra, the launcher of MPICH and of Intel MPI: commands, and all else known of it.

Pure; imports neither pytest nor mpi4py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.launchers.batch import batch_systems
from pytest_kvcache.launchers.family import (
    FoundLauncher,
    LauncherFamily,
    Leftover,
    Leftovers,
    Ranks,
    rank_name,
)
from pytest_kvcache.launchers.libraries import MPICH
from pytest_kvcache.launchers.protocol import (
    INTEL_PINNING,
    binds_ranks,
    directory_option,
    is_loopback,
    option_names,
    refuse_params,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.launchers.protocol import LaunchJob

_VERSIONS = {
    "hydra": re.compile(r"HYDRA build details:\s+Version:\s+(?P<version>\S+)"),
    "intel": re.compile(r"Intel\(R\) MPI Library\b.*?, Version (?P<version>\S+)"),
}
_DIED = re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+).*?EXIT CODE: (?P<code>\d+)")
_REMOTE_SHELL = frozenset(
    {"launcher", "launcher-exec", "bootstrap", "bootstrap-exec"}  # the second pair is older
)
_TAKEN = frozenset(
    {"n", "np", "hosts", "host", "hostlist", "f", "hostfile", "machinefile", "machine"}
    | {"ppn", "perhost", "grr", "rr", "hosts-group", "configfile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HydraLauncher:
    """The mpiexec of MPICH and, of flavour ``intel``, Intel MPI's mpiexec.hydra.

    Root is always allowed and slots may exceed cores; the flags that say so elsewhere are
    errors here (exit 255), and so is an option given twice.
    """

    path: str
    flavour: str = "hydra"
    environ: Mapping[str, str] = field(default_factory=dict)
    """The controller's environment."""

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the command.

        The hosts are given for a single host too: without them hydra takes those of
        whatever resource manager it finds in its environment. Of two ``-genv`` the last
        one counts, so the user's parameters come after ours.
        """
        refuse_params(job.params, _TAKEN)
        _check_own_name(job)
        intel = self.flavour == "intel"
        command = [self.path, *(() if intel else ("-hosts", job.host_list))]
        command += directory_option(job, "-wdir")
        command += self._remote_shell(job)
        command += self._allocation(job)
        command += self._pinning(job) if intel else []
        for name, value in job.env.items():
            command += ["-genv", name, value]
        if intel:
            return [*command, *job.params, *_argument_sets(job)]
        return [*command, *job.params, "-n", str(job.world_size), *job.program]

    def _allocation(self, job: LaunchJob) -> list[str]:
        """In a batch system's job: start the proxies as everywhere else, unless the user chose.

        hydra, or Intel's mpirun around it, would have Slurm's srun start them, which knows
        no ``localhost``, and which numbers them in Slurm's order of hosts: with another
        order each host gets the ranks of another, silently (MPICH 5.0.2, Intel MPI
        2021.18). So it does with PBS, Grid Engine and LSF where it was built with theirs.
        """
        chosen = job.remote_shell or option_names(job.params) & _REMOTE_SHELL
        if chosen or not batch_systems(self.environ):
            return []
        return ["-launcher", "fork" if len(job.slots) == 1 else "ssh"]

    def _pinning(self, job: LaunchJob) -> list[str]:
        """Leave ranks unpinned, unless the user has them pinned: Intel MPI pins to cores."""
        if binds_ranks(job.params) or any(n.startswith(INTEL_PINNING) for n in self.environ):
            return []
        return ["-genv", INTEL_PINNING, "off"]

    def _remote_shell(self, job: LaunchJob) -> list[str]:
        if not job.remote_shell or option_names(job.params) & _REMOTE_SHELL:
            return []
        program = job.remote_shell_script or job.remote_shell[0]
        return ["-launcher", "ssh", "-launcher-exec", program]


def _check_own_name(job: LaunchJob) -> None:
    """Raise ``ValueError`` for a loopback name beside other hosts.

    hydra would tell their proxies to call back to it, that is, to themselves.
    """
    name = job.controller_host
    if is_loopback(name) and len(job.slots) > 1:
        raise ValueError(
            f"controller_host is {name}; beside other hosts it must be the host's own name"
        )


def _argument_sets(job: LaunchJob) -> list[str]:
    """A set of ``-host``, ``-n`` and program for each host, in the order of ranks.

    Intel MPI reads ``name:slots`` as a host's name, and its ``-ppn`` is one for all hosts.
    """
    words: list[str] = []
    for name, slots in job.slots:
        words += [":"] if words else []
        words += ["-host", name, "-n", str(slots), *job.program]
    return words


def _recognise(output: str) -> tuple[str, str] | None:
    for flavour, pattern in _VERSIONS.items():
        if match := pattern.search(output):
            return flavour, match["version"]
    return None


def _make(found: FoundLauncher) -> HydraLauncher:
    return HydraLauncher(path=found.path, flavour=found.flavour, environ=found.environ)


def _last_words(text: str, ranks: Ranks) -> str | None:
    match = _DIED.search(text)
    if match is None:
        return None
    pid = int(match["pid"])
    likely = [number for number, rank in enumerate(ranks) if rank["pid"] == pid]
    if len(likely) > 1:  # pids of two hosts
        likely = [number for number in likely if ranks[number]["host"] == match["host"]]
    if len(likely) == 1:
        who = rank_name(likely[0], ranks, match["host"])
        return f"{who} ended with exit code {match['code']}"
    # Often another one than the first to die: hydra ends all and reports one of them.
    return (
        f"a process ended with exit code {match['code']}; the launcher names pid {pid} on"
        f" host {match['host']}"
    )


# What runs while a job does: its file carries no pid.
_RUNNING = ("hydra_pmi_proxy", "mpiexec", "mpiexec.hydra", "mpirun")

FAMILY = LauncherFamily(
    title="one of MPICH, or Intel MPI's mpiexec.hydra",
    make=_make,
    recognise=_recognise,
    libraries=(MPICH,),
    daemons=MappingProxyType({"hydra": "hydra_pmi_proxy"}),
    leaves=Leftovers(
        daemons=frozenset({"hydra_pmi_proxy", "hydra_bstrap_pr"}),
        files=(Leftover(glob="hydra_hwloc_xmlfile_*", is_file=True, unless_running=_RUNNING),),
        segments=("mpich_shm*", "mpich_shar_tmp*"),
    ),
    last_words=_last_words,
    needs_shared_memory=True,
)
"""What is known of hydra."""
