"""The replay of an I/O trace: what waits for what, whatever the storage is like."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.traces.ioformat import COLUMNS
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.workloads.ioreplay import IoReplayWorkload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from pytest_kvcache.workloads.protocol import Request

S = 1_000_000_000


def trace_of(path: Path, lines: Sequence[str]) -> Trace:
    """Of lines without times: each is submitted a second after the one before."""
    rows = [f"1,{line},{at * S},{at * S},{at * S}" for at, line in enumerate(lines)]
    last = f"# end: {len(rows)} operations"
    file = path / "io.csv"
    header = ["# pytest-kvcache I/O trace 1: {}", ",".join(COLUMNS)]
    file.write_text("\n".join([*header, *rows, last, ""]))
    return read_trace(file, block_tokens=None)


def op(  # noqa: PLR0917  as in a line
    kind: str, which: int, request: int, user: int = 0, waits_for: str = "user", rank: int = 0
) -> str:
    return f"{rank},window,{kind},{which:032x}.1,4096,{request},{user},{waits_for}"


def replay(trace: Trace, speedup: float = 0.0, users: int = 2) -> IoReplayWorkload:
    assert trace.operations is not None
    return IoReplayWorkload(trace, trace.operations, users=users, speedup=speedup)


def numbers(keys: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(key, "big") for key in keys]


def parts(request: Request | None) -> tuple[list[int], list[int], list[int]]:
    """What it reads, deletes and stores, by the numbers of the objects."""
    assert request is not None
    reads = request.keys[: request.prompt_blocks]
    writes = request.keys[request.prompt_blocks :]
    return numbers(reads), numbers(request.deletes), numbers(writes)


def test_what_a_request_read_deleted_and_stored_is_one_request_again(tmp_path: Path) -> None:
    lines = [op("read", 1, 0), op("read", 2, 0), op("delete", 3, 0), op("write", 4, 0)]
    workload = replay(trace_of(tmp_path, lines))
    assert (workload.users, workload.open_loop, workload.holds_users) == (1, False, True)
    assert parts(workload.next_request(0)) == ([1, 2], [3], [4])
    assert workload.next_request(0) is None


def test_what_is_read_or_deleted_before_it_is_stored_is_there_beforehand(tmp_path: Path) -> None:
    lines = [op("read", 1, 0), op("write", 2, 0), op("read", 2, 1), op("delete", 3, 1)]
    population = list(replay(trace_of(tmp_path, lines)).population())
    assert [numbers(request.keys) for request in population] == [[1], [3]]
    assert {request.sizes for request in population} == {(4096,)}


def test_a_read_behind_the_writes_of_its_request_waits_for_them(tmp_path: Path) -> None:
    lines = [op("write", 1, 0), op("read", 1, 0, waits_for="writes"), op("read", 1, 0)]
    workload = replay(trace_of(tmp_path, lines))
    assert [parts(workload.next_request(0)) for _ in range(3)] == [
        ([], [], [1]), ([1], [], []), ([1], [], []),
    ]  # fmt: skip


def test_a_user_waits_until_what_it_reads_has_been_asked_for(tmp_path: Path) -> None:
    lines = [op("read", 9, 0, user=0), op("write", 1, 1, user=1), op("read", 1, 2, user=0)]
    workload = replay(trace_of(tmp_path, lines))
    assert parts(workload.next_request(0)) == ([9], [], [])
    assert workload.next_request(0) is None
    assert parts(workload.next_request(1)) == ([], [], [1])
    assert parts(workload.next_request(0)) == ([1], [], [])


def test_a_delete_waits_for_the_reads_before_it(tmp_path: Path) -> None:
    lines = [op("read", 1, 0, user=0), op("delete", 1, 1, user=1)]
    workload = replay(trace_of(tmp_path, lines))
    assert workload.next_request(1) is None
    assert workload.next_request(0) is not None
    assert parts(workload.next_request(1)) == ([], [1], [])


def test_requests_without_users_go_to_whoever_is_free(tmp_path: Path) -> None:
    lines = [op("read", n, n, waits_for="clock") for n in (5, 6, 7)]
    workload = replay(trace_of(tmp_path, lines), users=2)
    assert (workload.users, workload.holds_users) == (2, False)
    assert [parts(workload.next_request(user))[0] for user in (1, 0, 1)] == [[5], [6], [7]]
    assert workload.next_request(0) is None


def test_at_recorded_times_each_operation_comes_at_its_own(tmp_path: Path) -> None:
    lines = [op("read", 1, 0), op("write", 2, 0), op("read", 2, 1)]
    workload = replay(trace_of(tmp_path, lines), speedup=2.0)
    requests = [workload.next_request(0) for _ in range(3)]
    assert workload.open_loop
    assert [request and request.arrival_ns for request in requests] == [0, S // 2, S]
    assert [parts(request) for request in requests] == [
        ([1], [], []), ([], [], [2]), ([2], [], []),
    ]  # fmt: skip


def test_objects_of_ranks_that_are_one_rank_now_do_not_meet(tmp_path: Path) -> None:
    lines = [op("write", 1, 0, rank=rank) for rank in range(3)]
    trace = trace_of(tmp_path, lines)
    alone = replay(trace)
    keys = {parts(alone.next_request(user))[2][0] for user in range(3)}
    assert (len(keys), 1 in keys) == (3, True)
    for part in partition(trace, 3):
        assert parts(replay(trace.select(part)).next_request(0)) == ([], [], [1])


# --- a law --------------------------------------------------------------------------------


def recorded(seed: int, users: int) -> list[str]:
    """What a cache of six objects was asked for by users who took turns as dice would have it."""
    dice, held, lines = random.Random(seed), list[int](), list[str]()
    version: dict[int, int] = defaultdict(int)
    for number in range(dice.randrange(1, 25)):
        user = dice.randrange(users)
        wanted = dice.sample(range(10), dice.randrange(1, 4))
        for which in [one for one in wanted if one in held]:
            lines.append(f"0,window,read,{which:032x}.{version[which]},4096,{number},{user},user")
        new = [one for one in wanted if one not in held]
        gone = [one for one in held if one not in wanted][: max(0, len(held) + len(new) - 6)]
        held = [one for one in held if one not in gone] + new
        for which in gone:
            name = f"{which:032x}.{version[which]}"
            lines.append(f"0,window,delete,{name},4096,{number},{user},answer")
        for which in new:
            version[which] += 1
            name = f"{which:032x}.{version[which]}"
            lines.append(f"0,window,write,{name},4096,{number},{user},answer")
    return lines


@given(seed=st.integers(0, 10_000), users=st.integers(1, 5), order=st.integers(0, 10_000))
def test_in_whatever_order_users_are_free_all_of_it_comes_and_finds_what_it_reads(
    tmp_path_factory: pytest.TempPathFactory, seed: int, users: int, order: int
) -> None:
    lines = recorded(seed, users)
    trace = trace_of(tmp_path_factory.mktemp("traces"), lines)
    assert trace.operations is not None
    workload, dice = replay(trace), random.Random(order)
    there = {number for request in workload.population() for number in numbers(request.keys)}
    asked, most = Counter[tuple[str, int]](), trace.operations.need_blocks(in_time=False)
    waiting, last = list(range(workload.users)), -1
    while waiting and sum(asked.values()) != last:  # somebody could come: nobody waits for ever
        last = sum(asked.values())
        for user in dice.sample(waiting, len(waiting)):
            request = workload.next_request(user)
            if request is None:
                continue
            reads, deletes, writes = parts(request)
            assert set(reads) <= there
            assert set(deletes) <= there - set(reads)
            there -= set(deletes)
            assert not there & set(writes)
            there |= set(writes)
            assert len(there) <= most
            for name, objects in (("read", reads), ("delete", deletes), ("write", writes)):
                asked.update((name, number) for number in objects)
    recorded_ops = Counter(
        (line.split(",")[2], int(line.split(",")[3].split(".")[0], 16)) for line in lines
    )
    assert asked == recorded_ops
