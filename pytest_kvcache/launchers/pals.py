"""Commands for HPE Cray PALS, the mpiexec of Cray EX machines under PBS.

Pure; imports neither pytest nor mpi4py. Built from the help of PALS and from what its
users do (https://github.com/CrayLabs/SmartSim/issues/354,
https://github.com/mlcommons/storage/pull/549), never run by us on such a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pytest_kvcache.launchers.protocol import is_loopback, option_names, refuse_params

if TYPE_CHECKING:
    from pytest_kvcache.launchers.protocol import LaunchJob

_TAKEN = frozenset(
    {"n", "np", "ppn", "soft", "host", "hosts", "hostlist", "hostfile", "f", "configfile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PalsLauncher:
    """The mpiexec of PALS.

    It fills its hosts in the order given, with one number of ranks for all of them; the
    coordinator's host has one more. So each host is a segment of its own (``cmd : cmd``),
    ranks are counted through the segments, and the first of the first one is rank 0.
    """

    path: str
    flavour: Literal["pals"] = "pals"

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the command: global options, then a segment for each host.

        A loopback name is left out: PALS then begins with the allocation's first host,
        which is where PBS runs the job's script.
        """
        refuse_params(job.params, _TAKEN)
        command = [self.path]
        if "cpu-bind" not in option_names(job.params):
            command += ["--cpu-bind", "none"]  # the default is a single core for each rank
        own = _exported(job.params)
        command += [f"--env={name}={value}" for name, value in job.env.items() if name not in own]
        command += job.params
        if len(job.slots) == 1 and is_loopback(job.controller_host):
            size = str(job.world_size)
            return [*command, "-n", size, "--ppn", size, *job.program]
        return [*command, *_segments(job)]


def _segments(job: LaunchJob) -> list[str]:
    words: list[str] = []
    for name, slots in job.slots:
        words += [":"] if words else []
        words += ["--hosts", name, "-n", str(slots), *job.program]
    return words


def _exported(params: tuple[str, ...]) -> frozenset[str]:
    """The names of the variables in ``--env=NAME=VALUE`` and ``--env NAME=VALUE``."""
    values = [following for param, following in pairwise(params) if param == "--env"]
    values += [param.removeprefix("--env=") for param in params if param.startswith("--env=")]
    return frozenset(value.partition("=")[0] for value in values)
