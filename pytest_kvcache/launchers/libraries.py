"""What is known of the MPI libraries that ranks are linked with: by what name, and in what words.

Pure; imports neither pytest nor mpi4py and starts nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_BOX = re.compile(r"-{20,}")
_TAG = re.compile(r"^\[[^\]\s]+\]<std(?:out|err)>:\s?")  # of --tag-output
# Boxes that tell of a process's end, not of its cause: LauncherFamily.last_words reads them.
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
_FACT = re.compile(r"\s*(?P<name>[^:]{1,30}):\s+(?P<value>\S.*)")
_FACTS = 6  # shown in a sentence
_STACK = re.compile(r"(?!Abort\()[A-Za-z_]\w+\(\d+\)\.*:\s*(?P<why>.*)")  # MPICH's, outermost first


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """The lines of a launch that failed, divided by who speaks in them and of what."""

    own: Sequence[str]
    """Of the ranks."""
    quiet: Sequence[str] = ()
    """Of them, those that are not what the library has each rank print."""
    reasons: Sequence[str] = ()
    """Of the library, on why it failed; each once."""
    warnings: Sequence[str] = ()
    """Of the library, on what goes on all the same."""
    sentence: str | None = None
    """The first reason; None: the library gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MpiLibrary:
    """A family of MPI libraries, by what ``MPI_Get_library_version`` returns."""

    name: str
    pattern: re.Pattern[str]
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the ranks' environment gets, unless the user has it in his own."""
    read: Callable[[Sequence[str]], Printed] = lambda lines: Printed(own=lines)
    """Tell its words from the ranks'."""


def read_boxes(lines: Sequence[str]) -> Printed:
    """Open MPI frames its explanations with lines of dashes; a box gives a reason or warns."""
    boxes, own = _divided(lines)
    reasons = _reasons(boxes)
    warnings = [box for box in boxes if _is_warning(box)]
    return Printed(
        own=own,
        quiet=[line for line in own if not _NOISE.match(_TAG.sub("", line).strip())],
        reasons=[line for box in reasons for line in box if line.strip()],
        warnings=[line for box in warnings for line in box if line.strip()],
        sentence=_sentence(reasons[0]) if reasons else None,
    )


def read_stack(lines: Sequence[str]) -> Printed:
    """MPICH prints a stack of errors: the innermost line of the first is the one that knows."""
    found = None
    for line in lines:
        if match := _STACK.fullmatch(line.strip()):
            found = match["why"] or found
        elif found is not None:
            break
    return Printed(own=[line for line in lines if line.strip()], sentence=found)


def _sentence(box: Sequence[str]) -> str:
    """A box's first sentence, and the facts below it."""
    paragraphs = "\n".join(box).strip().split("\n\n")
    first = " ".join(paragraphs[0].split()).partition(". ")[0].rstrip(".:")
    facts = [match for line in box if (match := _FACT.fullmatch(line))][:_FACTS]
    shown = ", ".join(f"{fact['name'].strip()}: {fact['value'].strip()}" for fact in facts)
    said = f"{first} ({shown})" if shown else first
    if _NO_PLACES.search(" ".join(" ".join(box).split())):
        said += "; one process more than --kv-np is started, the coordinator, and needs a place too"
    return said


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
    return " ".join(box).strip().startswith("WARNING")


# Waiting ranks leave the core to others; a rank that goes down with another one waits a
# second, so that the daemons can first say which one it was and which signal killed it.
OPEN_MPI = MpiLibrary(
    name="Open MPI",
    pattern=re.compile(r"\AOpen MPI\b"),
    settings=MappingProxyType(
        {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_mpi_abort_delay": "1"}
    ),
    read=read_boxes,
)
MPICH = MpiLibrary(
    name="MPICH", pattern=re.compile(r"MPICH|MVAPICH|Intel\(R\) MPI Library"), read=read_stack
)
