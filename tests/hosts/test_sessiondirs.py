from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pytest_kvcache.hosts.sessiondirs import (
    SessionDirs,
    temporary_directory,
    usable_temporary_directory,
)
from tests.site import runs_as_root

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


def test_the_directory_of_a_dead_process_is_removed_though_nobody_has_reaped_it(
    tmp_path: Path,
) -> None:
    before = SessionDirs.now(tmp_path)
    process = subprocess.Popen(["true"])
    path = make(tmp_path, f"prterun.{process.pid}")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    before.remove_new()
    process.wait()
    assert not path.exists()


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
    monkeypatch.setattr("pytest_kvcache.hosts.sessiondirs.is_running", lambda _names: True)
    before.remove_new()
    assert left.exists()
    monkeypatch.setattr("pytest_kvcache.hosts.sessiondirs.is_running", lambda _names: False)
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


# --- a directory that can be written to ------------------------------------------------------


def test_the_directory_that_the_user_names_is_taken_if_files_can_be_made_there(
    tmp_path: Path,
) -> None:
    assert usable_temporary_directory({"TMPDIR": str(tmp_path)}) == (tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_the_variables_that_open_mpi_reads_counts(tmp_path: Path) -> None:
    environ = {"TMPDIR": "", "TEMP": str(tmp_path), "TMP": "/other"}

    assert temporary_directory(environ) == tmp_path
    assert temporary_directory({}) == Path("/tmp")


def test_another_directory_is_taken_where_the_first_can_not_be_written_to(tmp_path: Path) -> None:
    absent, file = tmp_path / "absent", tmp_path / "file"
    file.touch()
    for first, why in ((absent, "No such file or directory"), (file, "Not a directory")):
        found, refused = usable_temporary_directory({"TMPDIR": str(first)})
        assert found is not None
        assert found.is_dir()
        assert refused[first] == why
    assert not absent.exists()


@pytest.mark.skipif(not runs_as_root(), reason="only root can mount")
def test_a_full_directory_is_not_taken(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no mounts here")
    try:
        found, refused = usable_temporary_directory({"TMPDIR": str(tmp_path)})
        assert found != tmp_path
        assert refused[tmp_path] == "No space left on device"
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
