"""Hosts whose agents run in containers: their engines, their images, and who we are there.

Controller side; imports neither pytest nor MPI. A host needs no Python of its own: what
it is asked comes from a shell and from the engine, the rest from an agent in the image.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_kvcache.commands import NOT_FOUND_EXITS, CommandError, last_line, run_command
from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.hosts.access import SshAccess
from pytest_kvcache.hosts.lock import lock_directories
from pytest_kvcache.hosts.remoteshell import SSH_FAILED_EXIT, unreachable
from pytest_kvcache.launch.containers.command import ContainerSpec, Mount
from pytest_kvcache.launch.containers.runtimes import (
    REFUSED_EXIT,
    find_engine,
    image_problem,
    is_absent,
    start_problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_kvcache.commands import Run
    from pytest_kvcache.hosts.remoteshell import RemoteShell
    from pytest_kvcache.launch.containers.runtimes import ContainerEngine
    from pytest_kvcache.options.options import Options

IMAGE_PYTHON = "/opt/kvcache/bin/python"
"""Where the project's Containerfile installs the package."""

_ASK_S = 30.0
_REMOVE_S = 15.0
_MOST_AT_ONCE = 32
_HOME = {"HOME": "/tmp", "SHELL": "/bin/sh"}  # noqa: S108  of the container


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerHost:
    """One host as far as its containers depend on it."""

    engine: ContainerEngine
    uid: int
    gid: int
    groups: tuple[int, ...]
    image_id: str

    @classmethod
    def parse(cls, engine: ContainerEngine, text: str) -> ContainerHost:
        """What ``question`` printed, behind whatever a login prints; PreflightError if not."""
        try:
            uid, gid, groups, image_id = text.strip().splitlines()[-4:]
            numbers = [*map(int, (uid, gid, *groups.split()))]
        except ValueError as error:
            raise PreflightError(
                f"answers {text.strip()!r} when asked for ids and image; its login must print"
                " nothing behind them"
            ) from error
        return cls(
            engine=engine,
            uid=numbers[0],
            gid=numbers[1],
            groups=tuple(numbers[2:]),
            image_id=image_id,
        )


def question(engine: ContainerEngine, image: str) -> list[str]:
    """Ask a host who we are there, and for its image."""
    return ["sh", "-c", f"id -u && id -g && id -G && {shlex.join(engine.image_argv(image))}"]


class ContainerAccess:
    """Agents in containers on every host, the controller's own included."""

    sees_ranks = False

    def __init__(
        self, options: Options, run_id: str, environ: Mapping[str, str], run: Run = subprocess.run
    ) -> None:
        self.python = options.python or IMAGE_PYTHON
        self._image = options.image or ""
        self._wanted = options.container_engine
        self._run_id = run_id
        self._path = environ.get("PATH", "")
        self._run = run
        self._ssh = SshAccess(options.ssh)
        self._here: ContainerHost | None = None
        self._hosts: dict[str, ContainerHost] = {}
        self._names: dict[str, str] = {}
        self._cache_dir: str | None = None
        self._is_prepared = False
        self._agents = 0

    def is_linked(self, host: str) -> bool:
        """Always: what counts is how things look in the image."""
        del host
        return True

    def is_remote(self, host: str) -> bool:
        """Whether the host is another machine."""
        return self._ssh.is_linked(host)

    def shell(self, hosts: Sequence[str]) -> RemoteShell:
        """How other hosts are reached."""
        return self._ssh.shell(hosts)

    def here(self) -> ContainerHost:
        """This machine; PreflightError if it has no engine that works, or not the image."""
        if self._here is None:
            engine = find_engine(self._wanted, path=self._path, run=self._run)
            done = self._ask(question(engine, self._image))
            if done.returncode:
                raise image_problem(engine, self._image, os.uname().nodename, done.stderr)
            self._here = ContainerHost.parse(engine, done.stdout)
        return self._here

    def host(self, name: str) -> ContainerHost:
        """A host that was asked; one that was not is taken for one like this."""
        return self.here() if not self.is_remote(name) else self._hosts.get(name, self.here())

    def prepare(self, hosts: Sequence[str], cache_dir: str | None) -> dict[str, str]:
        """Ask the other hosts for their images."""
        if self._is_prepared and cache_dir != self._cache_dir:
            raise OptionError(
                f"a test asks for {cache_dir or 'no directory'} where others use"
                f" {self._cache_dir or 'none'}; containers have one --kv-cache-dir and one kind of"
                " --kv-backend in a session, give them on the command line"
            )
        self._cache_dir, self._is_prepared = cache_dir, True
        remote = [host for host in hosts if self.is_remote(host)]
        asked = [host for host in remote if host not in self._hosts]
        self.shell(remote)
        with ThreadPoolExecutor(max_workers=_MOST_AT_ONCE) as pool:
            problems = dict(zip(asked, pool.map(self._problem, asked), strict=True))
        return {host: problem for host, problem in problems.items() if problem is not None}

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The program in a container of its own, with the cache directory and the locks."""
        self._agents += 1
        self._names[host] = f"kvcache-{self._run_id}-agent-{self._agents}"
        locks = str(lock_directories(env)[0])  # the host's own, not the container's
        mounted = [path for path in (self._cache_dir, locks) if path is not None]
        spec = self.spec(host, self._names[host], mounted, env)
        return self.on(host, spec.argv(program))

    def explain(self, host: str, exit_code: int, errors: str) -> str | None:
        """What engines and ssh say by exit codes."""
        if exit_code == REFUSED_EXIT:
            return str(start_problem(self.host(host).engine, self._names[host], host, errors))
        if exit_code in NOT_FOUND_EXITS:
            return f"can't run {self.python} in the image {self._image}; look at --kv-python"
        return None

    def spec(
        self,
        host: str,
        name: str,
        mounted: Iterable[str],
        env: Mapping[str, str],
        passed_env: tuple[str, ...] = (),
    ) -> ContainerSpec:
        """A container on ``host`` that sees these directories of it."""
        there = self.host(host)
        return ContainerSpec(
            engine=there.engine,
            image=self._image,
            name=name,
            uid=there.uid,
            gid=there.gid,
            groups=there.groups,
            mounts=tuple(Mount(path=path) for path in dict.fromkeys(mounted)),
            env={**_HOME, **env},
            passed_env=passed_env,
        )

    def on(self, host: str, command: Sequence[str]) -> list[str]:
        """An engine's command, to be run on ``host``."""
        if not self.is_remote(host):
            return list(command)
        return self.shell([host]).argv(host, command, {})

    def remove(self, name: str, hosts: Sequence[str]) -> list[str]:
        """End this container on all hosts; a sentence on each that stays.

        A host that can't be reached ends its own by itself and is reported elsewhere.
        """
        with ThreadPoolExecutor(max_workers=_MOST_AT_ONCE) as pool:
            answers = pool.map(lambda host: self._remove(name, host), hosts)
            return [problem for problem in answers if problem is not None]

    def _remove(self, name: str, host: str) -> str | None:
        argv = self.on(host, self.host(host).engine.remove_argv(name))
        try:
            done = self._ask(argv, _REMOVE_S)
        except PreflightError as error:
            return f"host {host}: the container {name} may be left: {error}"
        lost = done.returncode == SSH_FAILED_EXIT and self.is_remote(host)
        if done.returncode == 0 or lost or is_absent(done.stderr):
            return None
        return f"host {host}: the container {name} can't be removed: {done.stderr.strip()}"

    def _problem(self, host: str) -> str | None:
        """Ask another host and remember it; a sentence without its name if it can't be used."""
        try:
            self._hosts[host] = self._find(host)
        except PreflightError as error:
            return str(error)
        return None

    def _find(self, host: str) -> ContainerHost:
        here = self.here()
        engine = replace(here.engine, program=here.engine.name)
        done = self._ask(self.on(host, question(engine, self._image)))
        if done.returncode == SSH_FAILED_EXIT:
            raise PreflightError(unreachable(host, last_line(done.stderr)))
        if done.returncode in NOT_FOUND_EXITS:
            raise PreflightError(
                f"has no {engine.name} ({last_line(done.stderr)}); install it there"
            )
        if done.returncode:
            raise image_problem(engine, self._image, host, done.stderr)
        found = ContainerHost.parse(engine, done.stdout)
        if found.image_id != here.image_id:
            raise PreflightError(
                f"has another image as {self._image} ({_short(found.image_id)}, this machine"
                f" {_short(here.image_id)}); load the same one on every host"
            )
        return found

    def _ask(
        self, argv: Sequence[str], timeout_s: float = _ASK_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a short command to its end; PreflightError if it has none."""
        try:
            return run_command(argv, timeout_s=timeout_s, run=self._run)
        except CommandError as error:
            raise PreflightError(f"{error}; look at the engine") from error


def _short(image_id: str) -> str:
    """An image's id as engines print it."""
    return image_id.removeprefix("sha256:")[:12]
