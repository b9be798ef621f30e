"""HPE Cray PALS, the mpiexec of Cray EX machines under PBS: commands, and all else known of it.

Pure; imports neither pytest nor mpi4py. Built from the help of PALS and from what its
users do (https://github.com/CrayLabs/SmartSim/issues/354,
https://github.com/mlcommons/storage/pull/549), never run by us on such a machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_kvcache.launchers.family import (
    FoundLauncher,
    LauncherFamily,
    Ranks,
    rank_name,
)
from pytest_kvcache.launchers.libraries import MPICH
from pytest_kvcache.launchers.protocol import is_loopback, option_names, refuse_params

if TYPE_CHECKING:
    from pytest_kvcache.launchers.protocol import LaunchJob

_VERSION = re.compile(r"\Ampi(?:exec|run) version (?P<version>\d\S*)")
# It ends the others with SIGTERM (15).
_DIED = re.compile(
    r"(?P<host>\S+): rank (?P<rank>\d+) "
    r"(?:died from signal (?!15\b)(?P<signal>\d+)|exited with code (?P<code>\d+))"
)
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


def _recognise(output: str) -> tuple[str, str] | None:
    match = _VERSION.search(output)
    return None if match is None else ("pals", match["version"])


def _make(found: FoundLauncher) -> PalsLauncher:
    return PalsLauncher(path=found.path)


def _last_words(text: str, ranks: Ranks) -> str | None:
    match = _DIED.search(text)
    if match is None:
        return None
    who = rank_name(int(match["rank"]) - 1, ranks, match["host"])
    if match["code"]:
        return f"{who} ended with exit code {match['code']}"
    return f"{who} was killed by signal {match['signal']}"


FAMILY = LauncherFamily(
    title="the mpiexec of HPE Cray PALS",
    make=_make,
    recognise=_recognise,
    libraries=(MPICH,),
    last_words=_last_words,
)
"""What is known of PALS."""
