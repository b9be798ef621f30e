"""What the kernel says in a file of /proc or /sys, where this kernel has that file."""

from __future__ import annotations

from pathlib import Path


def kernel_text(path: str | Path) -> str | None:
    """The file's text without white space around it; None: not there, not for us, or empty."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def kernel_number(path: str | Path) -> int | None:
    """The whole number that is all the file holds; None: it is not there, or holds another word."""
    text = kernel_text(path) or ""
    return int(text) if text.removeprefix("-").isdecimal() else None
