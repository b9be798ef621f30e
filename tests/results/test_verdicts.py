from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.series import TimeSeriesLedger, coarse_index
from pytest_kvcache.measure.stalls import Stall
from pytest_kvcache.results.absence import why_absent
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.figures import headroom_of
from pytest_kvcache.results.outcome import TrialResult, withholds
from pytest_kvcache.results.verdicts.sizes import size_of
from pytest_kvcache.results.verdicts.trial import evaluate_trial, idle_error
from tests.factories import (
    FILESYSTEM,
    PAGE,
    make_trace_plan,
    memory_tiers,
    rank_result,
    series_of,
    sound_plan,
    sound_record,
    surroundings,
    watch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.measure.series import TimeSeries
    from pytest_kvcache.plan.plan import Plan, TracePlan
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.results.verdictcodes import Verdict

REPLAY = make_trace_plan(
    requests=200, speedup=1.0, one_rank_hit_ratio=0.5, partitioned_hit_ratio=0.5
)
POISSON: dict[str, Any] = {"request_rate": 5.0, "arrival": "poisson"}
SEVERITY = {
    "BUSY_DEVICE": "warning",
    "LATE_REPLAY": "warning",
    "LATE_STAMPS": "warning",
    "CACHED_READS": "invalid",
    "CACHED_WRITES": "invalid",
    "OVERLOADED": "invalid",
    "SKEWED": "invalid",
    "SYNCHRONOUS": "invalid",
    "TMPFS": "invalid",
    "VIRTUAL_DISK": "warning",
    "SHORT_WINDOW": "warning",
    "UNPROVEN": "warning",
    "NOT_STEADY": "warning",
    "NOT_STORAGE": "warning",
    "PAUSED": "warning",
    "SATURATED": "warning",
    "STALL": "warning",
    "UNEVEN": "warning",
    "UNSATURATED": "warning",
}


def judged(
    ranks: Sequence[RankResult], plan: Plan | None = None, **changes: Any
) -> tuple[set[str], str | None]:
    """The codes of a trial of these ranks, and the verdict of its proof."""
    plan = plan or sound_plan(np=len(ranks))
    trial, verdicts = evaluate_trial(sound_record(plan, ranks, **changes), plan)
    codes = [verdict.code for verdict in verdicts]
    assert len(set(codes)) == len(codes) or "TMPFS" in codes or "VIRTUAL_DISK" in codes
    assert {v.code: v.severity for v in verdicts} == {code: SEVERITY[code] for code in codes}
    assert all(verdict.text for verdict in verdicts)
    return set(codes), trial.proof.verdict


def of_one(plan: Plan | None = None, *, window_s: float = 60.0, **changes: Any) -> set[str]:
    """The codes of a trial of one rank that differs from a sound one in this."""
    codes, _ = judged([rank_result(0, **changes)], plan, window_s=window_s)
    return codes


def test_transfers_that_an_engine_carries_out_one_by_one_are_not_in_flight() -> None:
    assert of_one(io_engine="libaio", io_engine_asynchronous=False) == {"SYNCHRONOUS"}
    assert of_one(io_engine="libaio", io_engine_asynchronous=True) == set()
    assert of_one(io_engine="threads", io_engine_asynchronous=None) == set()
    alone: dict[str, Any] = {"io_engine_asynchronous": False, "average_queue_depth": 1.0}
    assert of_one(sound_plan(queue_depth=1), io_engine="libaio", **alone) == set()


def test_stamps_that_may_be_late_by_a_part_of_the_latency_are_reported() -> None:
    sound, _ = evaluate_trial(sound_record(sound_plan(), [rank_result(0)]), sound_plan())
    p50, p99 = sound.read.ms.p50, sound.read.ms.p99
    assert p50 is not None
    assert p99 is not None
    assert of_one(reap_lag_mean_ms=0.09 * p50, reap_lag_p99_ms=0.09 * p99) == set()
    assert of_one(reap_lag_mean_ms=0.11 * p50) == {"LATE_STAMPS"}
    assert of_one(reap_lag_p99_ms=0.11 * p99) == {"LATE_STAMPS"}
    assert of_one(reap_lag_mean_ms=None, reap_lag_p99_ms=None) == set()


def test_a_trial_without_fault_has_no_verdict() -> None:
    assert judged([rank_result(0), rank_result(1)]) == (set(), "PROVEN")


# -- where the bytes went ------------------------------------------------------------------


def on(**facts: Any) -> dict[str, Any]:
    return {**FILESYSTEM, **facts}


def test_a_backend_that_is_no_storage_is_reported() -> None:
    ranks = [rank_result(0, is_storage=False, filesystem=None, device_read_bytes=0)]
    assert judged(ranks) == ({"NOT_STORAGE"}, "NOT_STORAGE")


def test_one_rank_without_storage_is_enough() -> None:
    codes, _ = judged([rank_result(0), rank_result(1, is_storage=False)])
    assert codes == {"NOT_STORAGE"}


def chain(*links: tuple[str, str, str | None]) -> list[dict[str, Any]]:
    """Links of (name, kind, end), each on the next one."""
    return [
        {"name": name, "kind": kind, "number": None, "above": n - 1 if n else None, "end": end,
         "note": None}
        for n, (name, kind, end) in enumerate(links)
    ]  # fmt: skip


IN_MEMORY = on(type="tmpfs", chain=chain(("tmpfs", "filesystem", "memory")))
NO_DISKS = {**watch(), "disks": []}


def test_files_in_memory_are_no_result() -> None:
    ranks = [rank_result(0, filesystem=IN_MEMORY, device=NO_DISKS, device_read_bytes=0)]
    assert judged(ranks) == ({"TMPFS"}, "TMPFS")


def test_memory_below_a_filesystem_of_a_disk_is_no_result_however_much_moved() -> None:
    zram = on(chain=chain(("ext4", "filesystem", None), ("zram0", "zram", "memory")))
    ranks = [rank_result(0, filesystem=zram, device=NO_DISKS)]
    assert judged(ranks) == ({"TMPFS"}, "TMPFS")


def test_memory_is_no_virtual_disk_as_well() -> None:
    assert of_one(filesystem={**IN_MEMORY, "virtual": True}, device=NO_DISKS) == {"TMPFS"}


def test_one_host_with_files_in_memory_is_enough() -> None:
    tmpfs = {**IN_MEMORY, "host": "n2"}
    ranks = [rank_result(0), rank_result(1, host="n2", filesystem=tmpfs, device=NO_DISKS)]
    assert judged(ranks)[0] == {"TMPFS"}


@pytest.mark.parametrize(
    ("virtual", "codes"), [(True, {"VIRTUAL_DISK"}), (False, set()), (None, set())]
)
def test_a_virtual_disk_is_reported(*, virtual: bool | None, codes: set[str]) -> None:
    assert of_one(filesystem=on(virtual=virtual)) == codes


# -- whether reads were real ---------------------------------------------------------------


NFS = on(type="nfs4", chain=chain(("nfs4", "filesystem", "unseen")))


@pytest.mark.parametrize("changes", [{"filesystem": NFS, "device": NO_DISKS}, {"filesystem": None}])
@pytest.mark.parametrize("counted", [{}, {"device_read_bytes": 0}, {"device_read_bytes": None}])
def test_without_a_counter_nothing_is_proven_and_nothing_called_cached(
    changes: dict[str, Any], counted: dict[str, Any]
) -> None:
    assert judged([rank_result(0, **changes, **counted)]) == ({"UNPROVEN"}, "UNPROVEN")


def test_where_the_kernel_does_not_count_for_processes_the_disk_tells() -> None:
    ranks = [rank_result(0, device_read_bytes=None)]
    assert judged(ranks) == (set(), "PROVEN")
    cached = [rank_result(0, device_read_bytes=None, device=watch(write_bytes=500 * PAGE))]
    assert judged(cached) == ({"CACHED_READS"}, "CACHED_READS")


def test_one_rank_without_a_counter_is_enough() -> None:
    nfs = {**NFS, "host": "n2"}
    ranks = [rank_result(0), rank_result(1, host="n2", filesystem=nfs, device=NO_DISKS)]
    assert judged(ranks)[0] == {"UNPROVEN"}


def test_what_lies_out_of_sight_below_a_device_is_unproven() -> None:
    zvol = on(chain=chain(("ext4", "filesystem", None), ("zd0", "zvol", "unseen")))
    assert judged([rank_result(0, filesystem=zvol, device=NO_DISKS)]) == ({"UNPROVEN"}, "UNPROVEN")
    # A process's counter alone does not tell what the unseen part does.
    nbd = on(chain=chain(("ext4", "filesystem", None), ("nbd0", "nbd", "unseen")))
    assert judged([rank_result(0, filesystem=nbd, device=NO_DISKS)]) == ({"UNPROVEN"}, "UNPROVEN")


@pytest.mark.parametrize(
    ("io_mode", "advice"), [("direct", "a loop device without it"), ("buffered", "--kv-io=direct")]
)
def test_what_reads_too_little_is_advised_what_it_does_not_do_yet(
    io_mode: str, advice: str
) -> None:
    ranks = [rank_result(0, io_mode=io_mode, device_read_bytes=0)]
    plan = sound_plan()
    _trial, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    (text,) = (each.text for each in verdicts if each.code == "CACHED_READS")
    assert advice in text
    assert ("--kv-io" in text) == (io_mode == "buffered")


@pytest.mark.parametrize("engine", ["mooncake-bucket", "mooncake-offset"])
def test_direct_io_is_not_advised_where_the_engine_refuses_it(engine: str) -> None:
    plan = sound_plan(engine=engine, io="buffered", queue_depth=PROFILES[engine].depth)
    staged = {"staged_hit_blocks": 0} if plan.in_buckets else {}
    ranks = [rank_result(0, io_mode="buffered", device_read_bytes=0, **staged)]
    _trial, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    (text,) = (each.text for each in verdicts if each.code == "CACHED_READS")
    assert text.endswith(f"use more data than memory (--kv-io=direct does not go with {engine})")


def test_what_the_kernel_counted_for_a_rank_may_still_come_from_a_cache_below() -> None:
    # A loop device, or a cache device, answers from memory what was submitted to it.
    ranks = [rank_result(0, device=watch(read_bytes=100 * PAGE, write_bytes=500 * PAGE))]
    assert judged(ranks) == ({"CACHED_READS"}, "CACHED_READS")


@pytest.mark.parametrize(
    ("pages", "codes"), [(900, set()), (899, {"CACHED_READS"}), (0, {"CACHED_READS"})]
)
def test_the_device_must_move_nine_tenths_of_what_is_read(pages: int, codes: set[str]) -> None:
    assert of_one(device_read_bytes=pages * PAGE) == codes
    seen = watch(read_bytes=pages * PAGE, write_bytes=500 * PAGE)
    assert of_one(device=seen) == codes


def test_reads_of_one_rank_do_not_stand_for_those_of_another() -> None:
    # A device that reads ahead moves more than was asked for; beside it a cache goes unseen.
    ranks = [rank_result(0, device_read_bytes=2_000 * PAGE), rank_result(1, device_read_bytes=0)]
    assert judged(ranks) == ({"CACHED_READS"}, "CACHED_READS")


def test_one_cached_rank_of_many_is_not_averaged_away() -> None:
    ranks = [rank_result(n, device_read_bytes=1_000 * PAGE * bool(n)) for n in range(16)]
    assert judged(ranks) == ({"CACHED_READS"}, "CACHED_READS")


def test_a_rank_without_a_counter_does_not_hide_a_cached_one() -> None:
    nfs = rank_result(1, host="n2", filesystem={**NFS, "host": "n2"}, device=NO_DISKS)
    ranks = [rank_result(0, device_read_bytes=0), nfs]
    codes, proof = judged(ranks)
    assert "CACHED_READS" in codes
    assert proof == "CACHED_READS"


def test_a_rank_that_read_nothing_is_not_cached() -> None:
    ranks = [rank_result(0), rank_result(1, requested_read_bytes=0, device_read_bytes=0)]
    assert judged(ranks) == (set(), "PROVEN")


@pytest.mark.parametrize("filesystem", [FILESYSTEM, NFS])
def test_where_nothing_was_read_or_written_there_is_nothing_to_prove(
    filesystem: dict[str, Any],
) -> None:
    nothing = dict.fromkeys(
        (f"{who}_{what}_bytes" for who in ("requested", "device") for what in ("read", "write")), 0
    )
    ranks = [rank_result(n, **nothing, filesystem=filesystem) for n in range(2)]
    assert judged(ranks) == (set(), None)


def test_what_is_no_storage_is_reported_even_if_nothing_was_read() -> None:
    ranks = [rank_result(0, is_storage=False, requested_read_bytes=0, device_read_bytes=0)]
    assert judged(ranks) == ({"NOT_STORAGE"}, "NOT_STORAGE")


# -- whether writes were real --------------------------------------------------------------

ONLY_WRITES: dict[str, Any] = {"requested_read_bytes": 0, "device_read_bytes": 0}


def proofs(ranks: Sequence[RankResult]) -> tuple[str | None, str | None]:
    """The verdicts on reads and on writes."""
    plan = sound_plan(np=len(ranks))
    proof = evaluate_trial(sound_record(plan, ranks), plan)[0].proof
    return proof.reads.verdict, proof.writes.verdict


def test_writes_that_the_disk_made_are_proven_where_nothing_was_read() -> None:
    ranks = [rank_result(0, **ONLY_WRITES)]
    assert judged(ranks) == (set(), "PROVEN")
    assert proofs(ranks) == (None, "PROVEN")


@pytest.mark.parametrize("sync", ["none", "data"])
@pytest.mark.parametrize("pages", [0, 449])
def test_writes_that_the_disk_never_saw_are_cached(pages: int, sync: str) -> None:
    seen = watch(read_bytes=1_000 * PAGE, write_bytes=pages * PAGE)
    ranks = [rank_result(0, device=seen, sync=sync)]
    assert judged(ranks) == ({"CACHED_WRITES"}, "CACHED_WRITES")
    assert proofs(ranks) == ("PROVEN", "CACHED_WRITES")


def test_nine_tenths_of_the_writes_are_enough() -> None:
    assert of_one(device=watch(read_bytes=1_000 * PAGE, write_bytes=450 * PAGE)) == set()


def test_writes_that_the_kernel_never_began_are_none_whatever_the_disk_did() -> None:
    ranks = [rank_result(0, device_write_bytes=0)]
    assert judged(ranks) == ({"CACHED_WRITES"}, "CACHED_WRITES")


def test_what_the_kernel_counts_of_buffered_writes_proves_nothing() -> None:
    ranks = [rank_result(0, io_mode="buffered", sync="none")]
    assert judged(ranks) == ({"UNPROVEN"}, "UNPROVEN")
    assert proofs(ranks) == ("PROVEN", "UNPROVEN")


def test_buffered_writes_with_a_sync_are_proven_by_the_disk() -> None:
    assert judged([rank_result(0, io_mode="buffered", sync="data")]) == (set(), "PROVEN")


@pytest.mark.parametrize("options", ["rw,relatime,nobarrier", "rw,barrier=0"])
@pytest.mark.parametrize("io_mode", ["direct", "buffered"])
def test_a_sync_that_flushes_no_device_proves_nothing_of_writes(options: str, io_mode: str) -> None:
    mounted = on(options=options)
    ranks = [rank_result(0, filesystem=mounted, io_mode=io_mode, sync="data")]
    assert judged(ranks) == ({"UNPROVEN"}, "UNPROVEN")
    assert proofs(ranks) == ("PROVEN", "UNPROVEN")
    plan = sound_plan()
    _, (verdict,) = evaluate_trial(sound_record(plan, ranks), plan)
    assert "mounted without barriers" in verdict.text
    # Without a sync the run says nothing of durability, and with barriers it is what it says.
    assert judged([rank_result(0, filesystem=mounted)]) == (set(), "PROVEN")
    plain = [rank_result(0, filesystem=on(options="rw,barrier=1"), io_mode=io_mode, sync="data")]
    assert judged(plain) == (set(), "PROVEN")


def test_writes_of_one_host_do_not_stand_for_those_of_another() -> None:
    seen = watch(machine="a", read_bytes=1_000 * PAGE, write_bytes=5_000 * PAGE)
    unseen = watch(machine="b", read_bytes=1_000 * PAGE)
    ranks = [rank_result(0, device=seen), rank_result(1, host="n2", device=unseen)]
    assert "CACHED_WRITES" in judged(ranks)[0]


@pytest.mark.parametrize(
    ("probe", "codes"),
    [
        ({"device_write_bytes": 4096, "unsynced_bytes": 0}, set()),
        ({"device_write_bytes": 8192, "unsynced_bytes": None}, set()),
        ({"device_write_bytes": None, "unsynced_bytes": 0}, set()),
        ({"device_write_bytes": 0, "unsynced_bytes": None}, {"CACHED_WRITES"}),
        ({"device_write_bytes": 0, "unsynced_bytes": 0}, {"CACHED_WRITES"}),
        # A neighbour writes at the same time; the pages are dirty all the same.
        ({"device_write_bytes": 9999, "unsynced_bytes": 4096}, {"CACHED_WRITES"}),
        ({"device_write_bytes": None, "unsynced_bytes": 4096}, {"CACHED_WRITES"}),
    ],
)
def test_a_sync_that_syncs_nothing_is_found_by_its_probe(
    probe: dict[str, Any], codes: set[str]
) -> None:
    seen = watch(read_bytes=1_000 * PAGE, write_bytes=500 * PAGE)
    seen["sync_probe"] = {"bytes": 4096, **probe}
    assert of_one(device=seen, sync="data") == codes


def test_a_journal_of_data_leaves_pages_dirty_after_a_real_sync() -> None:
    seen = watch(read_bytes=1_000 * PAGE, write_bytes=500 * PAGE)
    seen["sync_probe"] = {"bytes": 4096, "device_write_bytes": 8192, "unsynced_bytes": 4096}
    journal = on(options="rw,data=journal")
    assert of_one(device=seen, sync="data", filesystem=journal) == set()


# -- whether others used the device ---------------------------------------------------------

MIB = 1 << 20
BIG: dict[str, Any] = {
    "requested_read_bytes": 6_000 * MIB, "device_read_bytes": 6_000 * MIB,
    "requested_write_bytes": 600 * MIB, "device_write_bytes": 600 * MIB,
    "requested_transfers": 6_600 * MIB // PAGE, "requested_writes": 600 * MIB // PAGE,
}  # fmt: skip


def busy(
    *, quiet: dict[str, Any] | None = None, after: dict[str, Any] | None = None, **changes: Any
) -> list[str]:
    """Texts of BUSY_DEVICE on 6,600 MiB in 60 s, of a disk that moved so much more."""
    plan = changes.pop("plan", None) or sound_plan()
    moved: dict[str, Any] = {"read_bytes": 6_000 * MIB, "write_bytes": 600 * MIB}
    for name in ("read_bytes", "write_bytes"):
        moved[name] += changes.pop(f"more_{name}", 0)
    for name in ("read_ops", "write_ops"):
        moved[name] = changes.pop(name, 0)
    seen = watch(**moved, quiet=quiet or {}, after=after or {})
    ranks = [rank_result(0, **{**BIG, **changes}, device=seen)]
    verdicts = evaluate_trial(sound_record(plan, ranks), plan)[1]
    return [verdict.text for verdict in verdicts if verdict.code == "BUSY_DEVICE"]


def test_a_disk_of_ones_own_is_not_busy() -> None:
    assert busy() == []


def test_reads_of_others_are_reported_from_a_twentieth_of_the_bytes_on() -> None:
    assert busy(more_read_bytes=340 * MIB) == []
    (text,) = busy(more_read_bytes=6_600 * MIB)
    assert "others used sda of test-host as well: 6.45 GiB during the run, 50% of its bytes" in text


def test_writes_of_others_are_reported_beyond_what_a_filesystem_writes_for_us() -> None:
    assert busy(more_write_bytes=340 * MIB) == []
    assert busy(more_write_bytes=20_000 * MIB)


def test_metadata_of_many_small_objects_is_no_neighbour() -> None:
    # 600 MiB of 4 KiB objects: with a sync of each the journal writes much more than the data.
    assert busy(more_write_bytes=2_000 * MIB) == []
    assert busy(more_write_bytes=5_000 * MIB)
    assert busy(more_write_bytes=5_000 * MIB, sync="data") == []


def test_what_is_flushed_later_is_not_taken_for_others() -> None:
    # 4 GiB were populated through the page cache before, but not 20.
    late: dict[str, Any] = {"io_mode": "buffered", "sync": "none", "populated_blocks": 1 << 20}
    assert busy(more_write_bytes=4 << 30, **late) == []
    assert "during the run" in busy(more_write_bytes=40 << 30, **late)[0]


def test_where_nothing_is_stored_all_writes_are_others() -> None:
    decode: dict[str, Any] = dict.fromkeys(
        ("requested_write_bytes", "requested_writes", "device_write_bytes"), 0
    )
    (text,) = busy(**decode, populated_blocks=1_000_000)
    assert "600 MiB during the run" in text


def test_an_operation_beside_each_of_ours_is_others() -> None:
    # 1,536,000 reads and 153,600 writes of a page.
    ours: dict[str, Any] = {"read_ops": 1_536_000, "write_ops": 300_000}
    assert busy(**ours) == []
    assert busy(**{**ours, "read_ops": 2 * 1_536_000})


def test_many_small_operations_of_others_are_told_by_their_number() -> None:
    # 10,000 reads of 4 KiB a second, beside 100 transfers of 1 MiB.
    moved: dict[str, Any] = {"requested_transfers": 6_600, "requested_writes": 150}
    big = sound_plan(block_tokens=1 << 21)
    assert big.object_stored_bytes == 4 * MIB
    ours: dict[str, Any] = {"plan": big, "read_ops": 8_000, "write_ops": 800, **moved}
    assert busy(**ours) == []
    (text,) = busy(**{**ours, "read_ops": 600_000})
    assert "operations during the run" in text


def test_small_objects_of_ones_own_are_no_neighbour_however_large_the_largest_is() -> None:
    # Of an I/O trace, or of contexts of many lengths: 1,689,600 objects of a page, none of 4 MiB.
    big = sound_plan(block_tokens=1 << 21)
    ours: dict[str, Any] = {"plan": big, "read_ops": 1_536_000, "write_ops": 300_000}
    assert busy(**ours) == []
    assert busy(**{**ours, "read_ops": 4_000_000})
    assert busy(**ours, requested_transfers=6_600, requested_writes=150)
    # What a filesystem writes beside the data goes by objects, too.
    assert busy(plan=big, more_write_bytes=2_000 * MIB) == []


def test_a_large_transfer_comes_in_pieces_and_small_ones_beside_it_in_one_each() -> None:
    # 300,000 objects of a page and 1,100 transfers of 4 MiB, in pieces of 1 MiB.
    big = sound_plan(block_tokens=1 << 21, transfer_size=4 * MIB)
    assert big.chunk_bytes == 4 * MIB
    ours: dict[str, Any] = {
        "plan": big, "requested_transfers": 301_100, "requested_writes": 0, "read_ops": 304_400,
    }  # fmt: skip
    assert busy(**ours) == []
    assert busy(**{**ours, "read_ops": 2 * 301_100 + 6_600 + 60_000})


def test_a_neighbour_is_seen_while_no_rank_does_anything() -> None:
    half_s = {"read_ops": 500, "read_bytes": 50 * MIB, "busy_s": 0.4}
    (text,) = busy(quiet=half_s)
    assert "100 MiB/s and 1000 operations/s before or after it, 80% of the time" in text


def test_a_neighbour_that_syncs_little_is_reported_whatever_was_populated() -> None:
    syncs = {"write_ops": 200, "write_bytes": MIB, "busy_s": 0.4}
    (text,) = busy(quiet=syncs, populated_blocks=100_000)
    assert "400 operations/s before or after it, 80% of the time" in text
    # Here what is written may still be the population.
    assert busy(quiet=syncs, io_mode="buffered", sync="none") == []


def test_a_neighbour_that_began_during_the_run_is_seen_after_it() -> None:
    assert busy(after={"read_ops": 500, "read_bytes": 50 * MIB, "busy_s": 0.4})
    # Our own filesystem may write then.
    assert busy(after={"write_ops": 500, "write_bytes": 50 * MIB, "busy_s": 0.4}) == []


def test_a_few_operations_that_take_no_time_are_no_neighbour() -> None:
    few = {"write_ops": 14, "write_bytes": 63 << 10}
    assert busy(quiet={**few, "busy_s": 0.01}) == []
    assert busy(quiet={**few, "busy_s": 0.026})


# -- whose bytes the disks counted -----------------------------------------------------------

ON_A_LOOP = on(
    chain=chain(
        ("ext4", "filesystem", None), ("loop0", "loop", None), ("/image", "file", None),
        ("ext4", "filesystem", None), ("sda", "disk", "disk"),
    )
)  # fmt: skip
READER = {"read_ops": 50, "read_bytes": 50 * MIB, "busy_s": 0.4}
WRITER = {"write_ops": 50, "write_bytes": 50 * MIB, "busy_s": 0.4}


def of_big(
    read_share: float, write_share: float, *, looks: dict[str, Any] | None = None, **changes: Any
) -> tuple[Any, Any, bool, Any]:
    """The verdicts on reads and writes, whether others are told, and what they did."""
    seen = watch(
        read_bytes=round(6_000 * MIB * read_share),
        write_bytes=round(600 * MIB * write_share),
        **looks or {},
    )
    plan = changes.pop("plan", None) or sound_plan()
    ranks = [rank_result(0, **{**BIG, "device": seen, **changes})]
    trial, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    proof = trial.proof
    reported = "BUSY_DEVICE" in {verdict.code for verdict in verdicts}
    foreign = proof.devices[0].foreign
    return proof.reads.verdict, proof.writes.verdict, reported, foreign


def test_a_disk_that_nobody_else_uses_proves_what_went_through_a_loop_device() -> None:
    reads, writes, reported, foreign = of_big(1.0, 1.02, filesystem=ON_A_LOOP)
    assert (reads, writes, reported) == ("PROVEN", "PROVEN", False)
    # What a loop device answers from memory would hide others of the same size.
    assert (foreign.read_bytes, foreign.write_bytes) == (None, None)


@pytest.mark.parametrize("when", ["quiet", "after"])
def test_reads_of_others_prove_none_of_ours_through_a_loop_device(when: str) -> None:
    reads, _, reported, _ = of_big(0.94, 1.0, filesystem=ON_A_LOOP, looks={when: READER})
    assert (reads, reported) == ("UNPROVEN", True)


@pytest.mark.parametrize("when", ["quiet", "after"])
def test_writes_of_others_prove_none_of_ours_through_a_loop_device(when: str) -> None:
    _, writes, _, _ = of_big(1.0, 1.0, filesystem=ON_A_LOOP, looks={when: WRITER})
    assert writes == "UNPROVEN"


def test_more_than_can_be_ours_is_others_and_proves_nothing() -> None:
    reads, writes, reported, foreign = of_big(1.0, 10.0, filesystem=ON_A_LOOP)
    assert (reads, writes, reported) == ("PROVEN", "UNPROVEN", True)
    assert foreign.write_bytes > 2_000 * MIB
    reads, writes, reported, foreign = of_big(1.3, 1.0, filesystem=ON_A_LOOP)
    assert (reads, writes, reported) == ("UNPROVEN", "PROVEN", True)
    assert foreign.read_bytes == pytest.approx(1_200 * MIB, rel=1e-6)


def test_what_the_kernel_counts_for_a_rank_proves_where_it_goes_straight_to_a_disk() -> None:
    looks = {"quiet": {**READER, **WRITER}}
    reads, writes, reported, foreign = of_big(3.0, 10.0, looks=looks)
    assert (reads, writes, reported) == ("PROVEN", "PROVEN", True)
    assert foreign.read_bytes == 12_000 * MIB
    # Without that counter, and for what a buffered write dirties, the disk alone tells.
    assert of_big(3.0, 1.0, device_read_bytes=None)[0] == "UNPROVEN"
    assert of_big(1.0, 1.0, device_read_bytes=None)[0] == "PROVEN"
    synced: dict[str, Any] = {"io_mode": "buffered", "sync": "data"}
    assert of_big(1.0, 40.0, **synced)[:2] == ("PROVEN", "UNPROVEN")
    assert of_big(1.0, 1.0, **synced)[:2] == ("PROVEN", "PROVEN")


def test_a_mirror_that_writes_twice_is_no_neighbour() -> None:
    large = sound_plan(block_tokens=1 << 21)  # objects of 4 MiB, with little metadata
    mirror = on(chain=chain(("ext4", "filesystem", None), ("md0", "md", None)))
    mirror["chain"] += [
        {"name": name, "kind": "disk", "number": None, "above": 1, "end": "disk", "note": None}
        for name in ("sda", "sdb")
    ]
    seen = watch(read_bytes=6_000 * MIB, write_bytes=600 * MIB)
    seen["disks"].append({**seen["disks"][0], "name": "sdb"})
    seen["disks"][0] = {**seen["disks"][0], "run": {**seen["disks"][0]["run"], "read_bytes": 0}}
    reads, writes, reported, _ = of_big(1.0, 1.0, filesystem=mirror, device=seen, plan=large)
    assert (reads, writes, reported) == ("PROVEN", "PROVEN", False)


def test_a_loop_device_without_a_counter_below_it_proves_nothing() -> None:
    ranks = [rank_result(0, filesystem=ON_A_LOOP, device=NO_DISKS)]
    assert proofs(ranks) == ("UNPROVEN", "UNPROVEN")


def test_hosts_of_one_machine_share_a_disk_and_are_no_neighbours() -> None:
    seen = watch(machine="m", read_bytes=12_000 * MIB, write_bytes=1_200 * MIB)
    ranks = [rank_result(n, host=f"n{n}", **BIG, device=seen) for n in range(2)]
    assert judged(ranks) == (set(), "PROVEN")
    alone = [rank_result(0, **BIG, device=seen)]
    assert judged(alone)[0] == {"BUSY_DEVICE"}


def test_disks_of_one_name_on_two_machines_are_two() -> None:
    ours: dict[str, Any] = {"read_bytes": 6_000 * MIB, "write_bytes": 600 * MIB}
    theirs = {**ours, "read_bytes": 60_000 * MIB}
    ranks = [
        rank_result(0, **BIG, device=watch(machine="a", **ours)),
        rank_result(1, host="n2", **BIG, device=watch(machine="b", **theirs)),
    ]
    plan = sound_plan(np=2)
    trial, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    assert [group.hosts for group in trial.proof.devices] == [("test-host",), ("n2",)]
    assert ["sda of n2" in verdict.text for verdict in verdicts] == [True]


# -- whether all ranks worked --------------------------------------------------------------


def idle(rank: int, **changes: Any) -> RankResult:
    return rank_result(rank, read_count=0, write_count=0, **changes)


def test_ranks_that_all_worked_are_no_error() -> None:
    assert idle_error([rank_result(0, write_count=0), rank_result(1, read_count=0)]) is None


def test_a_rank_that_did_nothing_is_named_with_its_host() -> None:
    reported = idle_error([rank_result(0), idle(1, host="n2")])
    assert reported is not None
    assert reported.startswith("rank 1 on host n2 completed no operation in the window")
    assert "lengthen --kv-duration" in reported


def test_more_ranks_that_did_nothing_are_counted() -> None:
    reported = idle_error([rank_result(0), idle(1, host="n2"), idle(2), idle(3)])
    assert reported is not None
    assert reported.startswith("rank 1 on host n2 (and 2 more) completed no operation")


def test_a_storage_that_did_nothing_at_all_is_reported_as_such() -> None:
    assert str(idle_error([idle(0), idle(1)])).startswith("the storage tier completed no operation")


def test_a_storage_that_did_nothing_behind_memory_tiers_is_not_told_to_be_given_more_time() -> None:
    behind = [replace(idle(rank), cpu_hit_blocks=9) for rank in range(2)]
    reported = str(idle_error(behind))
    assert "memory tiers held all that was asked for; lower --kv-cpu-mem-gb" in reported
    assert "--kv-duration" not in reported


# -- whether the window holds --------------------------------------------------------------


def longer(rank: int) -> RankResult:
    """A rank whose fixed work of as many operations takes 60 s, because fewer are in flight."""
    return rank_result(rank, stop_s=60.0, average_queue_depth=0.5)


def test_what_would_lengthen_or_settle_a_fixed_amount_of_work_is_more_of_it() -> None:
    plan = sound_plan(requests=200, duration_s=None)
    early, late = rank_result(0, stop_s=8.0), longer(1)
    record = sound_record(plan, [early, late], window_s=8.0)
    _, verdicts = evaluate_trial(record, plan)
    texts = {verdict.code: verdict.text for verdict in verdicts}
    assert "(more --kv-requests)" in texts["SHORT_WINDOW"]
    assert "SKEWED" not in texts
    assert "rank 0 on host" in texts["UNEVEN"]
    assert "was done with its requests first" in texts["UNEVEN"]
    assert "run.* and cache.* are of the whole work and stand" in texts["UNEVEN"]


@pytest.mark.parametrize(("window_s", "codes"), [(30.0, set()), (29.99, {"SHORT_WINDOW"})])
def test_a_window_is_half_a_minute_at_least(window_s: float, codes: set[str]) -> None:
    assert of_one(sound_plan(duration_s=None), window_s=window_s, stop_s=window_s) == codes


@pytest.mark.parametrize(
    ("trace", "duration_s", "option"),
    [
        (None, 0.6, "--kv-duration"),
        (REPLAY, 0.6, "--kv-duration"),
        (REPLAY, None, "--kv-trace-cycles"),
        (REPLAY, 60.0, "--kv-trace-cycles"),
        (replace(REPLAY, limit=10), None, "--kv-trace-limit"),
        (replace(REPLAY, ids="objects"), None, "a longer recording"),
    ],
)
def test_a_short_window_names_what_would_lengthen_it(
    trace: TracePlan | None, duration_s: float | None, option: str
) -> None:
    plan = sound_plan(trace=trace, duration_s=duration_s)
    _, verdicts = evaluate_trial(
        sound_record(plan, [rank_result(0, stop_s=0.6)], window_s=0.6), plan
    )
    (text,) = (verdict.text for verdict in verdicts if verdict.code == "SHORT_WINDOW")
    assert text.startswith(f"the window is 0.6 s; 30 s or more ({option}) let caches")


@pytest.mark.parametrize(("window_s", "codes"), [(54.0, set()), (53.99, {"SKEWED"})])
def test_all_ranks_share_nine_tenths_of_the_window(window_s: float, codes: set[str]) -> None:
    assert of_one(sound_plan(duration_s=60.0), window_s=window_s) == codes


# The ranks of a replay stop when their conversations are over, each at its time.
def replayed(stops_s: Sequence[float], *, window_s: float, **plan: Any) -> list[Verdict]:
    """The verdicts on a replay whose ranks stopped at these times."""
    planned = sound_plan(np=len(stops_s), trace=REPLAY, **plan)
    ranks = [rank_result(number, stop_s=stop_s) for number, stop_s in enumerate(stops_s)]
    _, verdicts = evaluate_trial(sound_record(planned, ranks, window_s=window_s), planned)
    return [verdict for verdict in verdicts if verdict.code != "SHORT_WINDOW"]


@pytest.mark.parametrize(
    ("stops_s", "window_s"),
    [([31.0], 31.0), ([31.0, 34.0], 31.0), ([0.048], 0.04), ([0.4, 0.4], 0.4), ([0.0], 0.0)],
)
@pytest.mark.parametrize("duration_s", [None, 60.0])
def test_a_replay_whose_ranks_end_together_is_not_skewed(
    stops_s: list[float], window_s: float, duration_s: float | None
) -> None:
    assert replayed(stops_s, window_s=window_s, duration_s=duration_s) == []


def test_a_replay_with_a_duration_whose_ranks_end_apart_is_skewed() -> None:
    (verdict,) = replayed([1.0, 7.6], window_s=0.94, duration_s=60.0)
    assert (verdict.code, verdict.severity) == ("SKEWED", "invalid")
    assert "active together for 0.9 s of 7.6 s only" in verdict.text
    assert "are uneven, those of rank 0 were over first: use fewer ranks, or a" in verdict.text
    assert "host" not in verdict.text


def test_a_replay_of_all_of_a_trace_whose_ranks_end_apart_is_uneven() -> None:
    (verdict,) = replayed([1.0, 7.6], window_s=0.94, duration_s=None)
    assert (verdict.code, verdict.severity) == ("UNEVEN", "warning")
    assert "active together for 0.9 s of 7.6 s only" in verdict.text
    assert "run.* and cache.* are of the whole work and stand" in verdict.text
    assert "fewer ranks, or a --kv-duration that all of them last" in verdict.text


def test_a_rank_that_outlasted_the_others_is_not_taken_for_a_faster_one() -> None:
    plan = sound_plan(np=2, requests=200, duration_s=None)
    longest = rank_result(1, stop_s=60.0)
    few = {"read_count": 1, "write_count": 1}
    ranks = [rank_result(0, stop_s=0.5, **few), longest]
    trial, verdicts = evaluate_trial(sound_record(plan, ranks, window_s=0.5), plan)
    assert trial.harness.headroom == headroom_of(longest, 60.0)
    assert "CLIENT_BOUND" not in {verdict.code for verdict in verdicts}


@pytest.mark.parametrize("is_allowed", [False, True])
def test_of_an_uneven_trial_what_is_of_the_whole_work_is_a_value(*, is_allowed: bool) -> None:
    origins = {"allow_invalid": "command line"} if is_allowed else {}
    plan = sound_plan(np=2, requests=200, duration_s=None, origins=origins)
    record = sound_record(plan, [rank_result(0, stop_s=8.0), longer(1)], window_s=8.0)
    measured, verdicts = evaluate_trial(record, plan)
    assert all(verdict.severity == "warning" for verdict in verdicts)
    trial = TrialResult(
        index=0, error=None, verdicts=verdicts, measured=measured,
        withholds=withholds(verdicts, plan),
    )  # fmt: skip
    case = CaseResult(plan=plan, trials=(trial, trial))
    again = CaseResult.from_json(json.loads(json.dumps(case.to_json())))
    for found in (case, again):
        shown = found.summary()
        assert shown["run.s"]["median"] == 60.0
        assert {"run.read_gib_per_s", "cache.hit_ratio"} < set(shown)
        for touched in ("read.gib_per_s", "requests.per_s", "load.mean_ms"):
            assert (touched in shown) == is_allowed
            assert is_allowed or why_absent(found, touched).startswith("UNEVEN, ranks were done")


def test_a_duration_that_all_conversations_last_makes_a_replay_even() -> None:
    assert replayed([20.0, 50.0], window_s=20.0, duration_s=20.0) == []


@pytest.mark.parametrize("trace", [None, REPLAY])
def test_a_late_rank_is_named_whatever_it_does(trace: TracePlan | None) -> None:
    plan = sound_plan(np=2, trace=trace, duration_s=60.0)
    ranks = [rank_result(0), rank_result(1, start_s=40.0)]
    _, (verdict,) = evaluate_trial(sound_record(plan, ranks), plan)
    assert verdict.code == "SKEWED"
    assert f"rank 1 on host {ranks[1].host} began 40.0 s late, look for what" in verdict.text


def test_uneven_conversations_are_not_blamed_on_a_rank_that_began_a_little_late() -> None:
    plan = sound_plan(np=2, trace=REPLAY, duration_s=None)
    ranks = [rank_result(0, stop_s=50.0), rank_result(1, start_s=2.0)]
    _, verdicts = evaluate_trial(sound_record(plan, ranks, window_s=50.0), plan)
    (verdict,) = verdicts
    assert verdict.code == "UNEVEN"
    assert "was done with its part of the trace first" in verdict.text
    assert "late" not in verdict.text


def test_the_ramp_is_no_part_of_a_ranks_own_window() -> None:
    assert replayed([36.0], window_s=31.0, duration_s=None, ramp_s=5.0) == []


def test_a_load_that_has_no_end_of_its_own_must_last_its_duration() -> None:
    # All ranks stopped together, but whatever made them stop was not the plan.
    stopped = [rank_result(number, stop_s=40.0) for number in range(2)]
    codes, _ = judged(stopped, sound_plan(np=2, duration_s=60.0), window_s=40.0)
    assert codes == {"SKEWED"}
    plan = sound_plan(np=2, duration_s=60.0)
    _, (verdict,) = evaluate_trial(sound_record(plan, stopped, window_s=40.0), plan)
    assert f"rank 0 on host {stopped[0].host} was done first" in verdict.text


def test_a_load_without_a_duration_lasts_as_long_as_its_longest_rank() -> None:
    plan = sound_plan(np=2, duration_s=None)
    codes, _ = judged([rank_result(0, stop_s=31.0), rank_result(1)], plan, window_s=31.0)
    assert codes == {"SKEWED"}


@pytest.mark.parametrize(
    ("start_s", "codes"), [(5.0, set()), (11.9, set()), (12.1, {"SKEWED"}), (30.0, {"SKEWED"})]
)
def test_a_rank_that_began_late_was_not_there_all_the_window(
    start_s: float, codes: set[str]
) -> None:
    plan = sound_plan(np=2, duration_s=60.0, ramp_s=6.0)
    found, _ = judged([rank_result(0), rank_result(1, start_s=start_s)], plan)
    assert found == codes


@pytest.mark.parametrize(
    ("first", "second", "codes"),
    [
        (500, 549, set()),
        (500, 551, {"NOT_STEADY"}),
        (551, 500, {"NOT_STEADY"}),
        (0, 0, set()),
    ],
)
def test_the_halves_of_the_window_hit_alike(first: int, second: int, codes: set[str]) -> None:
    assert of_one(first_half_hits=first, second_half_hits=second) == codes


def series_with(kind: str, operations: Sequence[int], took_ms: Sequence[int]) -> TimeSeries:
    """A second each with so many operations of a kind, which took so long."""
    ledger = TimeSeriesLedger(0, None)
    for second, (count, each_ms) in enumerate(zip(operations, took_ms, strict=True)):
        done = np.full(count, second * 10**9, dtype=np.int64)
        bins = coarse_index(np.full(count, each_ms * 10**6, dtype=np.int64))
        ledger.add(kind, done, bins, np.full(count, PAGE, dtype=np.int64))
    return series_of(len(operations) * 10**9, [ledger])


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize(
    ("operations", "took_ms", "words"),
    [
        ([100] * 6, [10] * 6, None),
        ([128, 128, 116, 41, 38, 38], [10] * 6, "s went from 0.000488 to 0.000145 GiB/s (medians"),
        ([99] * 6, [10] * 3 + [20] * 3, "the p50 of {}s went from"),
        ([99] * 6, [10] * 3 + [11] * 3, None),
        ([9, 9, 9, 3, 3, 3], [10] * 6, None),  # so few are no bandwidth
    ],
)
def test_a_storage_that_changes_within_the_window_is_not_steady(
    kind: str, operations: list[int], took_ms: list[int], words: str | None
) -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, series=series_with(kind, operations, took_ms))
    reported = [v.text for v in evaluate_trial(record, plan)[1] if v.code == "NOT_STEADY"]
    assert len(reported) == (words is not None)
    if words is not None:
        assert words.format(kind) in reported[0]
        assert "(medians of the seconds 0 to 3 and 3 to 6 of the window)" in reported[0]


def test_demotions_that_begin_when_the_tier_before_is_full_are_not_steady() -> None:
    plan = sound_plan(tiers=memory_tiers("cpu"), tier_policy="demote")
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, series=series_with("demote", [0] * 9 + [150] * 21, [10] * 30))
    reported = [v.text for v in evaluate_trial(record, plan)[1] if v.code == "NOT_STEADY"]
    assert "demotions went from 0 to 0.000572 GiB/s (medians of the seconds 0 to 9" in reported[0]


# Objects of 32 MiB come a few per second.
@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize(
    ("operations", "took_ms", "words"),
    [
        ([14, 14, 17, 14, 14, 15, 6, 2, 2, 4, 2, 2, 4, 2], [10] * 14,
         "{}s went from 5.34e-05 to 7.63e-06 GiB/s (medians of the seconds 0 to 6 and 6 to 14 of"),
        ([14] * 30 + [4] * 30, [10] * 60,
         "{}s went from 5.34e-05 to 1.53e-05 GiB/s (medians of the seconds 0 to 30 and 30 to 60"),
        ([2] * 30 + [0, 0, 1] * 10, [10] * 60, "{}s went from"),
        ([5] * 60, [10] * 30 + [40] * 30,
         "the p50 of {}s went from 9.96 to 39.8 ms (medians of the seconds 0 to 30 and 30 to 60"),
        ([14, 12, 15] * 20, [10, 12, 9] * 20, None),
        ([1, 0, 2, 0, 0, 1] * 10, [10] * 60, None),
    ],
)  # fmt: skip
def test_a_storage_of_few_operations_that_changes_is_not_steady(
    kind: str, operations: list[int], took_ms: list[int], words: str | None
) -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, series=series_with(kind, operations, took_ms))
    reported = [v.text for v in evaluate_trial(record, plan)[1] if v.code == "NOT_STEADY"]
    assert len(reported) == (words is not None)
    if words is not None:
        assert reported[0].startswith(words.format(kind))


def test_a_dip_in_the_middle_of_the_window_is_not_steady() -> None:
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0)])
    operations = [128] * 12 + [13] * 5 + [128] * 13
    record = replace(record, series=series_with("read", operations, [10] * 30))
    (reported,) = (v.text for v in evaluate_trial(record, plan)[1] if v.code == "NOT_STEADY")
    assert reported.startswith(
        "reads went from 0.000488 to 4.96e-05 GiB/s for a while (medians of the others and the"
        " seconds 12 to 17 of the window): figures of"
    )


def test_a_p99_that_doubles_is_not_steady() -> None:
    ledger = TimeSeriesLedger(0, None)
    for second in range(12):
        took_ms = [1] * 98 + [5 if second < 6 else 50] * 2
        done = np.full(100, second * 10**9, dtype=np.int64)
        bins = coarse_index(np.array(took_ms, dtype=np.int64) * 10**6)
        ledger.add("read", done, bins, np.full(100, PAGE, dtype=np.int64))
    plan = sound_plan()
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, series=series_of(12 * 10**9, [ledger]))
    (reported,) = (v.text for v in evaluate_trial(record, plan)[1] if v.code == "NOT_STEADY")
    assert reported.startswith("the p99 of reads went from")
    assert "p50" not in reported


def test_the_bandwidth_of_a_replay_is_its_traces() -> None:
    plan = sound_plan(trace=REPLAY)
    record = sound_record(plan, [rank_result(0)])
    record = replace(record, series=series_with("read", [128] * 3 + [38] * 3, [10] * 6))
    assert "NOT_STEADY" not in {v.code for v in evaluate_trial(record, plan)[1]}


def test_a_half_without_requests_says_nothing_about_steadiness() -> None:
    assert of_one(first_half_blocks=0, first_half_hits=0) == set()


# Depth 4 for 60 s and 1,500 operations are 160 ms each.
def slow(rank: int, factor: float, **changes: Any) -> RankResult:
    """A rank of n2 whose storage takes that much longer than that of others."""
    values: dict[str, Any] = {
        "host": "n2", "read_count": 0, "write_count": round(1_500 / factor),
        "average_queue_depth": 4.0,
    }  # fmt: skip
    return rank_result(rank, **values | changes)


@pytest.mark.parametrize(("factor", "codes"), [(4, set()), (4.1, {"SKEWED"}), (0.1, {"SKEWED"})])
def test_no_host_takes_four_times_as_long_for_an_operation(factor: float, codes: set[str]) -> None:
    assert judged([rank_result(0), slow(1, factor)])[0] == codes


def test_a_slow_host_is_named_with_both_times() -> None:
    plan = sound_plan(np=3)
    ranks = [rank_result(0), slow(1, 10), rank_result(2, host="n3")]
    _, (verdict,) = evaluate_trial(sound_record(plan, ranks), plan)
    assert (verdict.code, verdict.severity) == ("SKEWED", "invalid")
    assert verdict.text.startswith(
        "host n2 took 1.6e+03 ms for an operation where a typical one takes 160 ms"
    )


@pytest.mark.parametrize(("writes", "is_slow"), [(1_500, False), (150, True)])
def test_a_host_whose_work_takes_longer_is_slow_only_where_its_operations_are(
    writes: int, *, is_slow: bool
) -> None:
    # 10 s of work beside 60 s of it: 160 ms for an operation in both, or 1.6 s in one.
    plan = sound_plan(np=2, requests=200, duration_s=None)
    short = slow(0, 1, host="n1", write_count=250, stop_s=10.0)
    longer = slow(1, 1, write_count=writes, stop_s=60.0)
    codes, _ = judged([short, longer], plan, window_s=10.0)
    assert "UNEVEN" in codes
    assert ("SKEWED" in codes) == is_slow


def test_a_host_that_has_fewer_in_flight_is_not_slow() -> None:
    # As many operations less as there are fewer at a time: each takes no longer.
    assert judged([rank_result(0), slow(1, 10, average_queue_depth=0.4)])[0] == set()


def test_more_ranks_on_a_host_do_not_make_it_slow() -> None:
    ranks = [rank_result(0), *(slow(number, 1) for number in range(1, 9))]
    assert judged(ranks)[0] == set()


@pytest.mark.parametrize("writes", [30, 29, 1])
def test_a_host_that_did_next_to_nothing_is_slow(writes: int) -> None:
    assert judged([rank_result(0), slow(1, 1, write_count=writes)])[0] == {"SKEWED"}


def test_a_host_that_was_hardly_asked_for_anything_is_not_slow() -> None:
    idle = slow(1, 1, write_count=2, average_queue_depth=0.01)
    assert judged([rank_result(0), idle])[0] == set()


def test_an_unknown_depth_tells_nothing_of_a_host() -> None:
    assert judged([rank_result(0), slow(1, 10, average_queue_depth=None)])[0] == set()


def test_ranks_of_a_trace_are_not_compared() -> None:
    plan = sound_plan(np=2, trace=REPLAY)
    assert judged([rank_result(0), slow(1, 10)], plan)[0] == set()


@pytest.mark.parametrize(("factor", "codes"), [(4, set()), (4.1, {"SKEWED"}), (16, set())])
def test_ranks_of_one_host_are_compared_if_each_did_enough(factor: float, codes: set[str]) -> None:
    assert judged([slow(0, 1), slow(1, factor), slow(2, 1)])[0] == codes


def test_a_slow_rank_is_named_with_its_host() -> None:
    plan = sound_plan(np=2)
    _, (verdict,) = evaluate_trial(sound_record(plan, [slow(0, 1), slow(1, 10)]), plan)
    assert verdict.text.startswith(
        "rank 1 took 1.6e+03 ms for an operation where a typical rank of its host n2 takes 160 ms"
    )


# -- whether the load was right ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"offered": 1_000, "backlog": 50}, set()),
        ({"offered": 1_000, "backlog": 51}, {"OVERLOADED"}),
        ({"offered": 1_000, "dropped": 51}, {"OVERLOADED"}),
        ({"offered": 1_000, "dropped": 26, "backlog": 25}, {"OVERLOADED"}),
        ({"offered": 10, "backlog": 1}, set()),  # one request per rank is always under way
        ({"offered": 10, "backlog": 4}, set()),  # 1 was under way all the time: so are these
        ({"offered": 10, "backlog": 5}, {"OVERLOADED"}),
        ({"offered": 1_000, "backlog": 90, "generating": 40}, set()),
        ({"offered": 1_000, "backlog": 91, "generating": 40}, {"OVERLOADED"}),
        ({"offered": 1_000, "backlog": 20, "storing": 30}, set()),
        ({"offered": 1_000, "backlog": 20, "storing": 31}, {"OVERLOADED"}),
    ],
)
@pytest.mark.parametrize("loop", [{"trace": REPLAY}, POISSON])
def test_an_open_loop_that_is_not_followed_is_overloaded(
    loop: dict[str, Any], changes: dict[str, int], codes: set[str]
) -> None:
    assert of_one(sound_plan(**loop), **changes) == codes


@pytest.mark.parametrize(
    ("halves", "loop", "codes"),
    [
        ((10.0, 310.0), POISSON, set()),
        ((10.0, 310.1), POISSON, {"OVERLOADED"}),
        ((10.0, 310.1), {"trace": REPLAY}, {"OVERLOADED"}),
        ((310.1, 10.0), POISSON, set()),
        ((5_000.0, 5_000.0), POISSON, set()),  # long responses are no growth
        ((10.0, 310.1), {**POISSON, "arrival": "gamma"}, set()),
        ((10.0, 610.1), {**POISSON, "arrival": "gamma"}, {"OVERLOADED"}),
        ((10.0, 610.1), {}, set()),
        ((None, 610.1), POISSON, set()),
        ((10.0, None), POISSON, set()),
    ],
)
def test_a_queue_that_grows_by_more_than_chance_is_an_overload(
    halves: tuple[float | None, float | None], loop: dict[str, Any], codes: set[str]
) -> None:
    first, second = halves
    assert codes == of_one(
        sound_plan(**loop), offered=20_000, first_half_waiting=first, second_half_waiting=second
    )


def late(
    lags_ms: Sequence[float], *, before: int = 0, stop_s: float = 60.0, **loop: Any
) -> set[str]:
    """The codes of a trial of one rank whose requests were dealt with so late.

    ``before`` more came in the ramp; the rank answered the last one at ``stop_s``.
    """
    plan = sound_plan(**loop)
    lags = Histogram()
    lags.record(np.array([round(lag * 1e6) for lag in lags_ms], dtype=np.int64))
    offered = len(lags_ms) + before
    ranks = [rank_result(0, offered=offered, stop_s=stop_s, drained_s=stop_s + 0.5)]
    record = sound_record(plan, ranks)
    record = replace(record, histograms={**record.histograms, "scheduling_lag": lags})
    return {verdict.code for verdict in evaluate_trial(record, plan)[1]}


@pytest.mark.parametrize(
    ("requests", "lag_ms", "codes"),
    [
        (12_000, 9.0, set()),  # one every 5 ms, but an engine would not have seen it earlier
        (12_000, 12.0, {"LATE_REPLAY"}),
        (600, 90.0, set()),  # one every 100 ms: still before the next one's turn
        (600, 115.0, {"LATE_REPLAY"}),
    ],
)
def test_a_replay_whose_requests_came_late_was_not_the_recorded_load(
    requests: int, lag_ms: float, codes: set[str]
) -> None:
    lags = [lag_ms] * requests
    assert late(lags, trace=replace(REPLAY, span_s=60.0)) == codes
    assert late(lags, **POISSON) == set()  # its times were recorded nowhere


@pytest.mark.parametrize(("lag_ms", "codes"), [(15.0, set()), (23.0, {"LATE_REPLAY"})])
def test_what_came_in_the_ramp_makes_no_request_of_the_window_late(
    lag_ms: float, codes: set[str]
) -> None:
    """One every 20 ms, of which the ramp has as many as the window."""
    asked: dict[str, Any] = {"ramp_s": 60.0, "duration_s": 60.0}
    trace = replace(REPLAY, span_s=600.0)
    assert late([lag_ms] * 3_000, before=3_000, stop_s=120.0, trace=trace, **asked) == codes


def test_a_long_wait_for_the_last_answers_makes_no_late_request_one_in_time() -> None:
    """One every 5 ms within 60 s, and then a minute until all were answered."""
    trace = replace(REPLAY, span_s=60.0)
    found = late([8.0] * 11_000 + [12.0] * 1_000, stop_s=300.0, trace=trace, duration_s=None)
    assert "LATE_REPLAY" in found


@pytest.mark.parametrize(("late_ones", "codes"), [(24, set()), (60, {"LATE_REPLAY"})])
def test_a_few_late_requests_leave_the_recorded_load_as_it_is(
    late_ones: int, codes: set[str]
) -> None:
    assert late([0.1] * (600 - late_ones) + [500.0] * late_ones, trace=REPLAY) == codes


def test_the_queues_of_all_ranks_are_one() -> None:
    half = rank_result(0, offered=10_000, first_half_waiting=0.0, second_half_waiting=150.1)
    plan = sound_plan(np=2, **POISSON)
    assert judged([half, replace(half, rank=1)], plan)[0] == {"OVERLOADED"}
    assert judged([half, rank_result(1, offered=10_000)], plan)[0] == set()


def text_of(code: str, plan: Plan, **changes: Any) -> str:
    _trial, verdicts = evaluate_trial(sound_record(plan, [rank_result(0, **changes)]), plan)
    (text,) = (verdict.text for verdict in verdicts if verdict.code == code)
    return text


@pytest.mark.parametrize(
    ("loop", "option"), [({"trace": REPLAY}, "--kv-trace-speedup"), (POISSON, "--kv-request-rate")]
)
def test_an_open_loop_is_told_which_option_makes_it_faster_or_slower(
    loop: dict[str, Any], option: str
) -> None:
    plan = sound_plan(**loop)
    text = text_of("OVERLOADED", plan, backlog=100)
    assert f"lower {option}, or take faster" in text
    assert "requests 100 were not done with when the last one had come (100 unanswered); " in text
    idle = text_of("UNSATURATED", plan, average_queue_depth=0.1)
    assert idle.endswith(f"raise {option} to find the limit")
    assert "the load's speed" in text_of("UNSATURATED", sound_plan(), average_queue_depth=0.1)


def test_arrivals_of_a_plugins_own_are_an_open_loop() -> None:
    arrived = Histogram()
    arrived.record(np.full(200, 1_000, dtype=np.int64))
    plan, ranks = sound_plan(), [rank_result(0, backlog=100)]
    record = sound_record(plan, ranks)
    record = replace(record, histograms={**record.histograms, "scheduling_lag": arrived})
    codes = {verdict.code for verdict in evaluate_trial(record, plan)[1]}
    assert codes == {"OVERLOADED"}


@pytest.mark.parametrize("trace", [None, replace(REPLAY, speedup=0.0)])
def test_a_closed_loop_is_never_overloaded(trace: TracePlan | None) -> None:
    assert of_one(sound_plan(trace=trace), offered=1_000, backlog=500) == set()


@pytest.mark.parametrize(
    ("depths", "codes"),
    [
        ([2.0], set()),
        ([1.99], {"UNSATURATED"}),
        ([3.0, 1.0], set()),
        ([2.5, 1.0], {"UNSATURATED"}),
        ([None], set()),
        ([None, 1.0], {"UNSATURATED"}),
    ],
)
def test_less_than_half_the_queue_depth_is_unsaturated(
    depths: list[float | None], codes: set[str]
) -> None:
    ranks = [rank_result(n, average_queue_depth=depth) for n, depth in enumerate(depths)]
    assert judged(ranks, sound_plan(np=len(ranks), queue_depth=4))[0] == codes


def with_queue(record: TrialRecord, waited_ns: int) -> TrialRecord:
    waits = Histogram()
    count = record.histograms["queue"].count
    waits.record(np.full(count, waited_ns, dtype=np.int64))
    return replace(record, histograms={**record.histograms, "queue": waits})


# 1,000 reads of 1 ms and 500 writes of 2 ms are served in 1.33 ms on average.
@pytest.mark.parametrize(
    ("waited_ns", "average_queue_depth", "codes"),
    [
        (1_330_000, 4.0, set()),
        (1_340_000, 4.0, {"SATURATED"}),
        (12_658_000_000, None, {"SATURATED"}),
        (12_658_000_000, 1.9, {"UNSATURATED"}),
    ],
)
def test_operations_that_wait_longer_than_they_are_served_are_queueing(
    waited_ns: int, average_queue_depth: float | None, codes: set[str]
) -> None:
    plan = sound_plan(queue_depth=4)
    record = with_queue(
        sound_record(plan, [rank_result(0, average_queue_depth=average_queue_depth)]), waited_ns
    )
    _trial, verdicts = evaluate_trial(record, plan)
    assert {verdict.code for verdict in verdicts} == codes
    if "SATURATED" in codes and waited_ns > 10**9:
        assert "waited 12,658 ms (p95 12," in verdicts[0].text
        assert "load.* and request.* are mostly queueing" in verdicts[0].text
        assert "fewer --kv-num-users" in verdicts[0].text
        assert "the limit, at it, of the storage and of whatever else the verdicts name." in (
            verdicts[0].text
        )
    if "UNSATURATED" in codes:
        assert "operations still waited 12,658 ms on average" in verdicts[0].text


# Served in 1.33 ms on average, as above; of 512 objects a direction's batch may have 256.
@pytest.mark.parametrize(
    ("waited_ns", "average_queue_depth", "codes"),
    [
        (116_000_000, 27.5, {"SATURATED"}),
        (1_340_000, 27.5, {"SATURATED"}),
        (1_330_000, 27.5, set()),
        (670_000, 27.5, set()),
        (660_000, 27.5, {"UNSATURATED"}),
        (0, 300.0, set()),
    ],
)
def test_batches_are_judged_by_how_long_operations_waited_for_another_ones(
    waited_ns: int, average_queue_depth: float, codes: set[str]
) -> None:
    plan = sound_plan(engine="sglang-nixl", queue_depth=512)
    assert plan.workers is not None
    assert plan.workers.batches
    rank = rank_result(0, average_queue_depth=average_queue_depth)
    verdicts = evaluate_trial(with_queue(sound_record(plan, [rank]), waited_ns), plan)[1]
    told = {each.code: each.text for each in verdicts}
    assert told.keys() & {"SATURATED", "UNSATURATED"} == codes
    if codes == {"SATURATED"}:
        text = told["SATURATED"]
        assert "on average, a batch of one request at a time (27.5 transfers in flight): " in text
        assert "this is the limit of one batch at a time, and the storage may do more" in text
        assert text.endswith("For latency fewer --kv-num-users, for more bandwidth more ranks")


@pytest.mark.parametrize(
    ("average_queue_depth", "said"),
    [
        (8.6, "on average, 17 at a time: load.* and request.* are mostly queueing"),
        (8.4, "8.4 of 17 transfers were in flight per rank on average"),
    ],
)
def test_a_bucket_is_one_call_of_the_seventeen_that_may_be_in_flight(
    average_queue_depth: float, said: str
) -> None:
    plan = sound_plan(engine="mooncake-bucket", io="buffered", queue_depth=1000)
    rank = rank_result(0, average_queue_depth=average_queue_depth, staged_hit_blocks=0)
    verdicts = evaluate_trial(with_queue(sound_record(plan, [rank]), 10**8), plan)[1]
    (text,) = (each.text for each in verdicts if "SATURATED" in each.code)
    assert said in text
    assert "--kv-queue-depth" not in text


def test_one_bucket_that_is_always_written_is_what_the_engine_can_do() -> None:
    plan = sound_plan(engine="mooncake-bucket", io="buffered", queue_depth=1000)
    rank = rank_result(0, average_queue_depth=1.0, staged_hit_blocks=0)

    def told(write_ms: int) -> dict[str, str]:
        record = with_queue(sound_record(plan, [rank]), 10**12)
        spent = Histogram()
        spent.record(np.full(rank.write_count, write_ms * 10**6, dtype=np.int64))
        record = replace(record, histograms=dict(record.histograms) | {"write": spent})
        return {each.code: each.text for each in evaluate_trial(record, plan)[1]}

    buckets = rank.write_count / plan.bucket_blocks
    half_ms = math.ceil(30_000 / buckets)
    assert "a bucket that is written at a time: load.*" in told(2 * half_ms)["SATURATED"]
    assert "UNSATURATED" in told(half_ms // 2)


def test_an_overloaded_trial_is_not_called_saturated_as_well() -> None:
    plan = sound_plan(**POISSON)
    record = sound_record(plan, [rank_result(0, backlog=100)])
    codes = {v.code for v in evaluate_trial(with_queue(record, 10**9), plan)[1]}
    assert codes == {"OVERLOADED"}


@pytest.mark.parametrize(("waited_ns", "at_storage"), [(10**9, True), (1_000, False)])
def test_requests_in_bursts_wait_for_the_storage_that_is_idle_between_them(
    waited_ns: int, *, at_storage: bool
) -> None:
    plan = sound_plan(trace=REPLAY)
    record = sound_record(plan, [rank_result(0, backlog=100, average_queue_depth=0.5)])
    (verdict,) = evaluate_trial(with_queue(record, waited_ns), plan)[1]
    assert verdict.code == "OVERLOADED"
    assert ("the storage can't follow" in verdict.text) == at_storage
    assert "--kv-num-users" not in verdict.text  # a trace's are its own


# Requests naturally under way at the end of a window of seconds, few of them at a time.
@pytest.mark.parametrize(
    ("left", "offered", "in_flight"), [(3, 50, 3.1), (3, 41, 4.1), (11, 33, 6.1)]
)
def test_the_end_of_a_short_window_is_no_overload(
    left: int, offered: int, in_flight: float
) -> None:
    plan = sound_plan(np=2, users=8, queue_depth=16, request_rate=5.0, arrival="poisson")
    half = {"average_queue_depth": in_flight, "first_half_waiting": 1.0, "second_half_waiting": 1.5}
    ranks = [
        rank_result(0, offered=offered, completed=offered - left, completed_in_window=1,
                    backlog=left, **half),
        rank_result(1, offered=0, completed=0, completed_in_window=0, **half),
    ]  # fmt: skip
    assert judged(ranks, plan)[0] == {"UNSATURATED"}


@pytest.mark.parametrize(
    ("offered", "backlog", "halves", "average_queue_depth", "codes"),
    [
        # Twice what it takes: 3 s at 20 requests/s leave 30, and so does a minute.
        (60, 30, (7.5, 22.5), 4.0, {"OVERLOADED"}),
        (1_200, 600, (150.0, 450.0), 4.0, {"OVERLOADED"}),
        # Long responses with as many under way at the end as ever.
        (1_200, 500, (500.0, 510.0), 4.0, set()),
        # A storage that has little to do and a pile all the same: more than one per user.
        (200, 50, (1.0, 2.0), 0.5, {"OVERLOADED"}),
        (200, 14, (1.0, 2.0), 0.5, {"UNSATURATED"}),
    ],
)
def test_what_was_always_under_way_is_no_pile(
    offered: int,
    backlog: int,
    halves: tuple[float, float],
    average_queue_depth: float,
    codes: set[str],
) -> None:
    plan = sound_plan(users=15, queue_depth=4, **POISSON)
    rank = rank_result(
        0, offered=offered, completed=offered - backlog, completed_in_window=1, backlog=backlog,
        first_half_waiting=halves[0], second_half_waiting=halves[1],
        average_queue_depth=average_queue_depth,
    )  # fmt: skip
    assert judged([rank], plan)[0] == codes


def test_a_full_storage_is_given_less_of_chance() -> None:
    plan = sound_plan(users=8, queue_depth=4, **POISSON)
    rank = rank_result(
        0, offered=31, completed=14, completed_in_window=14, backlog=17, average_queue_depth=3.9,
        first_half_waiting=9.2, second_half_waiting=18.5,
    )  # fmt: skip
    record = sound_record(plan, [rank])
    assert {v.code for v in evaluate_trial(record, plan)[1]} == set()
    codes = {v.code for v in evaluate_trial(with_queue(record, 10**9), plan)[1]}
    assert codes == {"OVERLOADED"}


def test_few_users_that_wait_for_each_other_are_told_to_be_few() -> None:
    plan = sound_plan(users=8, queue_depth=16, **POISSON)
    reported = text_of("UNSATURATED", plan, average_queue_depth=3.0, first_half_waiting=5.0)
    assert "8 users per rank are so few that their requests wait for each other" in reported
    assert "more --kv-num-users" in reported
    assert "so few" not in text_of(
        "UNSATURATED", plan, average_queue_depth=3.0, first_half_waiting=3.0
    )


def test_a_late_harness_is_no_matter_of_few_users() -> None:
    late = Histogram()
    late.record(np.full(200, 10**9, dtype=np.int64))
    plan = sound_plan(users=30, queue_depth=16, **POISSON)
    record = sound_record(plan, [rank_result(0, backlog=25, average_queue_depth=1.0)])
    assert {v.code for v in evaluate_trial(record, plan)[1]} == {"UNSATURATED"}
    record = replace(record, histograms={**record.histograms, "scheduling_lag": late})
    assert {v.code for v in evaluate_trial(record, plan)[1]} == {"OVERLOADED"}


@pytest.mark.thorough
@settings(deadline=None, max_examples=60)
@given(
    offered=st.integers(1, 2_000), share=st.floats(0, 1),
    halves=st.tuples(*[st.floats(0, 500)] * 2), depth=st.floats(0, 4),
    users=st.integers(1, 100), dropped=st.integers(0, 3),
)  # fmt: skip
def test_at_most_one_thing_is_said_of_the_load(
    *,
    offered: int,
    share: float,
    halves: tuple[float, float],
    depth: float,
    users: int,
    dropped: int,
) -> None:
    backlog = int(offered * share)
    plan = sound_plan(users=users, queue_depth=4, **POISSON)
    rank = rank_result(
        0, offered=offered, backlog=backlog, dropped=dropped, average_queue_depth=depth,
        first_half_waiting=halves[0], second_half_waiting=halves[1],
        completed=0, completed_in_window=0,
    )  # fmt: skip
    record = with_queue(sound_record(plan, [rank]), 10**9)
    codes = [v.code for v in evaluate_trial(record, plan)[1]]
    said = [code for code in codes if code in ("OVERLOADED", "UNSATURATED", "SATURATED")]
    assert len(said) == 1
    assert dropped == 0 or said == ["OVERLOADED"]


def test_many_faults_are_all_reported() -> None:
    plan = sound_plan(trace=REPLAY, duration_s=60.0)
    ranks = [
        rank_result(0, device_read_bytes=0, backlog=100, first_half_hits=0, average_queue_depth=0.1)
    ]
    codes, proof = judged(ranks, plan, window_s=10.0)
    assert codes == {
        "CACHED_READS", "SHORT_WINDOW", "SKEWED", "NOT_STEADY", "OVERLOADED",
    }  # fmt: skip
    assert proof == "CACHED_READS"


# -- pauses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longest_pause_s", "codes"), [(None, set()), (0.0, set()), (1.0, set()), (1.1, {"PAUSED"})]
)
def test_a_rank_that_was_paused_is_reported(longest_pause_s: float | None, codes: set[str]) -> None:
    assert of_one(longest_pause_s=longest_pause_s) == codes


def test_the_rank_that_stood_still_longest_is_named_with_its_host() -> None:
    ranks = [
        rank_result(0, longest_pause_s=2.0),
        rank_result(1, host="n2", longest_pause_s=3.25),
        rank_result(2, longest_pause_s=None),
    ]
    plan = sound_plan(np=3)
    trial, verdicts = evaluate_trial(sound_record(plan, ranks), plan)
    (verdict,) = [verdict for verdict in verdicts if verdict.code == "PAUSED"]
    assert verdict.text.startswith("rank 1 on host n2 was paused for 3.2 s in the window")
    assert trial.counters.longest_pause_s == 3.25


def test_a_pause_that_nobody_knows_is_null() -> None:
    plan = sound_plan()
    trial, _ = evaluate_trial(sound_record(plan, [rank_result(0, longest_pause_s=None)]), plan)
    assert trial.counters.longest_pause_s is None


# -- which of several trials has it worst ---------------------------------------------------


def size_in(code: str, changes: dict[str, Any]) -> float | None:
    """The size of a verdict that a trial of one such rank has."""
    changes, plan = dict(changes), sound_plan()
    window_s = changes.pop("window_s", 60.0)
    record = sound_record(plan, [rank_result(0, **changes)], window_s=window_s)
    trial, verdicts = evaluate_trial(record, plan)
    assert code in {verdict.code for verdict in verdicts}
    return size_of(code, trial)


def stood_still(*lengths_s: float) -> dict[str, Any]:
    return {"stalls": tuple(Stall(kind="every", begin_s=20.0 * n, end_s=20.0 * n + length_s)
                            for n, length_s in enumerate(lengths_s))}  # fmt: skip


def disk_of_others(**moved: Any) -> dict[str, Any]:
    read_bytes = 6_000 * MIB + moved.pop("more", 0)
    return {**BIG, "device": watch(read_bytes=read_bytes, write_bytes=600 * MIB, **moved)}


ALWAYS_BUSY = {"read_ops": 5_000, "busy_s": 0.45}


@pytest.mark.parametrize(
    ("code", "mild", "bad"),
    [
        ("STALL", stood_still(5.0), stood_still(4.0, 4.0)),
        ("PAUSED", {"longest_pause_s": 1.5}, {"longest_pause_s": 9.0}),
        ("SHORT_WINDOW", {"window_s": 20.0}, {"window_s": 10.0}),
        ("UNSATURATED", {"average_queue_depth": 1.5}, {"average_queue_depth": 0.5}),
        ("BUSY_DEVICE", disk_of_others(more=600 * MIB), disk_of_others(more=6_000 * MIB)),
        ("BUSY_DEVICE", disk_of_others(more=600 * MIB), disk_of_others(quiet=ALWAYS_BUSY)),
        (
            "CACHED_READS",
            disk_of_others() | {"device_read_bytes": 5_000 * MIB},
            disk_of_others() | {"device_read_bytes": 0},
        ),
        (
            "THROTTLED",
            {"surroundings": surroundings(steal_s=3.0)},
            {"surroundings": surroundings(steal_s=30.0)},
        ),
    ],
)
def test_the_worse_of_two_trials_has_the_larger_size(
    code: str, mild: dict[str, Any], bad: dict[str, Any]
) -> None:
    smaller, larger = size_in(code, mild), size_in(code, bad)
    assert smaller is not None
    assert larger is not None
    assert smaller < larger


def test_what_has_no_number_has_no_size() -> None:
    assert size_in("TMPFS", {"filesystem": IN_MEMORY}) is None
    limited = surroundings(memory_limit_hits=6_000)
    assert size_in("THROTTLED", {"surroundings": limited}) is None


def test_the_answer_of_a_search_that_does_not_hold_is_no_result() -> None:
    plan = sound_plan(search=("load.p95_ms<5", "cache.hit_ratio>0.6"), users=17)
    trial, (verdict,) = evaluate_trial(sound_record(plan, [rank_result(0)]), plan)
    assert trial.users.per_rank is None
    assert (verdict.code, verdict.severity) == ("UNCONFIRMED", "invalid")
    assert verdict.text.startswith(
        "17 users per rank kept the objectives in the search, and launched again they do not:"
        " cache.hit_ratio>0.6 (it is 0.5); lengthen"
    )
    held = replace(plan, search=("load.p95_ms<5",))
    trial, verdicts = evaluate_trial(sound_record(held, [rank_result(0)]), held)
    assert (trial.users.per_rank, trial.users.in_all, verdicts) == (17, 17, ())
    step = replace(plan, search_step=True)
    assert evaluate_trial(sound_record(step, [rank_result(0)]), step)[1] == ()
