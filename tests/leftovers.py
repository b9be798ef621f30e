"""What a session that went wrong leaves behind and says. Not a test module."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.sharedmemory import Segments
from tests.site import is_locked, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.site import Site


def processes_of(path: Path) -> list[str]:
    """Command lines of processes that have to do with a directory, but for this one's."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            is_ours = str(path) in words or (entry / "cwd").readlink().is_relative_to(path)
            if is_ours and words:
                found.append(words)
    return found


def stored_in(site: Site) -> list[Path]:
    """What sessions have left below the cache directory."""
    return [path for path in site.cache_dir.glob("*") if path.name != "ballast"]


@contextmanager
def leaving_nothing(site: Site, *, device_breaks: bool = False) -> Iterator[None]:
    """Afterwards no process, lock, shared memory or stored data of the session is left.

    Where the ``device_breaks``: no data that anybody can remove. Once the kernel has forgotten a
    directory that is beyond the device's end, nobody can any more.
    """
    before = Segments.now()
    yield
    wait_for(lambda: not processes_of(site.path))
    if device_breaks:
        for path in stored_in(site):
            with pytest.raises(OSError):  # noqa: PT011  whatever the filesystem makes of it
                shutil.rmtree(path)
    else:
        wait_for(lambda: not stored_in(site))
    assert not is_locked(os.uname().nodename)
    wait_for(lambda: Segments.now().names <= before.names)  # others may run MPI meanwhile


def the_cause(text: str) -> str:
    """The first line of the fault, told in full once and then referred to."""
    failures = re.split(r"^_{3,} test_kvcache\[(.*)\] _{3,}$", text, flags=re.MULTILINE)
    first, reported, _second, referred = failures[1:5]
    assert f": see test_kvcache[{first}], which tells it whole" in referred
    assert "(chat-tiny-1b-np2, trial 1)" in reported
    assert text.count("last lines of ") <= 1
    return reported.strip().splitlines()[0]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
