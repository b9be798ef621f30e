from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.mounts import (
    MountFacts,
    contradiction,
    find_by_device,
    find_by_id,
    mount_of,
    parse_mount_id,
    parse_mountinfo,
    statfs_type,
)
from tests.filesystems import in_own_mounts, run

MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
28 27 259:2 / /mnt/nvme rw,noatime - xfs /dev/nvme0n1p2 rw,attr2
29 27 259:2 /sub /mnt/my\040data rw,noatime shared:5 master:7 - xfs /dev/nvme0n1p2 rw,attr2
30 27 0:50 / /mnt/share rw,relatime shared:9 - nfs4 server:/export\040a rw,vers=4.2,proto=rdma
31 27 0:51 / /merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
32 27 0:52 / /mnt/s3 rw,nosuid - fuse.s3fs s3fs rw,user_id=0
33 27 0:53 / /mnt/auto rw - autofs systemd-1 rw,fd=29
34 33 0:54 / /mnt/auto rw - nfs server:/auto rw
35 27 8:1 / /mnt/usb rw - fuseblk /dev/sda1 rw
""".lstrip()


MOUNTS = parse_mountinfo(MOUNTINFO)


def mount(mount_id: int) -> MountFacts:
    found = find_by_id(MOUNTS, mount_id)
    assert found is not None
    return found


def test_mount_fields_come_without_escapes_and_optional_fields() -> None:
    assert mount(30) == MountFacts(
        id=30,
        mount_point="/mnt/share",
        type="nfs4",
        source="server:/export a",
        options="rw,relatime,vers=4.2,proto=rdma",
        device="0:50",
    )
    assert mount(29).mount_point == "/mnt/my data"
    assert mount(29).device == "259:2"


def test_a_mount_without_a_source_is_still_a_mount() -> None:
    (found,) = parse_mountinfo("30 27 0:50 / /x rw - tmpfs  rw\n")
    assert (found.type, found.source, found.options) == ("tmpfs", "", "rw")


def test_a_mount_is_found_by_its_id_and_a_filesystem_by_its_device() -> None:
    assert find_by_id(MOUNTS, 99) is None
    assert find_by_id(MOUNTS, None) is None
    device = find_by_device(MOUNTS, "259:2")
    assert device is not None
    assert device.mount_point == "/mnt/nvme"
    assert find_by_device(MOUNTS, "259:3") is None


def test_the_value_of_a_mount_option_is_found_by_its_name() -> None:
    assert mount(31).option("upperdir") == "/u"
    assert mount(31).option("upper") is None
    assert mount(31).option("rw") is None


def test_the_kernel_tells_the_mount_of_a_descriptor() -> None:
    assert parse_mount_id("pos:\t0\nflags:\t012100000\nmnt_id:\t27\nino:\t2\n") == 27
    assert parse_mount_id("pos:\t0\nflags:\t012100000\n") is None


@pytest.mark.parametrize(
    ("mount_id", "number", "device", "fault"),
    [
        (27, 0xEF53, "254:0", None),
        (27, 0x0102_1994, "254:0", "mountinfo says ext4, statfs(2) says devtmpfs or rootfs or tmp"),
        (25, 0xEF53, "0:23", "mountinfo says tmpfs, statfs(2) says ext2 or ext3 or ext4"),
        (28, 0x5846_5342, "259:7", "mountinfo says device 259:2, stat(2) says 259:7"),
        (30, 0x6969, "0:77", None),  # numbers without a device: the mount's id says enough
        (31, 0x794C_7630, "0:99", None),  # of overlay, stat tells the layer's device
        (32, 0x1234_5678, "0:52", None),  # a number that nobody has heard of
    ],
)
def test_what_the_kernel_says_twice_must_agree(
    mount_id: int, number: int, device: str, fault: str | None
) -> None:
    reported = contradiction(mount(mount_id), number, device)
    assert (reported is None) if fault is None else (reported is not None and fault in reported)


def test_this_machine_says_the_same_in_all_ways(tmp_path: Path) -> None:
    found = mount_of(str(tmp_path), "n1")
    assert Path(found.mount_point).is_mount()
    assert tmp_path.stat().st_dev == Path(found.mount_point).stat().st_dev


def test_proc_has_the_type_number_of_proc() -> None:
    fd = os.open("/proc", os.O_PATH)
    try:
        assert statfs_type(fd) == 0x9FA0
    finally:
        os.close(fd)


def test_a_missing_path_names_host_and_cause(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"n1: can't examine .*no: No such file or directory"):
        mount_of(str(tmp_path / "no"), "n1")


def test_what_hides_a_mount_is_what_a_path_leads_to(tmp_path: Path) -> None:
    """A filesystem below another one's root has the longer path, and nobody reaches it."""
    script = f"""
mount -t ramfs below {tmp_path}; mkdir {tmp_path}/b; mount -t ramfs inner {tmp_path}/b
mkdir {tmp_path}/b/k
mount -t tmpfs -o size=1m above {tmp_path}; mkdir -p {tmp_path}/b/k
"""
    code = (
        "from pytest_kvcache.system.mounts import mount_of;"
        f"found = mount_of('{tmp_path}/b/k', 'n1'); print(found.type, found.source)"
    )
    assert run(in_own_mounts(script, code)).split() == ["tmpfs", "above"]
