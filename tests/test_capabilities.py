"""Nothing in the package goes by the name of a backend, a launcher or a phase of serving."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache
from pytest_kvcache.phases import PHASES
from pytest_kvcache.registry import build_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(pytest_kvcache.__file__).parent
FLAVOURS = {"openmpi-5", "openmpi-4", "intel"}
# What is called like that, the names it may have, and whose business they are.
KINDS: dict[str, tuple[set[str], str]] = {
    "backend": (set(build_registry().backends), "backends/"),
    "flavour": ({*build_registry().launchers, *FLAVOURS}, "launchers/"),
    "mpi_bin": ({*build_registry().launchers, *FLAVOURS}, "launchers/"),
    "phase": (set(PHASES), "phases.py"),
}


@cache
def nodes(source: str) -> list[ast.Compare | ast.Call]:
    """Where something may be decided."""
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Compare, ast.Call))]


def decisions(source: str, kind: str) -> Iterator[int]:
    """The lines that compare a thing of this kind with one of its names, or look one up."""
    names = KINDS[kind][0]
    for node in nodes(source):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_is_called(side, kind) for side in sides) and any(
                _holds(side, names) for side in sides
            ):
                yield node.lineno
        elif isinstance(node.func, ast.Attribute):
            table = node.func.value
            if isinstance(table, ast.Dict) and any(_is_called(arg, kind) for arg in node.args):
                yield node.lineno


def _is_called(node: ast.AST, kind: str) -> bool:
    return getattr(node, "attr", getattr(node, "id", None)) == kind


def _holds(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_decided_by_a_name(kind: str) -> None:
    own = KINDS[kind][1]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(ROOT.rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(own)
        for line in decisions(path.read_text(encoding="utf-8"), kind)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("backend", "if options.backend not in ('null', 'memory'): pass"),
        ("backend", "held = x if self.backend == 'memory' else 0"),
        ("backend", "s = {'file': True, 'memory': False}.get(plan.backend)"),
        ("flavour", "if setup.launcher.flavour in ('hydra', 'intel'): pass"),
        ("phase", "self._stores = plan.phase != 'decode'"),
    ],
)
def test_a_decision_by_a_name_is_found(kind: str, source: str) -> None:
    assert list(decisions(source, kind)) == [1]
