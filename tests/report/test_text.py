"""Rows of tables, as all reports have them."""

from __future__ import annotations

from pytest_kvcache.report.text import row


def test_a_label_that_fits_stands_before_its_cells() -> None:
    assert [*row("short", 8, "|cells")] == ["  short   |cells"]


def test_a_label_as_wide_as_its_column_has_a_line_of_its_own() -> None:
    assert [*row("as wide!", 8, "|cells")] == ["  as wide!", "          |cells"]
