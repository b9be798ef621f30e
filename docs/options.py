"""Writes options.md from the one table of options: ``python docs/options.py``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.options.table import OPTIONS, OptionSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_name("options.md")
MARK = "<!-- written by options.py; edit pytest_kvcache/options/table.py instead -->"


def choices(spec: OptionSpec) -> list[str]:
    """The values of an option that takes one of a few."""
    match = re.fullmatch(r"\{(.*)\}", spec.metavar or "")
    return match[1].split(",") if match else []


def accepted(spec: OptionSpec) -> list[str]:
    """Those of its values that this version takes."""
    return [text for text in choices(spec) if spec.is_available(spec.parse(text, spec.flag))]


def refused(spec: OptionSpec) -> str:
    """What this version refuses, and what to do instead; empty: nothing."""
    if spec.later is None:
        return ""
    some = accepted(spec)
    if some:
        return f"only {' and '.join(f'`{text}`' for text in some)} so far; {spec.later}"
    zero = spec.kind == "value" and not choices(spec) and _takes_zero(spec)
    return f"{'only 0' if zero else 'not available'} so far; {spec.later}"


def _takes_zero(spec: OptionSpec) -> bool:
    return spec.is_available(0)


def row(spec: OptionSpec) -> str:
    """One line of a table."""
    shown = spec.flag if spec.metavar is None else f"{spec.flag}={spec.metavar}"
    text = spec.help.replace("%%", "%")
    cells = [f"`{shown.replace('%%', '%')}`", f"`{spec.ini}`", text]
    if spec.later is not None:
        cells.append(refused(spec))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tables() -> Iterator[str]:
    """All options in the order of ``pytest --help``, those that refuse values apart."""
    yield "| option | in an ini file | meaning |"
    yield "|---|---|---|"
    yield from (row(spec) for spec in OPTIONS if spec.later is None)
    yield ""
    yield "## Not, or not wholly, available yet"
    yield ""
    yield (
        "These are read and checked, and then refused with exit code 4 and the hint in the last"
        " column; none of them is ignored."
    )
    yield ""
    yield "| option | in an ini file | meaning | today |"
    yield "|---|---|---|---|"
    yield from (row(spec) for spec in OPTIONS if spec.later is not None)


def page(text: str) -> str:
    """The page with everything below the mark written anew."""
    head, found, _old = text.partition(MARK)
    if not found:
        raise SystemExit(f"{PAGE} has no line {MARK!r}; put it where the tables begin")
    return f"{head}{MARK}\n\n" + "\n".join(tables()) + "\n"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
