"""The real traces, their reference statistics, and small traces built by hand.

The traces lie in the folder named by KVCACHE_TRACES, else in ../shared/traces beside
the checkout; a test that needs them is skipped where neither exists. The figures are
those of that folder's README.md, computed there by two other programs.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_kvcache.traces.read import Trace, read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence

MOONCAKE = "mooncake/synthetic_trace.jsonl"
SHAREGPT = "sharegpt-derived/sharegpt_llama31-8b_300.jsonl"
AGENTS = "claude-code-weka/sessions-10.jsonl.xz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a trace holds; ``lru``: (capacity, block hit ratio, token hit ratio)."""

    requests: int
    block_tokens: int
    prompt_blocks: int
    distinct_blocks: int
    infinite_hit_blocks: int
    infinite_hit_tokens: int
    input_tokens: int
    output_tokens: int
    lru: tuple[tuple[int, str, str], ...]


REFERENCE = {
    MOONCAKE: Reference(
        requests=3_993,
        block_tokens=512,
        prompt_blocks=121_877,
        distinct_blocks=43_924,
        infinite_hit_blocks=77_953,
        infinite_hit_tokens=39_852_661,
        input_tokens=61_194_628,
        output_tokens=595_432,
        lru=(
            (43, "0.003561", "0.003631"),
            (219, "0.019856", "0.020244"),
            (439, "0.038104", "0.038845"),
            (878, "0.077783", "0.079273"),
            (1_000, "0.084118", "0.085718"),
            (2_196, "0.156609", "0.159582"),
            (4_392, "0.262338", "0.267253"),
            (8_784, "0.393077", "0.400335"),
            (10_000, "0.423944", "0.431764"),
            (13_177, "0.487836", "0.496777"),
            (21_962, "0.588815", "0.599587"),
            (30_000, "0.624211", "0.635597"),
            (32_943, "0.630152", "0.641646"),
            (43_924, "0.639604", "0.651244"),
        ),
    ),
    SHAREGPT: Reference(
        requests=300,
        block_tokens=16,
        prompt_blocks=15_942,
        distinct_blocks=14_722,
        infinite_hit_blocks=1_220,
        infinite_hit_tokens=19_520,
        input_tokens=257_239,
        output_tokens=195_753,
        lru=(
            (14, "0.000878", "0.000871"),
            (73, "0.002007", "0.001990"),
            (100, "0.002007", "0.001990"),
            (147, "0.002007", "0.001990"),
            (294, "0.003764", "0.003732"),
            (736, "0.008531", "0.008459"),
            (1_000, "0.014176", "0.014057"),
            (1_472, "0.014176", "0.014057"),
            (2_944, "0.038138", "0.037817"),
            (4_416, "0.043407", "0.043042"),
            (7_361, "0.068373", "0.067797"),
            (10_000, "0.076527", "0.075883"),
            (11_041, "0.076527", "0.075883"),
            (14_722, "0.076527", "0.075883"),
        ),
    ),
    AGENTS: Reference(
        requests=347,
        block_tokens=64,
        prompt_blocks=318_425,
        distinct_blocks=26_463,
        infinite_hit_blocks=291_962,
        infinite_hit_tokens=18_685_568,
        input_tokens=20_389_611,
        output_tokens=199_343,
        lru=(
            (26, "0.011676", "0.011670"),
            (132, "0.059279", "0.059249"),
            (264, "0.106995", "0.106941"),
            (529, "0.197645", "0.197544"),
            (1_323, "0.491054", "0.490804"),
            (2_646, "0.707504", "0.707143"),
            (5_292, "0.850828", "0.850394"),
            (7_938, "0.886708", "0.886255"),
            (10_000, "0.886708", "0.886255"),
            (13_231, "0.898752", "0.898293"),
            (19_847, "0.904857", "0.904395"),
            (26_463, "0.916894", "0.916426"),
        ),
    ),
}

# Of two tiers: blocks of memory and storage, policy, hits in each, blocks stored behind memory.
TWO_TIERS: tuple[tuple[str, tuple[int, int | None], str, tuple[int, int], int], ...] = (
    (MOONCAKE, (439, 4_392), "write-through", (4_644, 27_343), 89_890),
    (MOONCAKE, (439, 4_392), "demote", (4_083, 29_623), 87_732),
    (MOONCAKE, (1_000, 10_000), "write-through", (10_252, 41_412), 70_213),
    (MOONCAKE, (1_000, 10_000), "demote", (6_488, 47_380), 67_008),
    (MOONCAKE, (2_196, 21_962), "write-through", (19_087, 52_677), 50_113),
    (MOONCAKE, (2_196, 21_962), "demote", (8_553, 64_369), 46_759),
    (MOONCAKE, (439, None), "write-through", (4_644, 73_309), 43_924),
    (MOONCAKE, (439, None), "demote", (1_548, 76_405), 43_485),
    (MOONCAKE, (4_392, 4_392), "write-through", (31_973, 1_535), 88_369),
    (MOONCAKE, (4_392, 4_392), "demote", (24_631, 22_593), 70_260),
    (AGENTS, (1_000, 5_000), "write-through", (119_973, 145_861), 50_070),
    (AGENTS, (1_000, 5_000), "demote", (105_401, 170_375), 39_979),
    (AGENTS, (3_000, 10_000), "write-through", (234_176, 48_199), 36_050),
    (AGENTS, (3_000, 10_000), "demote", (190_371, 94_599), 29_894),
    (AGENTS, (1_000, None), "write-through", (119_973, 171_989), 26_463),
    (AGENTS, (1_000, None), "demote", (100_576, 191_386), 25_463),
    (AGENTS, (5_000, 20_000), "write-through", (268_621, 19_508), 30_296),
    (AGENTS, (5_000, 20_000), "demote", (195_204, 96_758), 21_463),
)


def trace_path(name: str) -> Path:
    """Return where a real trace lies; skips the test if it is not here."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "traces"
    path = Path(os.environ.get("KVCACHE_TRACES", beside)) / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the traces folder; set KVCACHE_TRACES to where it is")
    return path


def real_trace(name: str, block_tokens: int | None = None) -> Trace:
    """Return a real trace; skips the test if it is not here."""
    return _read(trace_path(name), block_tokens)


@functools.cache
def _read(path: Path, block_tokens: int | None) -> Trace:
    """Read once for all tests, which can't write to it."""
    trace = read_trace(path, block_tokens=block_tokens)
    for column in ("arrival_ns", "input_tokens", "output_tokens", "offsets", "block_ids"):
        getattr(trace, column).setflags(write=False)
    return trace


def small_trace(
    prompts: Sequence[Sequence[int]],
    *,
    block_tokens: int = 4,
    input_tokens: Sequence[int] | None = None,
) -> Trace:
    """Return a trace of these prompts (block ids); all blocks are full unless told."""
    if input_tokens is None:
        input_tokens = [max(1, len(ids) * block_tokens) for ids in prompts]
    counts = [len(ids) for ids in prompts]
    return Trace(
        name="small",
        format="mooncake",
        block_tokens=block_tokens,
        arrival_ns=np.arange(len(prompts), dtype=np.int64),
        input_tokens=np.array(input_tokens, dtype=np.int64),
        output_tokens=np.ones(len(prompts), dtype=np.int64),
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        block_ids=np.array([i for ids in prompts for i in ids], dtype=np.int64),
    )
