"""What lies below a filesystem, device by device, down to what really keeps the bytes.

Read from sysfs, mountinfo and loop devices. Only looks, but for an overlay: whether a path
is its upper directory is shown by a file that is made in it for a moment.
Imports neither pytest nor MPI.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.kernelfile import kernel_text
from pytest_kvcache.system.mounts import MEMORY_TYPES, find_by_device, mount_of, read_mounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_kvcache.system.mounts import MountFacts

End = Literal["disk", "memory", "unseen"]

# Also filesystems that a host lends its guests: what is below them can't be seen.
_NETWORK_TYPES = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
        "wekafs",
    }
)
# OpenZFS calls task_io_account_read() for every byte of zfs_read() and of a zvol, those
# that its cache (ARC) serves too, and before 2.3 O_DIRECT goes through the ARC.
_ZFS = "ZFS counts what its own cache (ARC) serves as I/O"
_ELSEWHERE = "what keeps its files is not on this machine, or a program of it"
_MEMORY_NAME = re.compile(r"(zram|ram|brd|nullb)\d+")
_MEMORY_MODEL = re.compile(r"scsi_debug|RAMDISK", re.IGNORECASE)
# Block devices behind which another machine, or a program of this one, keeps the bytes.
_UNSEEN_NAMES = (
    (re.compile(r"zd\d+"), "zvol", _ZFS),
    (re.compile(r"nbd\d+"), "nbd", "a server keeps the bytes, maybe in memory"),
    (re.compile(r"rbd\d+"), "rbd", "a Ceph cluster keeps the bytes"),
    (re.compile(r"drbd\d+"), "drbd", "sysfs does not show what DRBD keeps them on"),
    (re.compile(r"ublkb\d+"), "ublk", "a program of this machine keeps the bytes"),
    (re.compile(r"etherd!.*"), "aoe", "another machine keeps the bytes"),
)
_STACKED_NAME = re.compile(r"(dm-|md|md_d|bcache)\d+")
_NVME_HEAD = re.compile(r"nvme(\d+)n(\d+)")
_STRAIGHT_KINDS = frozenset({"filesystem", "partition", "nvme-multipath", "disk"})
_LOCAL_TRANSPORTS = ("pcie", "apple-nvme")
_DEEPEST = 16  # filesystems and devices on top of each other
_LOOP_GET_STATUS64 = 0x4C05  # include/uapi/linux/loop.h
_LOOP_INFO = struct.Struct("=QQ")  # lo_device, lo_inode: the beginning of struct loop_info64
_LOOP_INFO_BYTES = 232


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One filesystem, file or block device of a chain.

    ``above`` is the index of the link that lies on this one, None of the top. ``end`` says
    what the chain ends in here: a ``disk``, whose counters tell what was moved, ``memory``,
    or what is ``unseen``, for the reason in ``note``; None: it goes on.
    """

    name: str
    kind: str
    number: str | None = None
    above: int | None = None
    end: End | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceChain:
    """All links from a filesystem down, each after the one that lies on it."""

    links: tuple[Link, ...]

    @property
    def memory(self) -> tuple[Link, ...]:
        """Where bytes end in memory."""
        return tuple(link for link in self.links if link.end == "memory")

    @property
    def unseen(self) -> str | None:
        """What can't be seen, and why; None: all of the chain is known."""
        notes = [f"{link.name}: {link.note}" for link in self.links if link.end == "unseen"]
        return "; ".join(dict.fromkeys(notes)) or None

    @property
    def disks(self) -> tuple[str, ...]:
        """Names of the disks at the end, each once."""
        return tuple(dict.fromkeys(link.name for link in self.links if link.end == "disk"))

    @property
    def ends(self) -> tuple[str, ...]:
        """Names of the lowest block devices, of whatever kind."""
        lowest = (self._lowest(link) for link in self.links if link.end)
        return tuple(dict.fromkeys(link.name for link in lowest if link is not None))

    def _lowest(self, link: Link) -> Link | None:
        """The nearest block device, from a link up."""
        while link.number is None and link.above is not None:
            link = self.links[link.above]
        return link if link.number is not None else None

    @property
    def is_plain(self) -> bool:
        """Whether what is written above arrives below as it is, once, and nothing else.

        Not through a file (another filesystem's cache and journal), and not where several
        devices are below one: a mirror writes twice, a cache moves bytes by itself.
        """
        above = [link.above for link in self.links if link.above is not None]
        through = sum(link.kind in ("file", "filesystem") for link in self.links)
        return len(above) == len(set(above)) and through == 1

    @property
    def is_straight(self) -> bool:
        """Whether nothing lies between the filesystem and its disk.

        What the kernel counts for a process then goes to that disk; a loop device, a cache
        or another layer may answer it from memory.
        """
        return self.is_plain and {link.kind for link in self.links} <= _STRAIGHT_KINDS

    def describe(self) -> str:
        """``ext4 on loop0 on /x/img on tmpfs``, of the first memory or, without one, the first."""
        index = next((i for i, link in enumerate(self.links) if link.end == "memory"), None)
        if index is None:
            index = next((i for i, link in enumerate(self.links) if link.end), 0)
        names = []
        while index is not None:
            names.append(self.links[index].name)
            index = self.links[index].above
        return " on ".join(reversed(names))

    def to_json(self) -> list[dict[str, Any]]:
        """The chain as it stands in the run file."""
        return [asdict(link) for link in self.links]

    @classmethod
    def from_json(cls, data: Iterable[dict[str, Any]]) -> DeviceChain:
        """The inverse of ``to_json``."""
        return cls(tuple(Link(**link) for link in data))


def is_network_type(fs_type: str) -> bool:
    """Whether a filesystem type is a network's; every FUSE one but fuseblk counts."""
    return fs_type in _NETWORK_TYPES or fs_type.startswith("fuse.")


def end_of_type(fs_type: str) -> End | None:
    """What a filesystem of this type is the end of, whatever it is on; None: its chain goes on."""
    if fs_type in MEMORY_TYPES:
        return "memory"
    return "unseen" if fs_type == "zfs" or is_network_type(fs_type) else None


def may_be_disk(name: str) -> bool:
    """Whether a block device of this name can be a disk; others are memory, or on something."""
    others = (_MEMORY_NAME, _STACKED_NAME, *(pattern for pattern, *_ in _UNSEEN_NAMES))
    return not name.startswith("loop") and not any(other.fullmatch(name) for other in others)


def is_dax(options: str) -> bool:
    """Whether files are mapped memory of the device (mount option dax, of ext4 and xfs)."""
    return bool({"dax", "dax=always"} & set(options.split(",")))


def follow(
    mount: MountFacts, host: str, sys: str = "/sys", *, directory: str | None = None
) -> DeviceChain:
    """The chain below a ``directory`` of a mount; what can't be followed ends it as unseen."""
    walk = _Walk(host, Path(sys))
    walk.filesystem(mount, None, directory or mount.mount_point)
    return DeviceChain(tuple(walk.links))


class _Walk:
    """Collects links; every method adds those of one thing and of all below it."""

    def __init__(self, host: str, sys: Path) -> None:
        self.links: list[Link] = []
        self._host = host
        self._sys = sys

    def _add(self, link: Link) -> int:
        self.links.append(link)
        return len(self.links) - 1

    def _end(self, index: int, end: End, note: str | None = None) -> None:
        self.links[index] = replace(self.links[index], end=end, note=note)

    def _unseen(self, index: int, note: str) -> None:
        self._end(index, "unseen", note)

    def _too_deep(self, index: int) -> bool:
        depth, above = 0, self.links[index].above
        while above is not None:
            depth, above = depth + 1, self.links[above].above
        return depth >= _DEEPEST

    # --- filesystems and files ----------------------------------------------------------------

    def filesystem(
        self, mount: MountFacts, above: int | None, directory: str | None = None
    ) -> None:
        """A filesystem, of which we use a directory, and what it is on."""
        here = self._add(Link(name=mount.type, kind="filesystem", above=above))
        end = end_of_type(mount.type)
        if end is not None:
            note = _ZFS if mount.type == "zfs" else _ELSEWHERE
            self._end(here, end, note if end == "unseen" else None)
        elif mount.type == "overlay":
            self._overlay(mount, here, directory)
        elif mount.type == "ecryptfs":
            self._path(mount.source, here, "its lower directory")
        elif self._too_deep(here):
            self._unseen(here, f"more than {_DEEPEST} things are on top of each other")
        else:
            self._devices(mount, here)

    def _overlay(self, mount: MountFacts, here: int, directory: str | None) -> None:
        """What keeps an overlay's files, if the path of its upper directory still leads there."""
        upper = mount.option("upperdir")
        if upper is None or (directory is not None and shows(upper, mount, directory)):
            self._path(upper, here, "its upper directory")
        else:
            self._unseen(here, f"its upper directory can't be shown to be {upper}")

    def _path(self, path: str | None, above: int, what: str) -> None:
        """The filesystem that a directory is on."""
        if self._too_deep(above):
            self._unseen(above, f"more than {_DEEPEST} things are on top of each other")
            return
        mount = self._mount_at(path) if path else None
        if path is None or mount is None:
            self._unseen(above, f"{what} ({path or 'there is none'}) can't be seen from here")
        else:
            self.filesystem(mount, above, None if Path(path).is_dir() else path)

    def _mount_at(self, path: str) -> MountFacts | None:
        try:
            return mount_of(path, self._host)
        except StorageError:
            return None

    def _devices(self, mount: MountFacts, above: int) -> None:
        """What a filesystem of block devices is on."""
        directories = list(self._directories_of(mount))
        if not directories:
            self._unseen(above, "sysfs shows no block device of it")
        for directory in directories:
            self._block(directory, above)
        if is_dax(mount.options):
            self._unseen(above, "with DAX the processor moves the bytes, and nothing counts them")

    def _directories_of(self, mount: MountFacts) -> Iterator[Path]:
        numbers = [] if mount.device.startswith("0:") else [mount.device]
        paths = [] if numbers else mount.source.split(":")  # bcachefs names all of its devices
        paths += filter(None, [mount.option("rtdev")])  # of xfs, where data may live
        numbers += [number for path in paths if (number := _number_of(path)) is not None]
        found = [self._sys / "dev" / "block" / number for number in numbers]
        real = [link.resolve() for link in found if link.exists()]
        yield from self._btrfs_members(real) if mount.type == "btrfs" else real

    def _btrfs_members(self, real: list[Path]) -> Iterator[Path]:
        """All devices of the btrfs that has this one: mountinfo tells the first only."""
        for members in self._sys.glob("fs/btrfs/*/devices"):
            devices = [(self._sys / "class/block" / link.name).resolve()
                       for link in sorted(members.iterdir())]  # fmt: skip
            if any(directory in devices for directory in real):
                yield from devices
                return
        yield from real

    # --- block devices ------------------------------------------------------------------------

    def _block(self, directory: Path, above: int) -> None:
        """A block device, by its directory in sysfs, and what it is on."""
        name, number = directory.name, kernel_text(directory / "dev")
        here = self._add(Link(name=name, kind="disk", number=number, above=above))
        if self._too_deep(here):
            self._unseen(here, f"more than {_DEEPEST} things are on top of each other")
        elif (directory / "partition").exists():
            self._named(here, "partition")
            self._block(directory.parent, here)
        elif name.startswith("loop"):
            self._named(here, "loop")
            self._loop(directory, here)
        elif _is_memory(directory):
            self._named(here, name.rstrip("0123456789"))
            self._end(here, "memory")
        else:
            self._below(directory, here)

    def _named(self, index: int, kind: str) -> None:
        self.links[index] = replace(self.links[index], kind=kind)

    def _below(self, directory: Path, here: int) -> None:
        """What a device that is no loop, partition or memory is on: devices, or itself."""
        name = directory.name
        for pattern, kind, note in _UNSEEN_NAMES:
            if pattern.fullmatch(name):
                self._named(here, kind)
                self._unseen(here, note)
                return
        slaves = directory / "slaves"
        below = sorted(slaves.iterdir()) if slaves.is_dir() else []
        if below or _STACKED_NAME.fullmatch(name):
            self._named(here, _stacked_kind(name))
            if not below:
                self._unseen(here, "sysfs shows no device below it")
            for link in below:
                self._block(link.resolve(), here)
            return
        self._disk(directory, here)

    def _disk(self, directory: Path, here: int) -> None:
        head = _NVME_HEAD.fullmatch(directory.name)
        paths = sorted(directory.parent.glob(f"nvme{head[1]}c*n{head[2]}")) if head else []
        if head and not paths:  # hidden paths lie with their controllers
            paths = sorted((self._sys / "class/block").glob(f"nvme{head[1]}c*n{head[2]}"))
        if paths:
            self._named(here, "nvme-multipath")
            for path in paths:
                self._block(path.resolve(), here)
            return
        transport = kernel_text(directory / "device" / "transport")
        if transport is not None and transport not in _LOCAL_TRANSPORTS:
            self._named(here, f"nvme-{transport}")
            self._unseen(here, f"it is reached by {transport}; what is behind that is not seen")
        elif re.search(r"/session\d+/", str(directory)):
            self._named(here, "iscsi")
            self._unseen(here, "it is reached by iSCSI; what is behind that is not seen")
        elif "/virtio" in str(directory) and directory.name.startswith("pmem"):
            self._unseen(here, "the host of this machine keeps it, maybe in its page cache")
        else:
            self._end(here, "disk")

    def _loop(self, directory: Path, here: int) -> None:
        """The file, or block device, behind a loop device."""
        backing = kernel_text(directory / "loop" / "backing_file")
        if backing is None:
            self._unseen(here, "sysfs does not show the file behind it")
            return
        identity = loop_identity(f"/dev/{directory.name}")
        found = _stat_of(backing, identity)
        if found is not None and stat.S_ISBLK(found.st_mode):
            number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
            self._block((self._sys / "dev/block" / number).resolve(), here)
            return
        file = self._add(Link(name=backing, kind="file", above=here))
        if backing.startswith("/memfd:"):
            self._end(file, "memory")
        elif found is not None:
            self._path(backing, file, "its filesystem")
        else:
            self._lost_file(identity, file)

    def _lost_file(self, identity: tuple[str, int] | None, file: int) -> None:
        """A file whose path leads nowhere, or elsewhere: the loop device knows its filesystem."""
        device = None if identity is None else identity[0]
        mount = None if device is None else find_by_device(_mounts(), device)
        block = self._sys / "dev" / "block" / (device or "none")
        if mount is not None:
            self.filesystem(mount, file)
        elif block.exists():
            self._block(block.resolve(), file)
        else:
            self._unseen(file, "it is deleted, or on a mount that can't be seen from here")


def loop_identity(device: str) -> tuple[str, int] | None:
    """Device (``major:minor``) and inode of the file behind a loop device; None: not known.

    Its path alone is a name in the mount namespace of whoever asks, where another file may
    be by now.
    """
    answer = bytearray(_LOOP_INFO_BYTES)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, answer)
        finally:
            os.close(fd)
    except OSError:  # only who may read the device is told
        return None
    number, inode = _LOOP_INFO.unpack_from(answer)
    return f"{os.major(number)}:{os.minor(number)}", inode


def shows(upper: str, mount: MountFacts, path: str) -> bool:
    """Whether a file of an overlay, or one made in its directory, is below that upper one.

    A path may lead elsewhere by now: its filesystem was unmounted lazily, something was
    mounted on it, or it is relative to where somebody once was.
    """
    if not upper.startswith("/"):
        return False
    there = Path(f"{upper}/{mount.root}", os.path.relpath(path, mount.mount_point))
    try:
        if not Path(path).is_dir():
            return _likeness(Path(path)) == _likeness(there)
        with tempfile.NamedTemporaryFile(prefix=".kvcache-layer-", dir=path) as file:
            return _likeness(Path(file.name)) == _likeness(there / Path(file.name).name)
    except OSError:
        return False


def _likeness(path: Path) -> tuple[int, int, int]:
    """What a file has in an overlay as in its upper directory, whose device is another."""
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _stat_of(path: str, identity: tuple[str, int] | None) -> os.stat_result | None:
    """The status of a file if it is the one of this identity, as far as that is known."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    here = (f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}", found.st_ino)
    return found if identity in (None, here) else None


def _is_memory(directory: Path) -> bool:
    """Whether a block device keeps its bytes in this machine's memory."""
    name = directory.name
    if _MEMORY_NAME.fullmatch(name) or "/e820_pmem/" in str(directory):
        return True
    if name.startswith("mtdblock"):
        return kernel_text(directory / "device" / "type") == "ram"
    return bool(_MEMORY_MODEL.search(kernel_text(directory / "device" / "model") or ""))


def _stacked_kind(name: str) -> str:
    return next((kind for kind in ("dm", "md", "bcache") if name.startswith(kind)), "stacked")


def _number_of(path: str) -> str | None:
    """``major:minor`` of a device node; None: it is none, or not visible in a container."""
    if not path.startswith("/dev/"):
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _mounts() -> tuple[MountFacts, ...]:
    try:
        return read_mounts()
    except OSError:
        return ()
