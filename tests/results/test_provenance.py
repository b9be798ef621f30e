"""What two results are of, and what is said where it is not the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.provenance import (
    LEAVES_REQUESTS,
    Provenance,
    both_cautions,
    cautions,
    describe_differences,
    differences,
    incomparable,
    provenance_of,
    uncertain,
)
from pytest_kvcache.results.verdictcodes import INVALIDATING, Verdict
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.workloads.scenarios import TABLE
from tests.factories import FILESYSTEM, SMALL, make_plan, rank_result, sound_plan, sound_record
from tests.series import STORAGE

if TYPE_CHECKING:
    from pytest_kvcache.results.record import RankResult

GIB = 1 << 30
DISK: dict[str, Any] = {
        "type": "ext4", "source": "/dev/vda1", "device": "vda", "device_model": None,
        "total_bytes": 50 * GIB, "options": "rw,relatime",
        "chain": [{"name": "ext4", "kind": "filesystem", "above": None},
                  {"name": "vda1", "kind": "partition", "above": 0},
                  {"name": "vda", "kind": "disk", "above": 1}]}  # fmt: skip
ON_LUKS = [DISK["chain"][0], {"name": "dm-0", "kind": "dm", "above": 0},
           *({**link, "above": link["above"] + 1} for link in DISK["chain"][1:])]  # fmt: skip
MIRROR = [DISK["chain"][0], {"name": "md0", "kind": "md", "above": 0},
          {"name": "sda", "kind": "disk", "above": 1},
          {"name": "sdb", "kind": "disk", "above": 1}]  # fmt: skip
PLAN = {"users": 8, "model": {"layers": 2}, "data": "normal", "queue_depth": 16}
ENVIRONMENT = {"python": "3.12.1", "kernel": "6.1", "mpi": "Open MPI", "version": "1.0"}


def rank(number: int, host: str = "n1", **filesystem: Any) -> RankResult:
    facts = FilesystemFacts.from_json({**FILESYSTEM, **DISK, "host": host, **filesystem})
    return rank_result(number, host=host, filesystem=facts)


def case(
    *ranks: RankResult, hits: float = 0.9, verdicts: tuple[str, ...] = ()
) -> list[TrialResult]:
    found = ranks or (rank(0),)
    plan = sound_plan(np=len(found))
    measured = trial_of(sound_record(plan, found), plan)
    trial = TrialResult(
        index=0,
        error=None,
        verdicts=tuple(Verdict(code=code, severity="warning", text="") for code in verdicts),
        measured=replace(measured, cache=replace(measured.cache, hit_ratio=hits)),
    )
    return [trial, trial]


def provenance(*ranks: RankResult, plan: Any = None, **more: Any) -> Provenance:
    return provenance_of(case(*ranks, **more), plan or PLAN, ENVIRONMENT)


SAME = provenance()


def test_equal_runs_differ_in_nothing() -> None:
    assert differences(SAME, provenance()) == []
    assert list(describe_differences(SAME, provenance())) == []
    assert incomparable(SAME, provenance()) is None
    assert SAME.is_known


@pytest.mark.parametrize(
    ("now", "kind", "text"),
    [
        (provenance(plan={**PLAN, "queue_depth": 1}), "plan", "queue_depth 16 -> 1"),
        (provenance(plan={**PLAN, "data": "strict"}), "plan", "data normal -> strict"),
        (provenance(plan={**PLAN, "model": {"layers": 3}}), "plan", "model.layers 2 -> 3"),
        (provenance(rank(0), rank(1)), "placement", "ranks per host 1 -> 2"),
        (provenance(rank(0, device="vdb")), "device", "device vda -> vdb"),
        (provenance(rank(0, device_model="X 9")), "device", "device vda -> vda (X 9)"),
        (
            provenance(rank(0, chain=ON_LUKS)),
            "device",
            "layers partition on disk -> dm on partition on disk",
        ),
        (
            provenance(rank(0, chain=MIRROR)),
            "device",
            "layers partition on disk -> md on (disk + disk)",
        ),
        (
            provenance(rank(0, options="rw,relatime,nobarrier")),
            "filesystem",
            "mount options without nobarrier -> nobarrier",
        ),
        (
            provenance(rank(0, options="relatime,barrier=0,rw")),
            "filesystem",
            "mount options without nobarrier -> nobarrier",
        ),
        (
            provenance(rank(0, options="rw,noatime,data=journal")),
            "filesystem",
            "mount options relatime -> data=journal,noatime",
        ),
        (
            provenance(replace(rank(0), io_mode="buffered")),
            "filesystem",
            "io mode direct -> buffered",
        ),
        (provenance(rank(0, type="xfs")), "filesystem", "ext4 of 50 GiB -> xfs of 50 GiB"),
        (provenance(rank(0, total_bytes=9 * GIB)), "filesystem", "ext4 of 50 GiB -> ext4 of 9 GiB"),
    ],
)
def test_another_setting_or_storage_is_named_and_closes(
    now: Provenance, kind: str, text: str
) -> None:
    (difference,) = differences(SAME, now)
    assert difference.kind == kind
    assert text in str(difference)
    assert text in (incomparable(SAME, now) or "")
    assert incomparable(SAME, now, frozenset({kind})) is None
    assert list(describe_differences(SAME, now)) == [f"{kind}: {difference}"]


def test_another_io_engine_is_reported_and_closes_nothing() -> None:
    now = provenance(replace(rank(0), io_engine="threads"))
    assert list(describe_differences(SAME, now)) == ["software: io engine io_uring -> threads"]
    assert incomparable(SAME, now) is None


@pytest.mark.parametrize("options", ["relatime,rw", "rw,relatime,barrier=1,nosuid,seclabel"])
def test_options_in_another_order_or_of_rights_alone_are_no_difference(options: str) -> None:
    assert differences(SAME, provenance(rank(0, options=options))) == []


def test_a_mount_that_differs_on_one_of_two_hosts_is_a_difference() -> None:
    before = provenance(rank(0), rank(1, "n2"))
    now = provenance(rank(0), rank(1, "n2", options="rw,relatime,nobarrier"))
    (difference,) = differences(before, now)
    assert (
        str(difference)
        == "mount options without nobarrier (1 of 2 hosts) -> nobarrier (1 of 2 hosts)"
    )
    one_trial = provenance_of(
        case(rank(0), rank(1, "n2", options="rw,nobarrier"))[:1], PLAN, ENVIRONMENT
    )
    two_trials = provenance(rank(0), rank(1, "n2", options="rw,nobarrier"))
    assert differences(one_trial, two_trials) == []


def test_what_an_older_baseline_does_not_tell_is_said_and_closes_nothing() -> None:
    facts = {**(SAME.facts or {}), "device": {"device": "vda"},
             "filesystem": {"filesystem": "ext4 of 50 GiB"}}  # fmt: skip
    older = replace(SAME, facts=facts)
    now = provenance(rank(0, chain=ON_LUKS, options="rw,nobarrier"))
    assert incomparable(older, now) is None
    assert list(describe_differences(older, now)) == [
        "device: the baseline does not tell its layers; record it anew",
        "filesystem: the baseline does not tell its mount options, io mode; record it anew",
    ]
    assert list(describe_differences(older, STORAGE)) == []


def test_four_ranks_on_one_host_are_not_one_on_each_of_four() -> None:
    one_host = provenance(*map(rank, range(4)))
    four_hosts = provenance(*(rank(number, f"n{number}") for number in range(4)))
    placement, hosts = differences(one_host, four_hosts)
    assert (placement.kind, str(placement)) == ("placement", "ranks per host 4 -> 1 + 1 + 1 + 1")
    assert hosts.kind == "hosts"


@pytest.mark.parametrize(
    ("name", "value"), [("python", "3.13.0"), ("kernel", "6.18"), ("version", "2.0")]
)
def test_other_software_is_named_and_closes_nothing(name: str, value: str) -> None:
    now = provenance_of(case(), PLAN, {**ENVIRONMENT, name: value})
    (line,) = describe_differences(SAME, now)
    assert line == f"software: {name} {ENVIRONMENT[name]} -> {value}"
    assert incomparable(SAME, now) is None


def test_what_a_side_does_not_know_is_no_difference() -> None:
    memory = replace(rank(0), filesystem=None, device=None)
    assert differences(SAME, provenance(memory)) == []
    assert differences(SAME, replace(SAME, facts=None)) == []
    assert list(describe_differences(SAME, STORAGE)) == []


def test_a_server_that_lends_its_space_is_known_by_its_name_not_by_its_size() -> None:
    share: dict[str, Any] = {"type": "nfs4", "source": "server:/export", "device": None}
    before = provenance(rank(0, **share))
    assert differences(before, provenance(rank(0, **share, total_bytes=9 * GIB))) == []
    other = provenance(rank(0, **{**share, "source": "server:/other"}))
    (difference,) = differences(before, other)
    assert "nfs4 from server:/export -> nfs4 from server:/other" in str(difference)


def test_of_two_runs_that_did_the_same_requests_equal_hits_are_stated() -> None:
    same = {"scenario": "chat", "seed": 1}
    fixed, longer, timed = (
        provenance(plan={**PLAN, **same, "requests": requests}) for requests in (5, 6, None)
    )
    stated = "hit ratio: 0.900 on both sides, which did the same requests"
    assert list(describe_differences(fixed, fixed)) == [stated]
    assert list(describe_differences(timed, timed)) == []
    assert stated not in list(describe_differences(fixed, longer))
    moved = provenance(plan={**PLAN, **same, "requests": 5}, hits=0.8)
    (line,) = describe_differences(fixed, moved)
    assert line.startswith("hit ratio: 0.900 -> 0.800")


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"context_scale": 0.5}, False),
        ({"reread_factor": 2}, False),
        ({"phase": "prefill"}, False),
        ({"block_tokens": 32}, False),
        ({"tensor_parallel": 2}, False),
        ({"np": 3}, False),
        ({"users": 3}, False),
        ({"seed": 7}, False),
        ({"model": replace(SMALL, layers=2)}, False),
        ({"dialogues": TABLE.dialogues("chat", multi_turn=False)}, False),
        ({"dialogues": TABLE.dialogues("chat", enable_rag=True)}, False),
        ({"io": "buffered", "sync": "data", "verify": "off"}, True),
        ({"queue_depth": 3}, True),
        ({"capacity_blocks": 300}, True),
        ({"backend": "file", "precondition_bytes": 4096}, True),
    ],
)
def test_only_equal_requests_are_called_the_same(changes: dict[str, Any], *, is_same: bool) -> None:
    """Whatever of the plan makes other requests, equal hits of them say nothing."""
    asked = {"requests": 5, "duration_s": None, "ramp_s": 0.0}
    one, other = (
        provenance(plan=make_plan(**{**asked, **each}).workload) for each in ({}, changes)
    )
    lines = describe_differences(one, other)
    assert any("which did the same requests" in line for line in lines) == is_same


def test_what_leaves_the_requests_as_they_are_is_of_the_plan() -> None:
    assert set(make_plan().workload) >= LEAVES_REQUESTS


@pytest.mark.parametrize(("hits", "lines"), [(0.895, 0), (0.85, 1), (0.95, 1)])
def test_a_hit_ratio_that_moved_is_reported(hits: float, lines: int) -> None:
    found = list(describe_differences(SAME, provenance(hits=hits)))
    assert len(found) == lines
    assert all(line.startswith("hit ratio: 0.900 -> ") for line in found)


@pytest.mark.parametrize(
    "code",
    ["STALL", "BUSY_DEVICE", "LATE_REPLAY", "LATE_STAMPS", "NOT_STEADY", "PAUSED", "THROTTLED"],
)
def test_a_disturbance_of_one_side_makes_it_uncertain(code: str) -> None:
    disturbed = provenance(verdicts=(code,))
    assert f"only this run has {code}" in (uncertain(SAME, disturbed) or "")
    assert f"only the baseline has {code}" in (uncertain(disturbed, SAME) or "")
    assert uncertain(disturbed, disturbed) is None
    assert f"both sides had {code}:" in both_cautions(disturbed, disturbed)
    assert both_cautions(SAME, disturbed) == ""
    assert both_cautions(Provenance(), disturbed) == f"this run had {code}, of the other is unknown"
    assert both_cautions(Provenance(), Provenance()) == ""
    assert list(describe_differences(SAME, disturbed)) == [f"verdicts: only this run has {code}"]


@pytest.mark.parametrize("code", ["UNPROVEN", "WARM_METADATA"])
def test_what_only_one_side_proves_makes_it_uncertain(code: str) -> None:
    unproven = provenance(verdicts=(code,))
    assert f"only this run has {code}, so its figures may be of a cache" in (
        uncertain(SAME, unproven) or ""
    )
    assert f"only the baseline has {code}" in (uncertain(unproven, SAME) or "")
    assert uncertain(unproven, unproven) is None
    assert list(describe_differences(SAME, unproven)) == [f"verdicts: only this run has {code}"]


@pytest.mark.parametrize(
    "code", ["NOT_STORAGE", "UNPROVEN", "WARM_METADATA", *sorted(INVALIDATING)]
)
def test_what_may_be_no_figure_of_the_storage_is_reported_of_both_sides_and_of_one(
    code: str,
) -> None:
    odd = provenance(verdicts=(code, "SHORT_WINDOW"))
    assert both_cautions(odd, odd) == (
        f"both sides had {code}: what they compare may not be the storage's"
    )
    assert cautions(odd) == f"this run had {code}: its figures may not be the storage's"
    assert both_cautions(Provenance(), odd) == f"this run had {code}, of the other is unknown"
    assert cautions(SAME) == cautions(Provenance()) == ""
    busy = provenance(verdicts=(code, "STALL"))
    assert cautions(busy) == f"this run had STALL; {cautions(odd)}"


@pytest.mark.parametrize("now", [SAME, provenance(rank(0, type="xfs")), STORAGE, Provenance()])
def test_provenance_reads_back_from_its_json(now: Provenance) -> None:
    assert Provenance.from_json(now.to_json()) == now
