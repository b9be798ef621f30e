"""What a benchmark touched: bytes the device moved, and which filesystem it was.

Reads /proc and /sys only; parsing is pure. Imports neither pytest nor MPI.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.devicechain import DeviceChain, follow, is_dax, is_network_type
from pytest_kvcache.system.kernelfile import kernel_text
from pytest_kvcache.system.mounts import MEMORY_TYPES, mount_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How virtual disks call themselves: kernel names, then vendor and model strings.
_VIRTUAL_NAME = re.compile(r"(vd|xvd)[a-z]")
_VIRTUAL_MODEL = re.compile(
    r"qemu|virtual|virtio|vbox|vmware|xen|elastic block store|persistentdisk", re.IGNORECASE
)
# What a path says that leads nowhere any more; ESTALE over a network.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
# Filesystems that count for a process what no device moved for it (see devicechain.py for
# zfs), or whose I/O is that of another process.
_UNCOUNTED_TYPES = frozenset({"fuseblk", "zfs"})


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
class DeviceFacts:
    """A block device: its disk's name and model, and the alignment of direct I/O, bytes."""

    name: str
    model: str | None
    dio_align_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemFacts:
    """The filesystem that holds ``path`` on ``host``.

    ``available_bytes`` is what users may still take (``f_bavail``), ``available_inodes``
    None where the filesystem has no fixed number. ``chain`` is what it is on, down to what
    keeps the bytes; ``device`` and ``device_model`` are those at its end (joined by ``+``),
    ``dio_align_bytes`` is that of the uppermost block device; None without one. ``virtual``
    True: a cache below this machine can't be excluded; None: not known, or no disk.
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
    chain: DeviceChain
    device: str | None
    device_model: str | None
    dio_align_bytes: int | None
    virtual: bool | None

    @property
    def is_tmpfs(self) -> bool:
        """Whether files live in memory (tmpfs and its kin)."""
        return self.type in MEMORY_TYPES

    @property
    def memory_at_end(self) -> str | None:
        """What of the chain ends in memory (``ext4 on loop0 on /x on tmpfs``); None: nothing."""
        return self.chain.describe() if self.chain.memory else None

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
        """Whether a process's byte counters tell what a device moved for it.

        One that stands still then proves that nothing was moved.
        """
        uncounted = (
            self.is_tmpfs
            or self.is_network
            or self.type in _UNCOUNTED_TYPES
            or is_dax(self.options)
        )
        return not (uncounted or any(link.kind == "zvol" for link in self.chain.links))

    def to_json(self) -> dict[str, object]:
        """Return every fact, the derived ones too, as plain values."""
        derived = {
            name: getattr(self, name)
            for name in ("is_tmpfs", "memory_at_end", "is_network", "is_overlay", "counts_io")
        }
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | derived | {"chain": self.chain.to_json(), "unseen": self.chain.unseen}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FilesystemFacts:
        """The inverse of ``to_json``; what is derived is not believed but derived again.

        So is ``virtual``, as far as it follows: what a hypervisor's flag adds stands for itself.
        """
        plain = {field.name: data[field.name] for field in fields(cls)}
        names, model = (plain["device"] or "").split("+"), plain["device_model"]
        devices = [DeviceFacts(name=n, model=model, dio_align_bytes=None) for n in names]
        virtual = is_virtual(plain["type"], devices, hypervisor=plain["virtual"])
        chain = DeviceChain.from_json(plain["chain"])
        return cls(**{**plain, "chain": chain, "virtual": virtual})


class WatchedDirectory:
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


def sample_io(path: str = "/proc/self/io") -> IoCounters:
    """Read this process's counters, all threads; None where there is no such file."""
    # Nothing without task accounting in this kernel, or where a container hides it.
    return parse_io(kernel_text(path) or "")


def parse_io(text: str) -> IoCounters:
    """Parse the text of /proc/<pid>/io; a missing field is None."""
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return IoCounters(
        read_bytes=_number(fields, "read_bytes"), write_bytes=_number(fields, "write_bytes")
    )


def probe_filesystem(path: str, host: str) -> FilesystemFacts:
    """Find out what holds ``path``; StorageError if that can't be told."""
    real = os.path.realpath(path)
    mount = mount_of(real, host)
    try:
        space = os.statvfs(real)
    except OSError as error:
        raise StorageError(
            f"{host}: can't examine the filesystem of {path}: {error.strerror}"
        ) from error
    chain = follow(mount, host, directory=real)
    ends = [device for name in chain.ends if (device := probe_device(name)) is not None]
    top = next((device for link in chain.links if (device := probe_device(link.name))), None)
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
        chain=chain,
        device="+".join(device.name for device in ends) or None,
        device_model="+".join(device.model for device in ends if device.model) or None,
        dio_align_bytes=top.dio_align_bytes if top else None,
        virtual=is_virtual(mount.type, ends, hypervisor=_under_hypervisor()),
    )


def probe_device(name: str, sys_block: str = "/sys/class/block") -> DeviceFacts | None:
    """Facts of a block device; a partition's are its disk's; None if there is none."""
    link = Path(sys_block) / name.replace("/", "!")
    if not link.exists():
        return None
    device = link.resolve()
    disk = device.parent if (device / "partition").exists() else device
    identity = [kernel_text(disk / "device" / name) for name in ("vendor", "model")]
    align = kernel_text(disk / "queue" / "logical_block_size")
    return DeviceFacts(
        name=disk.name,
        # A vendor that is a bare PCI number names nobody.
        model=" ".join(text for text in identity if text and not text.startswith("0x")) or None,
        dio_align_bytes=int(align) if align and align.isdecimal() else None,
    )


def is_virtual(
    fs_type: str, devices: Sequence[DeviceFacts], *, hypervisor: bool | None
) -> bool | None:
    """Whether a disk below a filesystem is, or may be, virtual; None: not known, no disk.

    A disk is taken for virtual by its name or model, and on every virtual platform.
    """
    if fs_type in MEMORY_TYPES or is_network_type(fs_type):
        return None
    for device in devices:
        if _VIRTUAL_NAME.match(device.name) or _VIRTUAL_MODEL.search(device.model or ""):
            return True
    return hypervisor


def hypervisor_flag(cpuinfo: str) -> bool | None:
    """Whether /proc/cpuinfo says that the CPU is a guest's; None without x86 flags."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return "hypervisor" in match[1].split() if match else None


def _under_hypervisor() -> bool | None:
    vendor = kernel_text("/sys/class/dmi/id/sys_vendor")
    if vendor and _VIRTUAL_MODEL.search(vendor):
        return True
    return hypervisor_flag(kernel_text("/proc/cpuinfo") or "")


def _number(fields: Mapping[str, str], name: str) -> int | None:
    value = fields.get(name, "")
    return int(value) if value.isdecimal() else None


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
