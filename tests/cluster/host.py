"""What runs as process 1 of a host of the test cluster: it mounts, then reaps until told to end.

A script, started by `Cluster` in new namespaces; it imports nothing but the standard
library. One line of JSON on standard input says what the host is; "ready" on standard
output answers. The end of standard input is the end of the host and of all its
processes: so a killed pytest takes its cluster with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

MS_BIND = 0x1000
MS_REC = 0x4000
OWN = {"/tmp": 0o1777, "/run": 0o755, "/dev/shm": 0o1777}  # empty on every host, with these modes

LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Become the host that standard input describes."""
    spec = json.loads(sys.stdin.readline())
    socket.sethostname(spec["name"])
    mount_system()
    mount_own(spec)
    for source, target in spec["files"].items():
        bind(source, target)
    signal.signal(signal.SIGCHLD, reap)
    reap()
    print("ready", flush=True)  # noqa: T201  the protocol
    sys.stdin.read()


def mount_system() -> None:
    """/sys of the host's own network, with the machine's cgroups, which container engines need."""
    cgroups = os.open("/sys/fs/cgroup", os.O_PATH)
    mount("sysfs", "/sys", "sysfs")
    bind_fd(cgroups, "/sys/fs/cgroup")


def mount_own(spec: dict[str, Any]) -> None:
    """Directories of the host's own; into them, what it shares with the machine."""
    shared = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in spec["share"]}
    for path, mode in OWN.items():
        mount_tmpfs(path, mode=mode)
    Path("/run/sshd").mkdir()
    for path, fd in shared.items():
        if not is_visible(path, fd):
            Path(path).mkdir(parents=True, exist_ok=True)
            bind_fd(fd, path)
        os.close(fd)
    for path in spec["private"]:
        mount_private(Path(path), spec)


def is_visible(path: str, fd: int) -> bool:
    """Whether the path still leads to what was opened."""
    return Path(path).exists() and os.path.samestat(Path(path).stat(), os.fstat(fd))


def mount_private(path: Path, spec: dict[str, Any]) -> None:
    """A directory of the host's own where the machine may have none.

    The machine gets no directory for it, and one that could be removed there (which
    would unmount it here) is not used.
    """
    inside = (*OWN, *spec["share"])
    if not any(path.is_relative_to(parent) for parent in inside) and not has_content(path):
        cover(next(parent for parent in path.parents if parent.is_dir()))
    path.mkdir(parents=True, exist_ok=True)
    mount_tmpfs(str(path), mode=0o1777, size_bytes=spec["private_bytes"])


def has_content(path: Path) -> bool:
    """Whether it is a directory that nobody can just remove."""
    return path.is_dir() and any(path.iterdir())


def cover(path: Path) -> None:
    """Let entries be added to a directory on this host only; those it has stay visible."""
    if path == Path("/"):
        raise OSError(f"a private directory can't be made in {path}; choose one further below")
    below = os.open(path, os.O_PATH | os.O_DIRECTORY)
    entries = sorted(path.iterdir())
    kinds = [(entry, entry.is_symlink(), entry.is_dir()) for entry in entries]
    links = {entry: entry.readlink() for entry, is_link, _ in kinds if is_link}
    mount_tmpfs(str(path), mode=path.stat().st_mode & 0o7777)
    for entry, is_link, is_dir in kinds:
        if is_link:
            entry.symlink_to(links[entry])
            continue
        entry.mkdir() if is_dir else entry.touch()
        mount(f"/proc/self/fd/{below}/{entry.name}", str(entry), flags=MS_BIND | MS_REC)
    os.close(below)


def bind(source: str, target: str) -> None:
    """Show a file or directory at another path."""
    mount(source, target, flags=MS_BIND | MS_REC)


def bind_fd(fd: int, target: str) -> None:
    """The same with an open directory, which may be covered by now."""
    bind(f"/proc/self/fd/{fd}", target)


def mount_tmpfs(path: str, *, mode: int, size_bytes: int | None = None) -> None:
    """An empty file system in memory."""
    size = "" if size_bytes is None else f",size={size_bytes}"
    mount("tmpfs", path, "tmpfs", data=f"mode={mode:o}{size}")


def mount(source: str, target: str, kind: str = "none", *, flags: int = 0, data: str = "") -> None:
    """mount(2); the command of that name would follow the links of /proc to covered paths."""
    words = [word.encode() for word in (source, target, kind)]
    if LIBC.mount(*words, ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{source} can't be mounted: {os.strerror(number)}", target)


def reap(*_: object) -> None:
    """Take the exit codes of orphans, as process 1 must."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    main()
