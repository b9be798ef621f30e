"""How other hosts are reached: ``--kv-ssh``, with what a benchmark needs added.

Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.commands import CommandError, run_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_kvcache.commands import Run

SSH_FAILED_EXIT = 255
"""ssh's own exit code; any other is the remote command's."""

# Without them a host that is cut off was never noticed (not in 60 s). Values that
# ``ssh -G`` shows for what nobody has set are left out of the comparison.
_KEEPALIVE = (
    ("serveraliveinterval", "0", "ServerAliveInterval=3"),
    ("connecttimeout", "none", "ConnectTimeout=5"),
)
# Nobody can answer a question: the launcher calls ssh too, and without a terminal.
_ALWAYS = ("-o", "BatchMode=yes")
_CONFIG_TIMEOUT_S = 10
_ASKED_HOSTS = 16  # of a cluster, for what their ssh configuration sets


@dataclass(frozen=True, slots=True)
class RemoteShell:
    """``words`` are the command, to be followed by a host and what is run there."""

    words: tuple[str, ...]

    @classmethod
    def prepare(
        cls,
        command: Sequence[str],
        hosts: Iterable[str],
        *,
        run: Run = subprocess.run,
    ) -> RemoteShell:
        """The user's command with keepalives where a host has none.

        Whether it has is what the command itself says to ``-G``; one that does not
        answer is no ssh, and is left as it is.
        """
        added: list[str] = []
        for host in list(hosts)[:_ASKED_HOSTS]:
            settings = _settings(command, host, run)
            if settings is None:
                return cls(tuple(command))
            added += [
                option
                for key, unset, option in _KEEPALIVE
                if settings.get(key, unset) == unset and option not in added
            ]
        options = [word for option in added for word in ("-o", option)]
        return cls((*command, *_ALWAYS, *options))

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """Run ``program`` on ``host``, from a directory that holds no checkout."""
        variables = [f"{name}={value}" for name, value in env.items()]
        return [*self.words, host, f"cd / && exec {shlex.join(['env', *variables, *program])}"]


def unreachable(host: str, message: str) -> str:
    """Why ssh ended with ``SSH_FAILED_EXIT``, to stand behind the host's name, and what helps."""
    return (
        f"can't be reached over ssh ({message}); see to it that 'ssh {host} true' works without a"
        " question, or name another command by --kv-ssh"
    )


def _settings(command: Sequence[str], host: str, run: Run) -> dict[str, str] | None:
    """What ``ssh -G`` says that is in force for a host."""
    try:
        done = run_command([*command, "-G", host], timeout_s=_CONFIG_TIMEOUT_S, run=run)
    except CommandError:
        return None
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    settings = {key: value for key, _, value in pairs}
    return settings if done.returncode == 0 and "hostname" in settings else None
