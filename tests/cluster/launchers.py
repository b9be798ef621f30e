"""The launchers that the tests with several hosts can use: this environment's and the site's."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
MPICH = Path(os.environ.get("KVCACHE_TEST_MPICH", "/none"))  # a venv with the wheel mpich
CHOICE = "KVCACHE_TEST_LAUNCHERS"  # names, with commas; all of them: "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A launcher and its library; ``needs`` must be there."""

    name: str
    prefix: Path = Path(sys.prefix)
    """The environment with pytest, this package and mpi4py."""
    launcher: str
    running: str
    daemon: str
    needs: tuple[Path, ...]
    env: dict[str, str] = field(default_factory=dict)
    exports: bool = True
    """Whether variables must be named to reach other hosts."""

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.prefix / "bin/python")

    @property
    def args(self) -> tuple[str, ...]:
        """The options that choose it."""
        export = ("--kv-mpi-params=-x PYTHONPATH",) if self.exports else ()
        return (f"--kv-mpi-bin={self.launcher}", *export)

    def why_unavailable(self) -> str | None:
        """What is missing; None: nothing."""
        missing = next((path for path in self.needs if not path.exists()), None)
        return None if missing is None else f"{self.name}: no {missing} here"


_BIN = Path(sys.prefix, "bin")
COLUMNS = (
    Column(
        name="Open MPI 5",
        launcher=str(_BIN / "mpirun"),
        running="bin/prterun",
        daemon="prted",
        needs=(_BIN / "prterun",),
    ),
    Column(
        name="Open MPI 4",
        launcher="/usr/bin/mpirun.openmpi",
        running="mpirun.openmpi",
        daemon="orted",
        needs=(Path("/usr/bin/mpirun.openmpi"), LIBRARIES / "libmpi.so.40"),
        env={"MPI4PY_LIBMPI": str(LIBRARIES / "libmpi.so.40")},
    ),
    Column(
        name="MPICH",
        prefix=MPICH,
        launcher=str(MPICH / "bin/mpiexec"),
        running="bin/mpiexec",
        daemon="hydra_pmi_proxy",
        needs=(MPICH / "bin/hydra_pmi_proxy", MPICH / "bin/python"),
        exports=False,
    ),
)


def chosen() -> tuple[Column, ...]:
    """Those that the environment asks for; none by default: they take minutes."""
    names = os.environ.get(CHOICE, "")
    return COLUMNS if names == "all" else tuple(c for c in COLUMNS if c.name in names.split(","))
