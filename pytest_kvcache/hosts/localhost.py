"""What this machine is: its names, cores and memory. Controller side; no pytest, no MPI."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass

from pytest_kvcache.system.cgroups import Groups, cpu_quota_cores, limit_words, memory_limit
from pytest_kvcache.system.kernelfile import kernel_text
from pytest_kvcache.units import format_bytes, format_count


def is_local(name: str) -> bool:
    """Whether a host's name is this machine: by name, or by an address that is ours."""
    own = socket.gethostname().casefold()
    if name.casefold() in {"localhost", own}:
        return True
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # unknown, or no name at all
        return name.casefold() == own.partition(".")[0]
    return any(_is_own_address(family, address) for family, _, _, _, address in found)


def launcher_name(name: str) -> str:
    """What a launcher is sure to take for this machine, where ``is_local(name)`` holds.

    mpirun knows its own host by fewer names than we do: not by an alias that the name
    server or /etc/hosts gives it, nor by 127.0.0.2, where it looks for a daemon in vain.
    """
    own = socket.gethostname()
    return name if name in {"localhost", "127.0.0.1", own} else own


def _is_own_address(family: int, address: tuple[object, ...]) -> bool:
    """Only an address of this machine can be bound."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


def usable_cores(groups: Groups | None = None) -> int:
    """Cores this process may run on: those it is bound to, at most its group's quota of them.

    A part of a core counts as one: ranks can run there, though not all the time.
    """
    bound, quota = len(os.sched_getaffinity(0)), quota_cores(groups)
    return bound if quota is None else min(bound, max(1, math.ceil(quota)))


def quota_cores(groups: Groups | None = None) -> float | None:
    """The CPU quota of this process's control group; None: it has none."""
    return cpu_quota_cores(Groups.of_process() if groups is None else groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What this process may still take; ``limit_bytes`` is of the group that leaves so little.

    None: it is the machine that leaves least.
    """

    free_bytes: int
    limit_bytes: int | None


def available_memory(meminfo: str = "/proc/meminfo", groups: Groups | None = None) -> Memory | None:
    """What can be taken without swapping or being killed; None where nothing tells."""
    of_machine = _available_bytes(meminfo)
    limit = memory_limit(Groups.of_process() if groups is None else groups)
    if limit is not None and (of_machine is None or limit.free_bytes < of_machine):
        return Memory(free_bytes=limit.free_bytes, limit_bytes=limit.limit_bytes)
    return None if of_machine is None else Memory(free_bytes=of_machine, limit_bytes=None)


def available_memory_bytes(
    meminfo: str = "/proc/meminfo", groups: Groups | None = None
) -> int | None:
    """How much that is; None where nothing tells."""
    found = available_memory(meminfo, groups)
    return None if found is None else found.free_bytes


def cores_words(cores: int, quota: float | None) -> str:
    """``2 cores (its control group allows 1.5)``."""
    shown = format_count(cores, "core")
    return shown if quota is None else f"{shown} ({limit_words(f'{quota:.3g}')})"


def memory_words(free_bytes: int, limit_bytes: int | None) -> str:
    """``178 MiB of memory free (its control group allows 250 MiB)``."""
    shown = f"{format_bytes(free_bytes)} of memory free"
    if limit_bytes is None:
        return shown
    return f"{shown} ({limit_words(format_bytes(limit_bytes))})"


def _available_bytes(meminfo: str) -> int | None:
    for line in (kernel_text(meminfo) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def available_disk_bytes(path: str) -> int:
    """What users may still take of the filesystem that holds ``path`` (``f_bavail``)."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def is_root() -> bool:
    """Whether this process runs as root."""
    return os.geteuid() == 0
