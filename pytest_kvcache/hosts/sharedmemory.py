"""Shared-memory files that a killed launch leaves in /dev/shm. Controller side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS

_DIRECTORY = Path("/dev/shm")  # noqa: S108  where Open MPI puts them; nothing is created here


@dataclass(frozen=True, slots=True)
class Segments:
    """The MPI segments of this user that exist at one moment."""

    names: frozenset[str]
    directory: Path
    patterns: tuple[str, ...]

    @classmethod
    def now(
        cls, directory: Path = _DIRECTORY, patterns: tuple[str, ...] = BUILT_IN_LEFTOVERS.segments
    ) -> Segments:
        """The segments that are there now, of launchers that name theirs by these patterns."""
        found = {path.name for pattern in patterns for path in directory.glob(pattern)}
        own = frozenset(name for name in found if _is_own(directory / name))
        return cls(own, directory, patterns)

    def remove_new(self) -> None:
        """Remove those that came since and that no process has mapped any more."""
        appeared = Segments.now(self.directory, self.patterns).names - self.names
        if not appeared:
            return
        mapped = _mapped_files()
        for name in appeared:
            path = self.directory / name
            if str(path) not in mapped:
                path.unlink(missing_ok=True)


def _is_own(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False  # it went while we looked


def _mapped_files() -> set[str]:
    """Every file that a process of this machine has mapped, as far as we may look."""
    files: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended, or it is another user's
        files.update(line.split(maxsplit=5)[5] for line in text.splitlines() if "/" in line)
    return files
