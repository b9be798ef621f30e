from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.posix import cachedir
from pytest_kvcache.backends.posix.cachedir import (
    MARKER_NAME,
    SYSTEM_DIRECTORIES,
    claim_rank_dir,
    remove_rank_dir,
    remove_run_dir,
    run_dir,
    validate_cache_dir,
)
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.errors import OptionError, StorageError
from tests.storage import make_plan

RUN = "20260101-120000-ab12"


def claim(cache_dir: Path, rank: int = 0, run_id: str = RUN) -> Path:
    return Path(claim_rank_dir(str(cache_dir), run_id, rank, "n1"))


def everything_below(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}


# --- a run's own directories --------------------------------------------------------------


def test_a_claim_makes_the_run_directory_with_its_marker_and_the_rank_directory(
    tmp_path: Path,
) -> None:
    own = claim(tmp_path, 3)
    assert own == tmp_path / f"kvcache-{RUN}" / "rank-3"
    assert everything_below(tmp_path) == {
        own.parent.name, f"{own.parent.name}/{MARKER_NAME}", f"{own.parent.name}/rank-3",
    }  # fmt: skip
    marker = json.loads((own.parent / MARKER_NAME).read_text())
    assert (marker["run_id"], marker["host"]) == (RUN, "n1")
    assert marker["created"].endswith("+00:00")


def test_only_the_owner_can_look_inside(tmp_path: Path) -> None:
    own = claim(tmp_path)
    for path in (own, own.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_ranks_that_claim_at_once_all_succeed(tmp_path: Path) -> None:
    for attempt in range(20):
        run_id = f"run{attempt}"
        with ThreadPoolExecutor(16) as threads:
            paths = list(threads.map(lambda rank, r=run_id: claim(tmp_path, rank, r), range(16)))
        assert all(path.is_dir() for path in paths)
        assert len({path.parent for path in paths}) == 1
        assert len(list(paths[0].parent.iterdir())) == 17
    assert not list(tmp_path.glob(".*"))


def test_a_rank_that_loses_the_race_uses_the_winners_directory(tmp_path: Path) -> None:
    winner = claim(tmp_path, 0)
    cachedir._create_run_dir(winner.parent, RUN, "n2")  # as a rank that saw nothing there
    assert json.loads((winner.parent / MARKER_NAME).read_text())["host"] == "n1"
    assert [path.name for path in tmp_path.iterdir()] == [winner.parent.name]


def test_a_claim_empties_what_an_earlier_trial_left(tmp_path: Path) -> None:
    own, other = claim(tmp_path, 0), claim(tmp_path, 1)
    for path in (own, other):
        (path / "ab").mkdir()
        (path / "ab" / "object").write_bytes(b"old")
    assert claim(tmp_path, 0) == own
    assert not list(own.iterdir())
    assert (other / "ab" / "object").exists()


@pytest.mark.parametrize("marker", [None, "", "[]", "{}", '{"run_id": "other"}'])
def test_a_directory_without_our_marker_is_left_alone(tmp_path: Path, marker: str | None) -> None:
    directory = run_dir(str(tmp_path), RUN)
    (directory / "rank-0").mkdir(parents=True)
    (directory / "rank-0" / "precious").write_text("mine")
    if marker is not None:
        (directory / MARKER_NAME).write_text(marker)
    before = everything_below(tmp_path)
    for attempt in (
        lambda: claim(tmp_path, 0),
        lambda: remove_rank_dir(str(tmp_path), RUN, 0, "n1"),
        lambda: remove_run_dir(str(tmp_path), RUN, "n1"),
    ):
        with pytest.raises(StorageError, match=f"n1: {directory} (has no|belongs to)"):
            attempt()
    assert everything_below(tmp_path) == before


def test_a_symbolic_link_in_place_of_the_run_directory_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    claimed = claim(target)
    (claimed / "precious").write_text("mine")
    cache_dir = tmp_path / "cache"
    cache_dir.mkdir()
    run_dir(str(cache_dir), RUN).symlink_to(claimed.parent)
    for attempt in (
        lambda: claim(cache_dir, 0),
        lambda: remove_rank_dir(str(cache_dir), RUN, 0),
        lambda: remove_run_dir(str(cache_dir), RUN),
    ):
        with pytest.raises(StorageError, match="is no directory of its own"):
            attempt()
    assert (claimed / "precious").exists()


def test_a_marker_that_is_a_symbolic_link_does_not_count(tmp_path: Path) -> None:
    real = claim(tmp_path).parent / MARKER_NAME
    fake_cache = tmp_path / "fake"
    directory = run_dir(str(fake_cache), RUN)
    directory.mkdir(parents=True)
    (directory / MARKER_NAME).symlink_to(real)
    with pytest.raises(StorageError, match="no readable marker"):
        remove_run_dir(str(fake_cache), RUN)


def test_a_symbolic_link_in_place_of_a_rank_directory_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    own = claim(tmp_path, 0)
    own.rmdir()
    own.symlink_to(precious)
    with pytest.raises(StorageError, match="can't prepare"):
        claim(tmp_path, 0)
    with pytest.raises(StorageError, match="can't remove"):
        remove_rank_dir(str(tmp_path), RUN, 0)
    with pytest.raises(StorageError, match="holds rank-0, which is not this benchmark's"):
        remove_run_dir(str(tmp_path), RUN)
    assert (precious / "file").exists()


# --- slabs --------------------------------------------------------------------------------


def claim_with_slabs(cache_dir: Path) -> Path:
    own = claim(cache_dir)
    backend = SlabBackend()
    backend.open(make_plan(own, store="slab", capacity_objects=3))
    backend.close()
    assert len(list(own.iterdir())) == 3
    return own


def test_a_runs_slabs_are_removed_with_it(tmp_path: Path) -> None:
    own = claim_with_slabs(tmp_path)
    assert claim(tmp_path) == own
    assert list(own.iterdir()) == []
    claim_with_slabs(tmp_path)
    remove_rank_dir(str(tmp_path), RUN, 0)
    assert not own.exists()
    claim_with_slabs(tmp_path)
    remove_run_dir(str(tmp_path), RUN)
    assert list(tmp_path.iterdir()) == []


STORING = """
import os, sys
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.cachedir import claim_rank_dir
own = claim_rank_dir(sys.argv[1], sys.argv[2], 0, "n1")
backend = StoreBackend()
backend.open(BackendPlan(directory=own, object_bytes=8192, chunk_bytes=8192, io="buffered",
    sync="none", host="n1", namespace="run/rank-0", capacity_objects=40, store="slab"))
number = 0
while True:
    backend.put_from(f"{number:x}", 0, memoryview(bytes(8192)))
    if number >= 30:
        backend.delete(f"{number - 30:x}")
    if number == 100:
        print("storing", flush=True)
    number += 1
"""


def test_the_slabs_of_a_run_that_was_killed_are_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STORING, str(tmp_path), RUN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "storing\n"
        process.kill()
    own = run_dir(str(tmp_path), RUN) / "rank-0"
    assert len(list(own.iterdir())) == 8
    remove_run_dir(str(tmp_path), RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_slab_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    own = claim(tmp_path)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SlabBackend(reserver=killed).open(make_plan(own, store="slab", capacity_objects=3))
    assert len(list(own.iterdir())) == 1
    remove_run_dir(str(tmp_path), RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_inside_a_rank_directory_is_removed_not_followed(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (claim(tmp_path, 0) / "link").symlink_to(precious)
    remove_run_dir(str(tmp_path), RUN)
    assert everything_below(tmp_path) == {"precious", "precious/file"}


def test_a_foreign_file_in_the_run_directory_stays(tmp_path: Path) -> None:
    own = claim(tmp_path, 0)
    (own / "object").write_bytes(b"data")
    (own.parent / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds notes.txt, which is not this benchmark's"):
        remove_run_dir(str(tmp_path), RUN)
    assert everything_below(own.parent) == {"notes.txt", MARKER_NAME}
    (own.parent / "notes.txt").unlink()
    remove_run_dir(str(tmp_path), RUN)
    assert not everything_below(tmp_path)


def test_removal_leaves_other_runs_alone(tmp_path: Path) -> None:
    claim(tmp_path, 0)
    other = claim(tmp_path, 0, "other")
    remove_run_dir(str(tmp_path), RUN)
    assert [path.name for path in tmp_path.iterdir()] == [other.parent.name]


def test_removal_of_one_rank_leaves_the_others(tmp_path: Path) -> None:
    for rank in (0, 1):
        (claim(tmp_path, rank) / "object").write_bytes(b"data")
    remove_rank_dir(str(tmp_path), RUN, 1, "n1")
    assert everything_below(run_dir(str(tmp_path), RUN)) == {
        MARKER_NAME, "rank-0", "rank-0/object",
    }  # fmt: skip


def test_removal_of_nothing_is_fine(tmp_path: Path) -> None:
    remove_rank_dir(str(tmp_path), RUN, 0)
    remove_run_dir(str(tmp_path), RUN)
    claim(tmp_path, 0)
    for _ in range(2):
        remove_rank_dir(str(tmp_path), RUN, 0)
    for _ in range(2):
        remove_run_dir(str(tmp_path), RUN)
    assert not list(tmp_path.iterdir())


def test_ranks_that_remove_the_run_at_once_all_succeed(tmp_path: Path) -> None:
    for attempt in range(20):
        run_id = f"run{attempt}"
        for rank in range(8):
            own = claim(tmp_path, rank, run_id)
            for number in range(5):
                (own / f"{number}").write_bytes(b"data")
        with ThreadPoolExecutor(8) as threads:
            removals = [
                threads.submit(remove_run_dir, str(tmp_path), run_id, "n1") for _ in range(8)
            ]
            for removal in removals:
                removal.result()
        assert not list(tmp_path.iterdir())


def test_a_run_is_removed_beside_one_who_is_always_a_file_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = claim(tmp_path, 0)
    for number in range(300):
        (own / f"{number}").touch()
    unlink = os.unlink

    def unlink_after_the_other(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        if str(path).isdigit():
            raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_after_the_other)
        remove_run_dir(str(tmp_path), RUN)
    assert not list(tmp_path.iterdir())


def test_a_file_that_comes_while_a_run_is_removed_goes_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = claim(tmp_path, 0)
    (own / "0").touch()
    unlink = os.unlink

    def unlink_and_write(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        if path == "0":
            (own / "late").touch()  # by a rank that is dying

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink_and_write)
        remove_run_dir(str(tmp_path), RUN)
    assert not list(tmp_path.iterdir())


def test_links_in_a_ranks_directory_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    own = claim(tmp_path, 0)
    (own / "ab").mkdir()
    (own / "ab" / "directory").symlink_to(precious)
    (own / "ab" / "file").symlink_to(precious / "file")
    remove_run_dir(str(tmp_path), RUN)
    assert everything_below(tmp_path) == {"precious", "precious/file"}


@pytest.mark.parametrize("removal", ["run", "rank"])
def test_a_run_directory_that_vanishes_meanwhile_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removal: str
) -> None:
    directory = claim(tmp_path, 0).parent

    def vanish(path: Path, _flags: int) -> int:
        assert path == directory / MARKER_NAME
        shutil.rmtree(directory)
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", vanish)
        patch.setattr(shutil.rmtree, "avoids_symlink_attacks", True)
        patch.setattr(shutil, "_use_fd_functions", False)  # or it would call the fake
        if removal == "run":
            remove_run_dir(str(tmp_path), RUN)
        else:
            remove_rank_dir(str(tmp_path), RUN, 0)
    assert not directory.exists()


def test_the_run_directory_never_exists_without_its_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_dir(str(tmp_path), RUN)
    seen = []

    def watched(kind: str) -> None:
        original = getattr(Path, kind)

        def call(path: Path, *args: object, **kwargs: object) -> object:
            result = original(path, *args, **kwargs)
            seen.append(kind)
            assert not directory.exists() or (directory / MARKER_NAME).exists()
            return result

        monkeypatch.setattr(Path, kind, call)

    for kind in ("mkdir", "write_text", "rename", "unlink", "rmdir"):
        watched(kind)
    claim(tmp_path, 0)
    remove_run_dir(str(tmp_path), RUN)
    assert {"rename", "unlink", "rmdir"} <= set(seen)


def test_a_cache_directory_that_is_gone_names_host_and_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"n1: can't prepare {tmp_path}/no/.*: No such file"):
        claim(tmp_path / "no")


# --- what --kv-cache-dir may be -----------------------------------------------------------


def rule(path: str) -> str | None:
    return cachedir._system_directory(Path(path))


@pytest.mark.parametrize(
    "path",
    [
        "/", "/bin", "/boot/x", "/dev", "/dev/shmfoo", "/etc/kv", "/lib", "/lib64/x", "/proc",
        "/root/../etc", "/run", "/run/user", "/run/user/99999999", "/run/lock", "/sbin", "/sys",
        "/usr", "/usr/local/x", "/var", "/var/lib/kv", "/var/log", "/var/spool/kv",
    ],
)  # fmt: skip
def test_system_directories_are_refused(path: str) -> None:
    assert rule(os.path.normpath(path))


@pytest.mark.parametrize(
    "path",
    [
        "/tmp", "/tmp/kv", "/var/tmp", "/var/tmp/usr", "/dev/shm", "/dev/shm/kv", "/usrdata",
        "/bind", "/etcetera/x", "/library", "/devices", "/mnt/nvme0", "/mnt/usr/bin", "/data",
        "/root", "/root/kv", "/home/me/kv", "/var/data", f"/run/user/{os.getuid()}", "/opt/kv",
        f"/run/user/{os.getuid()}/kv", "/scratch/etc",
    ],
)  # fmt: skip
def test_places_for_data_are_allowed(path: str) -> None:
    assert rule(path) is None


@given(
    system=st.sampled_from(SYSTEM_DIRECTORIES), suffix=st.text(st.characters(codec="ascii",
    categories=("L", "N")), min_size=1),
)  # fmt: skip
def test_components_decide_not_prefixes(system: str, suffix: str) -> None:
    assert rule(f"{system}/{suffix}") == system or f"{system}/{suffix}" == "/dev/shm"
    neighbour = rule(system + suffix)
    assert neighbour is None or neighbour in SYSTEM_DIRECTORIES
    if system + suffix not in SYSTEM_DIRECTORIES and system.count("/") == 1:
        assert neighbour is None


def test_a_directory_of_ones_own_is_valid(tmp_path: Path) -> None:
    validate_cache_dir(str(tmp_path))


def test_a_link_into_the_system_is_found_out(tmp_path: Path) -> None:
    link = tmp_path / "data"
    link.symlink_to("/etc")
    with pytest.raises(OptionError) as caught:
        validate_cache_dir(str(link))
    assert str(caught.value) == (
        f"--kv-cache-dir is {link} (really /etc); it must not lie in the system directory"
        " /etc: give a directory of your own, e.g. below /var/tmp"
    )


def test_the_root_directory_is_refused() -> None:
    with pytest.raises(OptionError, match="--kv-cache-dir is /; it must not lie in"):
        validate_cache_dir("/")


def test_a_missing_directory_is_refused_under_the_options_name(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^kv_cache_dir is {tmp_path}/no, which does not exist"):
        validate_cache_dir(f"{tmp_path}/no", option="kv_cache_dir")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="it must be a directory"):
        validate_cache_dir(f"{tmp_path}/file")


def test_a_directory_without_write_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match="it must be writable by uid"):
        validate_cache_dir(str(tmp_path))
    tmp_path.chmod(0o700)


def test_a_directory_that_is_mounted_read_only_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(os.statvfs(tmp_path))
    found[8] |= os.ST_RDONLY  # f_flag
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(found))
    with pytest.raises(OptionError, match="on a filesystem that is mounted read-only; mount it"):
        validate_cache_dir(str(tmp_path))
