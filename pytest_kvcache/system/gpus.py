"""The GPUs that torch or CuPy of an interpreter can copy to.

Imports nothing but the standard library at first: loading either takes seconds and hundreds of
megabytes, so that the controller asks in a child process, which is this module run as a program.
"""

from __future__ import annotations

import json
import subprocess
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from pytest_kvcache.commands import CommandError, Run, last_line, run_command

if TYPE_CHECKING:
    from collections.abc import Mapping

LIBRARIES = MappingProxyType({"torch": "torch", "cupy": "CuPy"})
"""Module → what people call it; the first that has a device is taken."""
Devices: TypeAlias = "Mapping[str, int | str]"
"""Module → how many devices it has, or why that can't be told."""
TIMEOUT_S = 60.0  # torch may come over a network


def device_count(library: str) -> int:
    """How many devices ``torch`` or ``cupy`` has; ImportError, RuntimeError: it can't tell."""
    cuda = import_module(library).cuda
    return int(cuda.device_count() if library == "torch" else cuda.runtime.getDeviceCount())


def find_devices(python: str, *, run: Run = subprocess.run) -> dict[str, int | str]:
    """Ask the libraries of the interpreter ``python``; a child process loads them."""
    try:
        child = run_command([python, "-m", __name__], timeout_s=TIMEOUT_S, run=run)
    except CommandError as error:
        return dict.fromkeys(LIBRARIES, str(error))
    try:
        found = json.loads(last_line(child.stdout))
        return {name: found[name] for name in LIBRARIES}
    except (ValueError, TypeError, LookupError):
        return dict.fromkeys(LIBRARIES, f"{python} says: {last_line(child.stderr)}")


def _told(library: str) -> int | str:
    try:
        return device_count(library)
    except (ImportError, RuntimeError, OSError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    print(json.dumps({name: _told(name) for name in LIBRARIES}))  # noqa: T201  its answer
