"""Directories that a killed launcher or its daemon leaves below the temporary directory."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Open MPI 5: prted.PID, ompi.PID, prterun.PID…; 4: ompi.HOST.UID with pid.PID or jf.N in it.
_NAMES = ("prted.*", "prterun.*", "ompi.*", "ompi.*/pid.*", "ompi.*/jf.*")
_PID = re.compile(r"\.(\d+)\Z")


@dataclass(frozen=True, slots=True)
class SessionDirs:
    """Those of this user that exist at one moment."""

    paths: frozenset[Path]
    directory: Path

    @classmethod
    def now(cls, directory: Path | None = None) -> SessionDirs:
        """Those that are there now."""
        directory = directory or Path(tempfile.gettempdir())
        found = {path for name in _NAMES for path in directory.glob(name)}
        return cls(frozenset(path for path in found if _is_own(path)), directory)

    def remove_new(self) -> None:
        """Remove those that came since and whose process is gone."""
        appeared = SessionDirs.now(self.directory).paths - self.paths
        for path in sorted(appeared, key=lambda path: -len(path.parts)):
            if not _is_alive(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid() and path.is_dir() and not path.is_symlink()
    except FileNotFoundError:
        return False  # it went while we looked


def _is_alive(name: str) -> bool:
    """Whether the process that a directory is named after still runs."""
    match = _PID.search(name)
    return match is not None and Path(f"/proc/{match[1]}").exists()
