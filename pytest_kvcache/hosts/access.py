"""How the controller's programs get onto the hosts of a run. Controller side; no pytest, no MPI."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from pytest_kvcache.hosts.localhost import is_local
from pytest_kvcache.hosts.remoteshell import RemoteShell
from pytest_kvcache.launchers.srun import allocated_nodes, node_of_host, shown_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SRUN_SAYS = re.compile(r"^srun: error: (?!\S+: task 0: )(?P<why>.+)$", re.MULTILINE)
_NO_ANSWER = re.compile(r"Communication connection failure|has expired|[Nn]ode failure")


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
        """Whether it is another machine."""
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
        """Nothing beyond what any connection can tell."""
        del host, exit_code, errors
        return None


class SrunAccess(_ToOtherMachines):
    """Other hosts by steps of the Slurm allocation, this one without a connection.

    A step of one task has our pipes: the end of its standard input is the end of ours, and
    Slurm ends it with its srun. ``--overlap`` leaves to the ranks what it runs on.
    """

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        """``path`` is srun's, ``environ`` the controller's, which has the allocation."""
        self._path = path
        self._nodes = allocated_nodes(environ)
        super().__init__()

    def prepare(self, hosts: Sequence[str], cache_dir: str | None) -> dict[str, str]:
        """Nothing to do: the allocation is there."""
        del hosts, cache_dir
        return {}

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The program there, from a directory that holds no checkout.

        Not ``--unbuffered``: that gives it a terminal. The variables go through env(1), as
        the ranks' do.
        """
        return [
            self._path, "-N1", "-n1", f"--nodelist={node_of_host(host, self._nodes) or host}",
            "--overlap", "--overcommit", "--mpi=none", "--cpu-bind=none", "--export=ALL",
            "--chdir=/", "--quiet",
            "/usr/bin/env", *(f"{name}={value}" for name, value in env.items()), *program,
        ]  # fmt: skip

    def explain(self, host: str, exit_code: int, errors: str) -> str | None:
        """What srun itself says; None where the agent's own last words count."""
        del exit_code
        told = _SRUN_SAYS.findall(errors)
        node = node_of_host(host, self._nodes)
        if not told:
            return None
        if node is None:
            return (
                f"is no node of the Slurm allocation ({shown_nodes(self._nodes)}), and srun"
                " reaches its nodes only; name one of those, or another way there by --kv-ssh"
            )
        if _NO_ANSWER.search(errors):
            return (
                f"does not answer Slurm ({told[-1]}); see 'scontrol show node {node}', and leave"
                " it out or ask for another allocation"
            )
        return (
            f"can't be reached by srun ({told[-1]}); see to it that 'srun --overlap -N1 -n1"
            f" -w {node} true' works in this allocation, or name another way there by --kv-ssh"
        )
