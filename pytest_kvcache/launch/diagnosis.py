"""Why a launch failed, read from what the launcher and the MPI library printed. Pure.

Only people's text comes from here: whether a launch succeeded is decided by its record,
never by its output. The launcher's rank counts the coordinator, ours do not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_kvcache.launchers.families import FAMILIES, libraries_of
from pytest_kvcache.launchers.libraries import Printed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_kvcache.launchers.family import LauncherFamily, Ranks

_SSH = re.compile(
    r"ssh: (?:connect to host|Could not resolve hostname) (?P<host>[^\s:]+)[^:]*: (?P<why>.+)"
)
# containers/relay.py, of the containers that it holds on other hosts.
_CONTAINER = re.compile(r"kvcache: (the container on host \S+ ended: .+)")
_EXPLAINED_LINES = 24  # of a library; Open MPI's longest advice is longer


def cause_of_death(
    lines: Sequence[str], ranks: Ranks, families: Iterable[LauncherFamily] = FAMILIES.values()
) -> str | None:
    """Which rank died of what, as a launcher of one of the families tells it; None: none does."""
    if match := _CONTAINER.search("\n".join(lines)):
        return match[1].strip()
    if match := _SSH.search("\n".join(lines)):
        return f"host {match['host']} can't be reached over ssh ({match['why'].strip()})"
    text = re.sub(r"[\s=|]+", " ", " ".join(lines))
    causes = (family.last_words(text, ranks) for family in families)
    return next((cause for cause in causes if cause is not None), None)


def explanation(
    lines: Sequence[str], families: Iterable[LauncherFamily] = FAMILIES.values()
) -> str | None:
    """The MPI library's own reason in a sentence; None: it gives none."""
    sentences = (printed.sentence for printed in _read(lines, families))
    return next((sentence for sentence in sentences if sentence is not None), None)


def relevant_lines(
    lines: Sequence[str],
    count: int,
    families: Iterable[LauncherFamily] = FAMILIES.values(),
) -> list[str]:
    """The lines that say something, at most ``count`` of the ranks' own after a library's.

    A library's reasons come first. Of what it says of a process's end the ranks' own last
    lines tell more; where there is nothing else, the beginning is shown.
    """
    known = _read(lines, families)
    # The library that found most of its own words is the one that speaks.
    printed = min(known, key=lambda printed: len(printed.own), default=Printed(own=lines))
    if printed.reasons:
        return [*printed.reasons[:_EXPLAINED_LINES], *printed.quiet[-count:]]
    if printed.warnings and not printed.quiet:
        return list(printed.warnings[:_EXPLAINED_LINES])
    return list(printed.own[-count:]) or [line for line in lines if line.strip()][:count]


def _read(lines: Sequence[str], families: Iterable[LauncherFamily]) -> list[Printed]:
    """The lines as each library that the families know reads them."""
    return [library.read(lines) for library in libraries_of(families)]
