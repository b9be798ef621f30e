"""How ranks are executed: what ``--kv-exec-type`` chooses. Controller side; no pytest, no MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pytest_kvcache.hosts.access import HostAccess, LauncherAccess, SshAccess
from pytest_kvcache.hosts.localhost import is_local
from pytest_kvcache.launch.preflight import find_setup
from pytest_kvcache.launch.trial import FailureCleanup
from pytest_kvcache.launchers.protocol import remote_shell_script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pytest_kvcache.launch.preflight import LaunchSetup
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry

SHELL_SCRIPT = "remote-shell"


class Execution(Protocol):
    """A way to execute ranks: from the launcher's command to what is started, and left."""

    @property
    def access(self) -> HostAccess:
        """How hosts are reached."""

    def setup(self) -> LaunchSetup:
        """Launcher, interpreter and MPI library, found; PreflightError if they don't fit."""

    def remote_shell(self, others: Sequence[str]) -> tuple[str, ...]:
        """What the launcher calls to reach these other hosts; nothing: it need not."""

    def shown(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """The launcher's command as it is started, for people too."""

    def prepare(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """Write what the launch needs into ``directory``; return what is to be supervised."""

    def cleanup(self, plan: Plan, directory: Path) -> FailureCleanup:
        """What to do after a launch that failed."""


class BareExecution:
    """Ranks as ordinary processes of the hosts: ``--kv-exec-type=mpi``."""

    def __init__(self, options: Options, registry: Registry, environ: Mapping[str, str]) -> None:
        self._options = options
        self._registry = registry
        self._environ = environ
        self._ssh = SshAccess(options.ssh)
        self._own: LauncherAccess | None = None

    @property
    def access(self) -> HostAccess:
        """Hosts are reached by what the launcher brings, once ``setup`` has found it, or by ssh."""
        return self._own or self._ssh

    def setup(self) -> LaunchSetup:
        """Launcher, interpreter and MPI library of this machine."""
        found = find_setup(self._options, self._registry, self._environ)
        if found.reach is not None and not self._options.given("ssh"):
            self._own = LauncherAccess(found.reach)
        return found

    def remote_shell(self, others: Sequence[str]) -> tuple[str, ...]:
        """Our remote shell, or none: for this host alone, or where the launcher has its own."""
        return self._ssh.shell(others).words if others and self._own is None else ()

    def shown(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """The command as it is."""
        del plan, directory
        return list(command)

    def prepare(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """Write a script for launchers that take one program without arguments as their shell."""
        others = [host.name for host in plan.layout.hosts if not is_local(host.name)]
        if others and self._own is None:
            script = directory / SHELL_SCRIPT
            script.write_text(remote_shell_script(self.remote_shell(others)), encoding="utf-8")
            script.chmod(0o755)
        return list(command)

    def cleanup(self, plan: Plan, directory: Path) -> FailureCleanup:
        """Nothing is left but processes, which are known by their marker."""
        del plan, directory
        return FailureCleanup()


def facts_of(setup: LaunchSetup) -> dict[str, Any]:
    """What a run file's environment says of launcher and MPI library."""
    return {
        "mpi": setup.mpi_library,
        "launcher": setup.shown_launcher,
        **setup.environment,
    }
