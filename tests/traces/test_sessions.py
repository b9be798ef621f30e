from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, TraceError
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import AGENTS, real_trace

if TYPE_CHECKING:
    from pathlib import Path


def call(t: float, ids: list[Any], **changes: Any) -> dict[str, Any]:
    """A request of full blocks of 64 tokens and 5 more."""
    return {"t": t, "type": "n", "in": 64 * len(ids) + 5, "out": 9, "hash_ids": ids} | changes


def written(path: Path, *sessions: list[dict[str, Any]], **fields: Any) -> Path:
    head = {"id": "x", "block_size": 64, "hash_id_scope": "local"} | fields
    path.write_text("".join(json.dumps(head | {"requests": each}) + "\n" for each in sessions))
    return path


def prompts(trace: Trace) -> list[list[int]]:
    return [trace.blocks(i).tolist() for i in range(len(trace))]


def test_sessions_start_together_and_their_requests_come_by_time(tmp_path: Path) -> None:
    first = [call(0, [1]), call(7.5, [1, 2]), call(9, [1, 2, 3])]
    second = [call(0, [1]), call(7.5, [1, 5])]
    trace = read_trace(written(tmp_path / "t", first, second), block_tokens=None)
    assert (trace.format, trace.block_tokens) == ("agent sessions", 64)
    assert trace.arrival_ns.tolist() == [0, 0, 7_500_000_000, 7_500_000_000, 9_000_000_000]
    assert trace.conversations is not None
    assert trace.conversations.tolist() == [1, 2, 1, 2, 1]
    # Ids mean something in one session only: 1 of the second is another block than 1 of the first.
    assert prompts(trace) == [[0], [3], [0, 1], [3, 4], [0, 1, 2]]
    assert infinite_hits(trace) == 4


def test_ids_of_all_sessions_are_one_name_space_where_they_say_so(tmp_path: Path) -> None:
    file = written(tmp_path / "t", [call(0, [1])], [call(3, [1, 2])], hash_id_scope="global")
    assert prompts(read_trace(file, block_tokens=None)) == [[0], [0, 1]]


def test_a_sub_agents_times_count_from_its_own_and_its_ids_are_the_sessions(
    tmp_path: Path,
) -> None:
    inner = {"t": 2, "type": "subagent", "requests": [call(1, [1, 8]), call(9, [1, 8, 9])]}
    outer = {"t": 10, "type": "subagent", "agent_id": "a", "requests": [call(0.5, [1]), inner]}
    trace = read_trace(
        written(tmp_path / "t", [call(0, [1]), outer, call(12, [1, 2])]), block_tokens=None
    )
    assert (trace.arrival_ns / 1e9).tolist() == [0, 10.5, 12, 13, 21]
    assert prompts(trace) == [[0], [0], [0, 3], [0, 1], [0, 1, 2]]


TREES = st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(TREES, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_whatever_the_order_of_times_equal_ids_are_equal_prefixes_of_a_session(
    tmp_path_factory: Any, sessions: list[list[list[int]]], random: Any
) -> None:
    rows, lines = [], []
    for number, paths in enumerate(sessions):
        names: dict[tuple[int, ...], int] = {}
        calls = []
        for position, path in enumerate(paths):
            prefixes = [tuple(path[: end + 1]) for end in range(len(path))]
            ids = [names.setdefault(prefix, len(names)) for prefix in prefixes]
            t = random.randint(0, 3)
            calls.append(call(t, ids))
            rows.append((t, number, position, [(number, prefix) for prefix in prefixes]))
        lines.append(calls)
    rows.sort(key=lambda row: row[:3])
    if not any(row[3] for row in rows):
        return
    trace = read_trace(written(tmp_path_factory.mktemp("s") / "t", *lines), block_tokens=None)
    number_of: dict[Any, int] = {}
    name_of: dict[int, Any] = {}
    for found, (_t, _session, _position, expected) in zip(prompts(trace), rows, strict=True):
        assert len(found) == len(expected)
        for number, name in zip(found, expected, strict=True):
            assert number_of.setdefault(name, number) == number
            assert name_of.setdefault(number, name) == name


def test_real_sessions_arrive_as_their_reference_says() -> None:
    arrivals = real_trace(AGENTS).arrival_ns / 1e9
    assert float(np.ptp(arrivals)) == pytest.approx(14_842.0)
    assert len(np.unique(arrivals)) == 336
    between = np.diff(arrivals)
    assert float(between.std() / between.mean()) == pytest.approx(10.632, abs=5e-4)
    assert int(np.bincount(arrivals.astype(int)).max()) == 10


def test_real_sessions_stay_on_a_rank_and_lose_no_hit() -> None:
    trace = real_trace(AGENTS)
    assert trace.conversations is not None
    parts = partition(trace, 4)
    owners = [set(trace.conversations[part].tolist()) for part in parts]
    assert sorted(session for owner in owners for session in owner) == list(range(1, 11))
    assert sum(infinite_hits(trace, part) for part in parts) == infinite_hits(trace)


@pytest.mark.parametrize(
    ("session", "problem"),
    [
        ([call(-1, [1])], r"requests\[0\].t is -1; it must be a number from 0"),
        ([call(0, [1]), 3], r"requests\[1\] is 3; it must be an object"),
        ([call(0, [1], out="9")], r"requests\[0\].out is '9'; it must be an integer"),
        ([call(0, [1], hash_ids=7)], r"requests\[0\].hash_ids is 7; it must be a list of int"),
        ([{"t": 0, "requests": {}}], r"requests\[0\].requests is {}; it must be a list"),
        ([{"t": 0, "in": 5, "out": 1}], "there is no 'hash_ids'; a line of agent sessions is"),
        (
            [call(0, [1]), call(1, [2, 1])],
            r"request 1 of the session, .*: hash_ids\[1\] stands behind .* in an earlier one first",
        ),
        (
            [call(0, [1]), call(1, [1, 2], **{"in": 64})],
            r"request 1 of the session, .*: 2 hash_ids don't fit in 64 and blocks of 64 tokens",
        ),
    ],
)
def test_a_session_that_breaks_a_rule_is_named_with_line_and_field(
    tmp_path: Path, session: list[Any], problem: str
) -> None:
    file = written(tmp_path / "t", [call(0, [1])], session)
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        read_trace(file, block_tokens=None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hash_id_scope": "host"}, "hash_id_scope is 'host'; it must be local or global"),
        ({"hash_id_scope": "global"}, "hash_id_scope is global, and in line 1 local"),
        ({"block_size": 16}, "block_size is 16, and in line 1 64"),
        ({"block_size": "64"}, "block_size is '64'; it must be an integer"),
    ],
)
def test_a_session_unlike_the_first_is_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    one, other = written(tmp_path / "a", [call(0, [1])]), tmp_path / "b"
    written(other, [call(0, [1])], **changes)
    file = tmp_path / "t"
    file.write_text(one.read_text() + other.read_text())
    with pytest.raises(TraceError, match=f"line 2: {problem}"):
        read_trace(file, block_tokens=None)


def test_what_sessions_say_themselves_can_not_be_said_by_options(tmp_path: Path) -> None:
    file = written(tmp_path / "t", [call(0, [1])])
    with pytest.raises(OptionError, match=r"--kv-trace-time-unit is ms; .* leave the option out"):
        read_trace(file, block_tokens=None, unit="ms")
    with pytest.raises(TraceError, match="block_size is 64, and --kv-block-tokens 16; leave it"):
        read_trace(file, block_tokens=16)


def test_sessions_without_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="its sessions have no requests"):
        read_trace(written(tmp_path / "t", []), block_tokens=None)
