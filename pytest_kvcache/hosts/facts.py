"""What a host is, as far as a benchmark on it depends on that.

Asked of this machine by the controller, of others by an agent there (agent.py).
Imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.backends.posix.cachedir import validate_cache_dir
from pytest_kvcache.backends.posix.fileio import direct_refusal
from pytest_kvcache.errors import KVCacheError, OptionError, PreflightError
from pytest_kvcache.hosts.localhost import available_memory, quota_cores, usable_cores
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.system.blockstat import machine_id
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.system.gpus import find_devices
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class HostQuestion:
    """What the controller wants to know; ``cache_dir`` None: ranks own no directory.

    ``programs`` are absolute paths of what the launcher starts there; ``gpus``: whether ranks
    want any.
    """

    cache_dir: str | None
    programs: tuple[str, ...]
    gpus: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same question back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostQuestion:
        """The inverse of ``to_json``."""
        programs = tuple(data["programs"])
        return cls(cache_dir=data["cache_dir"], programs=programs, gpus=data["gpus"])


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The answer. ``machine`` is equal for two names of one host.

    ``filesystem`` is that of the cache directory, as in the run file; ``direct`` tells
    whether it takes O_DIRECT; both are None without a directory. ``open_files`` is the
    soft limit, ``None``: unlimited. ``wall_clock_s`` is the time of day there. ``cores`` and
    ``memory_bytes`` are what ranks can have: of a control group with limits, which are
    ``cpu_quota_cores`` and, where that is what leaves least, ``memory_limit_bytes``. ``gpus``
    are the devices of each library that could copy to them, or why it has none; None: nobody
    has asked.
    ``problems`` are sentences on what is missing there.
    """

    hostname: str
    machine: str
    version: str
    python: str
    mpi_library: str
    cores: int
    cpu_quota_cores: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    open_files: int | None
    filesystem: dict[str, Any] | None
    direct: bool | None
    gpus: dict[str, int | str] | None
    wall_clock_s: float
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same facts back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostFacts:
        """The inverse of ``to_json``; PreflightError if a field is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            odd = ", ".join(sorted(names.symmetric_difference(data)))
            raise PreflightError(f"its agent answers with other fields than ours: {odd}")
        return cls(**{**data, "problems": tuple(data["problems"])})


def collect(question: HostQuestion, stage: Callable[[str], None] = lambda _text: None) -> HostFacts:
    """Look at this machine; ``stage`` hears what is being looked at, should that hang."""
    problems: list[str] = []
    stage("loading MPI")
    library = _or_problem(lambda: mpi_library(sys.executable), problems) or ""
    problems += [
        f"{program} is missing; install the launcher at the same path on every host"
        for program in question.programs
        if not os.access(program, os.X_OK)
    ]
    filesystem, direct = None, None
    if question.cache_dir is not None:
        path = question.cache_dir
        stage(f"looking at {path}")
        filesystem = _or_problem(lambda: _filesystem(path), problems)
        direct = None if filesystem is None else takes_direct(path)
    if question.gpus:
        stage("loading torch and CuPy")
    memory = available_memory()
    return HostFacts(
        hostname=socket.gethostname(),
        machine=machine_identity(),
        version=VERSION,
        python=platform.python_version(),
        mpi_library=library,
        cores=usable_cores(),
        cpu_quota_cores=quota_cores(),
        memory_bytes=None if memory is None else memory.free_bytes,
        memory_limit_bytes=None if memory is None else memory.limit_bytes,
        open_files=_open_files(),
        filesystem=filesystem,
        direct=direct,
        gpus=find_devices(sys.executable) if question.gpus else None,
        wall_clock_s=time.time(),
        problems=tuple(problems),
    )


def _or_problem(look: Callable[[], Any], problems: list[str]) -> Any:
    """What was found; else None, and the reason among the problems."""
    try:
        return look()
    except KVCacheError as error:
        problems.append(str(error))
        return None


def _filesystem(path: str) -> dict[str, Any]:
    validate_cache_dir(path)
    return probe_filesystem(path, socket.gethostname()).to_json()


def machine_identity() -> str:
    """This boot of this host: equal for all names of one host, and for no two hosts.

    Hosts of a test cluster share the kernel, and so the boot id, but not the name.
    """
    return f"{machine_id() or 'unknown'}/{socket.gethostname()}"


def takes_direct(directory: str, probe: Callable[[str], str | None] = direct_refusal) -> bool:
    """Whether a transfer with O_DIRECT goes through there; OptionError if no file can be made."""
    try:
        fd, path = tempfile.mkstemp(prefix=".kvcache-probe-", dir=directory)
    except OSError as error:
        raise OptionError(
            f"--kv-cache-dir is {directory}, where no file can be made ({error.strerror});"
            " name another directory"
        ) from error
    try:
        os.close(fd)
        return probe(path) is None
    finally:
        Path(path).unlink(missing_ok=True)


def _open_files() -> int | None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


# --- which hosts share a directory -----------------------------------------------------------


def put_mark(directory: str, token: str) -> str:
    """Leave an empty file that other hosts can look for; return its path."""
    path = Path(directory) / f".kvcache-mark-{token}-{socket.gethostname()}"
    path.touch(mode=0o600)
    return str(path)


def see_marks(directory: str, names: list[str]) -> list[str]:
    """Those of the names that this host sees.

    Looked up one by one: a network filesystem may answer a listing from its cache, but
    not a name that was never asked for.
    """
    return [name for name in names if os.path.lexists(Path(directory) / name)]


def remove_mark(path: str) -> None:
    """Remove this host's own file."""
    Path(path).unlink(missing_ok=True)
