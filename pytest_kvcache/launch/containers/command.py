"""The container of a host as an engine's command, and what is handed to its holder.

Pure values and functions; imports neither pytest nor mpi4py and starts nothing.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.launch.containers.runtimes import ContainerEngine

_SHARED_MEMORY = "4g"  # a limit, taken from nothing until it is used; the engines' own is 64 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory of the host at the same place in the container."""

    path: str
    read_only: bool = False

    def __post_init__(self) -> None:
        """Refuse paths that are not absolute: engines take no others."""
        if not self.path.startswith("/"):
            raise ValueError(f"the mounted path is {self.path!r}; it must be absolute")

    @property
    def argument(self) -> str:
        """The value of ``--mount``: fields in the manner of CSV.

        Unlike ``--volume``, it fails where the directory is missing, instead of making one.
        """
        fields = ["type=bind", f"source={self.path}", f"target={self.path}"]
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields + ["readonly"] * self.read_only)
        return line.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """The one container of a host in a launch."""

    engine: ContainerEngine
    image: str
    name: str
    """Unique to the launch: it is what clean-up removes."""
    uid: int
    gid: int
    """Of the user on that host: the cache directory's files are to be that user's."""
    groups: tuple[int, ...] = ()
    """The user's other groups on that host, for directories that are open to a group."""
    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    passed_env: tuple[str, ...] = ()
    """Variables that are taken from the environment of the engine's client, unseen by ps."""

    def __post_init__(self) -> None:
        """Refuse what an engine would misread."""
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", self.name):
            raise ValueError(f"the container's name is {self.name!r}; engines refuse it")
        if not self.image or self.image.startswith("-"):
            raise OptionError(
                f"--kv-image is {self.image!r}; it must name an image that every host has"
            )

    def argv(self, command: Sequence[str]) -> list[str]:
        """Run ``command`` as the container's first process, its stdin held by the caller.

        The container shares the host's network and name, which MPI needs across hosts,
        and has /dev/shm and processes of its own, which end with it. It is never looked
        for in a registry, and it is gone when it ends.
        """
        words = [self.engine.program, "run", "--interactive", "--rm", "--pull", "never"]
        words += ["--name", self.name, "--log-driver", "none"]
        words += ["--network", "host", "--uts", "host", "--shm-size", _SHARED_MEMORY]
        words += ["--security-opt", "label=disable"]  # SELinux: the user's own directories
        words += self._user()
        for mount in self.mounts:
            words += ["--mount", mount.argument]
        for name, value in self.env.items():
            words += ["--env", f"{name}={value}"]
        for name in self.passed_env:
            words += ["--env", name]
        return [*words, self.image, *command]

    def _user(self) -> list[str]:
        """Run as the calling user: root of a rootless docker is that user already."""
        if self.engine.rootless:
            return ["--userns", "keep-id"] if self.engine.name == "podman" else []
        if self.uid == 0:
            return []
        added = [word for group in self.groups for word in ("--group-add", str(group))]
        return ["--user", f"{self.uid}:{self.gid}", *added]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """How the container of another host is started."""

    shell: tuple[str, ...]
    """The remote shell and the host: ``ssh n1``."""
    run: tuple[str, ...]
    """The engine's command there, up to the shell that the launcher's command is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """What ``pytest_kvcache.launch.containers.relay`` runs and holds in one launch."""

    argv: tuple[str, ...]
    """The container of this host, with the launcher in it."""
    remotes: Mapping[str, Remote]
    """The other hosts, by the names that the launcher is given."""

    def remote_argv(self, host: str, command: str) -> list[str]:
        """Run the launcher's ``command``, a line for a shell, in ``host``'s container."""
        remote = self.remotes[host]
        return [*remote.shell, shlex.join([*remote.run, "sh", "-c", command])]

    def to_json(self) -> dict[str, Any]:
        """The file that the relay reads, as JSON."""
        remotes = {
            host: {"shell": list(remote.shell), "run": list(remote.run)}
            for host, remote in self.remotes.items()
        }
        return {"argv": list(self.argv), "remotes": remotes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RelayConfig:
        """The inverse of ``to_json``."""
        remotes = {
            host: Remote(shell=tuple(remote["shell"]), run=tuple(remote["run"]))
            for host, remote in data["remotes"].items()
        }
        return cls(argv=tuple(data["argv"]), remotes=remotes)


def held_argv(python: str, limit_s: float, command: Sequence[str]) -> list[str]:
    """``command`` under the first process that ends with its holder; ``python`` is the image's."""
    return [python, "-m", "pytest_kvcache.launch.containers.init", f"{limit_s:g}", *command]


def rsh_agent_argv(python: str) -> tuple[str, ...]:
    """The remote shell of a launcher inside a container; it is needed for one host too.

    Open MPI 5 without any remote shell (an image has no ssh) disregards the slots it is
    given and refuses more processes than cores.
    """
    return (python, "-m", "pytest_kvcache.launch.containers.rshagent")


def relay_argv(python: str, config: Path) -> list[str]:
    """The program that stands for the launcher; ``python`` is the controller's."""
    return [python, "-m", "pytest_kvcache.launch.containers.relay", str(config)]
