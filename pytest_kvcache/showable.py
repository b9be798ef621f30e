"""Text as a terminal or a file can show it: typographic signs have plain twins. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

COLUMNS: Final = 80
"""A terminal's, for lines that must fit; what is wrapped leaves the last one free."""

_SIGNS: Final = "▁█—…×µ≥≤·→"
_PLAIN: Final = str.maketrans(
    {"—": "-", "…": "..", "×": "x", "µ": "u", "≥": ">=", "≤": "<=", "·": "*", "→": "->"}
)


def encoding_of(stream: TextIO | None) -> str | None:
    """A stream's, as far as it has one."""
    return None if stream is None else stream.encoding


def can_show(encoding: str) -> bool:
    """Whether the signs that our texts and bars use exist in an encoding."""
    try:
        _SIGNS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def showable(text: str, encoding: str | None) -> str:
    """The text itself, or what is left of it in plain signs; None: not known, so plain."""
    if encoding is not None and can_show(encoding):
        return text
    plain = text.translate(_PLAIN)
    try:
        return plain.encode(encoding or "ascii", "replace").decode(encoding or "ascii")
    except LookupError:  # an encoding that Python does not know
        return plain.encode("ascii", "replace").decode("ascii")
