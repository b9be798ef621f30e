from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.ioformat import COLUMNS
from pytest_kvcache.traces.operations import DELETE, NOBODY, OVERWRITE, READ, WRITE, Operations
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace, read_trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FIRST = '# pytest-kvcache I/O trace 1: {"case": "chat-small-np2"}\n'
CSV = "Timestamp,Operation,Object_Size_Bytes,Tier,Key,Phase\n"
A, B = (f"{n:032x}" for n in (0xA, 0xB << 64))
# trial, rank, phase, operation, key, bytes, request, user, waits_for, submitted, started, completed
OURS = (
    f"1,0,population,write,{A}.1,4096,0,0,turn,-90,-80,-70",
    f"1,0,window,read,{A}.1,4096,1,5,user,10,11,19",
    f"1,0,window,delete,{A}.1,4096,1,5,answer,21,21,22",
    f"1,0,window,write,{B}.2,4096,1,5,deletes,23,24,25",
    f"1,1,window,write,{A}.1,8192,0,0,answer,5,6,7",
)
THEIRS = (
    "1740553426.194021,Write,131072,Tier-0,u/0,Prefill",
    "1740553426.194521,Write,131072,Tier-2,u/0,Evict",
    "1740553426.294521,Read,65536,Tier-2,u/1,Decode",
    "1740553427.194521,Write,131072,Tier-2,u/0,Evict",
)


def ours(*lines: str, end: str | None = None) -> str:
    last = f"# end: {len(lines)} operations\n" if end is None else end
    return FIRST + ",".join(COLUMNS) + "\n" + "".join(f"{line}\n" for line in lines) + last


def read(path: Path, text: str) -> Trace:
    file = path / "io.csv"
    file.write_text(text)
    return read_trace(file, block_tokens=None)


def operations_of(trace: Trace) -> Operations:
    assert trace.operations is not None
    return trace.operations


def with_field(line: str, column: str, value: str) -> str:
    values = line.split(",")
    values[COLUMNS.index(column)] = value
    return ",".join(values)


def test_operations_come_in_the_order_in_which_they_were_submitted(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    found = operations_of(trace)
    assert found.kind.tolist() == [WRITE, READ, DELETE, WRITE]
    assert trace.arrival_ns.tolist() == [0, 5, 16, 18]
    assert found.rank.tolist() == [1, 0, 0, 0]
    assert found.user.tolist() == [0, 5, 5, 5]
    assert found.request.tolist() == [0, 1, 1, 1]
    assert found.sizes.tolist() == [8192, 4096, 4096, 4096]
    assert found.has_users
    assert (trace.format, len(trace)) == ("i/o trace", 4)


def test_what_a_population_stored_is_there_beforehand_and_not_replayed(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    found = operations_of(trace)
    assert found.there_sizes.tolist() == [4096]
    assert found.there_ids.tolist() == [trace.blocks(1)[0]]
    assert found.there_ranks.tolist() == [0]


def test_equal_keys_of_two_ranks_are_two_objects(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    first, second = trace.blocks(0)[0], trace.blocks(1)[0]
    assert first != second
    keys = operations_of(trace).keys
    assert keys[first].tolist() == keys[second].tolist() == [0, 0xA]


def test_the_words_of_our_keys_are_kept(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    assert operations_of(trace).keys[trace.blocks(3)[0]].tolist() == [0xB, 0]


def test_an_object_that_is_stored_again_keeps_its_number(tmp_path: Path) -> None:
    again = OURS[3].replace(f"{B}.2", f"{A}.2")
    trace = read(tmp_path, ours(*OURS[:3], again))
    assert len(set(trace.block_ids.tolist())) == 1


def test_one_that_is_stored_before_the_old_one_is_gone_is_another(tmp_path: Path) -> None:
    early = with_field(OURS[3].replace(f"{B}.2", f"{A}.2"), "submitted_ns", "20")
    trace = read(tmp_path, ours(*OURS[:3], early))
    assert operations_of(trace).kind.tolist() == [READ, WRITE, DELETE]
    assert len(set(trace.block_ids.tolist())) == 2


def test_of_several_trials_the_first_is_replayed(tmp_path: Path) -> None:
    second = [with_field(line, "trial", "2") for line in OURS]
    trace = read(tmp_path, ours(*OURS, *second))
    assert len(trace) == 4
    assert trace.reading is not None
    assert trace.reading.left_out == 5


def test_requests_that_came_at_their_times_wait_for_nobody(tmp_path: Path) -> None:
    timed = [line.replace(",user,", ",clock,") for line in OURS[:2]]
    found = operations_of(read(tmp_path, ours(*timed)))
    assert found.user.tolist() == [NOBODY]
    assert not found.has_users


def test_the_benchmarks_csv_is_what_its_storage_was_asked_for(tmp_path: Path) -> None:
    trace = read(tmp_path, CSV + "\n".join(THEIRS))
    found = operations_of(trace)
    assert found.kind.tolist() == [WRITE, READ, OVERWRITE]
    assert found.sizes.tolist() == [131_072, 65_536, 131_072]
    assert trace.arrival_ns.tolist() == [0, 100_000_000, 1_000_000_000]
    assert found.there_ids.tolist() == [trace.blocks(1)[0]]
    assert (found.overwrites, found.has_users) == (1, False)
    assert trace.reading is not None
    assert trace.reading.left_out == 1
    assert trace.blocks(0) == trace.blocks(2)


def test_ranks_get_what_was_recorded_of_ranks_and_no_trace_is_for_more(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    one, two = (trace.select(part) for part in partition(trace, 2))
    assert operations_of(one).rank.tolist() == [0, 0, 0]
    assert operations_of(two).rank.tolist() == [1]
    assert len(operations_of(one).there_ids) == 1
    assert len(operations_of(two).there_ids) == 0
    assert [len(part) for part in partition(trace, 1)] == [4]
    assert [len(part) for part in partition(trace, 3)] == [3, 1, 0]


def test_the_csv_is_divided_by_its_objects(tmp_path: Path) -> None:
    trace = read(tmp_path, CSV + "\n".join(THEIRS))
    parts = [trace.select(part) for part in partition(trace, 2)]
    assert sorted(len(part) for part in parts) == [1, 2]
    assert sorted(len(operations_of(part).there_ids) for part in parts) == [0, 1]


def test_a_saved_trace_has_its_operations(tmp_path: Path) -> None:
    trace = read(tmp_path, ours(*OURS))
    trace.save(tmp_path / "trace.npz")
    again = Trace.load(tmp_path / "trace.npz")
    assert again.digest == trace.digest
    assert operations_of(again).to_columns().keys() == operations_of(trace).to_columns().keys()
    other = read(tmp_path, ours(*OURS[:4], with_field(OURS[4], "bytes", "4096")))
    assert other.digest != trace.digest


def needs(*changes: tuple[int, int, int], there: int = 0) -> Operations:
    """Of (kind, pages, request) each; what is there beforehand has a page each."""
    kind, pages, request = (np.array(column) for column in zip(*changes, strict=True))
    return Operations(
        kind=kind.astype(np.int8),
        sizes=pages * 4096,
        request=request,
        user=np.zeros(len(kind), dtype=np.int64),
        rank=np.zeros(len(kind), dtype=np.int64),
        there_ids=np.arange(there),
        there_sizes=np.full(there, 4096),
        there_ranks=np.zeros(there, dtype=np.int64),
        key_ids=np.arange(0),
        keys=np.zeros((0, 2), dtype=np.uint64),
        has_users=True,
        has_ranks=True,
    )


def test_in_time_as_much_is_needed_as_was_there_at_once() -> None:
    found = needs((WRITE, 1, 0), (WRITE, 1, 1), (DELETE, 1, 2), (WRITE, 1, 2), there=3)
    assert found.need_blocks(in_time=True) == 5


def test_out_of_time_all_that_store_more_may_come_before_those_that_delete() -> None:
    found = needs((WRITE, 1, 0), (DELETE, 1, 1), (WRITE, 1, 2), there=3)
    assert found.need_blocks(in_time=True) == 4
    assert found.need_blocks(in_time=False) == 5


def test_the_need_is_told_in_blocks_of_the_largest_size() -> None:
    assert needs((WRITE, 4, 0), (WRITE, 1, 1), (WRITE, 1, 2)).need_blocks(in_time=True) == 2


@given(st.lists(st.tuples(st.sampled_from([READ, WRITE, DELETE]), st.integers(0, 5))))
def test_operations_in_any_order_are_replayed_or_refused_by_line(
    tmp_path_factory: pytest.TempPathFactory, drawn: Sequence[tuple[int, int]]
) -> None:
    names = {READ: "read", WRITE: "write", DELETE: "delete"}
    lines = [
        f"1,0,window,{names[kind]},{which:032x}.1,4096,{at},0,user,{at},{at},{at}"
        for at, (kind, which) in enumerate(drawn)
    ]
    deleted, wrong = set[int](), None
    for at, (kind, which) in enumerate(drawn):
        if which in deleted and kind != WRITE:
            wrong = wrong or at + 3
        deleted = (deleted | {which}) if kind == DELETE else (deleted - {which})
    path = tmp_path_factory.mktemp("traces")
    if not lines or wrong is not None:
        with pytest.raises(TraceError) as error:
            read(path, ours(*lines))
        assert error.value.line == (wrong or 0)
        return
    assert len(read(path, ours(*lines))) == len(lines)


# --- what is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("rank", "x", "rank is x; it must be a whole number from 0 to"),
        ("phase", "warm-up", "phase is 'warm-up'; it must be one of population, ramp"),
        ("operation", "Read", "operation is 'Read'; it must be one of read, write"),
        ("key", "", "key is empty"),
        ("bytes", "0", "bytes is 0; it must be a whole number from 1 to"),
        ("bytes", "4096.0", "bytes is 4096.0; it must be a whole number"),
        ("request", "-1", "request is -1; it must be a whole number from 0"),
        ("user", "", "user is ; it must be a whole number"),
        ("waits_for", "me", "waits_for is 'me'; it must be one of turn, clock"),
        ("submitted_ns", "1e3", "submitted_ns is 1e3; it must be a whole number"),
        ("started_ns", "3", "started_ns is 3; it must lie between submitted_ns and completed_ns"),
    ],
)
def test_a_wrong_field_is_named_with_its_line_and_rule(
    tmp_path: Path, column: str, value: str, problem: str
) -> None:
    with pytest.raises(TraceError) as error:
        read(tmp_path, ours(OURS[0], with_field(OURS[1], column, value)))
    assert error.value.line == 4
    assert problem in str(error.value)
    assert str(tmp_path / "io.csv") in str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (ours(*OURS, end=""), 7, "5 operations and no last line, so it was cut off"),
        (ours(*OURS, end="# end: 6 operations\n"), 8, "tells of 6 operations, so it was cut off"),
        (ours(*OURS) + OURS[0], 9, "the line stands behind the last one"),
        (ours(OURS[0][:-30]), 3, "the line has 5 fields; it must have 12"),
        (ours(*OURS).replace("trace 1:", "trace 2:"), 1, "the version is 2; 1 is read"),
        (ours(*OURS).replace(",user,", ",who,", 1), 2, "the columns are trial,rank,"),
        (ours(OURS[0]), 0, "no operation beyond a population"),
        (ours(OURS[0].replace("write", "delete")), 3, "a population only writes"),
        (ours(OURS[0], OURS[0], OURS[1]), 4, "key names an object that an earlier line"),
        (ours(*OURS[:3], OURS[1].replace(",10,11,", ",30,31,").replace(",19", ",39")), 6,
         "key names an object that has been deleted"),
        (ours(OURS[0], OURS[1].replace("4096", "8192")), 4,
         "bytes is 8192, and the object was stored with 4096 bytes"),
        (CSV + THEIRS[1].replace("Write", "write"), 2, "Operation is 'write'; it must be one of"),
        (CSV + THEIRS[1].replace("Tier-2", "Tier-3"), 2, "Tier is 'Tier-3'; it must be one of"),
        (CSV + THEIRS[1].replace("131072", "many"), 2, "Object_Size_Bytes is many; it must be"),
        (CSV + THEIRS[1].replace("u/0", ""), 2, "Key is empty"),
        (CSV + THEIRS[1].replace("1740553426.", "12:30:"), 2, "Timestamp is 12:30:194521; it must"),
        (CSV + THEIRS[1] + ",more", 2, "there are 7 values, and the header names 6 columns"),
        (CSV + THEIRS[0], 0, "Tier is Tier-2 in none of its lines"),
        (CSV + THEIRS[2] + "\n" + THEIRS[2].replace("65536", "65537"), 3,
         "Object_Size_Bytes is 65537, and the object was stored with 65536 bytes"),
    ],
)  # fmt: skip
def test_what_can_not_be_replayed_is_refused_by_line(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    with pytest.raises(TraceError) as error:
        read(tmp_path, text)
    assert (error.value.line, problem in str(error.value)) == (line, True), str(error.value)
