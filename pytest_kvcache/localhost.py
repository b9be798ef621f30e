"""What this machine is: its names, cores and memory. Controller side; no pytest, no MPI."""

from __future__ import annotations

import os
import socket
from pathlib import Path


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


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def available_memory_bytes(meminfo: str = "/proc/meminfo") -> int | None:
    """What the kernel says can be taken without swapping; None where it does not say."""
    try:
        text = Path(meminfo).read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
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
