from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.system.devicechain import DeviceChain, Link, follow
from pytest_kvcache.system.filesystem import FilesystemFacts, probe_filesystem
from pytest_kvcache.system.mounts import MountFacts
from tests.filesystems import loop_over, make_ext4, mounted_on

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE_BYTES = 64 << 20


def mount(fs_type: str = "ext4", source: str = "/dev/x", **changes: str) -> MountFacts:
    values = {"device": "8:0", "options": "rw", **changes}
    return MountFacts(id=1, mount_point="/m", type=fs_type, source=source, **values)


class Sysfs:
    """A /sys with the block devices that a test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("class/block", "dev/block", "devices"):
            (root / name).mkdir(parents=True)
        self._minor = 0

    def add(self, name: str, *below: str, parent: str = "virtual", **files: str) -> str:
        """A device with these ``slaves``; returns its number."""
        directory = self.root / "devices" / parent / name
        directory.mkdir(parents=True)
        self._minor += 1
        number = f"8:{self._minor}"
        (directory / "dev").write_text(f"{number}\n")
        for path, text in files.items():
            file = directory / path.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        if below:
            (directory / "slaves").mkdir()
        for slave in below:
            (directory / "slaves" / slave).symlink_to((self.root / "class/block" / slave).resolve())
        (self.root / "class/block" / name).symlink_to(directory)
        (self.root / "dev/block" / number).symlink_to(directory)
        return number

    def chain(self, number: str, fs_type: str = "ext4", **changes: str) -> DeviceChain:
        return follow(mount(fs_type, device=number, **changes), "n1", str(self.root))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def reported(chain: DeviceChain) -> list[tuple[str, str, str | None]]:
    return [(link.name, link.kind, link.end) for link in chain.links]


def test_a_filesystem_on_a_disk_ends_there(sysfs: Sysfs) -> None:
    chain = sysfs.chain(sysfs.add("sda"))
    assert reported(chain) == [("ext4", "filesystem", None), ("sda", "disk", "disk")]
    assert (chain.disks, chain.memory, chain.unseen) == (("sda",), (), None)
    assert chain.is_plain


def test_a_partition_is_on_its_disk(sysfs: Sysfs) -> None:
    sysfs.add("sda")
    number = sysfs.add("sda1", parent="virtual/sda", partition="1\n")
    chain = sysfs.chain(number)
    assert reported(chain)[1:] == [("sda1", "partition", None), ("sda", "disk", "disk")]
    assert chain.is_plain


def test_a_volume_is_followed_through_every_layer(sysfs: Sysfs) -> None:
    sysfs.add("sda")
    sysfs.add("sdb")
    sysfs.add("md0", "sda", "sdb")
    chain = sysfs.chain(sysfs.add("dm-0", "md0"))
    assert [link.kind for link in chain.links] == ["filesystem", "dm", "md", "disk", "disk"]
    assert [link.above for link in chain.links] == [None, 0, 1, 2, 2]
    assert chain.disks == ("sda", "sdb")
    assert not chain.is_plain  # a mirror writes twice


@pytest.mark.parametrize("name", ["zram0", "ram3", "brd0", "nullb1"])
def test_a_device_in_memory_is_memory_below_whatever(sysfs: Sysfs, name: str) -> None:
    sysfs.add(name)
    sysfs.add("sda")
    sysfs.add("bcache0", name, "sda")
    chain = sysfs.chain(sysfs.add("dm-1", "bcache0"), "xfs")
    assert [link.name for link in chain.memory] == [name]
    assert chain.describe() == f"xfs on dm-1 on bcache0 on {name}"


@pytest.mark.parametrize(
    ("name", "parent", "files"),
    [
        ("sdc", "pseudo_0", {"device__model": "scsi_debug      \n"}),
        ("sdc", "target", {"device__model": "RAMDISK-MCP\n"}),
        ("pmem0", "platform/e820_pmem/ndbus0", {}),
        ("mtdblock0", "virtual", {"device__type": "ram\n"}),
    ],
)
def test_memory_that_calls_itself_a_disk_is_recognised(
    sysfs: Sysfs, name: str, parent: str, files: dict[str, str]
) -> None:
    assert sysfs.chain(sysfs.add(name, parent=parent, **files)).memory


@pytest.mark.parametrize(
    ("name", "parent", "files", "note"),
    [
        ("nbd0", "virtual", {}, "nbd0: a server keeps the bytes, maybe in memory"),
        ("zd16", "virtual", {}, "zd16: ZFS counts what its own cache (ARC) serves as I/O"),
        ("ublkb0", "virtual", {}, "ublkb0: a program of this machine"),
        ("dm-0", "virtual", {}, "dm-0: sysfs shows no device below it"),
        ("loop9", "virtual", {}, "loop9: sysfs does not show the file behind it"),
        ("sdx", "host3/session1/target", {}, "sdx: it is reached by iSCSI"),
        ("nvme1n1", "virtual", {"device__transport": "tcp\n"}, "nvme1n1: it is reached by tcp"),
    ],
)
def test_what_can_not_be_seen_is_said_with_the_reason(
    sysfs: Sysfs, name: str, parent: str, files: dict[str, str], note: str
) -> None:
    chain = sysfs.chain(sysfs.add(name, parent=parent, **files))
    assert str(chain.unseen).startswith(note)
    assert chain.disks == ()


def test_a_local_nvme_is_a_disk(sysfs: Sysfs) -> None:
    assert sysfs.chain(sysfs.add("nvme0n1", device__transport="pcie\n")).disks == ("nvme0n1",)


def test_an_nvme_of_several_paths_has_the_counters_of_its_paths(sysfs: Sysfs) -> None:
    for path in ("nvme0c0n1", "nvme0c1n1"):
        sysfs.add(path, device__transport="pcie\n")
    assert sysfs.chain(sysfs.add("nvme0n1")).disks == ("nvme0c0n1", "nvme0c1n1")


@pytest.mark.parametrize("fs_type", ["nfs4", "fuse.s3fs", "virtiofs", "zfs", "unheard-of"])
def test_a_filesystem_without_a_device_is_not_seen(sysfs: Sysfs, fs_type: str) -> None:
    chain = sysfs.chain("0:50", fs_type, source="pool/x")
    assert str(chain.unseen).startswith(f"{fs_type}: ")


@pytest.mark.parametrize("fs_type", ["tmpfs", "ramfs", "hugetlbfs", "devtmpfs", "rootfs"])
def test_a_filesystem_of_memory_is_its_own_end(sysfs: Sysfs, fs_type: str) -> None:
    assert sysfs.chain("0:50", fs_type, source="none").describe() == fs_type


def test_all_members_of_a_btrfs_are_below_it(sysfs: Sysfs) -> None:
    for name in ("sda", "zram0"):
        sysfs.add(name)
    members = sysfs.root / "fs/btrfs/uuid/devices"
    members.mkdir(parents=True)
    for name in ("sda", "zram0"):
        (members / name).touch()
    number = (sysfs.root / "class/block/sda/dev").read_text().strip()
    chain = sysfs.chain(number, "btrfs")
    assert [link.name for link in chain.links] == ["btrfs", "sda", "zram0"]
    assert chain.memory


def test_data_on_the_realtime_device_of_an_xfs_is_followed_too(sysfs: Sysfs) -> None:
    if not Path("/dev/null").exists():
        pytest.skip("this machine has no /dev/null")
    chain = sysfs.chain(sysfs.add("sda"), "xfs", options="rw,rtdev=/dev/null")
    assert chain.disks == ("sda",)  # no block device: what is not there adds nothing


def test_with_dax_nothing_counts_and_memory_is_memory_all_the_same(sysfs: Sysfs) -> None:
    chain = sysfs.chain(sysfs.add("pmem0"), options="rw,dax=always")
    assert "DAX" in str(chain.unseen)
    emulated = sysfs.add("pmem1", parent="platform/e820_pmem/ndbus0")
    assert sysfs.chain(emulated, options="rw,dax").memory


def test_devices_that_go_round_in_a_circle_end(sysfs: Sysfs) -> None:
    number = sysfs.add("dm-0")
    slaves = sysfs.root / "devices/virtual/dm-0/slaves"
    slaves.mkdir()
    (slaves / "dm-0").symlink_to(sysfs.root / "devices/virtual/dm-0")
    assert "on top of each other" in str(sysfs.chain(number).unseen)


def test_a_chain_survives_its_json() -> None:
    chain = DeviceChain(
        (Link(name="ext4", kind="filesystem"), Link(name="sda", kind="disk", above=0, end="disk"))
    )
    assert DeviceChain.from_json(json.loads(json.dumps(chain.to_json()))) == chain


# --- this machine's own ----------------------------------------------------------------------


def facts_of(directory: Path) -> FilesystemFacts:
    return probe_filesystem(str(directory), "n1")


@pytest.fixture
def disk_dir() -> Iterator[Path]:
    """A directory where files are on a disk, as far as this machine has one."""
    path = Path("/var/tmp", f"kvcache-test-chain-{os.getpid()}")
    path.mkdir()
    yield path
    path.rmdir()


def test_an_image_in_memory_is_memory_however_deep(tmp_path: Path) -> None:
    outer, inner, below = tmp_path / "outer", tmp_path / "inner", tmp_path / "below"
    with mounted_on(below, "-t", "tmpfs", "-o", "size=200m", "kvcache-test"):
        make_ext4(below / "image", IMAGE_BYTES)
        with loop_over(below / "image") as first, mounted_on(outer, first):
            found = facts_of(outer)
            assert found.type == "ext4"
            assert str(found.memory_at_end).endswith(f"on {below}/image on tmpfs")
            make_ext4(outer / "image", IMAGE_BYTES // 2)
            with loop_over(outer / "image") as second, mounted_on(inner, second):
                assert str(facts_of(inner).memory_at_end).endswith("on tmpfs")
            # Deleted, and hidden by another file of its name: the loop device still has it.
            (below / "image").unlink()
            assert str(facts_of(outer).memory_at_end).endswith("image (deleted) on tmpfs")


def test_an_image_whose_path_means_another_file_by_now_is_known_by_its_device(
    tmp_path: Path, disk_dir: Path
) -> None:
    below, top = tmp_path / "below", tmp_path / "top"
    with mounted_on(below, "-t", "tmpfs", "-o", "size=100m", "kvcache-test"):
        make_ext4(below / "image", IMAGE_BYTES)
        with (
            loop_over(below / "image") as device,
            mounted_on(top, device),
            mounted_on(below, "--bind", str(disk_dir)),
        ):
            (below / "image").touch()
            try:
                assert str(facts_of(top).memory_at_end).endswith("on tmpfs")
            finally:
                (below / "image").unlink()


def test_an_image_on_a_disk_ends_at_that_disk(tmp_path: Path, disk_dir: Path) -> None:
    below = facts_of(disk_dir)
    if not below.chain.disks:
        pytest.skip("/var/tmp of this machine is on no disk")
    image = disk_dir / "image"
    try:
        make_ext4(image, IMAGE_BYTES)
        with loop_over(image) as device, mounted_on(tmp_path / "top", device):
            found = facts_of(tmp_path / "top")
            assert found.chain.disks == below.chain.disks
            assert found.device == below.device
            assert (found.memory_at_end, found.chain.unseen) == (None, None)
            assert not found.chain.is_plain
    finally:
        image.unlink(missing_ok=True)


def test_a_file_without_a_name_in_memory_is_memory(tmp_path: Path) -> None:
    fd = os.memfd_create("kvcache-test")
    image = Path(f"/proc/{os.getpid()}/fd/{fd}")
    try:
        os.ftruncate(fd, IMAGE_BYTES)
        make_ext4(image, IMAGE_BYTES)
        with loop_over(image) as device, mounted_on(tmp_path / "top", device):
            assert str(facts_of(tmp_path / "top").memory_at_end).endswith("(deleted)")
    finally:
        os.close(fd)


def test_an_overlay_is_where_its_upper_directory_is(tmp_path: Path) -> None:
    memory, top = tmp_path / "memory", tmp_path / "top"
    (tmp_path / "lower").mkdir()
    with mounted_on(memory, "-t", "tmpfs", "kvcache-test"):
        for name in ("up", "work"):
            (memory / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={memory}/up,workdir={memory}/work"
        with mounted_on(top, "-t", "overlay", "-o", options, "kvcache-test"):
            assert facts_of(top).memory_at_end == "overlay on tmpfs"


def test_an_overlay_whose_upper_path_leads_elsewhere_is_not_followed(
    tmp_path: Path, disk_dir: Path
) -> None:
    memory, top = tmp_path / "memory", tmp_path / "top"
    (tmp_path / "lower").mkdir()
    memory.mkdir()
    with contextlib.ExitStack() as stack:
        below = stack.enter_context(contextlib.ExitStack())
        below.enter_context(mounted_on(memory, "-t", "tmpfs", "kvcache-test"))
        for name in ("up", "work"):
            (memory / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={memory}/up,workdir={memory}/work"
        stack.enter_context(mounted_on(top, "-t", "overlay", "-o", options, "kvcache-test"))
        (top / "below").mkdir()
        assert facts_of(top / "below").memory_at_end == "overlay on tmpfs"
        with mounted_on(memory / "up", "--bind", str(disk_dir)):
            facts = facts_of(top)
            assert "its upper directory can't be shown to be" in str(facts.chain.unseen)
            assert facts.chain.disks == ()
        with mounted_on(tmp_path / "part", "--bind", str(top / "below")):
            assert facts_of(tmp_path / "part").memory_at_end == "overlay on tmpfs"
        below.close()  # lazily unmounted: the overlay still has it
        (memory / "up" / "below").mkdir(parents=True)
        for directory in (top, top / "below"):
            facts = facts_of(directory)
            assert (facts.chain.disks, facts.memory_at_end) == ((), None)
            assert "its upper directory can't be shown to be" in str(facts.chain.unseen)
            assert list(directory.glob(".kvcache-layer-*")) == []


def test_an_overlay_on_a_disk_ends_at_that_disk_and_so_does_an_image_in_it(
    tmp_path: Path, disk_dir: Path
) -> None:
    disks = facts_of(disk_dir).chain.disks
    if not disks:
        pytest.skip("/var/tmp of this machine is on no disk")
    layers = disk_dir / "layers"
    for name in ("lower", "up", "work"):
        (layers / name).mkdir(parents=True)
    options = f"lowerdir={layers}/lower,upperdir={layers}/up,workdir={layers}/work"
    top = tmp_path / "top"
    try:
        with mounted_on(top, "-t", "overlay", "-o", options, "kvcache-test"):
            assert facts_of(top).chain.disks == disks
            make_ext4(top / "image", IMAGE_BYTES)
            with loop_over(top / "image") as device, mounted_on(tmp_path / "inner", device):
                assert facts_of(tmp_path / "inner").chain.disks == disks
    finally:
        shutil.rmtree(layers)


@pytest.mark.parametrize("upper", ["up", "/nowhere/up"])
def test_an_upper_directory_that_does_not_show_what_is_made_is_not_seen(
    tmp_path: Path, upper: str
) -> None:
    overlay = mount("overlay", "overlay", device="0:50", options=f"rw,upperdir={upper}")
    chain = follow(overlay, "n1", directory=str(tmp_path))
    assert str(chain.unseen).startswith("overlay: its upper directory can't be shown to be")
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_ram_disk_is_memory(tmp_path: Path) -> None:
    size = Path("/sys/block/zram0/disksize")
    if not os.access(size, os.W_OK) or size.read_text().strip() != "0":
        pytest.skip("this machine has no zram0 that nobody uses")
    size.write_text(str(IMAGE_BYTES))
    try:
        make_ext4(Path("/dev/zram0"), IMAGE_BYTES)
        with mounted_on(tmp_path / "top", "/dev/zram0"):
            assert facts_of(tmp_path / "top").memory_at_end == "ext4 on zram0"
        with loop_over(Path("/dev/zram0")) as device, mounted_on(tmp_path / "top", device):
            assert str(facts_of(tmp_path / "top").memory_at_end).endswith(" on zram0")
    finally:
        Path("/sys/block/zram0/reset").write_text("1")


def test_nobody_but_root_has_to_be_able_to_look() -> None:
    """Paths serve where a loop device may not be asked."""
    if os.geteuid() != 0:
        pytest.skip("this is not root")
    code = (
        "import os; os.setuid(65534)\n"
        "from pytest_kvcache.system.filesystem import probe_filesystem\n"
        "print(probe_filesystem('/var/tmp', 'n1').type)"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    if "ModuleNotFoundError" in done.stderr or "Permission" in done.stderr:
        pytest.skip("nobody may read this checkout")
    assert done.stdout.strip() == facts_of(Path("/var/tmp")).type, done.stderr
