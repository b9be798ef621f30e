from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.results.prooftext import describe_proof
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.factories import PAGE, rank_result, sound_plan, sound_record, watch

MIB = 1 << 20
MOVED: dict[str, Any] = {
    "requested_read_bytes": 512 * MIB, "device_read_bytes": 512 * MIB,
    "requested_write_bytes": 100 * MIB, "device_write_bytes": 100 * MIB,
    "distinct_read_bytes": 64 * MIB,
    "requested_writes": 100 * MIB // PAGE, "requested_transfers": 612 * MIB // PAGE,
    "distinct_reads": 64 * MIB // PAGE,
}  # fmt: skip


def reported(**changes: Any) -> str:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0, **{**MOVED, **changes})])
    return describe_proof(evaluate_trial(record, plan)[0])


def test_reads_and_writes_are_told_apart_with_what_was_compared() -> None:
    seen = watch(read_bytes=520 * MIB, write_bytes=104 * MIB)
    assert reported(device=seen) == (
        "reads: 512 MiB (64 MiB of them distinct), the kernel counted 100% for the ranks and sda"
        " read 102%: PROVEN; writes: 100 MiB, sda wrote 104%: PROVEN"
    )


@pytest.mark.parametrize(
    ("wrote", "words"),
    [
        (249, "149% more (overhead or others')"),  # the objects are pages, with inodes each
        (2_000, "1900% more (overhead and others')"),
        (9_000, "8900% more (others')"),
    ],
)
def test_what_a_disk_moved_beyond_the_whole_is_reported_as_whose_it_is(
    wrote: int, words: str
) -> None:
    text = reported(device=watch(read_bytes=1024 * MIB, write_bytes=wrote * MIB))
    assert "for the ranks and sda read all of it and 100% more (others'): PROVEN; " in text
    # A disk that did more than ours is no witness of direct writes; the kernel's count is.
    assert text.endswith(
        "writes: 100 MiB, the kernel counted 100% for the ranks and sda wrote all of it and"
        f" {words}: PROVEN"
    )


def test_a_disk_that_others_used_proves_no_write_by_itself() -> None:
    seen = watch(read_bytes=512 * MIB, write_bytes=30_100 * MIB)
    text = reported(io_mode="buffered", sync="data", device=seen)
    assert text.endswith("100 MiB, sda wrote all of it and 30000% more (others'): UNPROVEN")


def test_writes_that_nobody_synced_are_never_called_moved() -> None:
    text = reported(io_mode="buffered", sync="none", device=watch(read_bytes=512 * MIB))
    assert text.endswith("writes: 100 MiB, sda wrote 0%: UNPROVEN")


def test_where_nobody_counts_that_is_said() -> None:
    text = reported(filesystem=None)
    assert "reads: 512 MiB (64 MiB of them distinct), nobody counted any: UNPROVEN" in text


def test_what_was_not_asked_for_is_not_told() -> None:
    nothing = dict.fromkeys(("requested_read_bytes", "device_read_bytes"), 0)
    assert reported(**nothing).startswith("writes: ")
    nothing |= dict.fromkeys(("requested_write_bytes", "device_write_bytes"), 0)
    assert reported(**nothing) == "nothing was read or written"


def test_a_page_is_the_least_that_is_reported() -> None:
    assert reported(requested_write_bytes=PAGE, device_write_bytes=PAGE).count("PROVEN") == 2
