from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_models_has_the_packages_table() -> None:
    page = runpy.run_path(str(DOCS / "models.py"))["page"]
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python docs/models.py"
