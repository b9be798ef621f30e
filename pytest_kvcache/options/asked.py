"""What was asked for and came to nothing: options that no benchmark took up.

Pure text; imports neither pytest nor MPI. Controller side.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_kvcache.options.options import unused_slots
from pytest_kvcache.options.table import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_kvcache.options.options import Options

SUITE = "--pyargs pytest_kvcache.suite"
_ASKS_FOR_NOTHING = frozenset({"plugin"})


class Asked:
    """Which of the session's options reached a case, and which every call replaced."""

    def __init__(self) -> None:
        self._calls = 0
        self._replaced: dict[str, int] = {}

    def note(self, overridden: Iterable[str]) -> None:
        """One case was asked for, with these options given by the test itself."""
        self._calls += 1
        for name in overridden:
            self._replaced[name] = self._replaced.get(name, 0) + 1

    def ignored(self, options: Options) -> list[str]:
        """A line for each typed option that no test let through, and for slots nobody used."""
        slots = unused_slots(options) if self._replaced.get("np", 0) < self._calls else None
        lines = [] if slots is None else [slots]
        return lines + [
            f"{spec.flag} had no effect: every kvcache.run() of these tests gives its own"
            f" {spec.name}"
            for spec in OPTIONS
            if options.origins.get(spec.name) == "command line"
            and self._replaced.get(spec.name) == self._calls > 0
        ]


def typed_flags(options: Options) -> list[str]:
    """The options on the command line that ask for a run."""
    return [
        spec.flag
        for spec in OPTIONS
        if options.origins.get(spec.name) == "command line" and spec.name not in _ASKS_FOR_NOTHING
    ]


def nothing_selected(
    options: Options, arguments: Sequence[str], *, tests: int, deselected: int
) -> str | None:
    """What to type, where typed options found no benchmark; None: none was typed.

    ``tests`` ran without the benchmark, ``deselected`` items of the benchmark were left out.
    """
    flags = typed_flags(options)
    if not flags:
        return None
    given = f"{' and '.join(flags[:2])}{' and others' if len(flags) > 2 else ''}"  # noqa: PLR2004
    verb = "is" if len(flags) == 1 else "are"
    if deselected:
        return (
            f"no benchmark ran: {given} {verb} given, but all items of the benchmark"
            f" ({deselected}) were deselected; look at -k and -m"
        )
    none = f"none of the {tests} tests that were selected uses" if tests else "nothing here uses"
    rest = [argument for argument in arguments if argument not in SUITE.split()]
    command = shlex.join(["pytest", *SUITE.split(), *rest])
    return (
        f"no benchmark was selected: {given} {verb} given, but {none} the fixture kvcache; add"
        f" {SUITE} for the shipped benchmark: {command}"
    )
