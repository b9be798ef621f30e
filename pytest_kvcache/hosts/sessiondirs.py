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

from pytest_kvcache.hosts.processes import is_alive, is_running
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.launchers.family import Leftover

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
    kinds: tuple[Leftover, ...]

    @classmethod
    def now(
        cls, directory: Path | None = None, kinds: tuple[Leftover, ...] = BUILT_IN_LEFTOVERS.files
    ) -> SessionDirs:
        """The directories that are there now, of launchers that leave these kinds."""
        directory = directory or Path(tempfile.gettempdir())
        found = {path for kind in kinds for path in directory.glob(kind.glob)}
        return cls(frozenset(path for path in found if _is_own(path)), directory, kinds)

    def remove_new(self) -> None:
        """Remove those that came since and whose process is gone."""
        for kind in sorted(self.kinds, key=lambda kind: -len(Path(kind.glob).parts)):
            for path in self.directory.glob(kind.glob):
                if path not in self.paths and _is_own(path):
                    _remove(path, kind)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid() and not path.is_symlink()
    except FileNotFoundError:
        return False  # it went while we looked


def _remove(path: Path, kind: Leftover) -> None:
    """Remove what was one process's or job's; what several share goes once it is empty."""
    if path.is_file() != kind.is_file:
        return
    match = None if kind.pid is None else re.fullmatch(kind.pid, path.name)
    if match is not None:
        gone = not is_alive(int(match["pid"]))
    elif kind.unless_running:
        gone = not is_running(kind.unless_running)
    else:
        with suppress(OSError):  # not empty, or no directory
            path.rmdir()
        return
    if gone and kind.is_file:
        path.unlink(missing_ok=True)
    elif gone:
        shutil.rmtree(path, ignore_errors=True)
