"""Which container engine is there, what it is asked, and what its failures mean.

Whatever asks an engine takes ``run`` as a parameter. Controller side; imports neither
pytest nor mpi4py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from pytest_kvcache.commands import CommandError, run_command
from pytest_kvcache.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.commands import Run

EngineName: TypeAlias = Literal["docker", "podman"]

REFUSED_EXIT = 125
"""What ``run`` of an engine ends with when the engine refused to start the container."""

_ENGINES: tuple[EngineName, ...] = ("docker", "podman")
_OPTION = "--kv-container-engine"
_TIMEOUT_S = 20
_VERSION = re.compile(r"(?P<name>docker|podman) version (?P<version>[\w.+~-]+)", re.IGNORECASE)
_MEANINGS = {
    REFUSED_EXIT: "the engine refused to start it",
    126: "its command could not be run",
    127: "its command was not found",
    137: "it was killed",
    143: "it was told to end",
    255: "the connection to the host was lost",
}
_NO_IMAGE = re.compile(r"no such image|image not known|no such object", re.IGNORECASE)
_NO_CONTAINER = re.compile(r"no such container|no container with name", re.IGNORECASE)
_CLASH = re.compile(r"name .*is already in use", re.IGNORECASE)
_NO_SOURCE = re.compile(r"(?:source path does not exist:|statfs) (?P<path>/[^:\n]*?)(?=[.:\n]|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerEngine:
    """A container engine that answers."""

    name: EngineName
    program: str
    """An absolute path on this host, a plain name on others."""
    version: str
    rootless: bool
    """Whether the engine has no more rights than the user who calls it."""

    def image_argv(self, image: str) -> list[str]:
        """Print the image's id; fails where the image is not there. Never asks a registry."""
        return [self.program, "image", "inspect", "--format", "{{.Id}}", image]

    def remove_argv(self, name: str) -> list[str]:
        """Kill and remove a container; an absent one is no failure, see ``is_absent``."""
        return [self.program, "rm", "--force", name]


def find_engine(name: str | None, *, path: str, run: Run = subprocess.run) -> ContainerEngine:
    """Return the engine ``name``, or else the first of docker and podman that answers.

    Raises ``PreflightError`` where there is none or none answers.
    """
    wanted = _ENGINES if name is None else (name,)
    found = [program for program in (shutil.which(n, path=path) for n in wanted) if program]
    if not found:
        raise PreflightError(
            f"{_OPTION} is {name}, which is not on PATH; install it, or use --kv-exec-type=mpi"
            if name
            else f"{_OPTION} is not given, and neither docker nor podman is on PATH; install an"
            f" engine, or use --kv-exec-type=mpi"
        )
    problems = []
    for program in found:
        try:
            return identify_engine(str(Path(program).absolute()), run=run)
        except PreflightError as error:
            problems.append(error)
    raise problems[0]


def identify_engine(program: str, *, run: Run = subprocess.run) -> ContainerEngine:
    """Ask an engine who it is and whether it works; ``PreflightError`` if it does not."""
    version = _answer([program, "--version"], program, run)
    match = _VERSION.search(version)
    if match is None:
        raise PreflightError(
            f"{_OPTION} is {program}, whose --version says {version.strip()!r}; it must be docker"
            f" or podman"
        )
    is_podman = match["name"].lower() == "podman"  # podman-docker installs it as docker
    if not is_podman:
        _refuse_podman_service(program, run)
    fact = "{{.Host.Security.Rootless}}" if is_podman else "{{json .SecurityOptions}}"
    output = _answer([program, "info", "--format", fact], program, run)
    return ContainerEngine(
        name="podman" if is_podman else "docker",
        program=program,
        version=match["version"],
        rootless=output.strip() == "true" if is_podman else "name=rootless" in output,
    )


def _refuse_podman_service(program: str, run: Run) -> None:
    """Docker's client at podman's socket ends with 0 whatever the container ended with."""
    server = _answer([program, "version", "--format", "{{json .Server}}"], program, run)
    if "podman" in server.lower():
        raise PreflightError(
            f"{_OPTION} is {program}, which talks to podman's service and loses exit codes; use"
            f" {_OPTION}=podman"
        )


def _answer(argv: Sequence[str], program: str, run: Run) -> str:
    """What an engine prints; ``PreflightError`` if it fails or hangs."""
    try:
        child = run_command(argv, timeout_s=_TIMEOUT_S, run=run)
    except CommandError as error:
        raise PreflightError(_no_answer(program, "here", str(error))) from error
    if child.returncode:
        raise PreflightError(_no_answer(program, "here", child.stderr))
    return child.stdout


def _no_answer(program: str, where: str, text: str) -> str:
    output = _complaint(text)
    fix = "start it"
    if "permission denied" in output.lower():
        fix = "let this user use it (docker's group, or a rootless engine)"
    return f"the container engine {program} {where} does not answer ({output}); {fix}"


def _complaint(stderr: str) -> str:
    """The line of an engine's complaint that says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    relevant = [line for line in lines if not re.match(r"(WARNING|Run '|See ')", line)]
    line = (relevant or lines or ["no message"])[0]
    return re.sub(r"^(docker: )?(Error( response from daemon)?: )?", "", line).rstrip(".")


def exit_meaning(code: int) -> str:
    """What the exit code of an engine's ``run`` says."""
    meaning = _MEANINGS.get(code)
    return f"{meaning} (exit code {code})" if meaning else f"exit code {code}"


def is_clash(stderr: str) -> bool:
    """Whether a container was refused because another one has its name."""
    return bool(_CLASH.search(stderr))


def is_absent(stderr: str) -> bool:
    """Whether removing a container failed because it was not there."""
    return bool(_NO_CONTAINER.search(stderr))


def image_problem(engine: ContainerEngine, image: str, host: str, stderr: str) -> PreflightError:
    """Why asking for an image failed: it is not there, or the engine does not answer."""
    if _NO_IMAGE.search(stderr):
        return PreflightError(
            f"--kv-image is {image!r}, which {engine.name} on host {host} does not have; build or"
            f" load it there (images are never pulled)"
        )
    return PreflightError(_no_answer(engine.name, f"on host {host}", stderr))


def start_problem(engine: ContainerEngine, name: str, host: str, stderr: str) -> PreflightError:
    """Why an engine refused to start a container (``REFUSED_EXIT``)."""
    if match := _NO_SOURCE.search(stderr):
        return PreflightError(
            f"host {host} has no directory {match['path']} for a container to see; make it there,"
            f" or name another (--kv-cache-dir, KVCACHE_LOCK_DIR)"
        )
    if is_clash(stderr):
        return PreflightError(
            f"the container name {name} is taken on host {host}; remove that one"
            f" ({engine.name} rm -f {name}), or wait for the run that owns it"
        )
    return PreflightError(
        f"{engine.name} on host {host} refused to start a container ({_complaint(stderr)}); mend"
        " that,"
        f" or use --kv-exec-type=mpi"
    )
