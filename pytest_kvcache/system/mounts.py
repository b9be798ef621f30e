"""Which filesystem a path leads to now: by its mount's id, its type number and its device.

Never by the longest path: what is mounted above a mount point hides it. Reads /proc and
asks statfs(2); parsing is pure. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_OCTAL = re.compile(r"\\([0-7]{3})")
_STATFS_BYTES = 256  # no struct statfs of any architecture is larger
_TYPE_MASK = 0xFFFF_FFFF

TYPE_NUMBERS: Final[Mapping[int, frozenset[str]]] = MappingProxyType(
    {
        0x0000_EF53: frozenset({"ext2", "ext3", "ext4"}),
        0x5846_5342: frozenset({"xfs"}),
        0x9123_683E: frozenset({"btrfs"}),
        0xCA45_1A4E: frozenset({"bcachefs"}),
        0xF2F5_2010: frozenset({"f2fs"}),
        0x2FC1_2FC1: frozenset({"zfs"}),
        0x794C_7630: frozenset({"overlay"}),
        0x0102_1994: frozenset({"tmpfs", "devtmpfs", "rootfs"}),
        0x8584_58F6: frozenset({"ramfs", "devtmpfs", "rootfs"}),
        0x9584_58F6: frozenset({"hugetlbfs"}),
        0x0000_6969: frozenset({"nfs", "nfs4"}),
        0x0BD0_0BD0: frozenset({"lustre"}),
        0x4750_4653: frozenset({"gpfs"}),
        0x0102_1997: frozenset({"9p"}),
        0x00C3_6400: frozenset({"ceph"}),
        0x1983_0326: frozenset({"beegfs"}),
    }
)
"""f_type of statfs(2) → the names that mountinfo may have for it; what is not here is not checked.

From statfs(2), include/uapi/linux/magic.h and the filesystems' own sources.
"""

MEMORY_TYPES: Final = frozenset({"devtmpfs", "hugetlbfs", "ramfs", "rootfs", "tmpfs"})
"""Filesystems whose files live in the page cache and nowhere else."""

# Where stat(2) tells another device than mountinfo: one for each subvolume or layer.
_OTHER_DEVICE_TYPES = frozenset({"bcachefs", "btrfs", "overlay"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFacts:
    """One line of mountinfo: where, what, from where; ``device`` is ``major:minor``.

    ``root`` is the directory of the filesystem that is at the mount point.
    """

    id: int
    mount_point: str
    type: str
    source: str
    options: str
    device: str
    root: str = "/"

    def option(self, name: str) -> str | None:
        """The value of an option ``name=value``; None: it is not given."""
        for option in self.options.split(","):
            key, equals, value = option.partition("=")
            if equals and key == name:
                return value
        return None


def mount_of(path: str, host: str) -> MountFacts:
    """The mount that ``path`` is on now; StorageError if that can't be told for certain."""
    try:
        fd = _open(path)
        try:
            found = find_by_id(read_mounts(), _mount_id(fd))
            number, device = statfs_type(fd), os.fstat(fd).st_dev
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"{host}: can't examine the filesystem of {path}: {error.strerror}"
        ) from error
    if found is None:
        raise StorageError(
            f"{host}: /proc/self/mountinfo does not list the mount that {path} is on; it belongs"
            " to another mount namespace, use a directory of this one"
        )
    fault = contradiction(found, number, f"{os.major(device)}:{os.minor(device)}")
    if fault is not None:
        raise StorageError(f"{host}: what holds {path} can't be told: {fault}")
    return found


def contradiction(mount: MountFacts, type_number: int, device: str) -> str | None:
    """Why mountinfo and what the kernel says of an open directory can't both be right."""
    known = TYPE_NUMBERS.get(type_number)
    if known is not None and mount.type not in known:
        return (
            f"mountinfo says {mount.type}, statfs(2) says {' or '.join(sorted(known))}; mounts"
            " changed meanwhile, try again"
        )
    anonymous = device.startswith("0:") and mount.device.startswith("0:")
    if mount.type not in _OTHER_DEVICE_TYPES and not anonymous and device != mount.device:
        return (
            f"mountinfo says device {mount.device}, stat(2) says {device}; mounts changed"
            " meanwhile, try again"
        )
    return None


def read_mounts() -> tuple[MountFacts, ...]:
    """All mounts of this process's namespace. OSError if they can't be read."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))


def parse_mountinfo(text: str) -> tuple[MountFacts, ...]:
    """Parse /proc/<pid>/mountinfo, proc_pid_mountinfo(5), in its order."""
    return tuple(_parse_mount(line) for line in text.splitlines() if " - " in line)


def find_by_id(mounts: tuple[MountFacts, ...], mount_id: int | None) -> MountFacts | None:
    """The mount with this id, which no other one has at the same time."""
    return next((mount for mount in mounts if mount.id == mount_id), None)


def find_by_device(mounts: tuple[MountFacts, ...], device: str) -> MountFacts | None:
    """A mount of the filesystem on ``major:minor``; hidden ones too, for it exists all the same."""
    return next((mount for mount in mounts if mount.device == device), None)


def parse_mount_id(fdinfo: str) -> int | None:
    """Which mount a descriptor is on, from the text of /proc/<pid>/fdinfo/<fd>."""
    match = re.search(r"^mnt_id:\s*(\d+)$", fdinfo, re.MULTILINE)
    return int(match[1]) if match else None


def statfs_type(fd: int) -> int:
    """f_type of fstatfs(2): a number for each kind of filesystem. OSError if it fails."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fstatfs64", None) or libc.fstatfs
    if call(fd, answer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_long.from_buffer(answer).value & _TYPE_MASK


def _open(path: str) -> int:
    """A descriptor of what is there, whatever may be read of it; an automount is made."""
    inside = f"{path}/." if Path(path).is_dir() else path
    return os.open(inside, os.O_PATH | os.O_CLOEXEC)


def _mount_id(fd: int) -> int | None:
    return parse_mount_id(Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii"))


def _parse_mount(line: str) -> MountFacts:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    before, after = line.split(" - ", 1)
    mount_id, _parent, device, root, mount_point, options = before.split(" ")[:6]
    fs_type, source, super_options = (*after.split(" "), "", "")[:3]
    every = dict.fromkeys(f"{options},{super_options}".strip(",").split(","))
    return MountFacts(
        id=int(mount_id),
        mount_point=_unescape(mount_point),
        type=fs_type,
        source=_unescape(source),
        options=_unescape(",".join(every)),
        device=device,
        root=_unescape(root),
    )


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
