"""``--kv-exec-type=docker``: one container per host, the launcher inside this host's.

Controller side; imports neither pytest nor MPI. What is found out about MPI is found out
in the image, by programs that run in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.atomic import write_json
from pytest_kvcache.commands import NOT_FOUND_EXITS, CommandError, run_command
from pytest_kvcache.errors import PreflightError
from pytest_kvcache.launch.containers.access import ContainerAccess
from pytest_kvcache.launch.containers.command import (
    RelayConfig,
    Remote,
    held_argv,
    relay_argv,
    rsh_agent_argv,
)
from pytest_kvcache.launch.containers.rshagent import AGENT_VARIABLE
from pytest_kvcache.launch.containers.runtimes import (
    REFUSED_EXIT,
    exit_meaning,
    is_clash,
    start_problem,
)
from pytest_kvcache.launch.preflight import LaunchSetup, daemon_of
from pytest_kvcache.launch.trial import FailureCleanup
from pytest_kvcache.launchers.detect import found_launcher
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.commands import Run
    from pytest_kvcache.hosts.access import HostAccess
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan

_PROBE = ("-m", "pytest_kvcache.launch.containers.probe")
_LOOK_S = 90.0
_LIMIT_GRACE_S = 30.0  # from the launch's own limit to that of its containers
_ENDINGS = (*NOT_FOUND_EXITS, 137, 143)  # of a container: not those that mpirun has for itself
# What a user chooses of Open MPI by the environment; the rest of it is this host's.
_CHOICES = re.compile(r"(OMPI|PRTE|PMIX)_MCA_|OMPI_ALLOW_RUN_AS_ROOT|MPI4PY_(LIBMPI|MPIABI)\Z")


class ContainerExecution:
    """Runs the launcher's command in a container and holds it from outside."""

    def __init__(
        self, options: Options, run_id: str, environ: Mapping[str, str], run: Run = subprocess.run
    ) -> None:
        self._options = options
        self._run_id = run_id
        self._environ = {k: v for k, v in environ.items() if _CHOICES.match(k)}
        self._run = run
        self._access = ContainerAccess(options, run_id, environ, run)

    @property
    def access(self) -> HostAccess:
        """Hosts are reached by ssh and the container engine there."""
        return self._access

    def setup(self) -> LaunchSetup:
        """Launcher, interpreter and MPI library of the image."""
        name = Path(self._options.mpi_bin).name
        if name in FAMILIES and not FAMILIES[name].in_containers:
            raise _unfit(name, name)
        here = self._access.here()
        facts = self._look()
        family = FAMILIES[facts["family"]]
        if not family.in_containers:
            raise _unfit(facts["launcher"], facts["flavour"])
        found = found_launcher(
            facts["launcher"], facts["flavour"], facts["launcher_version"],
            library=facts["mpi_library"], environ=self._environ,
        )  # fmt: skip
        return LaunchSetup(
            launcher=family.make(found),
            family=family,
            launcher_path=found.path,
            launcher_version=found.version,
            mpi_library=found.library,
            python=self._access.python,
            daemon=daemon_of(found, family),
            environment={
                "container_engine": f"{here.engine.name} {here.engine.version}",
                "image": self._options.image or "",
                "image_id": here.image_id,
            },
            as_root=here.engine.rootless and here.engine.name == "docker",
        )

    def _look(self) -> dict[str, Any]:
        """What the image says of itself; PreflightError if it can't, or does not fit."""
        python, image = self._access.python, self._options.image
        name = f"kvcache-{self._run_id}-look"
        spec = self._access.spec("localhost", name, (), self._environ)
        argv = spec.argv([python, *_PROBE, self._options.mpi_bin])
        try:
            done = run_command(argv, timeout_s=_LOOK_S, run=self._run)
        except CommandError as error:
            raise PreflightError(
                f"--kv-image is {image}, whose {python} was asked in vain ({error}); look at the"
                " image and its engine"
            ) from error
        if done.returncode == REFUSED_EXIT:
            raise start_problem(spec.engine, name, os.uname().nodename, done.stderr)
        if done.returncode in NOT_FOUND_EXITS:
            raise PreflightError(
                f"--kv-image is {image}, which has no {python}; build the image as in"
                " docs/containers.md, or name its interpreter by --kv-python"
            )
        if done.returncode:
            message = (done.stderr.strip().splitlines() or [exit_meaning(done.returncode)])[-1]
            raise PreflightError(
                f"--kv-image is {image}, whose {python} has no pytest-kvcache {VERSION} that works"
                f" ({message}); build the image from this version"
            )
        return self._fitting(json.loads(done.stdout.splitlines()[-1]))

    def _fitting(self, found: dict[str, Any]) -> dict[str, Any]:
        image = self._options.image
        if found["version"] != VERSION:
            raise PreflightError(
                f"--kv-image is {image}, which has pytest-kvcache {found['version']}, this machine"
                f" {VERSION}; build the image from this version"
            )
        if found["error"] is not None:
            raise PreflightError(f"in the image {image}: {found['error']}")
        return found

    def remote_shell(self, others: Sequence[str]) -> tuple[str, ...]:
        """The agent, for one host too: an image has no ssh."""
        del others
        return rsh_agent_argv(self._access.python)

    def shown(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """The container of this host, with the launcher in it."""
        return list(self._relay_config(command, plan, directory).argv)

    def prepare(self, command: Sequence[str], plan: Plan, directory: Path) -> list[str]:
        """Write down what is held, for the program that holds it."""
        file = directory / "relay.json"
        write_json(file, self._relay_config(command, plan, directory).to_json())
        return relay_argv(sys.executable, file)

    def _relay_config(self, command: Sequence[str], plan: Plan, directory: Path) -> RelayConfig:
        access, name = self._access, self._name(directory)
        hosts = [host.name for host in plan.layout.hosts]
        remote = [host for host in hosts if access.is_remote(host)]
        cache = [plan.cache_dir] if plan.needs_directory else []
        own = [*(cache if len(remote) < len(hosts) else ()), str(directory)]
        limit_s = plan.deadline_s + _LIMIT_GRACE_S
        spec = access.spec("localhost", name, own, self._environ, (AGENT_VARIABLE,))
        held = held_argv(access.python, limit_s, [])
        remotes = {}
        for host in remote:
            run = access.spec(host, name, cache, self._environ).argv(held)
            words = (*access.shell(remote).words, host)
            remotes[host] = Remote(shell=words, run=tuple(run))
        return RelayConfig(argv=tuple(spec.argv([*held, *command])), remotes=remotes)

    def _name(self, directory: Path) -> str:
        """The name of a launch's containers: the run's id, which makes it unique, and its place."""
        words = f"kvcache-{self._run_id}-{directory.parent.name}-{directory.name}"
        return re.sub(r"[^a-zA-Z0-9_.-]", "-", words)

    def cleanup(self, plan: Plan, directory: Path) -> FailureCleanup:
        """What to do with the containers of a launch that failed."""
        hosts = ["localhost"]
        hosts += [host.name for host in plan.layout.hosts if self._access.is_remote(host.name)]
        return _ContainerCleanup(self._access, self._name(directory), hosts)


class _ContainerCleanup(FailureCleanup):
    def __init__(self, access: ContainerAccess, name: str, hosts: Sequence[str]) -> None:
        self._access = access
        self._name = name
        self._hosts = hosts

    def cause(self, exit_code: int, lines: Sequence[str]) -> str | None:
        """How this host's container ended, where mpirun in it has not explained the code."""
        engine, host = self._access.here().engine, os.uname().nodename
        if exit_code == REFUSED_EXIT:
            return str(start_problem(engine, self._name, host, "\n".join(lines)))
        if exit_code in _ENDINGS:
            return f"the container on host {host}, with the launcher in it, ended: " + exit_meaning(
                exit_code
            )
        return None

    def clean_up(self, lines: Sequence[str]) -> list[str]:
        """Remove what does not end by itself; one that had the name before is not ours."""
        if is_clash("\n".join(lines)):
            return []
        return self._access.remove(self._name, self._hosts)


def _unfit(path: str, flavour: str) -> PreflightError:
    return PreflightError(
        f"--kv-mpi-bin is {path}, which is {flavour}; in containers it must be {_titles()}; leave"
        " it out, or use --kv-exec-type=mpi"
    )


def _titles() -> str:
    return " or ".join(family.title for family in FAMILIES.values() if family.in_containers)
