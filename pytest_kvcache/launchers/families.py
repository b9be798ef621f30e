"""The launcher families that this package brings, by name. Pure."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from pytest_kvcache.launchers import hydra, openmpi, pals, srun
from pytest_kvcache.launchers.family import Leftovers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_kvcache.launchers.family import LauncherFamily
    from pytest_kvcache.launchers.libraries import MpiLibrary

FAMILIES: Mapping[str, LauncherFamily] = {
    "openmpi": openmpi.FAMILY, "hydra": hydra.FAMILY, "srun": srun.FAMILY, "pals": pals.FAMILY,
}  # fmt: skip


def leftovers_of(families: Iterable[LauncherFamily]) -> Leftovers:
    """What any of them leaves: a host does not know which launcher was killed on it."""
    return reduce(or_, (family.leaves for family in families), Leftovers())


def libraries_of(families: Iterable[LauncherFamily]) -> list[MpiLibrary]:
    """What ranks that any of them starts may be linked with, each once."""
    named = {library.name: library for family in families for library in family.libraries}
    return list(named.values())


BUILT_IN_LEFTOVERS = leftovers_of(FAMILIES.values())
