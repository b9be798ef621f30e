"""What an image holds: ``python -m pytest_kvcache.launch.containers.probe LAUNCHER``, run in it.

Prints one line of JSON for the controller (execution.py): the versions, the MPI
library and the launcher as they are in the image, or why they can't be used. Controller
side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts.mpilibrary import mpi_library
from pytest_kvcache.launchers.detect import check_library, find_launcher, identify
from pytest_kvcache.launchers.families import FAMILIES
from pytest_kvcache.version import VERSION


def look(launcher: str) -> dict[str, Any]:
    """Every fact that the controller needs; ``error`` is a sentence, or None."""
    facts: dict[str, Any] = {
        "version": VERSION,
        "python": platform.python_version(),
        "error": None,
    }
    try:
        library = mpi_library(sys.executable)
        path = find_launcher(launcher, prefix=sys.prefix, path=os.environ.get("PATH", ""))
        name, found = identify(path, FAMILIES, library=library, environ=os.environ)
        check_library(found, FAMILIES[name])
    except PreflightError as error:
        return {**facts, "error": str(error)}
    return {
        **facts,
        "mpi_library": library,
        "launcher": path,
        "family": name,
        "flavour": found.flavour,
        "launcher_version": found.version,
    }


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1])))  # noqa: T201  the answer
