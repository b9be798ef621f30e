"""The table of objectives stands in the documentation."""

from __future__ import annotations

from pathlib import Path

from pytest_kvcache.workloads.scenarios import LIMITS, TABLE

PAGE = Path(__file__).parents[2] / "docs" / "scenarios.md"


def test_the_page_says_what_each_class_expects() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, each in TABLE.service.classes.items():
        times = " | ".join(f"{getattr(each, limit):,g} ms" for limit in LIMITS)
        assert f"| `{name}` | {each.share:.0%} | {times} |".replace("%", " %") in text
    assert f"{TABLE.service.load_gib_per_s:g} GiB/s moves the bytes" in text
    assert f"as `{TABLE.service.unclassed}`" in text
    assert f"compliance_ratio>={TABLE.service.compliance_ratio:g}]" in text


def test_half_of_an_a100_makes_as_much_kv_as_the_objective_loads() -> None:
    tokens_per_s = 0.5 * 312e12 / 16e9
    assert 1.0 < tokens_per_s * 131_072 / 2**30 / TABLE.service.load_gib_per_s < 1.25
