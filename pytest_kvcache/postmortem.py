"""Why a launch failed, read from what the launcher printed. Pure.

Only people's text comes from here: whether a launch succeeded is decided by its record,
never by its output. The launcher's rank counts the coordinator, ours do not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Open MPI 4 and 5, with the line breaks folded.
_OPENMPI = re.compile(
    r"process rank (?P<rank>\d+) with PID (?P<pid>\d+) on node (?P<host>\S+?) "
    r"(?:exited on signal (?P<signal>\d+)|(?P<how>exiting improperly|calling \"abort\"))"
)
# The same two, of a process that ended in its own way: no host, no pid.
_OPENMPI_CODE = re.compile(r"Process name: \[\S+,(?P<rank>\d+)\] Exit code: (?P<code>\d+)")
# hydra (MPICH, Intel MPI).
_HYDRA = re.compile(r"PID (?P<pid>\d+) RUNNING AT (?P<host>\S+).*?EXIT CODE: (?P<code>\d+)")
_SSH = re.compile(
    r"ssh: (?:connect to host|Could not resolve hostname) (?P<host>[^\s:]+)[^:]*: (?P<why>.+)"
)
# srun: a victim of the others' end is "Terminated", and not told.
_SRUN = re.compile(
    r"srun: error: (?P<host>[^\s:]+): tasks? (?P<rank>\d+)\S*: "
    r"(?:Exited with exit code (?P<code>\d+)"
    r"|(?P<how>Killed|Aborted|Segmentation fault|Bus error|Illegal instruction))"
)
# PALS ends the others with SIGTERM (15).
_PALS = re.compile(
    r"(?P<host>\S+): rank (?P<rank>\d+) "
    r"(?:died from signal (?!15\b)(?P<signal>\d+)|exited with code (?P<code>\d+))"
)
# containers/outside.py, of the containers that it holds on other hosts.
_CONTAINER = re.compile(r"kvcache: (the container on host \S+ ended: .+)")
_BOX = re.compile(r"-{20,}")


def cause_of_death(lines: Sequence[str], ranks: Sequence[Mapping[str, Any]]) -> str | None:
    """Which rank died of what, as the launcher tells it; None: it does not tell.

    ``ranks`` are the ranks' identities ({"host", "pid"}) in the order of their numbers,
    empty if they never got together.
    """
    if match := _CONTAINER.search("\n".join(lines)):
        return match[1].strip()
    if match := _SSH.search("\n".join(lines)):
        return f"host {match['host']} can't be reached over ssh ({match['why'].strip()})"
    text = re.sub(r"[\s=|]+", " ", " ".join(lines))
    told = (_openmpi(text, ranks), _hydra(text, ranks), _srun(text, ranks), _pals(text, ranks))
    return next((cause for cause in told if cause is not None), None)


def _openmpi(text: str, ranks: Sequence[Mapping[str, Any]]) -> str | None:
    match = _OPENMPI.search(text)
    if match is None:
        return _openmpi_code(text, ranks)
    who = _name(int(match["rank"]) - 1, ranks, match["host"])
    if match["signal"]:
        return f"{who} was killed by signal {match['signal']}"
    if match["how"] == "exiting improperly":
        return f"{who} ended in the middle of the work"
    return f"{who} gave up"


def _openmpi_code(text: str, ranks: Sequence[Mapping[str, Any]]) -> str | None:
    match = _OPENMPI_CODE.search(text)
    number = -1 if match is None else int(match["rank"]) - 1
    if match is None or not 0 <= number < len(ranks):
        return None
    who = _name(number, ranks, ranks[number]["host"])
    signalled = int(match["code"]) - 128  # as shells say it, and worker.py of SIGTERM
    after = f", as after signal {signalled}" if signalled > 0 else ""
    return f"{who} ended with exit code {match['code']}{after}"


def _hydra(text: str, ranks: Sequence[Mapping[str, Any]]) -> str | None:
    match = _HYDRA.search(text)
    if match is None:
        return None
    pid = int(match["pid"])
    likely = [number for number, rank in enumerate(ranks) if rank["pid"] == pid]
    if len(likely) > 1:  # pids of two hosts
        likely = [number for number in likely if ranks[number]["host"] == match["host"]]
    if len(likely) == 1:
        who = _name(likely[0], ranks, match["host"])
        return f"{who} ended with exit code {match['code']}"
    # Often another one than the first to die: hydra ends all and reports one of them.
    return (
        f"a process ended with exit code {match['code']}; the launcher names pid {pid} on"
        f" host {match['host']}"
    )


def _srun(text: str, ranks: Sequence[Mapping[str, Any]]) -> str | None:
    match = _SRUN.search(text)
    if match is None:
        return None
    who = _name(int(match["rank"]) - 1, ranks, match["host"])
    if match["code"]:
        return f"{who} ended with exit code {match['code']}"
    return f"{who} ended with {match['how']!r}"


def _pals(text: str, ranks: Sequence[Mapping[str, Any]]) -> str | None:
    match = _PALS.search(text)
    if match is None:
        return None
    who = _name(int(match["rank"]) - 1, ranks, match["host"])
    if match["code"]:
        return f"{who} ended with exit code {match['code']}"
    return f"{who} was killed by signal {match['signal']}"


def _name(number: int, ranks: Sequence[Mapping[str, Any]], host: str) -> str:
    if number < 0:
        return f"the coordinator on host {host}"
    if number < len(ranks):
        return f"rank {number} (pid {ranks[number]['pid']}) on host {ranks[number]['host']}"
    return f"rank {number} on host {host}"


def telling_lines(lines: Sequence[str], count: int) -> list[str]:
    """The lines that say something about the ranks, at most ``count``.

    Open MPI frames its own explanations with lines of dashes. The ranks' own last lines
    tell more; where there are none, the beginning of the explanation does.
    """
    own: list[str] = []
    inside = False
    for line in lines:
        if _BOX.fullmatch(line.strip()):
            inside = not inside
        elif not inside and line.strip():
            own.append(line)
    return own[-count:] or [line for line in lines if line.strip()][:count]
