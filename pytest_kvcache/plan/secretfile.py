"""How secrets get from the controller to the ranks: by a file that exists for a moment.

Not by the plan, the command or the environment, which are stored, shown and handed on. The
coordinator runs on the controller's host: it reads the file, removes it, and sends what was
in it to the ranks by MPI. Both sides; imports neither pytest nor MPI.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pytest_kvcache.masking import Secrets

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "secrets.json"


def write_secrets(directory: Path, secrets: Secrets) -> None:
    """Leave them for the coordinator, readable by this user alone."""
    fd = os.open(directory / _NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(secrets.reveal(), file)


def take_secrets(directory: Path) -> Secrets:
    """What was left, which is there no longer; nothing where there was nothing."""
    path = directory / _NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Secrets()
    path.unlink()
    return Secrets(json.loads(text))
