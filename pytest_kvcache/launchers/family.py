"""What is known of one kind of launcher, in one value: a family is one file and its registration.

How a program of it is recognised and which versions serve, how its commands are made, what
it needs of a host, what it leaves there when it is killed, and its last words. Pure; imports
neither pytest nor mpi4py and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from pytest_kvcache.launchers.libraries import MpiLibrary
    from pytest_kvcache.launchers.protocol import Launcher

REPAIR: Final = "it must be a launcher that works here"

Ranks: TypeAlias = Sequence[Mapping[str, Any]]
"""The ranks' identities ({"host", "pid"}) by number; empty if they never got together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLauncher:
    """A launcher of a family, and what its commands may depend on."""

    path: str
    flavour: str
    """Which one of the family, for people and for its commands."""
    version: str | None
    """What it says of itself; None where it is no program that could be asked."""
    library: str
    """What the MPI library of the ranks says it is."""
    environ: Mapping[str, str] = field(repr=False)
    """The controller's environment."""
    hostname: str
    ask: Callable[[str], str] = field(compare=False, repr=False)
    """What the program prints when it is called with one option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Directories (or files) in the launcher's temporary directory, by a pattern of their names.

    With ``pid`` (a regular expression of the name, with a group of that name) they go when
    that process has gone, with ``unless_running`` when no process of these names runs; a
    directory with neither, or with a name without a pid, goes once it is empty.
    """

    glob: str
    is_file: bool = False
    pid: str | None = None
    unless_running: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What a launch that was killed leaves on a host, and by what its processes are known."""

    daemons: frozenset[str] = frozenset()
    """Names of the processes that have ranks as children, and that the launcher started."""
    parents: frozenset[str] = frozenset()
    """Names of others that have ranks as children; they are not ours to end."""
    files: tuple[Leftover, ...] = ()
    segments: tuple[str, ...] = ()
    """Shared memory in /dev/shm, by patterns of its names."""

    def __or__(self, other: Leftovers) -> Leftovers:
        return Leftovers(
            daemons=self.daemons | other.daemons,
            parents=self.parents | other.parents,
            files=tuple(dict.fromkeys((*self.files, *other.files))),
            segments=tuple(dict.fromkeys((*self.segments, *other.segments))),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict for the agents of other hosts; ``from_json`` gives the same back."""
        return {
            "daemons": sorted(self.daemons),
            "parents": sorted(self.parents),
            "files": [asdict(left) for left in self.files],
            "segments": list(self.segments),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Leftovers:
        """The inverse of ``to_json``."""
        files = (
            Leftover(**{**left, "unless_running": tuple(left["unless_running"])})
            for left in data["files"]
        )
        return cls(
            daemons=frozenset(data["daemons"]),
            parents=frozenset(data["parents"]),
            files=tuple(files),
            segments=tuple(data["segments"]),
        )


class Reach(Protocol):
    """A way to other hosts that a launcher brings, in the place of ssh."""

    def argv(self, host: str, program: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The command that runs ``program`` on ``host``, with our pipes."""

    def explain(self, host: str, errors: str) -> str | None:
        """Why ``argv`` failed to start anything, without the host's name; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherFamily:
    """One kind of launcher: what ``kvcache_launchers`` registers.

    ``make`` builds the commands of a launcher that was found; PreflightError where it can't
    work here. ``is_program`` False: the registered name, given as ``--kv-mpi-bin``, is not
    looked for on the disk, and nothing is asked for a version.
    """

    title: str
    """What people call it, with what they have to give to have it."""
    make: Callable[[FoundLauncher], Launcher]
    is_program: bool = True
    recognise: Callable[[str], tuple[str, str] | None] = lambda _output: None
    """(flavour, version) from what a program prints for ``--version``; None: another family's."""
    minimum: tuple[int, ...] = ()
    below: tuple[int, ...] = ()
    """Versions that serve: at least the one, below the other; empty: any."""
    libraries: tuple[MpiLibrary, ...] = ()
    """What the ranks may be linked with; empty: anything."""
    daemons: Mapping[str, str] = field(default_factory=dict, hash=False)
    """By flavour: the program that must be beside the launcher, at the same path everywhere."""
    leaves: Leftovers = Leftovers()
    last_words: Callable[[str, Ranks], str | None] = lambda _text, _ranks: None
    """Which rank died of what, in what the launcher printed; None: it does not say."""
    root_variables: tuple[str, ...] = ()
    """Environment variables, all of which let root run it; empty: root needs no permission."""
    directory_variables: tuple[str, ...] = ()
    """By these a user says himself where the launcher makes its files."""
    needs_shared_memory: bool = False
    """Whether its ranks can't begin without /dev/shm."""
    in_containers: bool = False
    """Whether it starts its daemons by a remote shell that may be a container's agent."""
    repair: str = REPAIR
    """What to do where a program of the registered name does not answer."""
    reach: Callable[[FoundLauncher], Reach] | None = None
    """How it reaches hosts itself; None: by ssh."""


def rank_name(number: int, ranks: Ranks, host: str) -> str:
    """A rank for people; the launcher's rank 0 is the coordinator, our -1."""
    if number < 0:
        return f"the coordinator on host {host}"
    if number < len(ranks):
        return f"rank {number} (pid {ranks[number]['pid']}) on host {ranks[number]['host']}"
    return f"rank {number} on host {host}"


def version_numbers(version: str) -> tuple[int, ...]:
    """``5.0.11rc1`` as (5, 0, 11)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def dotted(numbers: Sequence[int]) -> str:
    """``(5, 0)`` as ``5.0``."""
    return ".".join(map(str, numbers))
