from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pytest_kvcache.workloads.scenarios import PROFILES, SYNTHETIC, TRACE, Profile, Range


def test_every_profile_is_a_scenario_of_its_own() -> None:
    for name in PROFILES:
        assert SYNTHETIC[name] == {name: 1.0}


def test_the_default_scenario_mixes_known_profiles() -> None:
    weights = SYNTHETIC["mixed"]
    assert set(weights) == set(PROFILES) - {"rag"}
    assert sum(weights.values()) == pytest.approx(1)
    assert all(weight > 0 for weight in weights.values())


def test_no_name_means_two_things() -> None:
    assert TRACE not in SYNTHETIC


# Think time and output of the source's user types, and their longest contexts.
SOURCE = {
    "chat": (Range(low=0.1, high=0.5), Range(low=50, high=200), 4_096),
    "coding": (Range(low=0.2, high=1.0), Range(low=100, high=500), 25_000),
    "document": (Range(low=0.3, high=1.5), Range(low=200, high=800), 16_384),
}


def test_users_are_those_of_the_source() -> None:
    found = {name: PROFILES[name] for name in SOURCE}
    assert {
        name: (profile.think_s, profile.output_tokens, profile.context_tokens)
        for name, profile in found.items()
    } == SOURCE


@pytest.mark.parametrize(("low", "high"), [(2, 1), (-1, 1)])
def test_a_range_ascends_from_zero(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="it must ascend from 0"):
        Range(low=low, high=high)


@pytest.mark.parametrize("room", [0, 1])
def test_a_context_holds_the_longest_first_turn(room: int) -> None:
    def profile() -> Profile:
        return Profile(
            system_prompts=1,
            system_tokens=100,
            opening_tokens=Range(low=1, high=50),
            message_tokens=Range(low=1, high=2),
            output_tokens=Range(low=1, high=30),
            context_tokens=180 - room,
            think_s=Range(low=0, high=0),
        )

    if room:
        with pytest.raises(ValueError, match=r"the first turn may take 180 tokens; .* is 179"):
            profile()
    else:
        assert profile().context_tokens == 180


@pytest.mark.parametrize("table", [PROFILES, SYNTHETIC, SYNTHETIC["mixed"]])
def test_the_tables_can_not_be_changed(table: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        table["mine"] = None


def test_the_table_of_the_documentation_is_what_its_generator_writes() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "scenarios.py"))["page"]
    text = (docs / "scenarios.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python docs/scenarios.py"


def test_the_table_of_the_documentation_names_every_number_of_a_scenario() -> None:
    row = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "scenarios.py"))["row"]
    assert row("chat", PROFILES["chat"]) == (
        "| `chat` | 512 (4 of them) | 64 to 512 | 32 to 256 | 50 to 200 | 4,096 |"
        " 0.1 to 0.5 s | 512 MiB | 40% |"
    )
