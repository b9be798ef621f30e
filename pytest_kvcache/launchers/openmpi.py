"""Open MPI 4 and 5: commands, and all else that is known of this family.

Pure; imports neither pytest nor mpi4py. The environment is a parameter, never read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers.batch import batch_systems
from pytest_kvcache.launchers.family import (
    FoundLauncher,
    LauncherFamily,
    Leftover,
    Leftovers,
    Ranks,
    rank_name,
)
from pytest_kvcache.launchers.libraries import OPEN_MPI
from pytest_kvcache.launchers.protocol import (
    binds_ranks,
    directory_option,
    option_names,
    refuse_params,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.launchers.protocol import LaunchJob

_VERSION = re.compile(r"\((?:Open MPI|OpenRTE)\) (?P<version>(?P<major>\d+)\.\S+)")
# Of 4 and 5, with the line breaks folded.
_DIED = re.compile(
    r"process rank (?P<rank>\d+) with PID (?P<pid>\d+) on node (?P<host>\S+?) "
    r"(?:exited on signal (?P<signal>\d+)|(?P<how>exiting improperly|calling \"abort\"))"
)
# The same two, of a process that ended in its own way: no host, no pid.
_ENDED = re.compile(r"Process name: \[\S+,(?P<rank>\d+)\] Exit code: (?P<code>\d+)")
# The shared-memory transport was renamed from vader to sm in Open MPI 5.
_SHARED_MEMORY = {"openmpi-5": "sm", "openmpi-4": "vader"}
# PRRTE took the place of ORTE in Open MPI 5; --prtemca is an error in 4.
_REMOTE_SHELL = {
    "openmpi-5": ("--prtemca", "plm_ssh_agent"),
    "openmpi-4": ("--mca", "plm_rsh_agent"),
}
_NO_TREE = {
    "openmpi-5": ("--prtemca", "plm_ssh_no_tree_spawn", "1"),
    "openmpi-4": ("--mca", "plm_rsh_no_tree_spawn", "1"),
}
# In a batch system's job: how the daemons are started, and where that may have been chosen.
_STARTER = {
    "openmpi-5": ("--prtemca", "ssh", "PRTE_MCA_"),
    "openmpi-4": ("--mca", "rsh", "OMPI_MCA_"),
}
_CUT = frozenset(" \t:")  # where Open MPI ends a word of a remote shell
_MCA = frozenset({"mca", "omca", "gmca", "gomca", "prtemca", "gprtemca"})
_MAPPING = frozenset(
    {"map-by", "bynode", "byslot", "bycore", "npersocket", "ppr", "rankfile", "rf"}
)
_TAKEN = frozenset(
    {"n", "np", "c", "N", "npernode", "pernode", "H", "host", "hostfile", "machinefile"}
    | {"default-hostfile", "app"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenMPILauncher:
    """Open MPI's mpirun.

    Slots are explicit, so ``--oversubscribe`` is never needed; with ``--bind-to none``
    there may be more ranks than cores (measured with 5.0.11).
    """

    path: str
    """Absolute: prted is then looked for at the same path on every host."""
    flavour: str
    """``openmpi-5`` or ``openmpi-4``."""
    environ: Mapping[str, str]
    """The controller's environment; a transport chosen in it beats our default."""

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the command.

        What the user gave in ``job.params`` is left out of ours: Open MPI refuses most
        options that are given twice, and takes the first of two ``-x``.
        """
        refuse_params(job.params, _TAKEN)
        given = option_names(job.params)
        command = [self.path]
        if job.allow_run_as_root and "allow-run-as-root" not in given:
            command.append("--allow-run-as-root")
        command += ["--host", job.host_list]
        if not given & _MAPPING:
            command += ["--map-by", "slot"]
        if not binds_ranks(job.params):
            command += ["--bind-to", "none"]
        command += directory_option(job, "--wdir")
        command += self._transport(job.params)
        command += self._allocation(job)
        command += self._remote_shell(job)
        own = _exported(job.params)
        for name, value in job.env.items():
            if name not in own:
                command += ["-x", f"{name}={value}"]
        return [*command, *job.params, "-n", str(job.world_size), *job.program]

    def _transport(self, params: Sequence[str]) -> list[str]:
        """Choose shared memory and TCP, unless the user chose.

        A start then takes 0.2 s instead of the 1.2 s in which OFI and UCX are probed;
        ranks exchange little, and that around the measured window.
        """
        chosen = _mca_keys(params) | {
            key for key in ("pml", "btl") if f"OMPI_MCA_{key}" in self.environ
        }
        defaults = {"pml": "ob1", "btl": f"self,{_SHARED_MEMORY[self.flavour]},tcp"}
        return [
            word
            for key, value in defaults.items()
            if key not in chosen
            for word in ("--mca", key, value)
        ]

    def _allocation(self, job: LaunchJob) -> list[str]:
        """In a batch system's job: take hosts and slots from us, as everywhere else.

        Otherwise the slots are those of the allocation, which has none for the
        coordinator (exit 213), or a list of nodes is looked for that a container does not
        see (exit 250). Daemons that srun starts without Slurm's own list of hosts end up
        on the wrong hosts, silently: so other hosts are reached by ssh here too.
        """
        option, starter, prefix = _STARTER[self.flavour]
        chosen = _mca_keys(job.params) | {
            key for key in ("ras", "plm") if f"{prefix}{key}" in self.environ
        }
        systems = batch_systems(self.environ)
        if not systems or chosen & {"ras", "plm"}:
            return []
        words = []
        names = [name for system in systems for name in system.allocators]
        if names:
            words += [option, "ras", f"^{','.join(names)}"]
        if len(job.slots) > 1:
            words += [option, "plm", starter]
        for system in systems:
            if system.starter is not None:
                words += [option, f"plm_{starter}_disable_{system.starter}", "1"]
        return words

    def _remote_shell(self, job: LaunchJob) -> list[str]:
        """How other hosts are reached; for one host, a program that is there and never called.

        Without ssh or rsh on PATH, Open MPI 5.0.11 forgets the slots it was given and
        refuses more processes than cores (exit 213), and 4.1.4 does not start. It must
        not be the ranks' own program: at its first mention the options are taken to end.
        """
        option = _REMOTE_SHELL[self.flavour]
        if option[1] in _mca_keys(job.params):
            return []
        if not job.remote_shell:
            alone = len(job.slots) == 1 and _CUT.isdisjoint(self.path)
            return [*option, self.path] if alone else []
        for word in job.remote_shell:
            if not word or not _CUT.isdisjoint(word):
                raise OptionError(
                    f"--kv-ssh has the word {word!r}; Open MPI splits it at spaces and cuts it"
                    f" at colons, so put the command into a script and give the script's path"
                )
        # Not from daemon to daemon in a tree: the command is this host's.
        return [*option, " ".join(job.remote_shell), *_NO_TREE[self.flavour]]


def _mca_keys(params: Sequence[str]) -> frozenset[str]:
    """Return the names of the MCA parameters set in ``params``.

    By ``--mca NAME VALUE`` and its kin, also as ``-mca NAME VALUE``, ``--mca=NAME VALUE``.
    """
    keys = set()
    for param, following in pairwise([*params, ""]):
        option, equals, key = param.partition("=")
        if option.startswith("-") and option.lstrip("-") in _MCA:
            keys.add(key if equals else following)
    return frozenset(keys)


def _exported(params: Sequence[str]) -> frozenset[str]:
    """Return the names of the variables exported by ``-x NAME`` or ``-x NAME=VALUE``."""
    return frozenset(
        following.partition("=")[0]
        for param, following in pairwise(params)
        if param in ("-x", "--x")
    )


def _recognise(output: str) -> tuple[str, str] | None:
    match = _VERSION.search(output)
    return None if match is None else (f"openmpi-{match['major']}", match["version"])


def _make(found: FoundLauncher) -> OpenMPILauncher:
    return OpenMPILauncher(path=found.path, flavour=found.flavour, environ=found.environ)


def _last_words(text: str, ranks: Ranks) -> str | None:
    match = _DIED.search(text)
    if match is None:
        return _own_end(text, ranks)
    who = rank_name(int(match["rank"]) - 1, ranks, match["host"])
    if match["signal"]:
        return f"{who} was killed by signal {match['signal']}"
    if match["how"] == "exiting improperly":
        return f"{who} ended in the middle of the work"
    return f"{who} gave up"


def _own_end(text: str, ranks: Ranks) -> str | None:
    match = _ENDED.search(text)
    number = -1 if match is None else int(match["rank"]) - 1
    if match is None or not 0 <= number < len(ranks):
        return None
    who = rank_name(number, ranks, ranks[number]["host"])
    signalled = int(match["code"]) - 128  # as shells say it, and worker.py of SIGTERM
    after = f", as after signal {signalled}" if signalled > 0 else ""
    return f"{who} ended with exit code {match['code']}{after}"


# What runs while a job of Open MPI 4 does: its files carry no pid.
_ORTE = ("orted", "orterun", "mpirun", "mpirun.openmpi", "mpiexec")

FAMILY = LauncherFamily(
    title="an mpirun of Open MPI 4 or 5",
    make=_make,
    recognise=_recognise,
    minimum=(4,),
    below=(6,),
    libraries=(OPEN_MPI,),
    daemons=MappingProxyType({"openmpi-5": "prted", "openmpi-4": "orted"}),
    leaves=Leftovers(
        daemons=frozenset({"prted", "orted"}),
        # Of 5 they are named after their process, and so are those of 4 in a directory of
        # its own per user (ompi.HOST.UID), which other jobs of the user share.
        files=(
            Leftover(glob="prted.*", pid=r"prted\.(?:.*\.)?(?P<pid>\d+)"),
            Leftover(glob="prterun.*", pid=r"prterun\.(?:.*\.)?(?P<pid>\d+)"),
            Leftover(glob="ompi.*/pid.*", pid=r"pid\.(?P<pid>\d+)"),
            Leftover(glob="ompi.*/jf.[0-9]*", unless_running=_ORTE),
            Leftover(glob="ompi.*", pid=r"ompi\.(?P<pid>\d+)"),
        ),
        segments=("sm_segment.*", "vader_segment.*"),
    ),
    last_words=_last_words,
    root_variables=("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"),
    directory_variables=("PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base"),
    in_containers=True,
)
"""What is known of Open MPI's mpirun."""
