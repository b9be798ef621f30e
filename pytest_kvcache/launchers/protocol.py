"""What is launched (a job) and what a launcher is: something that turns a job into argv.

Pure values and functions; imports neither pytest nor mpi4py and starts nothing.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# How users tell a launcher which cores a rank may use.
_BINDING = frozenset(
    {"bind-to", "bind-to-none", "bind-to-core", "bind-to-socket", "cpu-set", "cpu-list"}
    | {"cpu-bind"}
)
INTEL_PINNING = "I_MPI_PIN"  # the variable, and what all its relatives begin with
_LIST_SYNTAX = frozenset(":, \t\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchJob:
    """One launch of all ranks, independent of the launcher.

    World rank 0 is the coordinator: it gets a slot of its own on the controller's host,
    in front of all others; the worker ranks follow in the order of ``hosts``.

    Raises ``ValueError`` for a job that no launcher could place like this.
    """

    hosts: tuple[tuple[str, int], ...]
    """(name, worker ranks) in rank order, without the coordinator; local ones first."""
    controller_host: str
    """The controller's own host as it is put into the list; its own name, not
    ``localhost``, as soon as another host is in the job."""
    local_hosts: frozenset[str]
    """Those names in ``hosts`` that are the controller's own host."""
    program: tuple[str, ...]
    """What every rank runs, with absolute paths: the remote directory may differ."""
    env: Mapping[str, str]
    """Variables that every rank must have, on every host."""
    params: tuple[str, ...]
    """The user's own launcher parameters, already split; they beat our defaults."""
    allow_run_as_root: bool
    remote_shell: tuple[str, ...] = ()
    """How the launcher reaches other hosts; empty: its own way."""
    remote_shell_script: str = ""
    """A program that calls ``remote_shell``, for launchers that take no arguments to it."""

    def __post_init__(self) -> None:
        """Check what the placement of rank 0 and the merging of slots rest on."""
        names = [name for name, _ in self.hosts]
        if not names or not self.program or not self.controller_host:
            raise ValueError("a job needs hosts, a program and the controller's host")
        for name in (*names, self.controller_host):
            if not name or not _LIST_SYNTAX.isdisjoint(name):
                raise ValueError(f"the host name {name!r} can't stand in a list of host:slots")
        if len(set(names)) != len(names):
            raise ValueError(f"hosts is {names}; a host must be listed once, with all its ranks")
        for name, ranks in self.hosts:
            if ranks < 1:
                raise ValueError(f"host {name} has {ranks} ranks; it must have at least 1")
        self._check_local(names)
        for variable in self.env:
            if not variable or "=" in variable:
                raise ValueError(f"env has {variable!r}, which can't name a variable")

    def _check_local(self, names: Sequence[str]) -> None:
        if unknown := self.local_hosts.difference(names):
            raise ValueError(f"local_hosts has {sorted(unknown)}, which hosts does not list")
        if self.controller_host in names and self.controller_host not in self.local_hosts:
            raise ValueError(
                f"controller_host is {self.controller_host}, which hosts lists as another host"
            )
        if not self.local_hosts.issuperset(names[: len(self.local_hosts)]):
            raise ValueError(
                f"hosts is {names}; the local ones ({sorted(self.local_hosts)}) must come"
                f" first, because world rank 0 is placed on the controller's host"
            )

    @property
    def world_size(self) -> int:
        """All processes: the worker ranks and the coordinator."""
        return sum(ranks for _, ranks in self.hosts) + 1

    @property
    def slots(self) -> tuple[tuple[str, int], ...]:
        """(name, slots) for the launcher.

        The coordinator's slot leads, merged with those of the local ranks, so that no
        host is named twice.
        """
        remote = tuple(item for item in self.hosts if item[0] not in self.local_hosts)
        local_ranks = sum(ranks for name, ranks in self.hosts if name in self.local_hosts)
        return ((self.controller_host, 1 + local_ranks), *remote)

    @property
    def host_list(self) -> str:
        """``name:slots,...``, which Open MPI and hydra read alike."""
        return ",".join(f"{name}:{slots}" for name, slots in self.slots)


class Launcher(Protocol):
    """Builds the command of a job; starts nothing."""

    def argv(self, job: LaunchJob) -> list[str]:
        """Return the exact command, its program given by absolute path.

        Raises ``OptionError`` where the user's own parameters can't work.
        """


def is_loopback(name: str) -> bool:
    """Whether a host's name means every machine's own self, so none to others."""
    return name == "localhost" or name.startswith("127.")


def option_names(params: Sequence[str]) -> frozenset[str]:
    """Return the options in ``params`` without dashes and values.

    ``--map-by=core`` is ``map-by``; the launchers take one dash or two.
    """
    return frozenset(
        param.lstrip("-").partition("=")[0] for param in params if param.startswith("-")
    )


def binds_ranks(params: Sequence[str]) -> bool:
    """Whether the user's parameters say which cores a rank may use."""
    pins = any(param.startswith(INTEL_PINNING) for param in params)
    return pins or bool(option_names(params) & _BINDING)


def refuse_params(params: Sequence[str], taken: Collection[str]) -> None:
    """Raise ``OptionError`` where the user's parameters say what the plan says.

    Open MPI 5.0.11 takes the first of two ``-n`` or ``--host`` and ignores the other
    without a word.
    """
    clash = sorted(option_names(params) & frozenset(taken))
    if clash:
        raise OptionError(
            f"--kv-mpi-params has the launcher option {clash[0]!r}; hosts and numbers of ranks"
            f" come from --kv-hosts, --kv-np and --kv-npernode, so leave it out"
        )


def directory_option(job: LaunchJob, option: str) -> list[str]:
    """Return ``option`` with a directory that every host has, unless the user gave one.

    The controller's own may be missing elsewhere, which hydra does not survive, and an
    interpreter would import what it finds there.
    """
    given = option_names(job.params) & {"wdir", "wd", "chdir", "D"}
    return [] if len(job.slots) == 1 or given else [option, "/"]


def remote_shell_script(remote_shell: Sequence[str]) -> str:
    """Return a shell script that calls ``remote_shell`` with its own arguments added.

    For launchers that can't take the words as they are: hydra takes one program without
    arguments, Open MPI splits at every space and colon. The caller writes the script,
    makes it executable and gives its path as the job's remote shell.
    """
    return f'#!/bin/sh\nexec {shlex.join(remote_shell)} "$@"\n'
