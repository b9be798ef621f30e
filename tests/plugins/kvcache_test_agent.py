"""The agent of a host that does not exist: on this machine, under a name of its own.

Started by path in place of ``python -m pytest_kvcache.hosts.agent``; what makes it another
host comes from the environment (tests/neighbours.py). Its lock, its launcher's
directories and its shared memory are in a directory of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.hosts import agent as hostagent
from pytest_kvcache.hosts.lock import DIRECTORY_VARIABLE
from pytest_kvcache.hosts.sharedmemory import Segments

if TYPE_CHECKING:
    from types import FrameType


def lose_patience(_signal: int, _frame: FrameType | None) -> None:
    """From the next line on, wait for others for a moment only."""
    vars(hostagent)["SILENCE_S"] = 0.05


def main() -> None:
    """Become that host, and serve."""
    home = Path(os.environ["KVCACHE_TEST_HOME"])
    name = os.environ["KVCACHE_TEST_HOST"]
    socket.gethostname = lambda: name
    sys.executable = os.environ["KVCACHE_TEST_PYTHON"]  # is asked for its MPI library
    tempfile.tempdir = str(home)
    os.environ[DIRECTORY_VARIABLE] = str(home)
    now: Any = Segments.now
    now.__func__.__defaults__ = (home, *now.__func__.__defaults__[1:])  # a classmethod's
    vars(hostagent)["SILENCE_S"] = 1000.0
    signal.signal(signal.SIGUSR1, lose_patience)
    hostagent.main()


if __name__ == "__main__":
    main()
