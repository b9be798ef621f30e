"""What two results are of, and what is said where it is not the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.provenance import (
    Evidence,
    both_cautions,
    cautions,
    differences,
    evidence_of,
    incomparable,
    told_differences,
    uncertain,
)
from pytest_kvcache.results.verdictcodes import INVALIDATING, Verdict
from pytest_kvcache.system.filesystem import FilesystemFacts
from tests.factories import FILESYSTEM, rank_result, sound_plan, sound_record
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


def evidence(*ranks: RankResult, plan: Any = None, **more: Any) -> Evidence:
    return evidence_of(case(*ranks, **more), plan or PLAN, ENVIRONMENT)


SAME = evidence()


def test_equal_runs_differ_in_nothing() -> None:
    assert differences(SAME, evidence()) == []
    assert list(told_differences(SAME, evidence())) == []
    assert incomparable(SAME, evidence()) is None
    assert SAME.is_told


@pytest.mark.parametrize(
    ("now", "kind", "text"),
    [
        (evidence(plan={**PLAN, "queue_depth": 1}), "plan", "queue_depth 16 -> 1"),
        (evidence(plan={**PLAN, "data": "strict"}), "plan", "data normal -> strict"),
        (evidence(plan={**PLAN, "model": {"layers": 3}}), "plan", "model.layers 2 -> 3"),
        (evidence(rank(0), rank(1)), "placement", "ranks per host 1 -> 2"),
        (evidence(rank(0, device="vdb")), "device", "device vda -> vdb"),
        (evidence(rank(0, device_model="X 9")), "device", "device vda -> vda (X 9)"),
        (
            evidence(rank(0, chain=ON_LUKS)),
            "device",
            "layers partition on disk -> dm on partition on disk",
        ),
        (
            evidence(rank(0, chain=MIRROR)),
            "device",
            "layers partition on disk -> md on (disk + disk)",
        ),
        (
            evidence(rank(0, options="rw,relatime,nobarrier")),
            "filesystem",
            "mount options without nobarrier -> nobarrier",
        ),
        (
            evidence(rank(0, options="relatime,barrier=0,rw")),
            "filesystem",
            "mount options without nobarrier -> nobarrier",
        ),
        (
            evidence(rank(0, options="rw,noatime,data=journal")),
            "filesystem",
            "mount options relatime -> data=journal,noatime",
        ),
        (
            evidence(replace(rank(0), io_mode="buffered")),
            "filesystem",
            "io mode direct -> buffered",
        ),
        (evidence(rank(0, type="xfs")), "filesystem", "ext4 of 50 GiB -> xfs of 50 GiB"),
        (evidence(rank(0, total_bytes=9 * GIB)), "filesystem", "ext4 of 50 GiB -> ext4 of 9 GiB"),
    ],
)
def test_another_setting_or_storage_is_named_and_closes(
    now: Evidence, kind: str, text: str
) -> None:
    (difference,) = differences(SAME, now)
    assert difference.kind == kind
    assert text in str(difference)
    assert text in (incomparable(SAME, now) or "")
    assert incomparable(SAME, now, frozenset({kind})) is None
    assert list(told_differences(SAME, now)) == [f"{kind}: {difference}"]


def test_another_io_engine_is_told_and_closes_nothing() -> None:
    now = evidence(replace(rank(0), io_engine="threads"))
    assert list(told_differences(SAME, now)) == ["software: io engine io_uring -> threads"]
    assert incomparable(SAME, now) is None


@pytest.mark.parametrize("options", ["relatime,rw", "rw,relatime,barrier=1,nosuid,seclabel"])
def test_options_in_another_order_or_of_rights_alone_are_no_difference(options: str) -> None:
    assert differences(SAME, evidence(rank(0, options=options))) == []


def test_a_mount_that_differs_on_one_of_two_hosts_is_a_difference() -> None:
    before = evidence(rank(0), rank(1, "n2"))
    now = evidence(rank(0), rank(1, "n2", options="rw,relatime,nobarrier"))
    (difference,) = differences(before, now)
    assert (
        str(difference)
        == "mount options without nobarrier (1 of 2 hosts) -> nobarrier (1 of 2 hosts)"
    )
    one_trial = evidence_of(
        case(rank(0), rank(1, "n2", options="rw,nobarrier"))[:1], PLAN, ENVIRONMENT
    )
    two_trials = evidence(rank(0), rank(1, "n2", options="rw,nobarrier"))
    assert differences(one_trial, two_trials) == []


def test_what_an_older_baseline_does_not_tell_is_said_and_closes_nothing() -> None:
    facts = {**(SAME.facts or {}), "device": {"device": "vda"},
             "filesystem": {"filesystem": "ext4 of 50 GiB"}}  # fmt: skip
    older = replace(SAME, facts=facts)
    now = evidence(rank(0, chain=ON_LUKS, options="rw,nobarrier"))
    assert incomparable(older, now) is None
    assert list(told_differences(older, now)) == [
        "device: the baseline does not tell its layers; record it anew",
        "filesystem: the baseline does not tell its mount options, io mode; record it anew",
    ]
    assert list(told_differences(older, STORAGE)) == []


def test_four_ranks_on_one_host_are_not_one_on_each_of_four() -> None:
    one_host = evidence(*map(rank, range(4)))
    four_hosts = evidence(*(rank(number, f"n{number}") for number in range(4)))
    placement, hosts = differences(one_host, four_hosts)
    assert (placement.kind, str(placement)) == ("placement", "ranks per host 4 -> 1 + 1 + 1 + 1")
    assert hosts.kind == "hosts"


@pytest.mark.parametrize(
    ("name", "value"), [("python", "3.13.0"), ("kernel", "6.18"), ("version", "2.0")]
)
def test_other_software_is_named_and_closes_nothing(name: str, value: str) -> None:
    now = evidence_of(case(), PLAN, {**ENVIRONMENT, name: value})
    (line,) = told_differences(SAME, now)
    assert line == f"software: {name} {ENVIRONMENT[name]} -> {value}"
    assert incomparable(SAME, now) is None


def test_what_a_side_does_not_know_is_no_difference() -> None:
    memory = replace(rank(0), filesystem=None, device=None)
    assert differences(SAME, evidence(memory)) == []
    assert differences(SAME, replace(SAME, facts=None)) == []
    assert list(told_differences(SAME, STORAGE)) == []


def test_a_server_that_lends_its_space_is_known_by_its_name_not_by_its_size() -> None:
    share: dict[str, Any] = {"type": "nfs4", "source": "server:/export", "device": None}
    before = evidence(rank(0, **share))
    assert differences(before, evidence(rank(0, **share, total_bytes=9 * GIB))) == []
    other = evidence(rank(0, **{**share, "source": "server:/other"}))
    (difference,) = differences(before, other)
    assert "nfs4 from server:/export -> nfs4 from server:/other" in str(difference)


@pytest.mark.parametrize(("hits", "lines"), [(0.895, 0), (0.85, 1), (0.95, 1)])
def test_a_hit_ratio_that_moved_is_told(hits: float, lines: int) -> None:
    found = list(told_differences(SAME, evidence(hits=hits)))
    assert len(found) == lines
    assert all(line.startswith("hit ratio: 0.900 -> ") for line in found)


@pytest.mark.parametrize("code", ["STALL", "BUSY_DEVICE", "NOT_STEADY", "PAUSED", "THROTTLED"])
def test_a_disturbance_of_one_side_makes_it_uncertain(code: str) -> None:
    disturbed = evidence(verdicts=(code,))
    assert f"only this run has {code}" in (uncertain(SAME, disturbed) or "")
    assert f"only the baseline has {code}" in (uncertain(disturbed, SAME) or "")
    assert uncertain(disturbed, disturbed) is None
    assert f"both sides had {code}:" in both_cautions(disturbed, disturbed)
    assert both_cautions(SAME, disturbed) == ""
    assert both_cautions(Evidence(), disturbed) == f"this run had {code}, of the other is unknown"
    assert both_cautions(Evidence(), Evidence()) == ""
    assert list(told_differences(SAME, disturbed)) == [f"verdicts: only this run has {code}"]


def test_what_only_one_side_proves_makes_it_uncertain() -> None:
    unproven = evidence(verdicts=("UNPROVEN",))
    assert "only this run has UNPROVEN, so its figures may be of a cache" in (
        uncertain(SAME, unproven) or ""
    )
    assert "only the baseline has UNPROVEN" in (uncertain(unproven, SAME) or "")
    assert uncertain(unproven, unproven) is None
    assert list(told_differences(SAME, unproven)) == ["verdicts: only this run has UNPROVEN"]


@pytest.mark.parametrize("code", ["NOT_STORAGE", "UNPROVEN", *sorted(INVALIDATING)])
def test_what_may_be_no_figure_of_the_storage_is_told_of_both_sides_and_of_one(code: str) -> None:
    odd = evidence(verdicts=(code, "SHORT_WINDOW"))
    assert both_cautions(odd, odd) == (
        f"both sides had {code}: what they compare may not be the storage's"
    )
    assert cautions(odd) == f"this run had {code}: its figures may not be the storage's"
    assert both_cautions(Evidence(), odd) == f"this run had {code}, of the other is unknown"
    assert cautions(SAME) == cautions(Evidence()) == ""
    busy = evidence(verdicts=(code, "STALL"))
    assert cautions(busy) == f"this run had STALL; {cautions(odd)}"


@pytest.mark.parametrize("now", [SAME, evidence(rank(0, type="xfs")), STORAGE, Evidence()])
def test_evidence_reads_back_from_its_json(now: Evidence) -> None:
    assert Evidence.from_json(now.to_json()) == now
