from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.hosts.sessiondirs import SessionDirs
from pytest_kvcache.hosts.sharedmemory import Segments
from pytest_kvcache.launchers.families import BUILT_IN_LEFTOVERS, FAMILIES, leftovers_of
from pytest_kvcache.launchers.family import (
    LauncherFamily,
    Leftover,
    Leftovers,
    version_numbers,
)

if TYPE_CHECKING:
    from pathlib import Path

TOY = Leftovers(
    daemons=frozenset({"toyd"}),
    files=(Leftover(glob="toy.*", pid=r"toy\.(?P<pid>\d+)"),),
    segments=("toy_shm*",),
)
GONE = 99999999  # above any pid


def test_what_launchers_leave_survives_its_json() -> None:
    for leaves in (BUILT_IN_LEFTOVERS, TOY, Leftovers()):
        assert Leftovers.from_json(json.loads(json.dumps(leaves.to_json()))) == leaves


def test_what_all_leave_is_what_each_leaves() -> None:
    toy = LauncherFamily(title="toy", make=FAMILIES["pals"].make, leaves=TOY)
    every = leftovers_of([*FAMILIES.values(), toy])
    for family in (*FAMILIES.values(), toy):
        assert every | family.leaves == every
    assert every.daemons == BUILT_IN_LEFTOVERS.daemons | {"toyd"}


def test_what_a_launcher_of_a_plugin_leaves_is_removed(tmp_path: Path) -> None:
    sessions = SessionDirs.now(tmp_path, TOY.files)
    segments = Segments.now(tmp_path, TOY.segments)
    left, others = tmp_path / f"toy.{GONE}", tmp_path / f"prted.n1.{GONE}"
    for path in (left, others):
        path.mkdir()
    (tmp_path / "toy_shm.1").touch()
    sessions.remove_new()
    segments.remove_new()
    assert [path.name for path in tmp_path.iterdir()] == [others.name]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_pattern_of_a_pid_has_one(family: LauncherFamily) -> None:
    for left in family.leaves.files:
        assert left.pid is None or "pid" in re.compile(left.pid).groupindex


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("5.0.11", (5, 0, 11)), ("4.1.7a1", (4, 1, 7)), ("2021.18.1", (2021, 18, 1)), ("odd", ())],
)
def test_a_version_is_compared_by_its_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers
