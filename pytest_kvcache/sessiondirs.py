"""What a killed launcher or its daemon leaves below the temporary directory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.processes import is_running

# Open MPI 5: prted.PID, ompi.PID, prterun.PID…; 4: ompi.HOST.UID with pid.PID or jf.N in it.
_DIRECTORIES = ("prted.*", "prterun.*", "ompi.*", "ompi.*/pid.*", "ompi.*/jf.*")
_PID = re.compile(r"\.(\d+)\Z")
# MPICH's, which carry no pid; they may belong to another launch as long as one runs.
_FILES = ("hydra_hwloc_xmlfile_*",)
_HYDRA = ("hydra_pmi_proxy", "mpiexec", "mpiexec.hydra", "mpirun")


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
            if path.is_dir() and not _is_alive(path.name):
                shutil.rmtree(path, ignore_errors=True)
            elif _is_file(path) and not is_running(_HYDRA):
                path.unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    return path.is_file() and any(path.match(name) for name in _FILES)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid() and not path.is_symlink()
    except FileNotFoundError:
        return False  # it went while we looked


def _is_alive(name: str) -> bool:
    """Whether the process that a directory is named after still runs."""
    match = _PID.search(name)
    return match is not None and Path(f"/proc/{match[1]}").exists()
