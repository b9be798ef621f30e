"""Everything that can be found out before a launch. Controller side; no pytest, no MPI.

What is found here ends with exit 4 before anything has been started.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError, PreflightError, UnavailableError
from pytest_kvcache.launchers.detect import (
    check_library,
    find_launcher,
    identify,
    launcher_for,
    mpi_library,
)
from pytest_kvcache.localhost import (
    available_disk_bytes,
    available_memory_bytes,
    is_local,
    is_root,
    usable_cores,
)
from pytest_kvcache.plan import FREE_SHARE
from pytest_kvcache.planning import most_ranks_per_machine
from pytest_kvcache.units import MIB, format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.launchers.protocol import Launcher
    from pytest_kvcache.options import Options
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.registry import Registry

_RANK_BYTES = 96 * MIB  # interpreter, numpy, MPI and histograms of one rank
_ROOT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSetup:
    """What every launch of a run shares."""

    launcher: Launcher
    launcher_path: str
    launcher_version: str
    mpi_library: str
    python: str


def find_setup(options: Options, registry: Registry, environ: Mapping[str, str]) -> LaunchSetup:
    """Find launcher, interpreter and MPI library; PreflightError if they don't fit."""
    python = _interpreter(options)
    library = mpi_library(python)
    factory = registry.launchers.get(options.mpi_bin)
    if factory is not None:
        launcher = factory(environ)
        return LaunchSetup(
            launcher=launcher,
            launcher_path=options.mpi_bin,
            launcher_version="plugin",
            mpi_library=library,
            python=python,
        )
    path = find_launcher(options.mpi_bin, prefix=sys.prefix, path=environ.get("PATH", ""))
    identity = identify(path)
    check_library(identity, library)
    return LaunchSetup(
        launcher=launcher_for(identity, environ, library),
        launcher_path=path,
        launcher_version=identity.version,
        mpi_library=library,
        python=python,
    )


def _interpreter(options: Options) -> str:
    if options.python is None:
        return sys.executable
    found = shutil.which(options.python)
    if found is None:
        raise OptionError(
            f"--kv-python is {options.python!r}; it must be an interpreter, give its whole path"
        )
    return str(Path(found).absolute())


def check_plan(
    options: Options, plan: Plan, setup: LaunchSetup, environ: Mapping[str, str]
) -> None:
    """Refuse a plan that this machine can't run; raises OptionError or PreflightError."""
    for host in plan.layout.hosts:
        if not is_local(host.name) and not options.dry_run:
            raise UnavailableError(
                "--kv-hosts",
                host.name,
                "ranks run on this host only so far; --kv-dry-run plans it",
            )
    _check_root(options, setup, environ)
    _check_cores(options, plan)
    _check_space(options, plan)
    _check_memory(plan)


def check_results_dir(path: str) -> None:
    """The results directory exists or can be made, and can be written to."""
    directory = Path(path).absolute()
    existing = next(p for p in (directory, *directory.parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise OptionError(
            f"--kv-results-dir is {path!r}; {existing} is no directory, name another one"
        )
    try:  # what access(2) tells is not true of root, /proc and read-only filesystems
        Path(tempfile.mkdtemp(prefix=".kvcache-", dir=existing)).rmdir()
    except OSError as error:
        raise OptionError(
            f"--kv-results-dir is {path!r}; {existing} is not writable for this user"
            f" ({error.strerror}), name a directory that is"
        ) from error


def _check_root(options: Options, setup: LaunchSetup, environ: Mapping[str, str]) -> None:
    allowed = options.allow_run_as_root or all(environ.get(name) for name in _ROOT_VARIABLES)
    if is_root() and not allowed and setup.launcher.flavour.startswith("openmpi"):
        raise PreflightError(
            "this is root, and Open MPI runs nothing as root unless told to; add"
            " --kv-allow-run-as-root, or run as another user"
        )


def _check_cores(options: Options, plan: Plan) -> None:
    cores, names = usable_cores(), [h.name for h in plan.layout.hosts if is_local(h.name)]
    ranks = sum(host.ranks for host in plan.layout.hosts if host.name in names)
    if ranks > cores and not options.oversubscribe:
        raise PreflightError(
            f"--kv-np puts {ranks} ranks on {', '.join(names)}, which has {cores} cores; lower"
            " it, or add --kv-oversubscribe"
        )


def _check_space(options: Options, plan: Plan) -> None:
    """A cap that the user asked for must be there (a cap we chose fits by its making)."""
    if not plan.needs_directory or not options.storage_capacity_gb:
        return
    ranks = most_ranks_per_machine(plan.layout)
    wanted = min(plan.capacity_blocks, plan.need_blocks) * plan.stored_bytes * ranks
    free = available_disk_bytes(plan.cache_dir)
    if wanted > FREE_SHARE * free:
        raise PreflightError(
            f"--kv-storage-capacity-gb lets {ranks} ranks store {format_bytes(wanted)} in"
            f" {plan.cache_dir}, which has {format_bytes(free)} free; it must stay below"
            f" {FREE_SHARE:.0%} of that, lower it or name another --kv-cache-dir"
        )


def _check_memory(plan: Plan) -> None:
    free = available_memory_bytes()
    if free is None:
        return
    ranks = most_ranks_per_machine(plan.layout)
    held = plan.capacity_bytes if plan.backend == "memory" else 0
    wanted = ranks * (_RANK_BYTES + plan.buffer_bytes + held)
    if wanted > free:
        raise PreflightError(
            f"{ranks} ranks need {format_bytes(wanted)} of memory on one host, which has"
            f" {format_bytes(free)}; lower --kv-np, --kv-queue-depth or the capacity"
        )
