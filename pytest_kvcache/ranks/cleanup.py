"""Cleans up on a host after ranks that could not do it themselves.

A rank that is killed has no time to delete its data, and the controller may be dead or
cut off. So the first rank of a host starts a cleanup helper before it stores anything: a
process of its own session, asleep in a shell until the rank stops it or is gone.
Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.cachedir import MARKER_NAME, remove_run_dir, run_dir
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_STOP = b"stop\n"
_PATIENCE_S = 60.0  # other ranks of the host may still be writing while they are killed
_RETRY_S = 0.5
# Sleeps in `read`, which ends without a line when the last holder of the pipe is gone.
_SCRIPT = 'read -r line && exit 0; exec "$@"'
# By these the supervisor and the launcher find what belongs to a launch.
_LAUNCH_VARIABLES = ("PYTEST_KVCACHE_", "OMPI_", "PMIX_", "PRTE_", "PMI_")


class CleanupHelper:
    """A rank's handle on the process that cleans up after it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, cache_dir: str, run_id: str, environ: Mapping[str, str]) -> CleanupHelper:
        """Start a helper for the run's directory as it is now, marker and all."""
        command = [
            "/bin/sh", "-c", _SCRIPT, "kvcache-cleanup",
            sys.executable, "-m", "pytest_kvcache.ranks.cleanup",
            cache_dir, run_id, str(_marker_inode(cache_dir, run_id)),
        ]  # fmt: skip
        kept = {k: v for k, v in environ.items() if not k.startswith(_LAUNCH_VARIABLES)}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd="/",
            start_new_session=True,
        )
        return cls(process)

    def stop(self) -> None:
        """Stop the helper: everything has been cleaned up."""
        self._process.communicate(_STOP)


def _marker_inode(cache_dir: str, run_id: str) -> int:
    return os.stat(run_dir(cache_dir, run_id) / MARKER_NAME).st_ino  # noqa: PTH116


def main(cache_dir: str, run_id: str, marker_inode: int) -> int:
    """Remove the run's directory, unless it is gone or another launch has made a new one."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            if _marker_inode(cache_dir, run_id) != marker_inode:
                return 0
            remove_run_dir(cache_dir, run_id)
        except FileNotFoundError:
            return 0
        except StorageError:
            pass  # a rank that is dying has just written something more
        time.sleep(_RETRY_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
