"""How the controller's programs get onto the hosts of a run. Controller side; no pytest, no MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pytest_kvcache.hosts.localhost import is_local
from pytest_kvcache.hosts.remoteshell import RemoteShell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.launchers.family import Reach


class HostAccess(Protocol):
    """A way to the hosts; what ``--kv-exec-type`` stands for where hosts are asked."""

    @property
    def sees_ranks(self) -> bool:
        """Whether an agent sees the processes of its host's ranks."""

    def is_linked(self, host: str) -> bool:
        """Whether an agent must be started for the host; else this process answers for it."""

    def prepare(self, hosts: Sequence[str], cache_dir: str | None) -> dict[str, str]:
        """Be ready to start agents that work in ``cache_dir``; why some hosts can't have one."""

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The command that runs ``program`` on ``host``, with our pipes."""

    def explain(self, host: str, exit_code: int, errors: str) -> str | None:
        """Why ``argv`` failed to start anything, without the host's name; None: not known."""


class _ToOtherMachines:
    """Agents run as the ranks do; this machine needs none."""

    sees_ranks = True

    def __init__(self) -> None:
        self._local: dict[str, bool] = {}  # asking a name server takes time

    def is_linked(self, host: str) -> bool:
        """Whether the host is another machine."""
        if host not in self._local:
            self._local[host] = is_local(host)
        return not self._local[host]


class SshAccess(_ToOtherMachines):
    """Other hosts by ``--kv-ssh``, this one without a connection."""

    def __init__(self, ssh: Sequence[str]) -> None:
        self._ssh = tuple(ssh)
        self._shell: RemoteShell | None = None
        super().__init__()

    def prepare(self, hosts: Sequence[str], cache_dir: str | None) -> dict[str, str]:
        """Ask ssh for its settings."""
        del cache_dir
        self.shell(hosts)
        return {}

    def shell(self, hosts: Sequence[str]) -> RemoteShell:
        """How to reach other hosts, the same way for the launcher and for us."""
        if self._shell is None:
            self._shell = RemoteShell.prepare(self._ssh, hosts)
        return self._shell

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The program there, from a directory that holds no checkout."""
        return self.shell([host]).argv(host, program, env)

    def explain(self, host: str, exit_code: int, errors: str) -> str | None:
        """Explain nothing beyond what any connection can."""
        del host, exit_code, errors
        return None


class LauncherAccess(_ToOtherMachines):
    """Other hosts by the launcher's own means, this one without a connection."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        super().__init__()

    def prepare(self, hosts: Sequence[str], cache_dir: str | None) -> dict[str, str]:
        """Prepare nothing: the launcher knows its hosts."""
        del hosts, cache_dir
        return {}

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The program there, from a directory that holds no checkout."""
        return self._reach.argv(host, program, env)

    def explain(self, host: str, exit_code: int, errors: str) -> str | None:
        """What the launcher itself says; None where the agent's own last words count."""
        del exit_code
        return self._reach.explain(host, errors)
