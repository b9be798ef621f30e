from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import PreflightError, StorageError
from pytest_kvcache.system.dropcaches import check_may_drop, drop_caches

if TYPE_CHECKING:
    from pathlib import Path


def test_all_that_is_clean_is_dropped_when_the_filesystem_was_written_out(tmp_path: Path) -> None:
    told = tmp_path / "drop_caches"
    told.touch()
    check_may_drop(str(told))
    drop_caches(str(tmp_path), str(told))
    assert told.read_text() == "3"  # with a 2 the device's pages would hold ext4's directories


def test_who_may_not_drop_them_is_told_what_to_do(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "drop_caches"
    said = rf"--kv-drop-caches is given, and {absent} can't be written \(.*\); run as root"
    with pytest.raises(PreflightError, match=said):
        check_may_drop(str(absent))
    with pytest.raises(StorageError, match=said):
        drop_caches(str(tmp_path), str(absent))


def test_a_filesystem_that_is_not_there_can_not_be_written_out(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"can't sync the filesystem of {tmp_path}/absent: No"):
        drop_caches(f"{tmp_path}/absent", os.devnull)
