"""Plans, buffers and filesystems for the tests of what keeps objects in files.

Not a test module.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.protocol import BackendPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
CHUNK = 64 * 1024


def make_plan(directory: Path | None, **change: Any) -> BackendPlan:
    values: dict[str, Any] = {
        "directory": None if directory is None else str(directory),
        "object_bytes": CHUNK,
        "chunk_bytes": CHUNK,
        "io": "direct",
        "sync": "none",
        "host": "n1",
        "namespace": "kvcache-run/trial-1/rank-0",
    }
    return BackendPlan(**(values | change))


def page_buffer(size: int, fill: bytes = b"x") -> memoryview:
    memory = mmap.mmap(-1, size)
    memory[:] = fill * size
    return memoryview(memory)


def open_files_below(directory: Path) -> list[str]:
    links = []
    for name in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(name.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return [link for link in links if link.startswith(str(directory))]


def stored_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@contextmanager
def mounted(target: Path, kind: str, options: str) -> Iterator[Path]:
    """A new filesystem of that kind, or a reason why there can't be one here."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a filesystem")
    target.mkdir()
    command = ["mount", "-t", kind, "-o", options, kind, str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"can't mount a {kind} here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)
