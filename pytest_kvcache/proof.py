"""Evidence of what a benchmark touched: bytes the device moved, and which filesystem it was.

Reads /proc and /sys only; parsing is pure. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEMORY_TYPES = frozenset({"devtmpfs", "hugetlbfs", "ramfs", "tmpfs"})
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
# How virtual disks call themselves: kernel names, then vendor and model strings.
_VIRTUAL_NAME = re.compile(r"(vd|xvd)[a-z]")
_VIRTUAL_MODEL = re.compile(
    r"qemu|virtual|virtio|vbox|vmware|xen|elastic block store|persistentdisk", re.IGNORECASE
)
_OCTAL = re.compile(r"\\([0-7]{3})")
# What a path says that leads nowhere any more; ESTALE over a network.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
# Anonymous device numbers (btrfs, overlay, network): the filesystem has no one device.
_ANONYMOUS_MAJOR = "0:"


@dataclass(frozen=True, slots=True, kw_only=True)
class IoCounters:
    """Bytes a process made the storage layer move; None where the kernel does not count.

    From proc_pid_io(5). ``read_bytes`` are bytes fetched from the device. Buffered,
    ``write_bytes`` are counted when a page becomes dirty, not when it reaches the device.
    Filesystems without a block device (tmpfs, some network and FUSE ones) leave both
    alone: there a difference of 0 proves nothing, see `FilesystemFacts.counts_io`.
    """

    read_bytes: int | None
    write_bytes: int | None

    def since(self, earlier: IoCounters) -> IoCounters:
        """Return what was moved after ``earlier``, None where either is unknown."""
        return IoCounters(
            read_bytes=_difference(self.read_bytes, earlier.read_bytes),
            write_bytes=_difference(self.write_bytes, earlier.write_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFacts:
    """One line of mountinfo: where, what, from where; ``device`` is ``major:minor``."""

    mount_point: str
    type: str
    source: str
    options: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """A block device: its disk's name and model, and the alignment of direct I/O, bytes."""

    name: str
    model: str | None
    dio_align_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemFacts:
    """The filesystem that holds ``path`` on ``host``.

    ``available_bytes`` is what users may still take (``f_bavail``), ``available_inodes``
    None where the filesystem has no fixed number. ``device``, ``device_model`` and
    ``dio_align_bytes`` are None without a readable block device. ``virtual`` True: a
    cache below this machine can't be excluded; None: not known, or no disk of its own.
    """

    host: str
    path: str
    type: str
    source: str
    mount_point: str
    options: str
    total_bytes: int
    available_bytes: int
    available_inodes: int | None
    device: str | None
    device_model: str | None
    dio_align_bytes: int | None
    virtual: bool | None

    @property
    def is_tmpfs(self) -> bool:
        """Whether files live in memory (tmpfs and its kin)."""
        return self.type in _MEMORY_TYPES

    @property
    def is_network(self) -> bool:
        """Whether files live on another machine, or on the host of this guest."""
        return is_network_type(self.type)

    @property
    def is_overlay(self) -> bool:
        """Whether this is a container's layered root, whose real filesystem is another."""
        return self.type == "overlay"

    @property
    def counts_io(self) -> bool:
        """Whether a byte counter that stands still proves that nothing was moved."""
        return not (self.is_tmpfs or self.is_network)

    def to_json(self) -> dict[str, object]:
        """Return every fact, the derived ones too, as plain values."""
        derived = {
            name: getattr(self, name)
            for name in ("is_tmpfs", "is_network", "is_overlay", "counts_io")
        }
        return asdict(self) | derived


class Place:
    """A directory that a rank on ``host`` uses by its path, and where that path once led.

    Once a filesystem is mounted above it, or unmounted (umount -l asks nobody), the same
    path leads elsewhere: the rank would measure another storage. The directory is held
    open, for some filesystems forget inode numbers of what nobody holds.
    """

    def __init__(self, path: str, host: str) -> None:
        """Hold the directory; StorageError if there is none."""
        self._path, self._host = path, host
        self._fd: int | None = None
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"{host}: can't open {path}: {error.strerror}") from error

    def fault(self) -> str | None:
        """Why what was measured here can't be trusted; None: the path leads where it did."""
        if self._fd is None:
            return None
        try:
            before, now = os.fstat(self._fd), os.stat(self._path)  # noqa: PTH116 - as descriptors
        except OSError as error:
            if error.errno in _GONE:
                return self._moved("is gone: it was removed, or its filesystem unmounted")
            return f"{self._host}: can't examine {self._path}: {error.strerror}"
        if os.path.samestat(before, now):
            return None
        return self._moved(
            "is another directory than at the start: something was mounted there, unmounted or"
            " put in its place"
        )

    def _moved(self, what: str) -> str:
        return (
            f"{self._path} on {self._host} {what} while ranks used it, so that they may have"
            " measured another storage; leave the cache directory alone until the run is over"
            " (after an unmount look on that filesystem for what is left)"
        )

    def close(self) -> None:
        """Let go of the directory; twice is harmless."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_network_type(fs_type: str) -> bool:
    """Whether a filesystem type is a network's; every FUSE one but fuseblk counts."""
    return fs_type in _NETWORK_TYPES or fs_type.startswith("fuse.")


def sample_io(path: str = "/proc/self/io") -> IoCounters:
    """Read this process's counters, all threads; None where there is no such file."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError:  # no task accounting in this kernel, or hidden in a container
        text = ""
    return parse_io(text)


def parse_io(text: str) -> IoCounters:
    """Parse the text of /proc/<pid>/io; a missing field is None."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return IoCounters(
        read_bytes=_number(fields, "read_bytes"), write_bytes=_number(fields, "write_bytes")
    )


def parse_mountinfo(text: str) -> tuple[MountFacts, ...]:
    """Parse /proc/<pid>/mountinfo, proc_pid_mountinfo(5), in its order."""
    return tuple(_parse_mount(line) for line in text.splitlines() if " - " in line)


def find_mount(mounts: tuple[MountFacts, ...], real_path: str) -> MountFacts | None:
    """Return the mount with the longest mount point above ``real_path``.

    Of several on one mount point the last one, which hides the others.
    """
    above = [mount for mount in mounts if _is_inside(real_path, mount.mount_point)]
    return max(reversed(above), key=lambda mount: len(mount.mount_point), default=None)


def probe_filesystem(path: str, host: str) -> FilesystemFacts:
    """Find out what holds ``path``; StorageError if that can't be told."""
    real = os.path.realpath(path)
    try:
        space = os.statvfs(real)
        mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"{host}: can't examine the filesystem of {path}: {error.strerror}"
        ) from error
    mount = find_mount(mounts, real)
    if mount is None:
        raise StorageError(f"{host}: no mount point in /proc/self/mountinfo is above {real}")
    device = probe_device(_device_number(mount))
    return FilesystemFacts(
        host=host,
        path=path,
        type=mount.type,
        source=mount.source,
        mount_point=mount.mount_point,
        options=mount.options,
        total_bytes=space.f_blocks * space.f_frsize,
        available_bytes=space.f_bavail * space.f_frsize,
        available_inodes=space.f_favail if space.f_files or space.f_favail else None,
        device=device.name if device else None,
        device_model=device.model if device else None,
        dio_align_bytes=device.dio_align_bytes if device else None,
        virtual=is_virtual(mount.type, device, hypervisor=_under_hypervisor()),
    )


def probe_device(number: str, sys_block: str = "/sys/dev/block") -> DeviceFacts | None:
    """Facts of block device ``major:minor``; a partition's are its disk's; None if absent."""
    link = Path(sys_block) / number
    if not link.exists():
        return None
    device = link.resolve()
    disk = device.parent if (device / "partition").exists() else device
    identity = [_first_line(disk / "device" / name) for name in ("vendor", "model")]
    align = _first_line(disk / "queue" / "logical_block_size")
    return DeviceFacts(
        name=disk.name,
        # A vendor that is a bare PCI number names nobody.
        model=" ".join(text for text in identity if text and not text.startswith("0x")) or None,
        dio_align_bytes=int(align) if align and align.isdecimal() else None,
    )


def is_virtual(fs_type: str, device: DeviceFacts | None, *, hypervisor: bool | None) -> bool | None:
    """Whether the disk below a filesystem is, or may be, virtual; None: not known, no disk.

    A disk is taken for virtual by its name or model, and on every virtual platform.
    """
    if fs_type in _MEMORY_TYPES or is_network_type(fs_type):
        return None
    if device and (_VIRTUAL_NAME.match(device.name) or _VIRTUAL_MODEL.search(device.model or "")):
        return True
    return hypervisor


def hypervisor_flag(cpuinfo: str) -> bool | None:
    """Whether /proc/cpuinfo says that the CPU is a guest's; None without x86 flags."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return "hypervisor" in match[1].split() if match else None


def _under_hypervisor() -> bool | None:
    vendor = _first_line(Path("/sys/class/dmi/id/sys_vendor"))
    if vendor and _VIRTUAL_MODEL.search(vendor):
        return True
    try:
        return hypervisor_flag(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return None


def _parse_mount(line: str) -> MountFacts:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    before, after = line.split(" - ", 1)
    _id, _parent, device, _root, mount_point, options = before.split(" ")[:6]
    fs_type, source, super_options = (*after.split(" "), "", "")[:3]
    every = dict.fromkeys(f"{options},{super_options}".strip(",").split(","))
    return MountFacts(
        mount_point=_unescape(mount_point),
        type=fs_type,
        source=_unescape(source),
        options=_unescape(",".join(every)),
        device=device,
    )


def _device_number(mount: MountFacts) -> str:
    """Return the ``major:minor`` of the mount's device, by its source where it is anonymous."""
    if not mount.device.startswith(_ANONYMOUS_MAJOR) or not mount.source.startswith("/dev/"):
        return mount.device
    try:
        number = Path(mount.source).stat().st_rdev
    except OSError:  # a container sees the mount but not the device node
        return mount.device
    return f"{os.major(number)}:{os.minor(number)}"


def _is_inside(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(fields: Mapping[str, str], name: str) -> int | None:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() else None


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
