"""Files that exist whole or not at all. Imports nothing of the package."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file with a temporary name beside ``path``, which is synced and gets its own in the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` to ``path``, whole or not at all; ValueError for what JSON can't say."""
    with writing(path) as file:
        file.write(json.dumps(data, allow_nan=False, separators=(",", ":")).encode())
