"""Writes counters.md from the one table of counters: ``python docs/counters.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.measure.counters import MAY_BE_UNKNOWN, TABLE, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_name("counters.md")
MARK = "<!-- written by counters.py; edit pytest_kvcache/measure/counters.py instead -->"
_TOGETHER = {
    "sum": "sum",
    "largest": "largest",
    "mean": "mean",
    "own": "each its own",
}


def row(name: str, counter: Row) -> str:
    """One line of the table."""
    unit = f"{counter.unit}, or `null`" if name in MAY_BE_UNKNOWN else counter.unit
    place = f"`{'.'.join(counter.place)}`" if counter.place else ""
    laws = "; ".join(map(str, counter.laws))
    cells = (f"`{name}`", unit, counter.meaning, _TOGETHER[counter.merge], place, laws)
    return "| " + " | ".join(cells) + " |"


def table() -> Iterator[str]:
    """All counters in the order of a rank's record."""
    yield "| counter | unit | what is counted | of all ranks | in a trial | must be |"
    yield "|---|---|---|---|---|---|"
    yield from (row(name, counter) for name, counter in TABLE.items())


def page(text: str) -> str:
    """The page with everything below the mark written anew."""
    head, found, _old = text.partition(MARK)
    if not found:
        raise SystemExit(f"{PAGE} has no line {MARK!r}; put it where the table begins")
    return f"{head}{MARK}\n\n" + "\n".join(table()) + "\n"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
