"""Which launcher is there, of which family, and does the MPI library fit it.

Runs short child processes only; imports neither pytest nor mpi4py: a process that
initialised MPI can't start mpirun any more.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pytest_kvcache.commands import CommandError, run_command
from pytest_kvcache.errors import PreflightError
from pytest_kvcache.launchers.hydra import HydraLauncher
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.pals import PalsLauncher
from pytest_kvcache.launchers.srun import SrunLauncher, find_own_node, parse_mpi_types

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.commands import Run
    from pytest_kvcache.launchers.protocol import Launcher

Flavour: TypeAlias = Literal["openmpi-5", "openmpi-4", "hydra", "intel", "srun", "pals"]

_FIX = "pip install 'pytest-kvcache[mpi]'"
_OPTION = "--kv-mpi-bin"
_VERSION_TIMEOUT_S = 20
# Launchers by what their --version prints.
_OPENMPI = re.compile(r"\((?:Open MPI|OpenRTE)\) (?P<version>(?P<major>\d+)\.\S+)")
_HYDRA = re.compile(r"HYDRA build details:\s+Version:\s+(?P<version>\S+)")
_INTEL = re.compile(r"Intel\(R\) MPI Library\b.*?, Version (?P<version>\S+)")
_SLURM = re.compile(r"\Aslurm\S* (?P<version>\d\S*)")
_PALS = re.compile(r"\Ampi(?:exec|run) version (?P<version>\d\S*)")
_FLAVOURS: tuple[tuple[Flavour, re.Pattern[str]], ...] = (
    ("hydra", _HYDRA), ("intel", _INTEL), ("srun", _SLURM), ("pals", _PALS),
)  # fmt: skip
# Libraries by what MPI_Get_library_version returns.
_LIBRARIES = {
    "Open MPI": re.compile(r"\AOpen MPI\b"),
    "MPICH": re.compile(r"MPICH|MVAPICH|Intel\(R\) MPI Library"),
}
_LIBRARIES_OF_FLAVOUR = {
    "openmpi-5": ("Open MPI",),
    "openmpi-4": ("Open MPI",),
    "hydra": ("MPICH",),
    "intel": ("MPICH",),
    "srun": ("Open MPI", "MPICH"),
    "pals": ("MPICH",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherIdentity:
    """A launcher that was found and recognised."""

    path: str
    flavour: Flavour
    version: str
    mpi_types: frozenset[str] = frozenset()
    """What srun offers for ``--mpi``; empty for others."""


def find_launcher(name: str, *, prefix: str, path: str) -> str:
    """Return the absolute path of the launcher ``name``.

    A name with a slash is a path. A bare name is looked for in ``prefix``'s ``bin`` first
    (the launcher installed beside this interpreter), then along ``path``.
    """
    search = os.pathsep.join([f"{prefix}/bin", path])
    found = shutil.which(name, path=search)  # a name with a slash is not searched for
    if found is None:
        where = "is no program" if "/" in name else f"is neither in {prefix}/bin nor on PATH"
        raise PreflightError(f"{_OPTION} is {name}, which {where}; {_FIX} brings an mpirun")
    return str(Path(found).absolute())


def identify(path: str, *, run: Run = subprocess.run) -> LauncherIdentity:
    """Recognise the launcher at ``path`` by what its ``--version`` prints.

    Raises ``PreflightError`` for one that is unknown or gives no answer.
    """
    output = _answer(path, "--version", run)
    if match := _OPENMPI.search(output):
        return LauncherIdentity(
            path=path, flavour=_openmpi_flavour(path, match), version=match["version"]
        )
    for flavour, pattern in _FLAVOURS:
        if match := pattern.search(output):
            types = _answer(path, "--mpi=list", run) if flavour == "srun" else ""
            return LauncherIdentity(
                path=path,
                flavour=flavour,
                version=match["version"],
                mpi_types=parse_mpi_types(types),
            )
    raise PreflightError(
        f"{_OPTION} is {path}, whose --version says {_first_line(output)!r}; it must be an"
        f" mpirun of Open MPI 4 or 5 or of MPICH ({_FIX} brings one), Intel MPI's"
        f" mpiexec.hydra, Slurm's srun or the mpiexec of HPE Cray PALS"
    )


def launcher_for(identity: LauncherIdentity, environ: Mapping[str, str], library: str) -> Launcher:
    """Return the builder of this launcher's commands for ranks with this MPI library.

    ``environ`` is the controller's. Raises ``PreflightError`` for srun outside an
    allocation.
    """
    path, flavour = identity.path, identity.flavour
    if flavour == "srun":
        return SrunLauncher(
            path=path,
            library=library,
            mpi_types=identity.mpi_types,
            own_node=find_own_node(environ, socket.gethostname()),
            environ=environ,
        )
    if flavour == "pals":
        return PalsLauncher(path=path)
    if flavour == "openmpi-5" or flavour == "openmpi-4":  # noqa: PLR1714 - narrows the type
        return OpenMPILauncher(path=path, flavour=flavour, environ=environ)
    return HydraLauncher(path=path, flavour=flavour, environ=environ)


def check_library(identity: LauncherIdentity, library: str) -> None:
    """Raise ``PreflightError`` where launcher and library are of different families.

    Such a pair may start every rank as a world of its own, of size 1, and exit 0.
    """
    needed = _LIBRARIES_OF_FLAVOUR[identity.flavour]
    if not any(_LIBRARIES[family].search(library) for family in needed):
        raise PreflightError(
            f"{identity.path} is {identity.flavour} {identity.version}, but mpi4py loads"
            f" {library!r}; both must be {' or '.join(needed)}, so give the other mpirun to"
            f" {_OPTION} or install the mpi4py that belongs to this one"
        )


def _openmpi_flavour(path: str, match: re.Match[str]) -> Flavour:
    if match["major"] == "5":
        return "openmpi-5"
    if match["major"] == "4":
        return "openmpi-4"
    raise PreflightError(
        f"{_OPTION} is {path}, which is Open MPI {match['version']}; it must be 4 or 5"
        f" ({_FIX} brings 5)"
    )


def _answer(path: str, question: str, run: Run) -> str:
    """What the launcher prints when called with one option."""
    try:
        child = run_command([path, question], timeout_s=_VERSION_TIMEOUT_S, run=run)
    except CommandError as error:
        raise PreflightError(f"{_OPTION} is {path}, but {error}; {_repair(path)}") from error
    output = f"{child.stdout}\n{child.stderr}".strip()
    if child.returncode:
        raise PreflightError(
            f"{_OPTION} is {path}, whose {question} failed with exit code {child.returncode} and"
            f" {_first_line(output)!r}; {_repair(path)}"
        )
    return output


def _repair(path: str) -> str:
    if Path(path).name == "srun":
        return "it works only where Slurm is configured, so run pytest inside salloc or sbatch"
    return "it must be a launcher that works here"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
