"""Real ranks and files of a model whose layers keep different things, object by object."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.__main__ import main
from tests.site import PATIENCE_S, PYTEST, SUITE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

CONFIG = {  # Gemma 3's rule in small: each third layer keeps all, two the last 1,000 tokens
    "model_type": "gemma3_text", "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 64,
    "sliding_window": 1000, "sliding_window_pattern": 3, "max_position_embeddings": 131_072,
    "torch_dtype": "bfloat16",
}  # fmt: skip
BLOCK_TOKENS = 512
FULL_BYTES = BLOCK_TOKENS * 64 * 2 * 2
SIZES = {"0": FULL_BYTES, "1": 2 * FULL_BYTES}  # of an object of each group
WINDOW_BLOCKS = 2  # ceil(1000 / 512)
TURNS = (
    ([1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
    ([6, 7, 8], [6, 7, 8, 9], [6, 10]),
)
# So many that no conversation is divided between the two ranks.
CONVERSATIONS = [
    [[100 * copy + block for block in turn] for turn in turns]
    for copy in range(8)
    for turns in TURNS
]
READ_BACK = 16  # blocks that a rank looks at when all is over, at most


def trace(path: Path) -> Path:
    rows = [
        {"timestamp": at, "input_length": BLOCK_TOKENS * len(blocks), "output_length": 1,
         "hash_ids": blocks}
        for at, blocks in enumerate(turn for turns in CONVERSATIONS for turn in turns)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    return path


def expected() -> tuple[Counter[tuple[int, str]], Counter[tuple[int, str]]]:
    """What is written and read of each block and group, however it is carried out."""
    writes: Counter[tuple[int, str]] = Counter()
    reads: Counter[tuple[int, str]] = Counter()
    for turns in CONVERSATIONS:
        seen: set[int] = set()
        for blocks in turns:
            hits = [block for block in blocks if block in seen]  # a prefix, in these turns
            reads.update((block, "0") for block in hits)
            reads.update((block, "1") for block in hits[-WINDOW_BLOCKS:])
            writes.update((b, part) for b in blocks if b not in seen for part in SIZES)
            seen.update(blocks)
    return writes, reads


def test_each_object_is_written_once_and_read_as_often_as_its_layers_need_it(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = real_site.path / "calls"
    calls.mkdir()
    monkeypatch.setenv("KVCACHE_TEST_CALLS", str(calls))
    model = real_site.path / "windows" / "config.json"
    model.parent.mkdir()
    model.write_text(json.dumps(CONFIG), encoding="ascii")
    result = real_site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=2", "--kv-oversubscribe", "--kv-allow-run-as-root",
        f"--kv-model={model.parent}", "--kv-plugin=kvcache_test_counting",
        "--kv-backend=counting", f"--kv-cache-dir={real_site.cache_dir}",
        f"--kv-trace={trace(real_site.path / 't.jsonl')}", "--kv-trace-speedup=0",
        "--kv-trials=1", "--kv-transfer-size=object", "--kv-verify=full", "--kv-allow-invalid",
        "--kv-metrics=cache.hit_ratio", timeout=PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    writes, reads = expected()
    puts: Counter[tuple[str, str]] = Counter()
    gets: Counter[tuple[str, str]] = Counter()
    for file in calls.iterdir():
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        assert all(int(length) == SIZES[key.split(".")[2]] for _what, key, _at, length in lines)
        told = [key.split(".") for what, key, *_rest in lines if what == "put"]
        puts.update((block, part) for block, _version, part in told)
        looked_back = min(READ_BACK, len(told) // len(SIZES))
        told = [key.split(".") for what, key, *_rest in lines if what == "get"]
        gets.update((block, part) for block, _version, part in told[:-looked_back])
    assert len(list(calls.iterdir())) == 2
    assert sorted(puts.values()) == sorted(writes.values())
    assert Counter(part for _block, part in puts) == Counter(part for _block, part in writes)
    for part in SIZES:  # how often blocks are read: the keys are not the trace's
        found = sorted(count for (_b, p), count in gets.items() if p == part)
        assert found == sorted(count for (_b, p), count in reads.items() if p == part), part
    (trial,) = real_site.case()["trials"]
    counted = trial["ranks"]
    read_bytes = sum(SIZES[part] * count for (_block, part), count in reads.items())
    assert sum(rank["requested_read_bytes"] for rank in counted) == read_bytes
    assert sum(rank["distinct_read_bytes"] for rank in counted) == sum(
        SIZES[part] for _block, part in reads
    )
    (run_file,) = real_site.path.rglob("run.json")
    assert main(["verify", str(run_file)]) == 0
