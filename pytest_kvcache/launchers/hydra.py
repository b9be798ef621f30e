"""Commands for hydra, the launcher of MPICH (and of Intel MPI, which is not wired up yet).

Pure; imports neither pytest nor mpi4py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_kvcache.launchers.protocol import option_names, refuse_params

if TYPE_CHECKING:
    from pytest_kvcache.launchers.protocol import LaunchJob

_REMOTE_SHELL = frozenset(
    {"launcher", "launcher-exec", "bootstrap", "bootstrap-exec"}  # the second pair is older
)
_TAKEN = frozenset(
    {"n", "np", "hosts", "host", "hostlist", "f", "hostfile", "machinefile", "machine"}
    | {"ppn", "perhost", "grr", "configfile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HydraLauncher:
    """MPICH's mpiexec.

    Root is always allowed and slots may exceed cores; the flags that say so elsewhere are
    errors here (exit 255), and so is an option given twice.
    """

    path: str
    flavour: Literal["hydra"] = "hydra"

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the command.

        The host list is given for a single host too: without it hydra takes the hosts of
        whatever resource manager it finds in its environment. Of two ``-genv`` the last
        one counts, so the user's parameters come after ours.
        """
        refuse_params(job.params, _TAKEN)
        _check_own_name(job)
        command = [self.path, "-hosts", job.host_list]
        command += self._remote_shell(job)
        for name, value in job.env.items():
            command += ["-genv", name, value]
        return [*command, *job.params, "-n", str(job.world_size), *job.program]

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
    loopback = name == "localhost" or name.startswith("127.")
    if loopback and len(job.slots) > 1:
        raise ValueError(
            f"controller_host is {name}; beside other hosts it must be the host's own name"
        )
