"""Verdicts: reasons to distrust a trial or a case, and the one table of their codes. Pure.

docs/results.md says of each what it means and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Severity = Literal["invalid", "warning"]

SEVERITIES: Final[Mapping[str, Severity]] = MappingProxyType(
    {
        "CACHED_READS": "invalid",
        "CACHED_WRITES": "invalid",
        "CLIENT_BOUND": "invalid",
        "CLOCK": "invalid",
        "OVERLOADED": "invalid",
        "PRELOADED": "invalid",
        "SKEWED": "invalid",
        "SYNCHRONOUS": "invalid",
        "TMPFS": "invalid",
        "UNCONFIRMED": "invalid",
        "BUSY_DEVICE": "warning",
        "FASTER_WITH_STORES": "warning",
        "INCOMPARABLE": "warning",
        "LATE_REPLAY": "warning",
        "LATE_STAMPS": "warning",
        "NOISY": "warning",
        "NOT_STEADY": "warning",
        "NOT_STORAGE": "warning",
        "NO_SUBMISSION": "warning",
        "PAUSED": "warning",
        "SATURATED": "warning",
        "SHORT_WINDOW": "warning",
        "STALL": "warning",
        "THROTTLED": "warning",
        "TRACED": "warning",
        "UNEVEN": "warning",
        "UNPROVEN": "warning",
        "UNSATURATED": "warning",
        "VIRTUAL_DISK": "warning",
        "WARM_METADATA": "warning",
    }
)
"""Code → ``invalid`` (fails the trial unless --kv-allow-invalid) or ``warning`` (is shown)."""

INVALIDATING: Final = frozenset(c for c, severity in SEVERITIES.items() if severity == "invalid")
"""Codes of severity ``invalid``; a pytest-benchmark file tells no severity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A reason to distrust a trial; ``invalid`` fails it, ``warning`` is shown."""

    code: str
    severity: Severity
    text: str

    @classmethod
    def of(cls, code: str, text: str) -> Verdict:
        """A verdict of a known code, whose severity the table of codes fixes."""
        return cls(code=code, severity=SEVERITIES[code], text=text)
