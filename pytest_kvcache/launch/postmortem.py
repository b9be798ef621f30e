"""Why a launch failed, read from what the launcher printed. Pure.

Only people's text comes from here: whether a launch succeeded is decided by its record,
never by its output. The launcher's rank counts the coordinator, ours do not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_kvcache.launchers.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_kvcache.launchers.family import LauncherFamily, Ranks

_SSH = re.compile(
    r"ssh: (?:connect to host|Could not resolve hostname) (?P<host>[^\s:]+)[^:]*: (?P<why>.+)"
)
# containers/relay.py, of the containers that it holds on other hosts.
_CONTAINER = re.compile(r"kvcache: (the container on host \S+ ended: .+)")
_BOX = re.compile(r"-{20,}")
_TAG = re.compile(r"^\[[^\]\s]+\]<std(?:out|err)>:\s?")  # of --tag-output
# Boxes that tell of a process's end, not of its cause: cause_of_death reads them.
_ENDS = re.compile(
    r"(?:mpirun|prterun|mpiexec|orterun)\S* (?:noticed|detected) that"
    r"|(?:mpirun|prterun|mpiexec|orterun)\S* has exited due to"
    r"|Primary job +terminated|MPI_ABORT was invoked|has lost communication with a remote daemon",
)
# What every rank prints when MPI can't begin, whatever the reason; the box has the reason.
_NOISE = re.compile(
    r"\*\*\* |\d+ more process(?:es)? ha"
    r"|\[\S+:\d+\] (?:Local abort|Delaying for|PMIX ERROR|\*\*\* |\d+ more process"
    r"|Set MCA parameter|\[\[\d+,\d+\],\d+\] \w+_ERROR_LOG)"
)
_NO_PLACES = re.compile(
    r"failed to map|requested more processes|not enough slots|more cpus than are available"
    r"|nodes which are allocated for this job are already filled"
)
_STACK = re.compile(r"(?!Abort\()[A-Za-z_]\w+\(\d+\)\.*:\s*(?P<why>.*)")  # MPICH's, outermost first
_EXPLAINED_LINES = 24  # of boxes; Open MPI's longest advice is longer
_FACT = re.compile(r"\s*(?P<name>[^:]{1,30}):\s+(?P<value>\S.*)")
_FACTS = 6  # shown in a sentence


def cause_of_death(
    lines: Sequence[str], ranks: Ranks, families: Iterable[LauncherFamily] = FAMILIES.values()
) -> str | None:
    """Which rank died of what, as a launcher of one of the families tells it; None: none does."""
    if match := _CONTAINER.search("\n".join(lines)):
        return match[1].strip()
    if match := _SSH.search("\n".join(lines)):
        return f"host {match['host']} can't be reached over ssh ({match['why'].strip()})"
    text = re.sub(r"[\s=|]+", " ", " ".join(lines))
    told = (family.last_words(text, ranks) for family in families)
    return next((cause for cause in told if cause is not None), None)


def explanation(lines: Sequence[str]) -> str | None:
    """The MPI's own reason in a sentence; None: it gives none.

    Open MPI's from the first box that has one, MPICH's from the end of its error stack.
    """
    boxes, _own = _divided(lines)
    reasons = _reasons(boxes)
    if not reasons:
        return _end_of_stack(lines)
    paragraphs = "\n".join(reasons[0]).strip().split("\n\n")
    first = " ".join(paragraphs[0].split()).partition(". ")[0].rstrip(".:")
    facts = [match for line in reasons[0] if (match := _FACT.fullmatch(line))][:_FACTS]
    shown = ", ".join(f"{fact['name'].strip()}: {fact['value'].strip()}" for fact in facts)
    said = f"{first} ({shown})" if shown else first
    if _NO_PLACES.search(" ".join(" ".join(reasons[0]).split())):
        said += "; one process more than --kv-np is started, the coordinator, and needs a place too"
    return said


def _end_of_stack(lines: Sequence[str]) -> str | None:
    """The innermost line of the first error stack, which is the one that knows."""
    found = None
    for line in lines:
        if match := _STACK.fullmatch(line.strip()):
            found = match["why"] or found
        elif found is not None:
            break
    return found


def telling_lines(lines: Sequence[str], count: int) -> list[str]:
    """The lines that say something, at most ``count`` of the ranks' own after those of boxes.

    Open MPI frames its own explanations with lines of dashes. Those that give a reason
    come first, each once. Of those that tell of a process's end the ranks' own last lines
    tell more; where there is nothing else, the beginning of the boxes is told.
    """
    boxes, own = _divided(lines)
    reasons = [line for box in _reasons(boxes) for line in box if line.strip()]
    quiet = [line for line in own if not _NOISE.match(_TAG.sub("", line).strip())]
    if reasons:
        return [*reasons[:_EXPLAINED_LINES], *quiet[-count:]]
    warnings = [line for box in boxes if _is_warning(box) for line in box if line.strip()]
    if warnings and not quiet:
        return warnings[:_EXPLAINED_LINES]
    return own[-count:] or [line for line in lines if line.strip()][:count]


def _divided(lines: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Boxes' contents, and the lines outside; a box that never ends is none.

    A rank's noise between two dashed lines is no box: one of them had lost its partner.
    """
    boxes: list[list[str]] = []
    own: list[str] = []
    inside: list[str] | None = None
    for line in lines:
        bare = _TAG.sub("", line)
        if not _BOX.fullmatch(bare.strip()):
            (own if inside is None else inside).append(bare if inside is not None else line)
        elif inside is None:
            inside = []
        elif all(_NOISE.match(text.strip()) or not text.strip() for text in inside):
            own += inside
            inside = []
        else:
            boxes.append(inside)
            inside = None
    return boxes, [line for line in [*own, *(inside or ())] if line.strip()]


def _reasons(boxes: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The boxes that give a reason, each once: every rank may print it, with its own numbers."""
    found: dict[str, Sequence[str]] = {}
    for box in boxes:
        text = " ".join(" ".join(box).split())
        if not _ENDS.search(text) and not _is_warning(box):
            found.setdefault(re.sub(r"\d+", "#", text), box)
    return list(found.values())


def _is_warning(box: Sequence[str]) -> bool:
    """Whether it is about something that goes on all the same."""
    return " ".join(box).strip().startswith("WARNING")
