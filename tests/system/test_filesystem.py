from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.devicechain import DeviceChain, Link
from pytest_kvcache.system.filesystem import (
    DeviceFacts,
    FilesystemFacts,
    IoCounters,
    WatchedDirectory,
    hypervisor_flag,
    is_virtual,
    parse_io,
    probe_device,
    probe_filesystem,
    sample_io,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

IO_TEXT = """\
rchar: 323934931
wchar: 323929600
syscr: 632687
syscw: 632675
read_bytes: 8192
write_bytes: 323932160
cancelled_write_bytes: 4096
"""
# --- counters -------------------------------------------------------------------------------


def test_the_device_counters_are_read_not_the_callers() -> None:
    assert parse_io(IO_TEXT) == IoCounters(read_bytes=8192, write_bytes=323932160)


@pytest.mark.parametrize("text", ["", "rchar: 5\nwchar: 6\n", "read_bytes: many\n"])
def test_a_missing_counter_is_none_not_zero(text: str) -> None:
    assert parse_io(text) == IoCounters(read_bytes=None, write_bytes=None)


def test_one_missing_counter_leaves_the_other() -> None:
    counters = parse_io(IO_TEXT.replace("read_bytes: 8192\n", ""))
    assert counters == IoCounters(read_bytes=None, write_bytes=323932160)


def test_an_absent_file_gives_no_counters(tmp_path: Path) -> None:
    assert sample_io(str(tmp_path / "io")).read_bytes is None


known = st.none() | st.integers(0, 2**62)


@given(known, known)
def test_a_difference_is_none_where_a_side_is_unknown(now: int | None, before: int | None) -> None:
    late = IoCounters(read_bytes=now, write_bytes=5)
    early = IoCounters(read_bytes=before, write_bytes=2)
    moved = late.since(early)
    assert moved.write_bytes == 3
    if now is None or before is None:
        assert moved.read_bytes is None
    else:
        assert moved.read_bytes == now - before


def test_bytes_that_reach_a_device_are_counted() -> None:
    directory = "/var/tmp"
    if not probe_filesystem(directory, "n1").counts_io:
        pytest.skip("/var/tmp of this machine has no device")
    before = sample_io()
    if before.write_bytes is None:
        pytest.skip("this kernel does not count")
    path = Path(directory, f"kvcache-test-{os.getpid()}")
    try:
        path.write_bytes(os.urandom(2**20))
    finally:
        path.unlink()
    moved = sample_io().since(before).write_bytes
    assert moved is not None
    assert moved >= 2**20


# --- facts ----------------------------------------------------------------------------------

DISK = Link(name="vda", kind="disk", number="254:0", above=0, end="disk")
FACTS = FilesystemFacts(
    host="n1",
    path="/x",
    type="ext4",
    source="/dev/vda",
    mount_point="/",
    options="rw",
    total_bytes=10,
    available_bytes=5,
    available_inodes=3,
    chain=DeviceChain((Link(name="ext4", kind="filesystem"), DISK)),
    device="vda",
    device_model=None,
    dio_align_bytes=512,
    virtual=True,
)


@pytest.mark.parametrize(
    ("fs_type", "tmpfs", "network", "overlay", "counts"),
    [
        ("ext4", False, False, False, True),
        ("xfs", False, False, False, True),
        ("fuseblk", False, False, False, False),
        ("zfs", False, False, False, False),
        ("overlay", False, False, True, True),
        ("tmpfs", True, False, False, False),
        ("ramfs", True, False, False, False),
        ("nfs", False, True, False, False),
        ("nfs4", False, True, False, False),
        ("lustre", False, True, False, False),
        ("fuse", False, True, False, False),
        ("fuse.s3fs", False, True, False, False),
        ("9p", False, True, False, False),
        ("virtiofs", False, True, False, False),
    ],
)
def test_kinds_of_filesystems(
    fs_type: str, *, tmpfs: bool, network: bool, overlay: bool, counts: bool
) -> None:
    facts = dataclasses.replace(FACTS, type=fs_type)
    kinds = (facts.is_tmpfs, facts.is_network, facts.is_overlay, facts.counts_io)
    assert kinds == (tmpfs, network, overlay, counts)


def test_facts_become_json_with_what_follows_from_them() -> None:
    as_json = json.loads(json.dumps(FACTS.to_json()))
    assert as_json["type"] == "ext4"
    assert as_json["available_inodes"] == 3
    assert as_json["is_tmpfs"] is False
    assert as_json["counts_io"] is True
    assert as_json["chain"][1]["name"] == "vda"
    assert (as_json["memory_at_end"], as_json["unseen"]) == (None, None)
    derived = {"is_tmpfs", "is_network", "is_overlay", "counts_io", "memory_at_end", "unseen"}
    assert set(as_json) == {field.name for field in dataclasses.fields(FACTS)} | derived


@pytest.mark.parametrize("directory", ["/dev/shm", "/proc", "/var/tmp", "/"])
def test_facts_of_this_machine_follow_from_their_json(directory: str) -> None:
    facts = probe_filesystem(directory, "n1")
    assert FilesystemFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize(
    ("reported", "virtual"),
    [
        ({"virtual": False}, True),  # by the name of its device
        ({"virtual": False, "device": "sda"}, False),
        ({"virtual": False, "device": "sda", "device_model": "QEMU DISK"}, True),
        ({"virtual": True, "device": "sda"}, True),  # by its processor
        ({"virtual": True, "device": None}, True),
        ({"virtual": True, "type": "tmpfs"}, None),
    ],
)
def test_whether_a_disk_is_virtual_is_believed_where_it_does_not_follow(
    reported: dict[str, Any], *, virtual: bool | None
) -> None:
    assert FilesystemFacts.from_json(FACTS.to_json() | reported).virtual is virtual


def test_this_machine_has_a_filesystem(tmp_path: Path) -> None:
    facts = probe_filesystem(str(tmp_path), "n1")
    space = os.statvfs(tmp_path)
    assert facts.type
    assert facts.host == "n1"
    assert Path(facts.mount_point).is_mount()
    assert tmp_path.stat().st_dev == Path(facts.mount_point).stat().st_dev
    assert facts.total_bytes == space.f_blocks * space.f_frsize
    assert 0 < facts.available_bytes <= facts.total_bytes


def test_a_tmpfs_is_recognised() -> None:
    if not Path("/dev/shm").is_mount():
        pytest.skip("/dev/shm is no mount of its own here")
    facts = probe_filesystem("/dev/shm", "n1")
    assert facts.is_tmpfs
    assert facts.virtual is None
    assert facts.device is None


def test_a_link_is_followed_to_its_filesystem(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    assert probe_filesystem(str(tmp_path / "link"), "n1").type == "proc"


def test_a_missing_path_names_host_and_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"n1: can't examine .*{tmp_path}/no: No such file"):
        probe_filesystem(f"{tmp_path}/no", "n1")


def test_a_filesystem_without_inode_numbers_has_none() -> None:
    assert probe_filesystem("/proc", "n1").available_inodes is None


# --- devices --------------------------------------------------------------------------------


def fake_disk(tmp_path: Path, **files: str) -> str:
    disk = tmp_path / "devices" / "block" / "sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "device").mkdir()
    (disk / "queue" / "logical_block_size").write_text("4096\n")
    for name, text in files.items():
        (disk / "device" / name).write_text(text)
    (disk / "sda1").mkdir()
    (disk / "sda1" / "partition").write_text("1\n")
    links = tmp_path / "links"
    links.mkdir()
    (links / "sda").symlink_to(disk)
    (links / "sda1").symlink_to(disk / "sda1")
    return str(links)


@pytest.mark.parametrize("name", ["sda", "sda1"])
def test_a_partition_has_the_facts_of_its_disk(tmp_path: Path, name: str) -> None:
    links = fake_disk(tmp_path, vendor="ATA     \n", model="Fast SSD 9\n")
    assert probe_device(name, links) == DeviceFacts(
        name="sda", model="ATA Fast SSD 9", dio_align_bytes=4096
    )


def test_a_vendor_that_is_a_number_is_no_model(tmp_path: Path) -> None:
    device = probe_device("sda", fake_disk(tmp_path, vendor="0x1af4\n"))
    assert device is not None
    assert device.model is None


def test_an_unknown_device_has_no_facts(tmp_path: Path) -> None:
    assert probe_device("sdz", str(tmp_path)) is None


def disk_named(name: str, model: str | None = None) -> DeviceFacts:
    return DeviceFacts(name=name, model=model, dio_align_bytes=None)


@pytest.mark.parametrize(
    ("fs_type", "device", "hypervisor", "virtual"),
    [
        ("ext4", disk_named("vda"), False, True),
        ("ext4", disk_named("xvdb"), False, True),
        ("ext4", disk_named("sda", "QEMU QEMU HARDDISK"), False, True),
        ("ext4", disk_named("sda", "VMware Virtual disk"), False, True),
        ("xfs", disk_named("nvme1n1", "Amazon Elastic Block Store"), False, True),
        ("xfs", disk_named("sdb", "Google PersistentDisk"), False, True),
        ("xfs", disk_named("nvme0n1", "Samsung SSD 990"), False, False),
        ("xfs", disk_named("nvme0n1", "Samsung SSD 990"), True, True),
        ("xfs", disk_named("nvme0n1", "Samsung SSD 990"), None, None),
        ("overlay", None, True, True),
        ("overlay", None, None, None),
        ("tmpfs", None, True, None),
        ("nfs4", None, True, None),
    ],
)
def test_what_counts_as_a_virtual_disk(
    fs_type: str,
    device: DeviceFacts | None,
    hypervisor: bool | None,  # noqa: FBT001 - a column of the table
    virtual: bool | None,  # noqa: FBT001
) -> None:
    devices = [] if device is None else [device]
    assert is_virtual(fs_type, devices, hypervisor=hypervisor) is virtual


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("processor\t: 0\nflags\t\t: fpu vme hypervisor lahf_lm\n", True),
        ("processor\t: 0\nflags\t\t: fpu vme lahf_lm\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", None),
        ("", None),
    ],
)
def test_the_cpu_says_whether_it_is_a_guests(text: str, flag: bool | None) -> None:  # noqa: FBT001
    assert hypervisor_flag(text) is flag


# -- where a path leads --------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[WatchedDirectory]:
    """A directory that a rank uses."""
    (tmp_path / "rank-0").mkdir()
    held = WatchedDirectory(str(tmp_path / "rank-0"), "n1")
    yield held
    held.close()


def test_a_directory_that_stays_is_no_fault(place: WatchedDirectory, tmp_path: Path) -> None:
    (tmp_path / "rank-0" / "file").touch()
    assert place.fault() is None


def test_a_directory_that_is_gone_is_reported_with_path_and_host(
    place: WatchedDirectory, tmp_path: Path
) -> None:
    (tmp_path / "rank-0").rmdir()
    assert f"{tmp_path}/rank-0 on n1 is gone: it was removed, or its" in str(place.fault())


def test_a_parent_that_is_no_directory_any_more_is_the_same(
    place: WatchedDirectory, tmp_path: Path
) -> None:
    parent = tmp_path.rename(tmp_path.with_name("elsewhere"))
    tmp_path.touch()
    try:
        assert "is gone" in str(place.fault())
    finally:
        tmp_path.unlink()
        parent.rename(tmp_path)


def test_another_directory_of_the_same_name_is_reported(
    place: WatchedDirectory, tmp_path: Path
) -> None:
    (tmp_path / "rank-0").rename(tmp_path / "away")
    (tmp_path / "rank-0").mkdir()
    assert f"{tmp_path}/rank-0 on n1 is another directory than at" in str(place.fault())


def test_a_directory_put_there_anew_is_another_one(place: WatchedDirectory, tmp_path: Path) -> None:
    # Filesystems give a free inode number away again; not while the directory is held.
    (tmp_path / "rank-0").rmdir()
    (tmp_path / "rank-0").mkdir()
    assert "is another directory" in str(place.fault())


def test_a_directory_that_was_closed_is_not_looked_at(
    place: WatchedDirectory, tmp_path: Path
) -> None:
    place.close()
    (tmp_path / "rank-0").rmdir()
    assert place.fault() is None
    place.close()


def test_no_directory_can_not_be_held(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"n1: can't open .*/none: No such file or directory"):
        WatchedDirectory(str(tmp_path / "none"), "n1")


def test_what_can_not_be_examined_says_why(
    place: WatchedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_path: str) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", failing)
        fault = place.fault()
    assert re.fullmatch(r"n1: can't examine .*/rank-0: Input/output error", str(fault))
