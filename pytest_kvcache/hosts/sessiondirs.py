"""The launcher's temporary directory: one that it can use, and what a killed launcher leaves."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.hosts.processes import is_running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Open MPI 5's are named after their process, and so are Open MPI 4's in a directory of its
# own per user (ompi.HOST.UID), which other jobs of the user share.
_DIRECTORIES = ("prted.*", "prterun.*", "ompi.*", "ompi.*/pid.*", "ompi.*/jf.*")
_OF_PROCESS = re.compile(r"(?:(?:prted|prterun)\.(?:.*\.)?|ompi\.|pid\.)(?P<pid>\d+)")
# Those that carry no pid may belong to another launch as long as one runs.
_FILES = ("hydra_hwloc_xmlfile_*",)
_OF_JOB = re.compile(r"jf\.\d+")
_ORTE = ("orted", "orterun", "mpirun", "mpirun.openmpi", "mpiexec")
_HYDRA = ("hydra_pmi_proxy", "mpiexec", "mpiexec.hydra", "mpirun")


# Where Open MPI and Python look, in this order, and where they then go.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_USUAL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - tried in this order
_PROBE_BYTES = 1 << 20  # what Open MPI needs there is less for some hundred ranks


def temporary_directory(environ: Mapping[str, str]) -> Path:
    """Return where a launcher with this environment makes its session directory."""
    given = next((environ[name] for name in _VARIABLES if environ.get(name)), None)
    return Path(given or _USUAL[0])


def usable_temporary_directory(
    environ: Mapping[str, str], others: Sequence[Path] = ()
) -> tuple[Path | None, dict[Path, str]]:
    """Return the first directory in which a launcher can make files, found by making some.

    That of ``environ`` first, ``others`` last. With it come those that were tried in
    vain, and why. None: nothing can be written anywhere.
    """
    refused: dict[Path, str] = {}
    usual = [*map(Path, _USUAL), Path(f"/run/user/{os.getuid()}")]
    for path in dict.fromkeys((temporary_directory(environ), *usual, *others)):
        problem = write_problem(path)
        if problem is None:
            return path, refused
        refused[path] = problem
    return None, refused


def write_problem(path: Path) -> str | None:
    """Why nothing can be written there; None: something was."""
    try:
        with tempfile.TemporaryDirectory(prefix="kvcache-probe-", dir=path) as probe:
            Path(probe, "file").write_bytes(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.strerror or str(error)
    return None


@dataclass(frozen=True, slots=True)
class SessionDirs:
    """The directories and files of this user that exist at one moment."""

    paths: frozenset[Path]
    directory: Path

    @classmethod
    def now(cls, directory: Path | None = None) -> SessionDirs:
        """Those that are there now."""
        directory = directory or Path(tempfile.gettempdir())
        found = {path for name in (*_DIRECTORIES, *_FILES) for path in directory.glob(name)}
        return cls(frozenset(path for path in found if _is_own(path)), directory)

    def remove_new(self) -> None:
        """Remove those that came since and whose process is gone."""
        appeared = SessionDirs.now(self.directory).paths - self.paths
        for path in sorted(appeared, key=lambda path: -len(path.parts)):
            if path.is_dir():
                _remove_directory(path)
            elif _is_file(path) and not is_running(_HYDRA):
                path.unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    return path.is_file() and any(path.match(name) for name in _FILES)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid() and not path.is_symlink()
    except FileNotFoundError:
        return False  # it went while we looked


def _remove_directory(path: Path) -> None:
    """Remove what was one process's or job's; what several share goes once it is empty."""
    if match := _OF_PROCESS.fullmatch(path.name):
        if not Path(f"/proc/{match['pid']}").exists():
            shutil.rmtree(path, ignore_errors=True)
    elif _OF_JOB.fullmatch(path.name):
        if not is_running(_ORTE):
            shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # not empty
            path.rmdir()
