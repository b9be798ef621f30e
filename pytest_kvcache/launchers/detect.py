"""Which launcher is there, of which family, and does the MPI library fit it.

Runs short child processes only; imports neither pytest nor mpi4py: a process that
initialised MPI can't start mpirun any more. It knows no family by name.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.commands import CommandError, run_command
from pytest_kvcache.errors import PreflightError
from pytest_kvcache.launchers.family import (
    REPAIR,
    FoundLauncher,
    LauncherFamily,
    dotted,
    version_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.commands import Run

_FIX = "pip install 'pytest-kvcache[mpi]'"
_OPTION = "--kv-mpi-bin"
_VERSION_TIMEOUT_S = 20


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
    path: str,
    families: Mapping[str, LauncherFamily],
    *,
    library: str,
    environ: Mapping[str, str],
    run: Run = subprocess.run,
) -> tuple[str, FoundLauncher]:
    """The name of the launcher's family, by what its ``--version`` prints, and what it is.

    ``library`` is that of the ranks, ``environ`` the controller's. Raises ``PreflightError``
    for a launcher that is unknown, gives no answer, or has a version that does not serve.
    """
    called = families.get(Path(path).name)
    repair = REPAIR if called is None else called.repair
    output = _answer(path, "--version", repair, run)
    for name, family in families.items():
        recognised = family.recognise(output)
        if recognised is not None:
            flavour, version = recognised
            _check_version(path, family, flavour, version)
            return name, found_launcher(
                path, flavour, version, library=library, environ=environ, repair=family.repair,
                run=run,
            )  # fmt: skip
    known = "; ".join(family.title for family in families.values() if family.is_program)
    raise PreflightError(
        f"{_OPTION} is {path}, whose --version says {_first_line(output)!r}; it must be one of:"
        f" {known} ({_FIX} brings an mpirun)"
    )


def found_launcher(
    path: str,
    flavour: str,
    version: str | None,
    *,
    library: str,
    environ: Mapping[str, str],
    repair: str = "",
    run: Run = subprocess.run,
) -> FoundLauncher:
    """A launcher with what its commands may depend on."""
    return FoundLauncher(
        path=path,
        flavour=flavour,
        version=version,
        library=library,
        environ=environ,
        hostname=socket.gethostname(),
        ask=partial(_answer, path, repair=repair, run=run),
    )


def _check_version(path: str, family: LauncherFamily, flavour: str, version: str) -> None:
    """Raise ``PreflightError`` for a version that is too old, or too new to be known."""
    numbers = version_numbers(version)
    if (not family.minimum or numbers >= family.minimum) and (
        not family.below or numbers < family.below
    ):
        return
    limits = [f"at least {dotted(family.minimum)}"] if family.minimum else []
    limits += [f"below {dotted(family.below)}"] if family.below else []
    raise PreflightError(
        f"{_OPTION} is {path}, which is {flavour} {version}; its version must be"
        f" {' and '.join(limits)} ({_FIX} brings an mpirun that serves)"
    )


def check_library(found: FoundLauncher, family: LauncherFamily) -> None:
    """Raise ``PreflightError`` where launcher and library are of different families.

    Such a pair may start every rank as a world of its own, of size 1, and exit 0.
    """
    needed = family.libraries
    if needed and not any(library.pattern.search(found.library) for library in needed):
        who = found.flavour if found.version is None else f"{found.flavour} {found.version}"
        raise PreflightError(
            f"{found.path} is {who}, but mpi4py loads {found.library!r}; both must be"
            f" {' or '.join(library.name for library in needed)}, so give the other mpirun to"
            f" {_OPTION} or install the mpi4py that belongs to this one"
        )


def _answer(path: str, question: str, repair: str, run: Run) -> str:
    """What the launcher prints when called with one option."""
    try:
        child = run_command([path, question], timeout_s=_VERSION_TIMEOUT_S, run=run)
    except CommandError as error:
        raise PreflightError(f"{_OPTION} is {path}, but {error}; {repair}") from error
    output = f"{child.stdout}\n{child.stderr}".strip()
    if child.returncode:
        raise PreflightError(
            f"{_OPTION} is {path}, whose {question} failed with exit code {child.returncode} and"
            f" {_first_line(output)!r}; {repair}"
        )
    return output


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
