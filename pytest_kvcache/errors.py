"""The exception tree of the whole package; imports nothing of it.

::

    KVCacheError
    ├── OptionError            a value the user gave breaks a rule      (exit 4)
    │   ├── UnknownNameError   a name nobody registered; lists the known ones
    │   ├── UnavailableError   an option whose capability does not exist yet
    │   └── TraceError         a trace file that can't be used; file and line
    ├── PreflightError         this machine can't run the plan as it is (exit 4)
    ├── LaunchError            a launch of ranks failed; argv, exit code, output tail
    ├── StorageError           the storage failed; host and path
    ├── StalledError           a rank did not arrive or report in time
    └── ResultError            a record is absent, incomplete or contradicts the plan

Usage errors become ``pytest.UsageError`` at the edge (plugin.py), nowhere else.
Messages name the thing, its value, the rule and the fix, in one sentence.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SHOWN = 12  # more names than these are no help


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`` (did you mean 'a' or 'b'?)``, of the names that are close; empty: none is."""
    if not isinstance(name, str):  # a file's value may be anything
        return ""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    close = close or [other for other in names if name and other.startswith(name)][:2]
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def _listed(name: object, known: Sequence[str]) -> str:
    """All names, or of many those that are closest to ``name``."""
    if len(known) <= _SHOWN:
        return ", ".join(known)
    closest = difflib.get_close_matches(str(name), known, n=_SHOWN // 2, cutoff=0.0)
    return f"{', '.join(closest)}, or one of {len(known) - len(closest)} others"


class KVCacheError(Exception):
    """Base of every error this package raises on purpose."""


class OptionError(KVCacheError):
    """A value the user gave breaks a rule."""


class UnknownNameError(OptionError):
    """A name that nobody registered.

    ``kind`` is the noun (``scenario``), ``name`` the culprit, ``known`` what exists.
    """

    def __init__(self, kind: str, name: Any, known: Iterable[str], *, option: str) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(
            f"{option} is {name!r}{did_you_mean(name, self.known)}; it must name a known {kind}:"
            f" {_listed(name, self.known)}"
        )


class UnavailableError(OptionError):
    """An option whose capability does not exist in this version."""

    def __init__(self, option: str, value: object, hint: str) -> None:
        self.option = option
        super().__init__(f"{option} is {value}; this is not available yet: {hint}")


class TraceError(OptionError):
    """A trace file that can't be used; ``line`` counts from 1, 0 means the whole file."""

    def __init__(self, path: str, line: int, problem: str) -> None:
        self.path = path
        self.line = line
        where = f"{path}, line {line}" if line else path
        super().__init__(f"--kv-trace {where}: {problem}")


class PreflightError(KVCacheError):
    """This machine can't run the plan as it is."""


class LaunchError(KVCacheError):
    """A launch of ranks failed.

    Carries the exact command, the launcher's exit code (None: it was killed by us
    before it ended) and the last lines of its output.
    """

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        tail: Sequence[str] = (),
    ) -> None:
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.tail = tuple(tail)
        super().__init__(message)


class StorageError(KVCacheError):
    """The storage failed; the message names the host, the path and the cause."""


class StalledError(KVCacheError):
    """A rank did not arrive or report in time."""


class ResultError(KVCacheError):
    """A record is absent, incomplete or contradicts the plan."""
