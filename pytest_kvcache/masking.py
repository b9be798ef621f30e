"""Values that nobody may see, and how they are shown instead. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK: Final = "***"
"""What stands where a secret value would."""


class Secrets:
    """Secret values by name; its repr has the names only, for tracebacks show locals."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(values or {})

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"

    def __bool__(self) -> bool:
        return bool(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self._values == other._values

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def reveal(self) -> dict[str, str]:
        """The values in clear, for the one who needs them."""
        return dict(self._values)

    def mask(self, text: str) -> str:
        """The text with every secret value in it replaced, the longest ones first."""
        for value in sorted(filter(None, self._values.values()), key=len, reverse=True):
            text = text.replace(value, MASK)
        return text
