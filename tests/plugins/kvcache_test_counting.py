"""Files of real ranks that write down every call: ``--kv-plugin kvcache_test_counting``.

A line for each, in ``KVCACHE_TEST_CALLS/<namespace>``: what was done, key, offset, bytes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.backends.posix.file import FileBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.protocol import BackendFactory, BackendFacts, BackendPlan


class CountingBackend(FileBackend):
    """Files, each call of which is told."""

    _calls = Path(os.devnull)
    _lock = threading.Lock()

    def open(self, plan: BackendPlan) -> BackendFacts:
        name = plan.namespace.replace("/", "_")
        self._calls = Path(os.environ["KVCACHE_TEST_CALLS"], name)
        return super().open(plan)

    def _tell(self, what: str, key: str, offset: int, length: int) -> None:
        with self._lock, self._calls.open("a", encoding="ascii") as file:
            file.write(f"{what} {key} {offset} {length}\n")

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        super().put_from(key, offset, buffer)
        self._tell("put", key, offset, len(buffer))

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        super().get_into(key, offset, buffer)
        self._tell("get", key, offset, len(buffer))


@pytest_kvcache.hookimpl
def kvcache_backends() -> Mapping[str, BackendFactory]:
    return {"counting": CountingBackend}
