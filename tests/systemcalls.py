"""The system calls that a script makes on files below a directory; not a test module.

By strace, between marks: `access("/mark/NAME")` begins what is told under that name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_ASKED = (
    "access,faccessat,faccessat2,stat,newfstatat,fstat,open,openat,write,close,ioctl,rename"
    ",renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,lseek,read,readv,pread64,preadv"
    ",preadv2,pwrite64,pwritev,pwritev2,fsync,fdatasync,fadvise64,fallocate,ftruncate,fcntl"
    ",io_submit"
)
_CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_OF_FILES = re.compile(r"aio_lio_opcode=IOCB_CMD_(\w+), .*?aio_fildes=(\d+)")
_PLAIN = {
    "openat": "open", "newfstatat": "stat", "faccessat": "access", "faccessat2": "access",
    "pwritev": "pwrite", "pwritev2": "pwrite", "pwrite64": "pwrite", "preadv": "pread",
    "preadv2": "pread", "pread64": "pread", "readv": "read", "unlinkat": "unlink",
    "renameat": "rename", "renameat2": "rename", "mkdirat": "mkdir", "linkat": "link",
}  # fmt: skip


def calls_of(script: str, root: Path, *arguments: str) -> dict[str, str]:
    """Mark → the calls until the next one, as words; ``script`` gets the directory first.

    Skips where strace is not installed, or may not trace.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = root.with_suffix(".strace")
    tracing = [strace, "-f", "-o", str(log), "-e", f"trace={_ASKED}"]
    done = subprocess.run(
        [*tracing, sys.executable, "-c", script, str(root), *arguments],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert not done.returncode, done.stderr
    return told(log.read_text(encoding="utf-8", errors="replace").splitlines(), str(root))


def whole(lines: Sequence[str]) -> Iterator[str]:
    """Each call in one line, where it ended: strace cuts those that others come between."""
    begun: dict[str, str] = {}
    for line in lines:
        pid = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
        elif " resumed>" in line:
            rest = line.partition(" resumed>")[2].lstrip()
            gap = "" if rest.startswith(")") else " "
            yield f"{begun.pop(pid, '')}{gap}{rest}"
        else:
            yield line


def descriptor_of(name: str, arguments: str) -> str:
    """Which open file a call is on; of an io_submit, the first one."""
    if name == "io_submit":
        return str(_OF_FILES.findall(arguments)[0][1])
    return arguments.partition(",")[0]


def word_of(name: str, arguments: str) -> str:
    """How a call on an open file is told: of an io_submit what it begins, and how often."""
    if name != "io_submit":
        return "dup" if "F_DUPFD" in arguments else name
    count = int(arguments.split(", ")[1])
    (operation,) = {operation.lower() for operation, _fd in _OF_FILES.findall(arguments)}
    return f"io_submit:{operation}" if count == 1 else f"io_submit:{count}*{operation}"


def told(lines: Sequence[str], root: str) -> dict[str, str]:
    """What strace's lines say of files below ``root``, and of descriptors that they were given."""
    found: dict[str, list[str]] = {}
    place: list[str] = []
    opened: set[str] = set()
    for line in whole(lines):
        match = _CALL.match(line)
        if match is None:
            continue
        name, arguments, result = _PLAIN.get(match[1], match[1]), match[2], match[3]
        mark = re.search(r'"/mark/([^"]*)"', arguments)
        descriptor = descriptor_of(name, arguments)
        if mark is not None:
            place = found.setdefault(mark[1], [])
        elif name == "stat" and ', "", ' in arguments:
            place += ["fstat"] * (descriptor in opened)
        elif f'"{root}' in arguments:
            place.append(name)
            if name == "open" and int(result) >= 0:
                opened.add(result)
        elif descriptor in opened:
            place.append(word_of(name, arguments))
            if name == "close":
                opened.discard(descriptor)
            elif place[-1] == "dup":
                opened.add(result)
    return {name: " ".join(calls) for name, calls in found.items()}
