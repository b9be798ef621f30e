"""The import graph of the package, enforced: who may know whom.

Every module belongs to one side; a side may import only what SIDES below allows. Read
from the syntax trees of all modules, imports within functions and for type checkers
included, and once more in fresh interpreters that import the modules and look at what
came with them. The tests named "... is found" break a copy of the sources.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_kvcache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = "pytest_kvcache"
ROOT = Path(pytest_kvcache.__file__).parent
Sources = dict[str, str]
# Of every supported Python: tomllib is younger than the oldest.
STANDARD = sys.stdlib_module_names | {"tomllib"}


@dataclass(frozen=True)
class Side:
    """``modules`` of a side (a name ending in a dot: all below it), and what it may import.

    ``foreign`` are modules of other distributions.
    """

    name: str
    modules: tuple[str, ...]
    may_import: tuple[str, ...]
    foreign: tuple[str, ...] = ()


SIDES = (
    Side(
        name="values",  # tables, parsers and frozen values, known to everyone
        modules=(
            "atomic", "compare", "errors", "events", "evidence", "gatetable", "hosts", "latency",
            "live", "metrics", "models", "mountoptions", "options", "optiontable", "rules",
            "scenarios", "series", "showable", "stalls", "steadiness", "stopping", "summary",
            "units", "verdictcodes", "version",
        ),
        may_import=(),
        foreign=("numpy", "tomli"),
    ),
    Side(
        name="both",  # what controller and ranks share: the plan, the protocols, the results
        modules=(
            "", "backends.", "blockstat", "cache.", "cachedir", "cgroups", "clocks", "consistency",
            "containers", "containers.agent", "devicechain", "devicegroups", "forecast",
            "hookspecs", "identity", "launchers.protocol", "mounts", "payload", "plan",
            "preloads", "proof", "recorder", "registry", "results", "surroundings",
            "trialrecord", "verdicts.", "workloads.",
        ),
        may_import=("values",),
        foreign=("numpy", "pluggy"),
    ),
    Side(
        name="hosts",  # what a host is and what is left on it: asked there, or by the controller
        modules=(
            "hostagent", "hostfacts", "hostlock", "localhost", "mpilibrary", "processes",
            "sessiondirs", "sharedmemory",
        ),
        may_import=("values", "both"),
    ),
    Side(
        name="ranks",  # what runs under mpirun
        modules=(
            "calibration", "comm", "containers.init", "coordinator", "devicewatch", "engine",
            "flights", "freespace", "ioengines.", "janitor", "pauses", "rank", "readback",
            "transfers", "worker",
        ),
        may_import=("values", "both"),
        foreign=("numpy", "mpi4py"),
    ),
    Side(
        name="controller",  # launches, watches, reports; knows neither pytest nor the ranks' code
        modules=(
            "__main__", "absence", "asked", "baseline", "bench", "brief", "cluster",
            "containerexecution", "containerhosts", "containers.inside", "containers.outside",
            "controller", "dryrun", "execution", "headline", "hostaccess",
            "hostlinks", "launch", "launchers.", "leftbehind", "picture", "planning", "postmortem",
            "preflight", "progressline", "prooftext", "remoteshell", "report", "scales", "sizing",
            "supervise", "svg", "verify",
        ),
        may_import=("values", "both", "hosts"),
    ),
    Side(
        name="pytest",  # what pytest calls
        modules=(
            "benchmarktables", "closing", "faultledger", "fixture", "gates", "newhooks",
            "otherplugins", "plugin", "suite.", "terminal", "typos",
        ),
        may_import=("values", "both", "hosts", "controller"),
        foreign=("pytest",),
    ),
    Side(
        name="testing",  # for tests of backends, ours and others'
        modules=("testing",),
        may_import=("values", "both"),
        foreign=("pytest",),
    ),
)  # fmt: skip

TYPING_ONLY = frozenset({"typing_extensions"})  # type checkers bring their own
# What belongs to one module alone.
ONLY_IN = {"mpi4py": "comm", "pytest_benchmark": "fixture"}
BENCHMARK_ATTRIBUTES = frozenset({"pedantic", "extra_info"})  # of pytest-benchmark's fixture


def package_sources() -> Sources:
    """Module → source; modules are named without the package, the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def side_of(module: str) -> Side | None:
    """The side that names the module, or else the one that names its package."""
    for wanted in (module, f"{module}.", f"{module.partition('.')[0]}."):
        for side in SIDES:
            if wanted in side.modules:
                return side
    return None


def imports(source: str, known: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Every import: a module of ours (``.name``) or a foreign one, and if it runs at all."""
    for name, runs in _imported(source):
        yield _own(name, known) or name.partition(".")[0], runs


@cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(source)))


@cache
def _imported(source: str) -> tuple[tuple[str, bool], ...]:
    """Full names, and whether they are imported at run time."""
    nodes = _nodes(source)
    idle = {id(node) for block in nodes if _is_typing(block) for node in ast.walk(block)}
    found: list[tuple[str, bool]] = []
    for node in nodes:
        runs = id(node) not in idle
        if isinstance(node, ast.Import):
            found += [(alias.name, runs) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports within the package are absolute"
            found += [(f"{node.module}.{alias.name}", runs) for alias in node.names]
    return tuple(found)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _own(name: str, known: Mapping[str, str]) -> str:
    """``.module`` for the longest part of ``name`` that is a module of ours, else ""."""
    if name.partition(".")[0] != PACKAGE:
        return ""
    inner = name.removeprefix(PACKAGE).lstrip(".")
    while inner not in known:
        inner = inner.rpartition(".")[0]
    return f".{inner}"


def faults(sources: Sources) -> list[str]:
    """Everything that breaks a rule, a sentence each."""
    found = [f"{name or PACKAGE} is on no side; put it into SIDES" for name in unknown(sources)]
    if found:
        return found
    for name, source in sources.items():
        for imported, runs in imports(source, sources):
            if runs or imported not in TYPING_ONLY:
                found += _import_faults(name, imported)
        if name not in (ONLY_IN["pytest_benchmark"], "testing"):
            found += _benchmark_faults(name, source)
    return [*found, *_cycle_faults(sources)]


def unknown(sources: Sources) -> list[str]:
    return [name for name in sources if side_of(name) is None]


def _import_faults(name: str, imported: str) -> Iterator[str]:
    side = side_of(name)
    assert side is not None
    if imported.startswith("."):
        other = side_of(imported[1:])
        assert other is not None
        if other is not side and other.name not in side.may_import:
            yield f"{name} ({side.name}) imports {imported[1:]} ({other.name})"
        return
    only = ONLY_IN.get(imported)
    if only is not None and name != only:
        yield f"{name} imports {imported}, which only {only} may"
    elif only is None and imported not in (*STANDARD, *side.foreign):
        yield f"{name} ({side.name}) imports {imported}"


def _benchmark_faults(name: str, source: str) -> Iterator[str]:
    for node in _nodes(source):
        if isinstance(node, ast.Attribute) and node.attr in BENCHMARK_ATTRIBUTES:
            yield f"{name} uses pytest-benchmark's {node.attr}, which only fixture may"


def _cycle_faults(sources: Sources) -> Iterator[str]:
    graph = {
        name: {
            imported[1:]
            for imported, runs in imports(source, sources)
            if runs and imported.startswith(".") and imported[1:] != name
        }
        for name, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"modules import each other in a circle: {' → '.join(error.args[1])}"


def modules_of(*sides: str) -> list[str]:
    """Full names of all modules of these sides."""
    chosen = []
    for name in package_sources():
        side = side_of(name)
        if side is not None and side.name in sides:
            chosen.append(f"{PACKAGE}.{name}".rstrip("."))
    return chosen


def loaded_with(modules: list[str]) -> set[str]:
    """The top-level names in ``sys.modules`` of an interpreter that imported ``modules``."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program, *modules]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# --- the package ---------------------------------------------------------------------------


@pytest.mark.once
def test_every_import_stays_on_its_side() -> None:
    assert faults(package_sources()) == []


def test_every_entry_of_the_table_names_a_module() -> None:
    known = package_sources()
    for side in SIDES:
        for entry in side.modules:
            assert entry.rstrip(".") in known, f"{side.name} names {entry}, which is gone"


def test_ranks_load_nothing_of_pytest() -> None:
    loaded = loaded_with(modules_of("values", "both", "hosts", "ranks"))
    assert PACKAGE in loaded
    assert not loaded & {"pytest", "_pytest", "pytest_benchmark"}


def test_the_pytest_process_loads_no_mpi() -> None:
    loaded = loaded_with(modules_of("values", "both", "hosts", "controller", "pytest", "testing"))
    assert {PACKAGE, "pytest"} <= loaded
    assert "mpi4py" not in loaded


def test_the_controller_loads_nothing_of_pytest() -> None:
    loaded = loaded_with(modules_of("values", "both", "hosts", "controller"))
    assert not loaded & {"pytest", "_pytest", "pytest_benchmark", "mpi4py"}


# --- the checks themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("errors", "from pytest_kvcache import plan", "errors (values) imports plan (both)"),
        ("engine", "import pytest", "engine (ranks) imports pytest"),
        ("engine", "from pytest_kvcache.session import Bench", "imports bench (controller)"),
        ("backends.file", "import pytest_kvcache.engine.engine", "(both) imports engine (ranks)"),
        ("worker", "from pytest_kvcache import fixture", "(ranks) imports fixture (pytest)"),
        ("controller", "from pytest_kvcache.ranks.comm import Comm", "imports comm (ranks)"),
        ("controller", "import pytest", "controller (controller) imports pytest"),
        ("report", "import numpy as np", "report (controller) imports numpy"),
        ("plugin", "from mpi4py import MPI", "plugin imports mpi4py, which only comm may"),
        ("worker", "import mpi4py.rc", "worker imports mpi4py, which only comm may"),
        ("plugin", "import pytest_benchmark.fixture", "which only fixture may"),
        ("plugin", "benchmark.pedantic(print)", "plugin uses pytest-benchmark's pedantic"),
        ("units", "import requests", "units (values) imports requests"),
        ("units", "import typing_extensions", "units (values) imports typing_extensions"),
        ("units", "def f():\n    import pytest", "units (values) imports pytest"),
        ("units", "if TYPE_CHECKING:\n    import pytest", "units (values) imports pytest"),
        ("errors", "from pytest_kvcache.units import KIB", "in a circle: "),
        ("plan", "from pytest_kvcache import results", "in a circle: "),
        ("novelty", "", "novelty is on no side"),
    ],
)
@pytest.mark.once
def test_a_forbidden_import_is_found(module: str, line: str, fault: str) -> None:
    sources = package_sources()
    sources[module] = f"{sources.get(module, '')}\n{line}\n"
    assert any(fault in found for found in faults(sources)), faults(sources)


def test_an_import_for_type_checkers_makes_no_circle() -> None:
    sources = package_sources()
    sources["errors"] += "\nif TYPE_CHECKING:\n    from pytest_kvcache.units import KIB\n"
    assert faults(sources) == []


def test_a_module_that_comes_with_others_is_found() -> None:
    assert "pytest" in loaded_with([f"{PACKAGE}.testing"])
