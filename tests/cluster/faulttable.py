"""The table of docs/faults.md, made of what the tests of faults have noted.

    python -m tests.cluster.faulttable NOTES docs/faults.md

Tests run in several processes, and columns one after another: so each cell is a line of
a file, and the table is made of them afterwards.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.faults import FAULTS
from tests.cluster.launchers import COLUMNS

MARK = "<!-- what follows is written by tox -e faults -->"
PASSING = re.compile(r"/\S+|(?<=pid )\d+")  # paths and pids, another time others


@dataclass(frozen=True)
class FaultTable:
    """Where to note; None: nowhere."""

    path: Path | None

    def note(self, fault: str, launcher: str, took_s: float, cause: str) -> None:
        """One cell: how long it took to fail the case, and what was said."""
        if self.path is not None:
            cell = {"fault": fault, "launcher": launcher, "s": took_s, "said": cause}
            with self.path.open("a", encoding="utf-8") as notes:
                notes.write(f"{json.dumps(cell)}\n")


def markdown(cells: list[dict[str, Any]]) -> str:
    """A row per fault, a column per launcher, and what was said with the first of them."""
    launchers = [c.name for c in COLUMNS if any(cell["launcher"] == c.name for cell in cells)]
    lines = [["fault", *launchers, "what is said"], ["---"] * (len(launchers) + 2)]
    order = [fault.name for fault in FAULTS]
    names = dict.fromkeys([*order, *sorted(cell["fault"] for cell in cells)])
    for fault in names:
        if not any(cell["fault"] == fault for cell in cells):
            continue
        row = {cell["launcher"]: cell for cell in cells if cell["fault"] == fault}
        shown = [f"{row[name]['s']:.1f} s" if name in row else "—" for name in launchers]
        said = next(row[name]["said"] for name in launchers if name in row)
        lines.append([fault, *shown, PASSING.sub("…", said).replace("|", "\\|")])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(notes: str, page: str) -> None:
    """Put the table below the mark."""
    cells = [json.loads(line) for line in Path(notes).read_text(encoding="utf-8").splitlines()]
    head, mark, _ = Path(page).read_text(encoding="utf-8").partition(MARK)
    Path(page).write_text(f"{head}{mark}\n\n{markdown(cells)}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
