"""Which launcher is there, of which family, and does the MPI library fit it.

Runs short child processes only; imports neither pytest nor mpi4py: a process that
initialised MPI can't start mpirun any more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pytest_kvcache.errors import PreflightError, UnavailableError
from pytest_kvcache.launchers.hydra import HydraLauncher
from pytest_kvcache.launchers.openmpi import OpenMPILauncher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.launchers.protocol import Launcher

Flavour: TypeAlias = Literal["openmpi-5", "openmpi-4", "hydra"]

_FIX = "pip install 'pytest-kvcache[mpi]'"
_OPTION = "--kv-mpi-bin"
_VERSION_TIMEOUT_S = 20
# Launchers by what their --version prints.
_OPENMPI = re.compile(r"\((?:Open MPI|OpenRTE)\) (?P<version>(?P<major>\d+)\.\S+)")
_HYDRA = re.compile(r"HYDRA build details:\s+Version:\s+(?P<version>\S+)")
_INTEL = re.compile(r"Intel\(R\) MPI Library")
_SLURM = re.compile(r"\Aslurm\S* \d")
# Libraries by what MPI_Get_library_version returns.
_LIBRARIES = {
    "Open MPI": re.compile(r"\AOpen MPI\b"),
    "MPICH": re.compile(r"MPICH|MVAPICH|Intel\(R\) MPI Library"),
}
_LIBRARY_OF_FLAVOUR = {"openmpi-5": "Open MPI", "openmpi-4": "Open MPI", "hydra": "MPICH"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherIdentity:
    """A launcher that was found and recognised."""

    path: str
    flavour: Flavour
    version: str


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


def identify(
    path: str, *, run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
) -> LauncherIdentity:
    """Recognise the launcher at ``path`` by what its ``--version`` prints.

    Raises ``UnavailableError`` for a launcher that is known but not supported yet,
    ``PreflightError`` for one that is unknown or gives no answer.
    """
    _refuse_unavailable(path, "")  # srun answers only where Slurm is configured
    output = _version_output(path, run)
    _refuse_unavailable(path, output)
    if match := _OPENMPI.search(output):
        return LauncherIdentity(
            path=path, flavour=_openmpi_flavour(path, match), version=match["version"]
        )
    if match := _HYDRA.search(output):
        return LauncherIdentity(path=path, flavour="hydra", version=match["version"])
    raise PreflightError(
        f"{_OPTION} is {path}, whose --version says {_first_line(output)!r}; it must be an"
        f" mpirun of Open MPI 4 or 5 or of MPICH ({_FIX} brings one)"
    )


def launcher_for(identity: LauncherIdentity, environ: Mapping[str, str]) -> Launcher:
    """Return the builder of this launcher's commands; ``environ`` is the controller's."""
    if identity.flavour == "hydra":
        return HydraLauncher(path=identity.path)
    return OpenMPILauncher(path=identity.path, flavour=identity.flavour, environ=environ)


def check_library(identity: LauncherIdentity, library: str) -> None:
    """Raise ``PreflightError`` where launcher and library are of different families.

    Such a pair may start every rank as a world of its own, of size 1, and exit 0.
    """
    needed = _LIBRARY_OF_FLAVOUR[identity.flavour]
    if not _LIBRARIES[needed].search(library):
        raise PreflightError(
            f"{identity.path} is {identity.flavour} {identity.version}, but mpi4py loads"
            f" {library!r}; both must be {needed}, so give the other mpirun to {_OPTION} or"
            f" install the mpi4py that belongs to this one"
        )


def _refuse_unavailable(path: str, output: str) -> None:
    if Path(path).name == "srun" or _SLURM.search(output):
        name = "Slurm's srun"
    elif "PALS" in output or "pals" in Path(path).resolve().parts:
        name = "HPE Cray PALS"
    elif _INTEL.search(output):
        name = "Intel MPI"
    else:
        return
    raise UnavailableError(
        _OPTION, f"{path} ({name})", "give the mpirun of Open MPI 4 or 5 or of MPICH"
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


def _version_output(path: str, run: Callable[..., subprocess.CompletedProcess[str]]) -> str:
    try:
        child = run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PreflightError(
            f"{_OPTION} is {path}, whose --version gave no answer in {_VERSION_TIMEOUT_S} s; it"
            f" must be a launcher that works here"
        ) from error
    except OSError as error:
        raise PreflightError(f"{_OPTION} is {path}, which can't be started: {error}") from error
    output = f"{child.stdout}\n{child.stderr}".strip()
    if child.returncode:
        raise PreflightError(
            f"{_OPTION} is {path}, whose --version failed with exit code {child.returncode} and"
            f" {_first_line(output)!r}; it must be a launcher that works here"
        )
    return output


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
