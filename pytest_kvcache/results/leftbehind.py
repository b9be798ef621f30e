"""What the trials of a run left behind, beside its run file. Reads files; imports no pytest.

Controller side. ``verify`` and ``--kv-compare`` hold a run file against it.
"""

from __future__ import annotations

from pathlib import Path

from pytest_kvcache.results.record import SOURCES


class LeftBehind:
    """The directory of a run file: what lies there of trials, by its path from there."""

    def __init__(self, run_file: Path) -> None:
        self._directory = run_file.parent

    def names(self) -> list[str]:
        """Every file a trial is made of: ``CASE/trial-N/FILE``."""
        return sorted(
            path.relative_to(self._directory).as_posix()
            for name in SOURCES
            for path in self._directory.glob(f"*/trial-*/{name}")
        )

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it is not there."""
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            return None
        try:
            return (self._directory / inside).read_bytes()
        except OSError:
            return None
