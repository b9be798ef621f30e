"""Everything that can be found out before a launch. Controller side; no pytest, no MPI.

What is found here ends with exit 4 before anything has been started.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError, PreflightError, StorageError
from pytest_kvcache.hosts.localhost import (
    available_disk_bytes,
    available_memory,
    cores_words,
    is_local,
    is_root,
    memory_words,
    quota_cores,
    usable_cores,
)
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.hosts.sessiondirs import usable_temporary_directory, write_problem
from pytest_kvcache.launchers.detect import (
    check_library,
    find_launcher,
    found_launcher,
    identify,
)
from pytest_kvcache.plan.building import FREE_SHARE
from pytest_kvcache.system.dropcaches import check_may_drop
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES, refusal
from pytest_kvcache.system.preloads import check_preloads, inherited_preloads
from pytest_kvcache.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.hosts.facts import HostFacts
    from pytest_kvcache.hosts.hostlist import HostRanks
    from pytest_kvcache.launchers.family import FoundLauncher, LauncherFamily, Reach
    from pytest_kvcache.launchers.protocol import Launcher
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry

_OPEN_FILES = 160  # of a rank: its library's and interpreter's, and 64 objects half done
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries have it


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSetup:
    """What every launch of a run shares."""

    launcher: Launcher
    family: LauncherFamily
    launcher_path: str
    launcher_version: str | None
    """None: it is no program that could be asked."""
    mpi_library: str
    python: str
    daemon: str | None = None
    """What the launcher starts on other hosts, by absolute path; None: not known."""
    reach: Reach | None = None
    """The launcher's own way to hosts; None: ssh."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What else the run file is to tell of it: engine and image."""
    as_root: bool = False
    """Whether ranks run as root though the user does not."""

    @property
    def shown_launcher(self) -> str:
        """Path and version, for people."""
        version = self.launcher_version
        return self.launcher_path if version is None else f"{self.launcher_path} ({version})"


def find_setup(options: Options, registry: Registry, environ: Mapping[str, str]) -> LaunchSetup:
    """Find launcher, interpreter and MPI library; PreflightError if they don't fit."""
    python = _interpreter(options)
    library = mpi_library(python)
    name = options.mpi_bin
    family = registry.launchers.get(name)
    if family is not None and not family.is_program:
        found = found_launcher(name, name, None, library=library, environ=environ)
    else:
        path = find_launcher(name, prefix=sys.prefix, path=environ.get("PATH", ""))
        name, found = identify(path, registry.launchers, library=library, environ=environ)
        family = registry.launchers[name]
    check_library(found, family)
    return LaunchSetup(
        launcher=family.make(found),
        family=family,
        launcher_path=found.path,
        launcher_version=found.version,
        mpi_library=library,
        python=python,
        daemon=daemon_of(found, family),
        reach=None if family.reach is None else family.reach(found),
    )


def daemon_of(found: FoundLauncher, family: LauncherFamily) -> str | None:
    """Beside the launcher, where it will be looked for on every host."""
    name = family.daemons.get(found.flavour)
    return None if name is None else str(Path(found.path).parent / name)


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
    _check_root(options, setup, environ)
    here = [host for host in plan.layout.hosts if is_local(host.name)]
    if not here:
        return
    if options.exec_type == "mpi" and not plan.allows("PRELOADED"):
        check_preloads(inherited_preloads())
    if options.exec_type == "mpi" and plan.drop_caches:
        check_may_drop()
    if options.exec_type == "mpi":  # a container's seccomp profile is the ranks' to find
        _check_engine(options.io_engine, plan.queue_depth)
        _check_batches(plan)
    _check_cores(options, ", ".join(host.name for host in here), sum(h.ranks for h in here))
    _check_is_no_memory(options, plan)
    if len(here) == len(plan.layout.hosts):
        _check_space(options, plan, sum(h.ranks for h in here))
    _check_memory(plan, sum(h.ranks for h in here))


def _check_engine(asked: str, depth: int) -> None:
    """An engine that was asked for by name is to be had here; on other hosts ranks look."""
    for engine in KERNEL_ENGINES:
        problem = refusal(engine, depth) if engine == asked else None
        if problem is not None:
            raise OptionError(
                f"--kv-io-engine is {asked}, which can't be had on this machine ({problem}); or"
                " take auto"
            )


def _check_batches(plan: Plan) -> None:
    """What moves the batches of an engine is to be had here; on other hosts ranks look."""
    batches = plan.batch_submits is not None and plan.traits.stores_data
    problem = refusal("libaio", plan.queue_depth) if batches else None
    if problem is not None:
        raise OptionError(
            f"--kv-engine is {plan.engine}, which moves files in batches by io_submit, and that"
            f" can't be had on this machine ({problem}); or name another engine"
        )


def host_problems(options: Options, plan: Plan, survey: Survey) -> dict[str, list[str]]:
    """What keeps hosts from running their part of the plan: sentences by host, in their order."""
    found: dict[str, list[str]] = {}
    for host in plan.layout.hosts:
        texts = list(survey.problems.get(host.name, ()))
        facts = survey.facts.get(host.name)
        if facts is not None and not texts:
            texts += _own_problems(options, plan, host, facts)
            texts += _memory_problems(plan, facts)
            sharers = survey.group_of(host.name)
            texts += _sharing_problems(plan, sharers)
            texts += _space_problems(
                plan, facts, sum(h.ranks for h in plan.layout.hosts if h.name in sharers)
            )
        if texts:
            found[host.name] = texts
    return found


def library_problems(library: str, survey: Survey) -> dict[str, list[str]]:
    """Hosts whose MPI is not the controller's: ranks of two MPIs can't talk."""
    fix = "install the same MPI library on every host"
    return {
        name: [f"loads {facts.mpi_library!r} through mpi4py, this machine {library!r}; {fix}"]
        for name, facts in survey.facts.items()
        if facts.mpi_library not in ("", library)
    }


def _own_problems(options: Options, plan: Plan, host: HostRanks, facts: HostFacts) -> Iterator[str]:
    if host.ranks > facts.cores and not options.oversubscribe:
        yield (
            f"has {cores_words(facts.cores, facts.cpu_quota_cores)} for"
            f" {format_count(host.ranks, 'rank')}; lower --kv-np, or add --kv-oversubscribe"
        )
    wanted = host.ranks * plan.memory_bytes
    if facts.memory_bytes is not None and wanted > facts.memory_bytes:
        taken, fix = _memory_advice(plan, host.ranks)
        yield (
            f"has {memory_words(facts.memory_bytes, facts.memory_limit_bytes)} for"
            f" {format_count(host.ranks, 'rank')} that need {format_bytes(wanted)}{taken}; {fix}"
        )
    files = _OPEN_FILES + _files_at_a_time(plan) + plan.slab_files
    if plan.needs_directory and facts.open_files is not None and facts.open_files < files:
        yield (
            f"allows {facts.open_files} open files, a rank needs {files}; raise 'ulimit -n' for"
            f" ssh logins there{'' if plan.in_buckets else ', or lower --kv-queue-depth'}"
        )


def _files_at_a_time(plan: Plan) -> int:
    """How many of the cache's files a rank has open; an engine's worker closes what it opens."""
    if plan.in_buckets:
        return plan.most_in_flight + 1  # what a bucket is written to is two
    return plan.queue_depth * (2 if plan.calls is None else 1)


def _sharing_problems(plan: Plan, sharers: frozenset[str]) -> Iterator[str]:
    """Hosts that are to share a store see the first one's files; ``sharers`` is who sees theirs."""
    first = plan.layout.hosts[0].name
    if plan.shares_between_hosts and first not in sharers:
        yield (
            f"does not see what {first} writes in {plan.cache_dir}, which --kv-sharing=run needs;"
            " mount one directory on all hosts there, or use --kv-sharing=host"
        )


def _memory_problems(plan: Plan, facts: HostFacts) -> Iterator[str]:
    memory = None if facts.filesystem is None else facts.filesystem["memory_at_end"]
    if memory is not None and not plan.allows("TMPFS"):
        yield (
            f"has memory as {plan.cache_dir} ({memory}); mount the storage there, or add"
            " --kv-allow-invalid to measure memory all the same"
        )


def _space_problems(plan: Plan, facts: HostFacts, ranks: int) -> Iterator[str]:
    """``ranks`` store there: those of all hosts that share it."""
    if facts.filesystem is None or plan.traits.bounded_by != "disk":
        return
    free, inodes = facts.filesystem["available_bytes"], facts.filesystem["available_inodes"]
    blocks = ranks * plan.most_blocks
    files = ranks * plan.most_inodes
    if blocks * plan.disk_bytes_per_block > FREE_SHARE * free:
        yield (
            f"has {format_bytes(free)} free in {plan.cache_dir} for"
            f" {format_count(ranks, 'rank')} that store"
            f" {format_bytes(blocks * plan.disk_bytes_per_block)}; that must stay below"
            f" {FREE_SHARE:.0%}, free some or lower --kv-storage-capacity-gb"
        )
    if inodes is not None and files > inodes:
        of = {"layer": "layer", "kv": "part (keys and values)"}.get(
            plan.object_layout, "group of layers"
        )
        each = "a file each" if plan.objects_per_block == 1 else f"a file for each {of}"
        each += " and directories for them" if plan.calls is not None else ""
        instead = "use --kv-store=slab, " if plan.store == "file" and plan.calls is None else ""
        yield (
            f"has {inodes:,} inodes free in {plan.cache_dir} for {format_count(blocks, 'block')}"
            f" of {format_count(ranks, 'rank')}, {each};"
            f" {instead}lower --kv-storage-capacity-gb or use longer --kv-block-tokens"
        )


def memory_below(cache_dir: str) -> str | None:
    """What of a directory of this machine ends in memory (``ext4 on zram0``); None: nothing.

    Raises StorageError if it can't be told.
    """
    return probe_filesystem(cache_dir, socket.gethostname()).memory_at_end


def _check_is_no_memory(options: Options, plan: Plan) -> None:
    if not plan.needs_directory:
        return
    if options.exec_type != "mpi" and not os.path.lexists(plan.cache_dir):
        return  # the engine refuses it on every host that lacks it, and names the host
    try:
        memory = memory_below(plan.cache_dir)
    except StorageError as error:
        raise PreflightError(f"{error}; name another --kv-cache-dir") from error
    if memory is not None and not plan.allows("TMPFS"):
        raise OptionError(
            f"--kv-cache-dir is {plan.cache_dir}, which is memory ({memory}); name a directory on"
            " the storage, or add --kv-allow-invalid to measure memory all the same"
        )


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


def find_temporary_directory(
    environ: Mapping[str, str], results_dir: str, family: LauncherFamily
) -> tuple[Path | None, str | None]:
    """Return where the launcher is to make its files, and what to say where it is elsewhere.

    None: where it would anyway, for the user has set that, or nothing stands against it.
    Raises ``PreflightError`` where no directory can be written to.
    """
    if any(name in environ for name in family.directory_variables):
        return None, None
    results = Path(results_dir).absolute()
    existing = next(path for path in (results, *results.parents) if path.is_dir())
    found, refused = usable_temporary_directory(environ, [existing])
    tried = ", ".join(f"{path} ({why})" for path, why in refused.items())
    if found is None:
        raise PreflightError(
            f"the launcher needs a temporary directory, and nothing can be written to {tried}; set"
            " TMPDIR to a directory that this user can write to, with 1 MiB free"
        )
    if not refused:
        return None, None
    return found, f"nothing can be written to {tried}; the launcher's own files go to {found}"


def check_shared_memory(setup: LaunchSetup, directory: Path = _SHARED_MEMORY) -> None:
    """Some launchers' ranks can't begin without it."""
    problem = write_problem(directory) if setup.family.needs_shared_memory else None
    if problem is not None:
        raise PreflightError(
            f"nothing can be written to {directory} ({problem}), without which no rank of"
            f" {setup.launcher_path} begins; have it mounted for this user, or use Open MPI's"
            " mpirun, which does without"
        )


def _check_root(options: Options, setup: LaunchSetup, environ: Mapping[str, str]) -> None:
    variables = setup.family.root_variables
    allowed = options.allow_run_as_root or all(environ.get(name) for name in variables)
    if is_root() and not allowed:
        raise PreflightError(
            f"this is root, and {setup.shown_launcher} runs nothing as root unless told to; add"
            " --kv-allow-run-as-root, or run as another user"
        )


def _check_cores(options: Options, names: str, ranks: int) -> None:
    cores = usable_cores()
    if ranks > cores and not options.oversubscribe:
        raise PreflightError(
            f"--kv-np puts {format_count(ranks, 'rank')} on {names}, which has"
            f" {cores_words(cores, quota_cores())}; lower it, or add --kv-oversubscribe"
        )


def _check_space(options: Options, plan: Plan, ranks: int) -> None:
    """A cap that the user asked for must be there (a cap we chose fits by its making)."""
    if plan.traits.bounded_by != "disk" or not options.storage_capacity_gb:
        return
    wanted = plan.most_blocks * plan.disk_bytes_per_block * ranks
    free = available_disk_bytes(plan.cache_dir)
    if wanted > FREE_SHARE * free:
        raise PreflightError(
            f"--kv-storage-capacity-gb lets {format_count(ranks, 'rank')} store"
            f" {format_bytes(wanted)} in {plan.cache_dir}, which has"
            f" {format_bytes(free)} free; it must stay below {FREE_SHARE:.0%} of that, lower it or"
            " name another --kv-cache-dir"
        )


def _check_memory(plan: Plan, ranks: int) -> None:
    free = available_memory()
    wanted = ranks * plan.memory_bytes
    if free is not None and wanted > free.free_bytes:
        taken, fix = _memory_advice(plan, ranks)
        raise PreflightError(
            f"{format_count(ranks, 'rank')} need{'s' * (ranks == 1)} {format_bytes(wanted)}{taken}"
            f" on one host, which has {memory_words(free.free_bytes, free.limit_bytes)}; {fix}"
        )


def _memory_advice(plan: Plan, ranks: int) -> tuple[str, str]:
    """What of the need memory tiers take, and what to lower."""
    held = {tier: ranks * tier.host_bytes for tier in plan.tiers if tier.host_bytes}
    if not held:
        depth = "--kv-block-tokens" if plan.in_buckets else "--kv-queue-depth"
        return "", f"lower --kv-np, {depth} or the capacity"
    taken = " and ".join(f"{format_bytes(size)} for the {t.name} tier" for t, size in held.items())
    index = ", or take --kv-cpu-tier=index, which needs none"
    lower = f"lower {', '.join(tier.flag for tier in held)} or --kv-np"
    return f" ({taken})", lower + index * any(tier.kind == "memory" for tier in held)
