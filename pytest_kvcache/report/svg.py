"""A few elements of SVG as text: numbers are short, names are escaped. Pure."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(tag: str, *content: str, **attributes: object) -> str:
    """An element around content that is SVG already.

    ``class_`` is the attribute ``class``, other underscores are dashes; None is left out.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    attached = "".join(
        f" {name}={quoteattr(_plain(value))}" for name, value in given.items() if value is not None
    )
    inner = "".join(content)
    return f"<{tag}{attached}>{inner}</{tag}>" if inner else f"<{tag}{attached}/>"


def words(tag: str, text: str, **attributes: object) -> str:
    """An element around a text, whatever stands in it."""
    return element(tag, escape(possible(text)), **attributes)


def possible(text: str) -> str:
    """The text with a sign for what no XML may hold (control characters, lone surrogates)."""
    return _IMPOSSIBLE.sub("\ufffd", text)


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else possible(str(value))
