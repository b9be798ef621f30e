"""The import graph of the package, enforced: who may know whom.

Every module belongs to one row of ROWS below, most by their package; a row may import only
the ground, itself and the rows that it names. Read
from the syntax trees of all modules, imports within functions and for type checkers
included, and once more in fresh interpreters that import the modules and look at what
came with them. The tests named "... is found" break a copy of the sources.
"""

from __future__ import annotations

import ast
import re
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
class Row:
    """One package, or the modules of one station; what it may import besides itself and the ground.

    ``foreign`` are modules of other distributions.
    """

    name: str
    may_import: str = ""
    foreign: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # none: the package of this name


GROUND = "ground"
PYTEST_SIDE = "pytest side"
ROWS = (
    Row(GROUND, modules=("atomic", "commands", "dtypes", "errors", "masking", "models.", "phases",
        "showable", "tomlfile", "units", "version"), foreign=("tomli",)),
    Row("system"),
    Row("cache"),
    Row("launchers"),
    Row("measure", foreign=("numpy",)),
    Row("traces", foreign=("numpy",)),
    Row("backends", "system", foreign=("numpy",)),
    Row("workloads", "traces", foreign=("numpy",)),
    Row("hookspecs", "backends launchers workloads", foreign=("pluggy",), modules=("hookspecs",)),
    Row("root", "hookspecs", modules=("",)),
    Row("registry", "hookspecs backends launchers workloads", foreign=("pluggy",),
        modules=("registry",)),
    Row("ioengines", "backends measure system"),
    Row("engine", "backends cache ioengines measure workloads", foreign=("numpy",)),
    Row("hosts", "backends launchers system"),
    Row("options", "backends cache hosts measure workloads"),
    Row("plan", "options hosts launchers measure workloads traces cache backends registry system",
        foreign=("numpy",)),
    Row("results", "plan options measure registry system workloads"),
    Row("launch",
        "results plan options hosts launchers backends measure registry system traces",
        foreign=("numpy",)),
    Row("ranks",
        "engine ioengines cache backends workloads traces measure plan results registry system",
        foreign=("numpy", "mpi4py")),
    Row("gates", "results options measure"),
    Row("report",
        "gates results plan options hosts measure traces workloads backends registry system"),
    Row("mlperf", "results plan options measure registry system workloads"),
    Row("command", "mlperf report gates results plan options", modules=("__main__",)),
    Row(PYTEST_SIDE,
        "launch report gates results plan options hosts measure registry system",
        foreign=("pytest",),
        modules=("benchmarktables", "closing", "faultledger", "fixture", "gateitems", "newhooks",
                 "otherplugins", "plugin", "session", "suite.", "terminal", "typos")),
    Row("testing", "engine cache backends", foreign=("pytest",), modules=("testing",)),
)  # fmt: skip

TYPING_ONLY = frozenset({"typing_extensions"})  # type checkers bring their own
# What belongs to one module alone.
ONLY_IN = {"mpi4py": "ranks.comm", "pytest_benchmark": "fixture"}
BENCHMARK_ATTRIBUTES = frozenset({"pedantic", "extra_info"})  # of pytest-benchmark's fixture


def package_sources() -> Sources:
    """Module → source; modules are named without the package, the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def row_of(module: str) -> Row | None:
    """The row that names the module or its package, or whose name its package is."""
    package = module.partition(".")[0]
    for row in ROWS:
        if module in row.modules or f"{package}." in row.modules:
            return row
        if not row.modules and row.name == package:
            return row
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
    found = [f"{name or PACKAGE} is in no row; put it into ROWS" for name in unknown(sources)]
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
    return [name for name in sources if row_of(name) is None]


def _import_faults(name: str, imported: str) -> Iterator[str]:
    row = row_of(name)
    assert row is not None
    if imported.startswith("."):
        other = row_of(imported[1:])
        assert other is not None
        if other is not row and other.name not in (GROUND, *row.may_import.split()):
            yield f"{name} ({row.name}) imports {imported[1:] or PACKAGE} ({other.name})"
        return
    only = ONLY_IN.get(imported)
    if only is not None and name != only:
        yield f"{name} imports {imported}, which only {only} may"
    elif only is None and imported not in (*STANDARD, *row.foreign):
        yield f"{name} ({row.name}) imports {imported}"


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


def modules_of(*left_out: str) -> list[str]:
    """Full names of all modules but those of these rows."""
    chosen = []
    for name in package_sources():
        row = row_of(name)
        if row is not None and row.name not in left_out:
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
def test_every_import_is_one_that_its_row_allows() -> None:
    assert faults(package_sources()) == []


def test_every_entry_of_the_table_names_a_module() -> None:
    known = package_sources()
    for row in ROWS:
        for entry in row.modules or (row.name,):
            assert entry.rstrip(".") in known, f"{row.name} names {entry}, which is gone"


def test_the_table_goes_one_way() -> None:
    order = TopologicalSorter({row.name: row.may_import.split() for row in ROWS})
    assert set(order.static_order()) == {row.name for row in ROWS}
    reached = {name for row in ROWS for name in row.may_import.split()}
    assert not reached & {"ranks", PYTEST_SIDE, "testing", "command"}


def test_ranks_and_controller_load_nothing_of_pytest() -> None:
    for left_out in ((PYTEST_SIDE, "testing"), (PYTEST_SIDE, "testing", "ranks", "engine")):
        loaded = loaded_with(modules_of(*left_out))
        assert PACKAGE in loaded
        assert not loaded & {"pytest", "_pytest", "pytest_benchmark"}


def test_the_pytest_process_loads_no_mpi() -> None:
    loaded = loaded_with(modules_of("ranks"))
    assert {PACKAGE, "pytest"} <= loaded
    assert "mpi4py" not in loaded


def test_contributing_says_where_everything_is() -> None:
    page = ROOT.parent / "CONTRIBUTING.md"
    if not page.is_file():
        pytest.skip("an installed package has no CONTRIBUTING.md beside it")
    text = page.read_text(encoding="utf-8")
    table = text.partition("| where is …")[2].partition("|---|---|")[2].partition("\n\n")[0]
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", table)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
    for row in ROWS:
        if not row.modules:
            assert any(path.startswith(f"{row.name}/") for path in named), row.name


# --- the checks themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("errors", "from pytest_kvcache import plan", "errors (ground) imports plan (plan)"),
        ("engine.engine", "import pytest", "engine.engine (engine) imports pytest"),
        ("engine.engine", "from pytest_kvcache.session import Bench", "imports session (pytest"),
        ("backends.null", "import pytest_kvcache.engine", "(backends) imports engine (engine)"),
        ("backends.null", "from pytest_kvcache.results.verdicts import trial", "imports results."),
        ("launch.runner", "from pytest_kvcache.ranks.comm import Comm", "imports ranks.comm"),
        ("ranks.worker", "from pytest_kvcache import fixture", "(ranks) imports fixture (pytest"),
        ("launch.runner", "import pytest", "launch.runner (launch) imports pytest"),
        ("report.tables", "import numpy as np", "report.tables (report) imports numpy"),
        ("plugin", "from mpi4py import MPI", "plugin imports mpi4py, which only ranks.comm may"),
        ("ranks.worker", "import mpi4py.rc", "ranks.worker imports mpi4py, which only"),
        ("plugin", "import pytest_benchmark.fixture", "which only fixture may"),
        ("plugin", "benchmark.pedantic(print)", "plugin uses pytest-benchmark's pedantic"),
        ("units", "import requests", "units (ground) imports requests"),
        ("units", "import typing_extensions", "units (ground) imports typing_extensions"),
        ("units", "def f():\n    import pytest", "units (ground) imports pytest"),
        ("units", "if TYPE_CHECKING:\n    import pytest", "units (ground) imports pytest"),
        ("errors", "from pytest_kvcache.units import KIB", "in a circle: "),
        ("plan.plan", "from pytest_kvcache.results import trial", "imports results.trial"),
        ("novelty", "", "novelty is in no row"),
        ("novelty.inner", "", "novelty.inner is in no row"),
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
