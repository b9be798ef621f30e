from __future__ import annotations

import gzip
import json
import lzma
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from tests.recordings import (
    AGENTS,
    MOONCAKE,
    REFERENCE,
    SHAREGPT,
    real_trace,
    small_trace,
    trace_path,
)

if TYPE_CHECKING:
    from pathlib import Path

LINES = (
    b'{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}\n'
    b'{"timestamp": 25, "input_length": 512, "output_length": 0, "hash_ids": [7]}\n'
)
PROMPTS = st.lists(st.lists(st.integers(0, 50), max_size=5, unique=True), max_size=10)


def columns(trace: Trace) -> dict[str, Any]:
    names = ("arrival_ns", "input_tokens", "output_tokens", "offsets", "block_ids")
    return {name: getattr(trace, name).tolist() for name in names}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "any.name"
    path.write_bytes(LINES)
    return path


def test_a_trace_file_becomes_columns(file: Path) -> None:
    trace = read_trace(file, block_tokens=None)
    assert (trace.name, trace.format, trace.block_tokens) == ("any.name", "mooncake", 512)
    assert columns(trace) == {
        "arrival_ns": [0, 25_000_000],
        "input_tokens": [600, 512],
        "output_tokens": [3, 0],
        "offsets": [0, 2, 3],
        "block_ids": [0, 1, 0],  # in the order in which they occur
    }
    assert [trace.blocks(i).tolist() for i in range(len(trace))] == [[0, 1], [0]]


@pytest.mark.parametrize("name", [MOONCAKE, SHAREGPT, AGENTS])
def test_recorded_traces_hold_what_their_reference_says(name: str) -> None:
    trace, reference = real_trace(name), REFERENCE[name]
    assert len(trace) == reference.requests
    assert trace.block_tokens == reference.block_tokens
    assert len(trace.block_ids) == reference.prompt_blocks
    assert len(np.unique(trace.block_ids)) == reference.distinct_blocks
    assert int(trace.input_tokens.sum()) == reference.input_tokens
    assert int(trace.output_tokens.sum()) == reference.output_tokens


def test_arrivals_of_a_recorded_trace_span_what_its_reference_says() -> None:
    arrivals = real_trace(MOONCAKE).arrival_ns
    assert (arrivals[-1] - arrivals[0]) / 1e9 == pytest.approx(1022.025, abs=5e-4)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_files_are_told_by_their_content(file: Path, pack: Any) -> None:
    plain = read_trace(file, block_tokens=None)
    file.write_bytes(pack(LINES))
    assert read_trace(file, block_tokens=None).digest == plain.digest


def test_a_byte_order_mark_and_carriage_returns_are_no_content(file: Path) -> None:
    plain = read_trace(file, block_tokens=None)
    file.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"))
    assert read_trace(file, block_tokens=None).digest == plain.digest


def test_the_users_block_size_is_checked_against_the_file(file: Path) -> None:
    assert read_trace(file, block_tokens=550).block_tokens == 550
    with pytest.raises(TraceError, match="line 1: 2 hash_ids don't fit input_length 600"):
        read_trace(file, block_tokens=16)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_packed_file_that_is_cut_off_is_refused(file: Path, pack: Any) -> None:
    file.write_bytes(pack(LINES * 100)[:-20])
    with pytest.raises(TraceError, match=r"any.name: it can't be read .*end"):
        read_trace(file, block_tokens=None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "any.name: it is empty"),
        (b"\n \n\n", "any.name: it is empty"),
        (b"\n" + LINES, "line 1: the line is blank"),
        (b"\x00\x01\x02", "any.name: it is binary"),
        (b"PK\x03\x04\xff\xfe\n", "any.name: it is binary"),
        (LINES.decode().encode("utf-16"), "any.name: it is binary"),
        (b"hello\n", "line 1: it is of no format that is read: its first record has hello; these"),
        (b"{\n", "line 1: it is of no format that is read: its first line is no record of any"),
        (
            b'["input_length"]\n',
            "line 1: it is of no format that is read: its first line is no rec",
        ),
        (LINES + b'{"timest', "line 3: the last line is cut off"),
        (LINES + b'{"timestamp": 3}\n', "line 3: there is no 'input_length'"),
        (LINES + b"\xff\xfe\n", "line 3: the line is not JSON"),
        (LINES[:40], "line 1: the last line is cut off"),
    ],
)
def test_unusable_content_is_refused_with_its_line(
    file: Path, content: bytes, problem: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(TraceError, match=problem):
        read_trace(file, block_tokens=None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file or directory"):
        read_trace(tmp_path / "absent.jsonl", block_tokens=None)
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path, block_tokens=None)


def test_a_first_line_of_megabytes_is_read_whole(file: Path) -> None:
    ids = ", ".join(str(i) for i in range(300_000))
    tokens = 300_000 * 512
    fields = f'"timestamp": 0, "input_length": {tokens}, "output_length": 1, "hash_ids": [{ids}]'
    file.write_text(f"{{{fields}}}\n")
    assert len(read_trace(file, block_tokens=None).blocks(0)) == 300_000


@settings(deadline=None)
@given(PROMPTS, st.data())
def test_a_selection_is_its_requests_in_the_order_given(
    prompts: list[list[int]], data: st.DataObject
) -> None:
    trace = small_trace(prompts)
    chosen = data.draw(st.lists(st.sampled_from(range(len(prompts))))) if prompts else []
    part = trace.select(chosen)
    assert [part.blocks(i).tolist() for i in range(len(part))] == [prompts[i] for i in chosen]
    assert part.input_tokens.tolist() == [trace.input_tokens[i] for i in chosen]
    assert part.arrival_ns.tolist() == chosen


@pytest.mark.parametrize("indices", [[0, 2], [-1]])
def test_a_selection_of_requests_that_do_not_exist_is_refused(indices: list[int]) -> None:
    with pytest.raises(IndexError, match="not all in a trace of 2"):
        small_trace([[1], [2]]).select(indices)


@pytest.mark.parametrize("index", [-1, 2])
def test_blocks_of_a_request_that_does_not_exist_are_refused(index: int) -> None:
    with pytest.raises(IndexError, match="not in a trace of 2"):
        small_trace([[1], [2]]).blocks(index)


def test_a_limit_keeps_the_first_requests() -> None:
    trace = small_trace([[1], [2, 3], [4]])
    assert trace.limit(2).block_ids.tolist() == [1, 2, 3]
    assert len(trace.limit(99)) == 3
    assert len(trace.limit(0)) == 0
    with pytest.raises(ValueError, match="count is -1"):
        trace.limit(-1)


@settings(deadline=None)
@given(PROMPTS)
def test_the_digest_tells_traces_apart_and_ignores_the_name(prompts: list[list[int]]) -> None:
    trace = small_trace(prompts)
    assert trace.digest == small_trace(prompts).digest
    assert trace.digest != small_trace([*prompts, [1]]).digest
    assert trace.digest != small_trace(prompts, block_tokens=5).digest


@pytest.mark.parametrize(
    "column", ["arrival_ns", "input_tokens", "output_tokens", "offsets", "block_ids"]
)
def test_every_column_counts_in_the_digest(column: str) -> None:
    values = {"offsets": [0, 1, 4]}.get(column)
    trace = small_trace([[1, 2], [3, 4]])
    changed = np.array(values or getattr(trace, column) + 1, dtype=np.int64)
    assert _with(trace, column, changed).digest != trace.digest


def _with(trace: Trace, column: str, values: Any) -> Trace:
    names = ("name", "format", "block_tokens", *columns(trace))
    return Trace(**({name: getattr(trace, name) for name in names} | {column: values}))


@settings(deadline=None, max_examples=20)
@given(PROMPTS)
def test_a_saved_trace_loads_as_it_was(tmp_path_factory: Any, prompts: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("saved") / "trace.npz"
    trace = small_trace(prompts)
    trace.save(path)
    loaded = Trace.load(path)
    assert columns(loaded) == columns(trace)
    assert (loaded.name, loaded.format) == (trace.name, trace.format)
    assert loaded.digest == trace.digest
    assert [entry.name for entry in path.parent.iterdir()] == ["trace.npz"]


def test_a_trace_that_can_not_be_saved_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.npz"
    small_trace([[1]]).save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, f"no space left for {descriptor}")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        small_trace([[1], [2]]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut", "flipped", "other"])
def test_a_file_that_is_no_saved_trace_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "trace.npz"
    small_trace([[1, 2], [1]]).save(path)
    content = path.read_bytes()
    at = content.index(b"NUMPY")
    path.write_bytes(
        {
            "absent": content,
            "empty": b"",
            "text": LINES,
            "cut": content[:-30],
            "flipped": content[: at + 130] + b"\xff" + content[at + 131 :],
            "other": content,
        }[damage]
    )
    if damage == "absent":
        path.unlink()
    if damage == "other":
        np.savez(path, name=np.array("x"))
    with pytest.raises(TraceError, match="it is no saved trace"):
        Trace.load(path)


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("block_tokens", 0, "block_tokens is 0"),
        ("arrival_ns", [0], "different lengths"),
        ("arrival_ns", [[0, 1]], "not one-dimensional"),
        ("output_tokens", [0, 1, 2], "different lengths"),
        ("offsets", [0, 1, 2], "don't divide"),
        ("offsets", [1, 2, 3], "don't divide"),
        ("offsets", [0, 4, 3], "don't divide"),
        ("input_tokens", [1, -1], "negative"),
        ("block_ids", [1, 1, 3], "repeats a block id"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    column: str, values: Any, problem: str
) -> None:
    with pytest.raises(TraceError, match=problem):
        _with(small_trace([[1, 2], [3]]), column, values)


def test_columns_that_are_not_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        _with(small_trace([[1]]), "arrival_ns", np.array([0.5]))


def test_columns_can_not_be_changed_but_the_callers_arrays_can() -> None:
    mine = np.array([5], dtype=np.int64)
    trace = _with(small_trace([[1]]), "arrival_ns", mine)
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_ns[0] = 1
    assert mine.flags.writeable


# -- ids -----------------------------------------------------------------------------------


def written(path: Path, prompts: list[list[Any]], *, every_ms: float = 40, **fields: Any) -> Path:
    """A trace of these prompts in blocks of 512 tokens."""
    lines = [
        {
            "timestamp": number * every_ms,
            "input_length": 512 * max(1, len(ids)),
            "output_length": 1,
            "hash_ids": ids,
            **fields,
        }
        for number, ids in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


ODD_IDS = [2**64 - 1, 2**63, -1, -(2**70), "9", 9, "", "sha256:ffee", 0]


def test_an_id_is_whatever_a_recorder_wrote(tmp_path: Path) -> None:
    prompts = [[odd, f"of {odd!r}"] for odd in ODD_IDS]
    trace = read_trace(written(tmp_path / "t", prompts + prompts), block_tokens=512)
    assert len(np.unique(trace.block_ids)) == 2 * len(ODD_IDS)
    assert infinite_hits(trace) == 2 * len(ODD_IDS)


TREES = st.lists(  # prompts as paths of a tree: their names are those of whole prefixes
    st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=40)
@given(TREES, st.randoms(use_true_random=False))
def test_other_names_of_the_same_prefixes_are_the_same_trace(
    tmp_path_factory: Any, paths: list[list[int]], random: Any
) -> None:
    names: dict[tuple[int, ...], Any] = {}
    prompts: list[list[Any]] = []
    plain: list[list[Any]] = []
    for path in paths:
        prefixes = [tuple(path[: end + 1]) for end in range(len(path))]
        for prefix in prefixes:
            names.setdefault(prefix, random.choice([str, int])((len(names) - 5) << 61))
        prompts.append([names[prefix] for prefix in prefixes])
        plain.append([repr(prefix) for prefix in prefixes])
    folder = tmp_path_factory.mktemp("names")
    odd = read_trace(written(folder / "a", prompts), block_tokens=512)
    assert odd.digest == read_trace(written(folder / "b", plain), block_tokens=512).digest
    content = read_trace(written(folder / "c", list(paths)), block_tokens=512, ids="content")
    assert content.digest == odd.digest


@pytest.mark.parametrize(
    ("prompts", "line", "problem"),
    [
        (
            [[3, 5, 8], [5, 8, 11]],
            2,
            r"hash_ids\[0\] stands first, and in line 1 behind another id; eq",
        ),
        ([[5], [3, 5]], 2, r"hash_ids\[1\] stands behind hash_ids\[0\], and in line 1 first; eq"),
        (
            [[1, 2], [9], [9, 2]],
            3,
            r"hash_ids\[1\] stands behind hash_ids\[0\], and in line 1 behind another",
        ),
        ([[7, 7]], 1, r"hash_ids\[1\] stands behind hash_ids\[0\], and in line 1 first; eq"),
        ([[5, 6, 5]], 1, r"hash_ids\[2\] stands behind hash_ids\[1\], and in line 1 first; eq"),
    ],
)
def test_ids_that_are_no_prefixes_are_refused_with_both_places(
    tmp_path: Path, prompts: list[list[int]], line: int, problem: str
) -> None:
    with pytest.raises(TraceError, match=f"line {line}: {problem}.*add --kv-trace-ids=content"):
        read_trace(written(tmp_path / "t", prompts), block_tokens=512)


def test_contents_of_blocks_become_prefixes(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[3, 5, 8], [5, 8, 11], [3, 5, 9], [7, 7, 7]])
    trace = read_trace(path, block_tokens=512, ids="content")
    assert [trace.blocks(i).tolist() for i in range(4)] == [
        [0, 1, 2], [3, 4, 5], [0, 1, 6], [7, 8, 9],
    ]  # fmt: skip
    assert infinite_hits(trace) == 2


def test_a_recorded_trace_is_prefix_chained_already() -> None:
    path = trace_path(MOONCAKE)
    chained = read_trace(path, block_tokens=None, ids="content")
    assert chained.digest == read_trace(path, block_tokens=None).digest


# -- times ---------------------------------------------------------------------------------


def unit_of(path: Path, unit: str | None = None) -> tuple[str, str, list[int]]:
    trace = read_trace(path, block_tokens=512, unit=unit)
    assert trace.reading is not None
    return trace.reading.unit.name, trace.reading.unit.doubt, trace.arrival_ns.tolist()


def test_a_recorded_trace_is_in_milliseconds_and_nothing_speaks_against_it() -> None:
    for name in (MOONCAKE, SHAREGPT):
        reading = real_trace(name).reading
        assert reading is not None
        assert (reading.unit.name, reading.unit.doubt) == ("ms", "")


@pytest.mark.parametrize(
    ("unit", "second"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)]
)
def test_the_users_unit_is_taken_whatever_the_values_look_like(
    tmp_path: Path, unit: str, second: int
) -> None:
    path = written(tmp_path / "t", [[1], [1], [1]], every_ms=second)
    assert unit_of(path, unit) == (unit, "", [0, 10**9, 2 * 10**9])


def test_fractions_of_a_unit_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[1], [1], [1]], every_ms=0.125)
    assert unit_of(path, "s") == ("s", "", [0, 125_000_000, 250_000_000])


def test_seconds_with_chats_are_known_by_both(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[1], [1]], every_ms=0.5, chat_id=1, parent_chat_id=-1)
    assert unit_of(path) == ("s", "", [0, 500_000_000])


@pytest.mark.parametrize("at", [0, 2**62 // 10**6])
def test_one_moment_for_all_is_no_doubt(tmp_path: Path, at: int) -> None:
    path = written(tmp_path / "t", [[1], [1]], timestamp=at)
    assert unit_of(path) == ("ms", "", [at * 10**6] * 2)


DOUBTS = [
    (
        {"every_ms": 0.125},
        "s",
        r"^in milliseconds its 20 requests come within 0\.002375 s, with fr",
    ),
    (
        {"every_ms": 40.5},
        "s",
        r"come within 0\.7695 s, with fractions of a millisecond, which is 25",
    ),
    ({"every_ms": 1}, "s", r"^in milliseconds its 20 requests come within 0\.019 s, which is 1,00"),
    ({"every_ms": 5}, "s", r"come within 0\.095 s, which is 200 a second; "),
    ({"every_ms": 2}, "s", r"come within 0\.038 s, which is 500 a second; "),
    ({"every_ms": 10**6}, "us", "^in milliseconds its 20 requests take 19,000 s, one in 1,000 s; "),
    ({"every_ms": 10**9}, "ns", "^in milliseconds its 20 requests take 19,000,000 s, one in"),
    ({"timestamp": 1_760_000_000}, "s", "^timestamps begin at 1760000000, which are seconds since"),
    ({"timestamp": 1_760_000_000.5}, "s", "^timestamps begin at 1760000000, which are seconds"),
    ({"timestamp": 1_760_000_000_000_000}, "us", "which are microseconds since 1970"),
    ({"timestamp": 1_760_000_000_000_000_000}, "ns", "which are nanoseconds since 1970"),
]


@pytest.mark.parametrize(("fields", "likely", "sign"), DOUBTS)
def test_times_that_are_hardly_milliseconds_are_doubted(
    tmp_path: Path, fields: dict[str, Any], likely: str | None, sign: str
) -> None:
    path = written(tmp_path / "t", [[number] for number in range(20)], **fields)
    unit, doubt, _ = unit_of(path)
    assert re.search(sign, doubt)
    assert "; say with --kv-trace-time-unit={s,ms,us,ns} what the timestamps are in" in doubt
    assert unit == (likely or "ms")
    assert ("is likely" in doubt) == (likely is not None)
    assert unit_of(path, unit)[:2] == (unit, "")


# Whole seconds, one request in 3 or 5; microseconds and nanoseconds, 20 a second; whole minutes.
@pytest.mark.parametrize(
    ("requests", "every", "likely", "sign"),
    [
        (
            600,
            3,
            "s",
            r"^in milliseconds its 600 requests come within 1\.797 s, which is 333 a sec",
        ),
        (
            600,
            5,
            "s",
            r"^in milliseconds its 600 requests come within 2\.995 s, which is 200 a sec",
        ),
        (600, 20, "s", "which is 50 a second"),
        (600, 50_000, "us", "^in milliseconds its 600 requests take 29,950 s, one in 50 s"),
        (600, 48_000, "us", "one in 48 s"),
        (600, 50_000_000, "ns", "one in 50,000 s"),
        (
            60,
            60,
            "s",
            "^all its timestamps are multiples of 60, as whole minutes are in seconds; s",
        ),
        (60, 300, "s", "^all its timestamps are multiples of 300, as whole minutes"),
    ],
)
def test_a_unit_that_is_wrong_by_a_thousand_is_doubted(
    tmp_path: Path, requests: int, every: int, likely: str, sign: str
) -> None:
    path = written(tmp_path / "t", [[number] for number in range(requests)], every_ms=every)
    unit, doubt, _ = unit_of(path)
    assert re.search(sign, doubt)
    assert "; say with --kv-trace-time-unit={s,ms,us,ns} what the timestamps are in" in doubt
    assert unit == likely
    assert unit_of(path, "ms")[:2] == ("ms", "")


@pytest.mark.parametrize("every_ms", [3_000, 10_000])
def test_whole_seconds_in_milliseconds_are_not_doubted(tmp_path: Path, every_ms: int) -> None:
    prompts = [[number] for number in range(20)]
    assert unit_of(written(tmp_path / "t", prompts, every_ms=every_ms))[:2] == ("ms", "")


def test_two_times_that_are_whole_minutes_by_chance_are_not_doubted(tmp_path: Path) -> None:
    assert unit_of(written(tmp_path / "t", [[1], [2]], every_ms=120))[:2] == ("ms", "")


@pytest.mark.parametrize("every_ms", [60.5, 21, 100, 9_999])
def test_times_that_may_well_be_milliseconds_are_not_doubted(
    tmp_path: Path, every_ms: float
) -> None:
    path = written(tmp_path / "t", [[number] for number in range(20)], every_ms=every_ms)
    assert unit_of(path)[:2] == ("ms", "")


def test_milliseconds_since_1970_are_milliseconds(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[1], [1]], timestamp=1_760_000_000_000)
    assert unit_of(path) == ("ms", "", [1_760_000_000_000_000_000] * 2)


def test_a_time_that_no_clock_can_tell_is_refused_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[1], [1]], every_ms=10**10)
    with pytest.raises(TraceError, match=r"line 2: the timestamp is 10000000000, and --kv-trace-t"):
        read_trace(path, block_tokens=512, unit="s")


def test_a_part_of_a_trace_was_read_like_the_whole(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t", [[1], [2]]), block_tokens=None)
    assert trace.reading is not None
    assert trace.limit(1).reading == trace.select([1]).reading == trace.reading


def test_a_size_that_was_derived_from_the_lengths_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "t", [[1, 2, 3]], input_length=655)
    trace = read_trace(path, block_tokens=None)
    assert trace.reading is not None
    assert trace.block_tokens == 256
    assert "the only power of two that fits" in trace.reading.block_why
