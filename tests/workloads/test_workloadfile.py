from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.scenarios import TABLE, Dialogues, Range, WorkloadTable
from pytest_kvcache.workloads.workloadfile import check_used, read_workload

if TYPE_CHECKING:
    from pathlib import Path

MINE = """
[profiles.mine]
system_prompts = 1
system_tokens = 3000
opening_tokens = [20, 200]
message_tokens = [10, 100]
output_tokens = [50, 300]
context_tokens = 8192
think_s = [2, 20.5]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def table_of(path: Path, text: str) -> WorkloadTable:
    path.write_text(text, encoding="utf-8")
    return read_workload(str(path), "--kv-workload")


def refusal(path: Path, text: str) -> str:
    with pytest.raises(OptionError) as refused:
        table_of(path, text)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence.removeprefix(str(path)).lstrip()


def test_a_shipped_profile_changes_where_the_file_says_so_and_nowhere_else(path: Path) -> None:
    table = table_of(path, "[profiles.chat]\nthink_s = [1, 2]\n")
    changed, before = table.profiles["chat"], TABLE.profiles["chat"]
    assert changed.think_s == Range(low=1.0, high=2.0)
    assert changed.context_tokens == before.context_tokens
    assert {n: p for n, p in table.profiles.items() if n != "chat"} == {
        n: p for n, p in TABLE.profiles.items() if n != "chat"
    }
    assert (table.scenarios, table.retrieval) == (TABLE.scenarios, TABLE.retrieval)


def test_a_profile_of_ones_own_is_a_scenario_by_itself(path: Path) -> None:
    table = table_of(path, MINE)
    assert table.scenarios["mine"] == {"mine": 1.0}
    assert table.dialogues("mine").profiles["mine"].context_tokens == 8192
    assert table.dialogues("mine").file == "mine.toml"


def test_a_scenario_has_the_weights_of_the_file_alone(path: Path) -> None:
    table = table_of(path, MINE + "[scenarios.mixed]\nmine = 3\nchat = 1\nagent = 0\n")
    found = table.dialogues("mixed")
    assert found.weights == {"mine": 3.0, "chat": 1.0}
    assert set(found.profiles) == {"mine", "chat"}


def test_retrieval_service_classes_and_objectives_can_be_changed(path: Path) -> None:
    table = table_of(
        path,
        "[retrieval]\ntop_k = 8\n[service_classes.batch]\nshare = 0.4\n"
        "[service_classes.gold]\nshare = 0.1\np95_ms = 1\np99_ms = 2\np999_ms = 3\np9999_ms = 4\n"
        "[objectives]\nload_gib_per_s = 2.5\n",
    )
    assert table.retrieval.top_k == 8
    assert table.service.load_gib_per_s == 2.5
    assert table.dialogues("chat").class_shares == {
        "interactive": 0.15, "responsive": 0.35, "batch": 0.4, "gold": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "changes nothing; it must have one of the tables [profiles.NAME], [scenarios.NAME],"),
        ("[profiles", "is not valid TOML: "),
        ("[profile.chat]\nx = 1", "has 'profile' (did you mean 'profiles'?), which is unknown;"),
        ("profiles = 3", ": profiles is 3; it must be a table with keys"),
        ("[profiles.chat]", "[profiles] has chat = {}; it must be a table, [profiles.chat]"),
        (
            "[profiles.chat]\nthink = [1, 2]",
            "[profiles.chat] has an unknown key 'think' (did you mean 'think_s'?); known are",
        ),
        (
            "[profiles.chat]\nthink_s = [2, 1]",
            (
                "[profiles.chat] think_s is [2, 1]; it must be [low, high], ascending, each a"
                " number from 0 to 86400"
            ),
        ),
        ("[profiles.chat]\nthink_s = 1", "[profiles.chat] think_s is 1; it must be [low, high]"),
        ("[profiles.chat]\nthink_s = [1, nan]", "[profiles.chat] think_s is [1, nan]; it must"),
        (
            "[profiles.chat]\nsystem_prompts = true",
            "[profiles.chat] system_prompts is True; it must be a whole number from 1 to 1000000",
        ),
        ("[profiles.chat]\nsystem_tokens = 1.5", "[profiles.chat] system_tokens is 1.5; it must"),
        ("[profiles.chat]\nsystem_tokens = 0", "[profiles.chat] system_tokens is 0; it must be"),
        ("[profiles.chat]\nretrieval_ratio = 1.1", "[profiles.chat] retrieval_ratio is 1.1; it"),
        (
            "[profiles.chat]\ncontext_tokens = 9",
            "[profiles.chat]: the first turn may take 1224 tokens; context_tokens is 9 and must",
        ),
        (
            "[profiles.mine]\ncontext_tokens = 9",
            (
                "[profiles.mine] lacks system_prompts, system_tokens, opening_tokens,"
                " message_tokens, output_tokens, think_s; what does not ship must have every key"
            ),
        ),
        ("[profiles.'a b']\nx = 1", "[profiles] names 'a b'; a name must be letters, digits,"),
        ("[profiles.trace]\nx = 1", "[profiles] names 'trace', which is the replay of a trace;"),
        ("[scenarios.mixed]\nchats = 1", "[scenarios.mixed] has an unknown key 'chats' (did you"),
        ("[scenarios.mixed]\nchat = -1", "[scenarios.mixed] chat is -1; a weight must be a number"),
        ("[scenarios.mixed]\nchat = 0", "[scenarios.mixed] has weights of 0 only; one must be"),
        ("[retrieval]\ntop_k = 0", "[retrieval] top_k is 0; it must be a whole number from 1 to"),
        ("[retrieval]\nadded_ratio = 0", "[retrieval] added_ratio is 0; it must be a number above"),
        (
            "[service_classes.batch]\nshare = 0.4",
            (
                "[service_classes]: the shares are interactive 0.15, responsive 0.35, batch 0.4,"
                " 0.9 in all; they must be 1 in all, and a class of share 0 is left out"
            ),
        ),
        (
            "[service_classes.batch]\np95_ms = 6000",
            "[service_classes.batch]: the objectives are (6000.0, 5000, 7500, 10000) ms; from",
        ),
        ("[service_classes.gold]\nshare = 0", "[service_classes.gold] lacks p95_ms, p99_ms,"),
        ("[objectives]\nload_gib_per_s = 0", "[objectives] load_gib_per_s is 0; it must be a"),
        (
            "[objectives]\nunclassed = 'gold'",
            "[objectives] unclassed is 'gold'; it must be one of the classes interactive,",
        ),
    ],
)
def test_a_bad_file_is_refused_with_table_key_and_rule(
    path: Path, text: str, sentence: str
) -> None:
    found = refusal(path, text)
    assert found.startswith(sentence) or f" {found}".startswith(sentence), found


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="can't be read: No such file or directory; it must be"):
        read_workload(str(tmp_path / "none.toml"), "--kv-workload")
    with pytest.raises(OptionError, match="--kv-workload is empty; name a TOML file"):
        read_workload(" ", "--kv-workload")


@pytest.mark.parametrize(
    ("text", "scenarios", "given", "sentence"),
    [
        ("[scenarios.mixed]\nchat = 1\n", ["chat"], {}, "[scenarios.mixed] is not used: --kv-sc"),
        ("[profiles.agent]\nsystem_tokens = 9\n", ["chat"], {}, "[profiles.agent] is not used:"),
        ("[retrieval]\ntop_k = 3\n", ["chat"], {}, "[retrieval] is not used: nobody of the"),
        ("[retrieval]\nadded_ratio = 1\n", ["rag"], {}, "[retrieval] is not used: nobody of the"),
        ("[objectives]\nload_gib_per_s = 1\n", ["chat"], {}, "[objectives] is not used: "),
        (
            "[service_classes.batch]\np95_ms = 900\n", ["chat"], {},
            "[service_classes.batch] is not used: objectives judge with --kv-performance-profile",
        ),
        (
            "[objectives]\nunclassed = 'batch'\n", ["chat"], {"latency": True},
            "[objectives] is not used: all users of the scenario chat have classes",
        ),
        ("[scenarios.mixed]\nchat = 1\n", ["mixed"], {}, None),
        ("[profiles.agent]\nsystem_tokens = 9\n", ["chat", "mixed"], {}, None),
        ("[retrieval]\ntop_k = 3\n", ["rag"], {}, None),
        ("[retrieval]\nadded_ratio = 1\ntop_k = 2", ["chat"], {"enable_rag": True}, None),
        ("[objectives]\nunclassed = 'batch'\n", ["trace"], {"latency": True}, None),
        ("[service_classes.batch]\np95_ms = 900\n", ["chat"], {"latency": True}, None),
    ],
)  # fmt: skip
def test_a_key_that_nothing_would_read_is_refused(
    path: Path, text: str, scenarios: list[str], given: dict[str, bool], sentence: str | None
) -> None:
    table = table_of(path, text)
    asked = {"latency": False, "enable_rag": False} | given
    if sentence is None:
        check_used(table, scenarios, **asked)
        return
    with pytest.raises(OptionError) as refused:
        check_used(table, scenarios, **asked)
    assert str(refused.value).startswith(f"mine.toml {sentence}")


def test_the_digest_is_of_every_value_but_the_name_of_the_file(path: Path) -> None:
    shipped = TABLE.dialogues("chat")
    same = table_of(path, "[profiles.agent]\nsystem_tokens = 9\n").dialogues("chat")
    other = table_of(path, "[profiles.chat]\nsystem_tokens = 513\n").dialogues("chat")
    assert same.file is not None
    assert same.digest == shipped.digest != other.digest
    assert len({
        shipped.digest,
        TABLE.dialogues("chat", multi_turn=False).digest,
        TABLE.dialogues("chat", prefix_caching=False).digest,
        TABLE.dialogues("chat", enable_rag=True).digest,
        TABLE.dialogues("chat", enable_rag=True, documents=3).digest,
    }) == 5  # fmt: skip


@pytest.mark.parametrize("scenario", ["mixed", "rag"])
def test_dialogues_survive_json_and_are_refused_where_somebody_changed_them(scenario: str) -> None:
    found = TABLE.dialogues(scenario)
    data = found.to_json()
    assert Dialogues.from_json(data) == found
    with pytest.raises(OptionError, match="the digest of the dialogues is"):
        Dialogues.from_json({**data, "multi_turn": False})
