from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.sessiondirs import SessionDirs
from tests.site import runs_as_root

if TYPE_CHECKING:
    from pathlib import Path

GONE = 99_999_999  # above the kernel's largest pid
NAMES = [f"prted.{GONE}", f"prterun.n1.{GONE}", f"ompi.{GONE}", "ompi.n1.1000"]


def make(directory: Path, name: str) -> Path:
    path = directory / name
    (path / "contact").mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", [n for n in NAMES if n != "ompi.n1.1000"])
def test_a_directory_that_a_launch_left_is_removed(tmp_path: Path, name: str) -> None:
    before = SessionDirs.now(tmp_path)
    path = make(tmp_path, name)
    before.remove_new()
    assert not path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_was_there_before_is_kept(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    SessionDirs.now(tmp_path).remove_new()
    assert path.exists()


@pytest.mark.parametrize("below", [f"pid.{GONE}", f"jf.{GONE}"])
def test_open_mpi_4s_directories_are_removed_from_that_of_all_its_jobs(
    tmp_path: Path, below: str
) -> None:
    shared = make(tmp_path, "ompi.n1.1000")
    before = SessionDirs.now(tmp_path)
    path = make(shared, below)
    before.remove_new()
    assert not path.exists()
    assert shared.exists()


def test_the_directory_of_a_process_that_runs_is_kept(tmp_path: Path) -> None:
    before = SessionDirs.now(tmp_path)
    path = make(tmp_path, f"prted.{os.getpid()}")
    before.remove_new()
    assert path.exists()


@pytest.mark.parametrize("name", [f"prte.{GONE}", f"other.{GONE}", f"my-prted.{GONE}"])
def test_a_directory_of_another_name_is_kept(tmp_path: Path, name: str) -> None:
    before = SessionDirs.now(tmp_path)
    path = make(tmp_path, name)
    before.remove_new()
    assert path.exists()


def test_neither_files_nor_links_are_removed(tmp_path: Path) -> None:
    before = SessionDirs.now(tmp_path)
    target = make(tmp_path, "precious")
    (tmp_path / NAMES[0]).symlink_to(target)
    (tmp_path / NAMES[1]).touch()
    before.remove_new()
    assert (target / "contact").exists()
    assert (tmp_path / NAMES[0]).is_symlink()
    assert (tmp_path / NAMES[1]).exists()


def test_files_of_hydra_are_removed_once_no_hydra_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SessionDirs.now(tmp_path)
    left = tmp_path / "hydra_hwloc_xmlfile_A1b2C3"
    left.touch()
    monkeypatch.setattr("pytest_kvcache.sessiondirs.is_running", lambda _names: True)
    before.remove_new()
    assert left.exists()
    monkeypatch.setattr("pytest_kvcache.sessiondirs.is_running", lambda _names: False)
    before.remove_new()
    assert not left.exists()


def test_a_directory_of_another_user_is_kept(tmp_path: Path) -> None:
    if not runs_as_root():
        pytest.skip("only root can give a directory away")
    before = SessionDirs.now(tmp_path)
    path = make(tmp_path, NAMES[0])
    os.chown(path, 65534, 65534)
    before.remove_new()
    assert path.exists()
