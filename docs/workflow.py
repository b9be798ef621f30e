"""Writes the workflow of github-actions.md into a file: ``python docs/workflow.py FILE``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("github-actions.md")


def workflow() -> str:
    """The page's only block of YAML."""
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert isinstance(block, str)
    return block


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(workflow(), encoding="utf-8")
