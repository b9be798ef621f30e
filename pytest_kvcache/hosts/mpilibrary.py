"""Which MPI library an interpreter loads, asked in a child process.

Imports neither pytest nor mpi4py: a process that initialised MPI can't start mpirun any
more.
"""

from __future__ import annotations

import re

from pytest_kvcache.commands import CommandError, last_line, run_command
from pytest_kvcache.errors import PreflightError

_FIX = "pip install 'pytest-kvcache[mpi]'"
_LIBRARY_TIMEOUT_S = 60
_LIBRARY_MARK = "mpi-library: "
_LIBRARY_PROGRAM = f"""
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print({_LIBRARY_MARK!r} + MPI.Get_library_version())
"""


def mpi_library(python: str) -> str:
    """Return the first line of what MPI the interpreter ``python`` loads says it is.

    Asked in a child process, without initialising MPI.
    """
    try:
        child = run_command([python, "-c", _LIBRARY_PROGRAM], timeout_s=_LIBRARY_TIMEOUT_S)
    except CommandError as error:
        raise PreflightError(f"{python} could not be asked for its MPI library: {error}") from error
    _, mark, library = child.stdout.partition(_LIBRARY_MARK)
    if child.returncode or not mark:
        raise PreflightError(
            f"{python} can't load MPI through mpi4py ({_mpi4py_problem(child.stderr)});"
            f" {_FIX} brings both"
        )
    return library.replace("\0", "").strip().partition("\n")[0].strip()


def _mpi4py_problem(stderr: str) -> str:
    """Return what a traceback came to: the line of its exception and what follows."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if re.match(r"[\w.]*(Error|Exception)\b", line):
            return "; ".join(lines[index:])
    return last_line(stderr)
