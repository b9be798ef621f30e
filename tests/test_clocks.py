"""Which clocks the ranks' code reads: those that nobody can set.

The wall clock steps when somebody or a time service sets it; a duration made of it may be
anything. Read from the syntax trees; the test named "... is found" breaks a source.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.test_layers import package_sources, side_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WALL_CLOCKS = frozenset(
    {"time", "time_ns", "ctime", "localtime", "gmtime", "now", "utcnow", "today"}
)
MODULES = frozenset({"time", "datetime", "date"})
# Moments, not durations: when something was made, for people; what hosts' clocks differ by.
ALLOWED = {"cachedir": {"now"}, "hostlock": {"now"}, "hostfacts": {"time"}}


def wall_clocks(source: str) -> Iterator[str]:
    """Every read of the wall clock: ``time.time``, ``from time import time``, ``datetime.now``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in WALL_CLOCKS:
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value
            name = owner.id if isinstance(owner, ast.Name) else owner
            if name in MODULES:
                yield node.attr
        elif isinstance(node, ast.Attribute) and node.attr == "CLOCK_REALTIME":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (alias.name for alias in node.names if alias.name in WALL_CLOCKS)


@pytest.mark.parametrize("module", sorted(package_sources()))
def test_no_duration_is_made_of_the_wall_clock(module: str) -> None:
    side = side_of(module)
    assert side is not None
    if side.name in ("ranks", "both", "hosts"):
        found = set(wall_clocks(package_sources()[module])) - ALLOWED.get(module, set())
        assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.time()",
        "import time\nx = time.time_ns",
        "from time import time",
        "from datetime import datetime\nx = datetime.now()",
        "import datetime\nx = datetime.datetime.now()",
        "import time\nx = time.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_a_read_of_the_wall_clock_is_found(source: str) -> None:
    assert list(wall_clocks(source))


@pytest.mark.parametrize(
    "source", ["import time\nx = time.monotonic_ns()", "x = result.time", "x = series.now()"]
)
def test_other_clocks_and_names_are_none(source: str) -> None:
    assert not list(wall_clocks(source))
