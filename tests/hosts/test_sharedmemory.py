from __future__ import annotations

import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.sharedmemory import Segments
from tests.site import runs_as_root

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["sm_segment.n1.0.1", "vader_segment.n1.0.1", "mpich_shm_1", "mpich_shar_tmp1"]
HOLDER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("held", flush=True)
sys.stdin.read()
"""


def make(directory: Path, name: str) -> Path:
    path = directory / name
    path.write_bytes(bytes(mmap.PAGESIZE))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_segment_that_came_during_a_launch_is_removed(tmp_path: Path, name: str) -> None:
    before = Segments.now(tmp_path)
    path = make(tmp_path, name)
    before.remove_new()
    assert not path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_segment_that_was_there_before_is_kept(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    Segments.now(tmp_path).remove_new()
    assert path.exists()


@pytest.mark.parametrize("name", ["pytest-kvcache.n1.lock", "sem.x", "my_sm_segment.1"])
def test_a_file_of_another_name_is_kept(tmp_path: Path, name: str) -> None:
    before = Segments.now(tmp_path)
    path = make(tmp_path, name)
    before.remove_new()
    assert path.exists()


def test_a_segment_that_a_process_has_mapped_is_kept(tmp_path: Path) -> None:
    before = Segments.now(tmp_path)
    path = make(tmp_path, NAMES[0])
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before.remove_new()
        assert path.exists()
        holder.kill()
    before.remove_new()
    assert not path.exists()


def test_a_segment_of_another_user_is_kept(tmp_path: Path) -> None:
    if not runs_as_root():
        pytest.skip("only root can give a file away")
    before = Segments.now(tmp_path)
    path = make(tmp_path, NAMES[0])
    os.chown(path, 65534, 65534)
    before.remove_new()
    assert path.exists()


def test_a_name_that_leads_nowhere_does_not_end_the_launch(tmp_path: Path) -> None:
    # So does a segment that another job removes between the listing and the look at it.
    (tmp_path / NAMES[0]).symlink_to(tmp_path / "gone")
    assert Segments.now(tmp_path).names <= {NAMES[0]}


def test_a_link_with_the_name_of_a_segment_is_not_followed(tmp_path: Path) -> None:
    before = Segments.now(tmp_path)
    target = make(tmp_path, "precious")
    (tmp_path / NAMES[0]).symlink_to(target)
    before.remove_new()
    assert target.exists()


def test_a_directory_that_is_not_there_has_no_segments(tmp_path: Path) -> None:
    assert Segments.now(tmp_path / "absent").names == frozenset()
