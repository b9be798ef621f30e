"""Slurm's srun, within an allocation: commands, its way to hosts, and all else known of it.

Pure; imports neither pytest nor mpi4py. The environment is a parameter, never read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.launchers.family import (
    FoundLauncher,
    LauncherFamily,
    Leftovers,
    Ranks,
    rank_name,
)
from pytest_kvcache.launchers.libraries import MPICH, OPEN_MPI
from pytest_kvcache.launchers.protocol import directory_option, option_names, refuse_params

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pytest_kvcache.launchers.protocol import LaunchJob

_VERSION = re.compile(r"\Aslurm\S* (?P<version>\d\S*)")
# A victim of the others' end is "Terminated", and not told.
_DIED = re.compile(
    r"srun: error: (?P<host>[^\s:]+): tasks? (?P<rank>\d+)\S*: "
    r"(?:Exited with exit code (?P<code>\d+)"
    r"|(?P<how>Killed|Aborted|Segmentation fault|Bus error|Illegal instruction))"
)
_SAYS = re.compile(r"^srun: error: (?!\S+: task 0: )(?P<why>.+)$", re.MULTILINE)
_NO_ANSWER = re.compile(r"Communication connection failure|has expired|[Nn]ode failure")
_TAKEN = frozenset(
    {"n", "ntasks", "ntasks-per-node", "N", "nodes", "w", "nodelist", "F", "nodefile"}
    | {"m", "distribution", "r", "relative", "x", "exclude", "multi-prog"}
)
# What each family's library is started through, the first that fits its own name.
_TYPES = (
    (re.compile(r"\AOpen MPI\b"), "pmix"),
    (re.compile(r"CRAY MPICH"), "cray_shasta"),
    (re.compile(r"MPICH|MVAPICH|Intel\(R\) MPI Library"), "pmi2"),
)
_PMIX_ONLY = re.compile(r"\AOpen MPI v(?:[5-9]|\d\d)")
_LISTED = re.compile(r"^(?:srun:)?\s*([a-z]\w*)$", re.MULTILINE)
_GROUP = re.compile(r"(?P<head>[^\[]*)\[(?P<ranges>[^\]]*)\](?P<tail>.*)")
_BETWEEN_NAMES = re.compile(r",(?![^\[]*\])")
_SHOWN_NODES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SrunLauncher:
    """Slurm's srun, inside an allocation.

    A step of any number of ranks fits: ``--overcommit`` gives the coordinator a place
    beside the tasks that were asked for, ``--overlap`` lets steps share the allocation.
    """

    path: str
    library: str
    """What the MPI library of the ranks says it is."""
    mpi_types: frozenset[str]
    """What this Slurm offers for ``--mpi``; empty: unknown."""
    own_node: str
    """The name that Slurm has for the controller's host."""
    environ: Mapping[str, str]
    """The controller's environment: the allocation, and an MPI type chosen in it."""

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the command.

        ``arbitrary`` places task after task as the list of nodes says. The variables go
        through env(1): ``--export`` would cut a value at its first comma.
        """
        refuse_params(_separated(job.params), _TAKEN)
        given = option_names(job.params)
        command = [self.path, "-n", str(job.world_size), "--distribution=arbitrary"]
        command.append(f"--nodelist={','.join(self._tasks(job))}")
        command += directory_option(job, "--chdir")
        defaults = {
            "mpi": f"--mpi={self._mpi_type(job.params)}",
            "overlap": "--overlap",
            "overcommit": "--overcommit",
            "kill-on-bad-exit": "--kill-on-bad-exit=1",
            "cpu-bind": "--cpu-bind=none",
            "export": "--export=ALL",
        }
        command += [option for name, option in defaults.items() if name not in given]
        own = _exported(job.params)
        variables = [f"{name}={value}" for name, value in job.env.items() if name not in own]
        through = ["/usr/bin/env", *variables] if variables else []
        return [*command, *job.params, *through, *job.program]

    def _tasks(self, job: LaunchJob) -> list[str]:
        """Return the node of each rank."""
        (_, own), *others = job.slots
        nodes = allocated_nodes(self.environ)
        tasks = [self.own_node] * own
        for name, slots in others:
            node = node_of_host(name, nodes)
            if node is None:
                raise OptionError(
                    f"--kv-hosts has {name}, which is no node of the Slurm allocation"
                    f" ({shown_nodes(nodes)}); srun starts ranks on its nodes only, so name those"
                )
            tasks += [node] * slots
        return tasks

    def _mpi_type(self, params: Sequence[str]) -> str:
        """Return the type for ``--mpi``: the user's, the site's, or the one that fits."""
        for where, mpi in (
            ("--kv-mpi-params", _value_of("mpi", params)),
            ("SLURM_MPI_TYPE", self.environ.get("SLURM_MPI_TYPE")),
        ):
            if mpi:
                self._check_type(mpi, where)
                return mpi
        mpi = next((mpi for family, mpi in _TYPES if family.search(self.library)), "none")
        self._check_type(mpi, f"what {self.library!r} needs")
        return mpi

    def _check_type(self, mpi: str, where: str) -> None:
        """Raise ``OptionError`` for a type with which each rank is a world of its own."""
        offered = f"; this Slurm offers {', '.join(sorted(self.mpi_types))}"
        if self.mpi_types and mpi not in self.mpi_types:
            raise OptionError(
                f"srun's --mpi is {mpi} ({where}), which it does not know{offered}: give another"
                f" in --kv-mpi-params, or an mpirun as --kv-mpi-bin"
            )
        if mpi == "none" or (_PMIX_ONLY.search(self.library) and not mpi.startswith("pmix")):
            raise OptionError(
                f"srun's --mpi is {mpi} ({where}), with which every rank of {self.library!r}"
                f" is a world of its own; leave it out, or give one that this library supports"
            )


class SrunReach:
    """Other hosts by steps of the Slurm allocation.

    A step of one task has our pipes: the end of its standard input is the end of ours, and
    Slurm ends it with its srun. ``--overlap`` leaves to the ranks what it runs on.
    """

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        """``path`` is srun's, ``environ`` the controller's, which has the allocation."""
        self._path = path
        self._nodes = allocated_nodes(environ)

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The program there, from a directory that holds no checkout.

        Not ``--unbuffered``: that gives it a terminal. The variables go through env(1), as
        the ranks' do.
        """
        return [
            self._path, "-N1", "-n1", f"--nodelist={node_of_host(host, self._nodes) or host}",
            "--overlap", "--overcommit", "--mpi=none", "--cpu-bind=none", "--export=ALL",
            "--chdir=/", "--quiet",
            "/usr/bin/env", *(f"{name}={value}" for name, value in env.items()), *program,
        ]  # fmt: skip

    def explain(self, host: str, errors: str) -> str | None:
        """What srun itself says; None where the agent's own last words count."""
        messages = _SAYS.findall(errors)
        node = node_of_host(host, self._nodes)
        if not messages:
            return None
        if node is None:
            return (
                f"is no node of the Slurm allocation ({shown_nodes(self._nodes)}), and srun"
                " reaches its nodes only; name one of those, or another way there by --kv-ssh"
            )
        if _NO_ANSWER.search(errors):
            return (
                f"does not answer Slurm ({messages[-1]}); see 'scontrol show node {node}', and"
                " leave"
                " it out or ask for another allocation"
            )
        return (
            f"can't be reached by srun ({messages[-1]}); see to it that 'srun --overlap -N1 -n1"
            f" -w {node} true' works in this allocation, or name another way there by --kv-ssh"
        )


def parse_mpi_types(output: str) -> frozenset[str]:
    """Return what ``srun --mpi=list`` names, versions of PMIx included."""
    _, _, versions = output.partition("versions available:")
    return frozenset(_LISTED.findall(output)) | {
        name.strip() for name in versions.partition("\n")[0].split(",") if name.strip()
    }


def find_own_node(environ: Mapping[str, str], hostname: str) -> str:
    """Return this host's name in Slurm; ``PreflightError`` outside an allocation."""
    if "SLURM_JOB_ID" not in environ:
        raise PreflightError(
            "--kv-mpi-bin is srun, but this is no Slurm allocation (SLURM_JOB_ID is not set);"
            " run pytest inside salloc or sbatch"
        )
    nodes = allocated_nodes(environ)
    short = hostname.partition(".")[0]
    node = _node_of((environ.get("SLURMD_NODENAME", ""), hostname, short), nodes)
    if node is None:
        raise PreflightError(
            f"--kv-mpi-bin is srun, but this host ({hostname}) is no node of the Slurm"
            f" allocation ({shown_nodes(nodes)}), and the ranks need one that is; run pytest on a"
            f" node of it: in sbatch, or by 'srun --pty' inside salloc"
        )
    return node


def allocated_nodes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the nodes of the allocation, from ``SLURM_JOB_NODELIST``."""
    return expand_nodes(environ.get("SLURM_JOB_NODELIST", ""))


def expand_nodes(nodes: str) -> tuple[str, ...]:
    """Return the names in Slurm's notation: ``n[08-10,12],gpu1``."""
    names: list[str] = []
    for part in filter(None, _BETWEEN_NAMES.split(nodes)):
        group = _GROUP.fullmatch(part)
        if group is None:
            names.append(part)
            continue
        tails = expand_nodes(group["tail"]) or ("",)
        for number in _numbers(group["ranges"]):
            names += [f"{group['head']}{number}{tail}" for tail in tails]
    return tuple(names)


def _numbers(ranges: str) -> list[str]:
    numbers: list[str] = []
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        width = len(first)
        numbers += [f"{n:0{width}}" for n in range(int(first), int(last or first) + 1)]
    return numbers


def node_of_host(name: str, nodes: Collection[str]) -> str | None:
    """Return what Slurm calls a host, by its whole name or its first part."""
    return _node_of((name, name.partition(".")[0]), nodes)


def _node_of(names: Collection[str], nodes: Collection[str]) -> str | None:
    return next((name for name in names if name in nodes), None)


def shown_nodes(nodes: Sequence[str]) -> str:
    """Return the first few names, for people."""
    shown = ", ".join(nodes[:_SHOWN_NODES])
    return f"{shown}, …" if len(nodes) > _SHOWN_NODES else shown


def _separated(params: Sequence[str]) -> list[str]:
    """Cut the values off short options: ``-n8`` is ``-n``."""
    return [
        param[:2] if param.startswith("-") and not param.startswith("--") else param
        for param in params
    ]


def _value_of(option: str, params: Sequence[str]) -> str | None:
    """Return the last value given as ``--option=value`` or ``--option value``."""
    values = [
        param.partition("=")[2] or following
        for param, following in pairwise([*params, ""])
        if param.partition("=")[0] == f"--{option}"
    ]
    return values[-1] if values else None


def _exported(params: Sequence[str]) -> frozenset[str]:
    """Return the names of the variables set by ``--export=ALL,NAME=VALUE``."""
    exported = _value_of("export", params) or ""
    return frozenset(item.partition("=")[0] for item in exported.split(",") if "=" in item)


def _recognise(output: str) -> tuple[str, str] | None:
    match = _VERSION.search(output)
    return None if match is None else ("srun", match["version"])


def _make(found: FoundLauncher) -> SrunLauncher:
    return SrunLauncher(
        path=found.path,
        library=found.library,
        mpi_types=parse_mpi_types(found.ask("--mpi=list")),
        own_node=find_own_node(found.environ, found.hostname),
        environ=found.environ,
    )


def _last_words(text: str, ranks: Ranks) -> str | None:
    match = _DIED.search(text)
    if match is None:
        return None
    who = rank_name(int(match["rank"]) - 1, ranks, match["host"])
    if match["code"]:
        return f"{who} ended with exit code {match['code']}"
    return f"{who} ended with {match['how']!r}"


FAMILY = LauncherFamily(
    title="Slurm's srun",
    make=_make,
    recognise=_recognise,
    libraries=(OPEN_MPI, MPICH),
    leaves=Leftovers(parents=frozenset({"slurmstepd"})),  # Slurm's own, which ends with its step
    last_words=_last_words,
    repair="it works only where Slurm is configured, so run pytest inside salloc or sbatch",
    reach=lambda found: SrunReach(found.path, found.environ),
)
"""What is known of srun."""
