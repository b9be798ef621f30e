from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.freespace import FreeSpace
from tests.factories import PATIENCE_S, wait_for

if TYPE_CHECKING:
    from pathlib import Path


def test_free_space_is_what_users_may_still_write(tmp_path: Path) -> None:
    answer = os.statvfs_result((4096, 512, 1000, 900, 800, 10, 9, 8, 0, 255))
    space = FreeSpace(str(tmp_path), ask=lambda _path: answer)
    wait_for(lambda: space.available_bytes == 800 * 512)
    space.close()


def test_a_filesystem_that_hangs_keeps_nobody_and_is_not_known() -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(path: str) -> os.statvfs_result:
        asked.set()
        release.wait(PATIENCE_S)
        return os.statvfs(path)

    space = FreeSpace("/", ask=hang)
    assert asked.wait(PATIENCE_S)
    assert space.available_bytes is None
    space.close()
    release.set()


def test_an_old_answer_is_none() -> None:
    now_s = 0.0
    space = FreeSpace("/", clock=lambda: now_s)
    wait_for(lambda: space.available_bytes is not None)
    space.close()
    now_s = 60.0
    assert space.available_bytes is None


def test_a_directory_that_is_gone_is_not_known(tmp_path: Path) -> None:
    asked = threading.Event()

    def ask(path: str) -> os.statvfs_result:
        asked.set()
        return os.statvfs(path)

    space = FreeSpace(str(tmp_path / "gone"), ask=ask)
    assert asked.wait(PATIENCE_S)
    assert space.available_bytes is None
    space.close()
