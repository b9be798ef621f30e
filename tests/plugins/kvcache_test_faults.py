"""A file backend that goes wrong when a test says so: ``--kv-plugin kvcache_test_faults``.

The test writes a word into a file that only one host of a test cluster has.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.backends.posix.file import FileBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.backends.protocol import Backend

SWITCH = Path("/tmp/kvcache-test-fault")
SLOW_S = 0.1


class FaultyBackend(FileBackend):
    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        if SWITCH.exists():
            self._go_wrong(SWITCH.read_text())
        super().get_into(key, offset, buffer)

    def _go_wrong(self, how: str) -> None:
        if how == "hang":
            time.sleep(600)
        elif how == "raise":
            raise RuntimeError("a bug in a backend")
        elif how == "exit":
            os._exit(0)
        elif how == "slow":
            time.sleep(SLOW_S)


@pytest_kvcache.hookimpl
def kvcache_backends() -> Mapping[str, Callable[[], Backend]]:
    return {"faulty": FaultyBackend}
