from __future__ import annotations

import copy
import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.errors import KVCacheError, ResultError
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from pytest_kvcache.results.verify import verify_run
from pytest_kvcache.system.preloads import Wrapper
from tests.factories import (
    FILESYSTEM,
    make_plan,
    rank_result,
    record_of,
    registry_of,
    run_rank,
    sound_plan,
    sound_record,
    surroundings,
    tireless_scenarios,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import TrialRecord


def run_json(plan: Plan, records: list[TrialRecord]) -> dict[str, Any]:
    """The run file of one case, as the controller writes it."""
    trials = []
    for index, record in enumerate(records):
        measured, verdicts = evaluate_trial(record, plan.for_trial(index))
        trials.append(TrialResult(index=index, error=None, verdicts=verdicts, measured=measured))
    run = RunResult(
        run_id=plan.run_id,
        started_at="2026-01-01T00:00:00+00:00",
        command=("pytest",),
        version=plan.version,
        commit=None,
        environment={"python": "3.12"},
        cases=(CaseResult(plan=plan, trials=tuple(trials), looks=(len(trials),)),),
    )
    written: dict[str, Any] = json.loads(json.dumps(run.to_json()))
    return written


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run file of two ranks that ran on files."""
    registry = registry_of(backends={"file": FileBackend}, workloads=tireless_scenarios(20))
    plan = make_plan(
        np=2,
        backend="file",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        keep=True,
        duration_s=None,
        capacity_blocks=150,
        origins={"allow_invalid": "command line", "sync": "default"},
    )
    ranks = [run_rank(plan, registry, rank=rank) for rank in range(2)]
    return run_json(plan, [record_of(plan, ranks)])


Path = tuple[str | int, ...]


def parts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Path and value of everything that is inside an object or a list."""
    inside: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, inner in inside:
        yield (*path, key), inner
        yield from parts(inner, (*path, key))


def numbers(data: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Path and value of every number."""
    return [(path, value) for path, value in parts(data) if type(value) in (int, float)]


_ABSENT = object()


@contextmanager
def forged(data: dict[str, Any], path: Path, value: Any = _ABSENT) -> Iterator[None]:
    """Within, one part of the file is another one, or missing (faster than copies)."""
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    before = copy.copy(place)
    try:
        if value is _ABSENT:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        yield
    finally:
        place.clear()
        place.extend(before) if isinstance(place, list) else place.update(before)


def complaints(data: dict[str, Any]) -> list[str]:
    try:
        return verify_run(data)
    except KVCacheError as error:
        return [str(error)]


# Numbers that stand for themselves: nothing else in the file follows from them.
FREE = [
    r"cases\.\d+\.plan\.(trial|deadline_s|need_blocks)",
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.(pid|peak_rss_bytes|cores|population_s|store_stall_s)",
    # Of these only the extremes over all ranks, or a threshold, are derived.
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.(start_s|stop_s|drained_s|average_queue_depth)",
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.(read|write|delete)_p95_ms",
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.(requested_transfers|requested_writes|distinct_reads)",
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.surroundings\.cpu_periods",
    r"cases\.\d+\.trials\.\d+\.clock\.(controller_most_s|drift_rank)",
    # Within its bin.
    r"cases\.\d+\.trials\.\d+\.\w+\.histogram\.min_ns",
    # What a directory has room for; the trial shows what one rank of its host saw.
    r"cases\.\d+\.trials\.\d+\.ranks\.\d+\.filesystem\.(total|available)_(bytes|inodes)",
]


def is_free(path: Path) -> bool:
    return any(re.fullmatch(pattern, ".".join(map(str, path))) for pattern in FREE)


def is_of_some_ranks(data: dict[str, Any], path: Path) -> bool:
    """Whether another rank does not know this number: then nothing in the file follows from it.

    Of a run of milliseconds one rank may have looked how many requests wait, and the other not.
    """
    if len(path) != 7 or path[4] != "ranks":
        return False
    ranks = data["cases"][path[1]]["trials"][path[3]]["ranks"]
    return any(rank[path[6]] is None for rank in ranks)


def repeats_another(path: Path) -> bool:
    """Whether a part is one of many alike; checking one of them saves a lot of time."""
    return (
        {"write", "device", "load", "request"} & {*path} != set()
        or ("summary" in path and "read.p50_ms" not in path)
        or ("model" in path and "layers" not in path)
    )


def test_a_real_run_is_sound(real_run: dict[str, Any]) -> None:
    assert verify_run(real_run) == []
    trial = real_run["cases"][0]["trials"][0]
    assert trial["read"]["count"] > 0
    assert trial["write"]["count"] > 0
    assert trial["cache"]["evictions"] > 0


def test_no_number_can_be_changed_unseen(real_run: dict[str, Any]) -> None:
    unseen = []
    found = [item for item in numbers(real_run) if not repeats_another(item[0])]
    assert len(found) > 150
    for path, value in found:
        with forged(real_run, path, value + 1):
            free = is_free(path) or is_of_some_ranks(real_run, path)
            if not free and not complaints(real_run):
                unseen.append(".".join(map(str, path)))
    assert unseen == []
    assert verify_run(real_run) == []


def test_a_small_change_is_seen_as_well(real_run: dict[str, Any]) -> None:
    trial: Path = ("cases", 0, "trials", 0)
    for section, *rest in (
        ("read", "gib_per_s"),
        ("read", "ms", "mean"),
        ("write", "ms", "p50"),
        ("requests", "per_s"),
        ("cache", "hit_ratio"),
        ("harness", "cpu_s"),
    ):
        path = (*trial, section, *rest)
        value = dict(parts(real_run))[path]
        with forged(real_run, path, value * (1 - 1e-12)):
            assert complaints(real_run), path


def test_what_is_free_is_really_there(real_run: dict[str, Any]) -> None:
    free = [".".join(map(str, path)) for path, _ in numbers(real_run) if is_free(path)]
    for pattern in FREE:
        assert any(re.fullmatch(pattern, path) for path in free), pattern


def test_no_number_of_a_series_can_be_changed_unseen() -> None:
    data = sound_run()
    unseen = []
    for path, value in numbers(data):
        if "series" in path:
            with forged(data, path, value + 1):
                if not complaints(data):
                    unseen.append(".".join(map(str, path)))
    assert unseen == []


@pytest.mark.parametrize(
    "path",
    [
        ("name",),
        ("scenario",),
        ("model",),
        ("hosts", 0),
        ("plan_digest",),
        ("plan", "backend"),
        ("plan", "scenario"),
        ("plan", "verify"),
        ("summary", "read.mean_ms", "unit"),
        ("trials", 0, "proof", "io_mode"),
        ("trials", 0, "proof", "sync"),
        ("trials", 0, "proof", "verdict"),
        ("trials", 0, "ranks", 0, "io_mode"),
        ("trials", 0, "verdicts", 0, "code"),
        ("trials", 0, "verdicts", 0, "severity"),
        ("trials", 0, "verdicts", 0, "text"),
        ("trials", 0, "read", "histogram", "bins"),
        ("trials", 0, "read", "histogram", "scheme"),
    ],
)
def test_no_text_that_says_what_ran_can_be_changed_unseen(
    real_run: dict[str, Any], path: Path
) -> None:
    whole = ("cases", 0, *path)
    text = dict(parts(real_run))[whole]
    with forged(real_run, whole, text.swapcase() + "x"):
        assert complaints(real_run)


def answers(data: dict[str, Any]) -> list[str]:
    """What a user is told; any other error would be a traceback."""
    try:
        return verify_run(data)
    except KVCacheError as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001  whatever it is
        return [f"TRACEBACK: {error!r}"]


def test_nothing_can_be_left_out_unseen() -> None:
    data = sound_run()
    reported = {}
    for path, _ in list(parts(data)):
        if repeats_another(path) or not isinstance(path[-1], str):
            continue
        if {"origins", "environment"} & {*path[:-1]} or path[-1] == "origins":
            continue  # texts of their own
        with forged(data, path):
            reported[".".join(map(str, path))] = answers(data)
    assert [path for path, problems in reported.items() if not problems] == []
    assert [path for path, problems in reported.items() if "TRACEBACK" in problems[0]] == []


# Where null means: not known, none, or does not apply.
MAY_BE_NULL = {
    "commit", "run_id", "started_at", "version", "cache_dir", "keep", 0,
    "raw_span_s", "wrappers",  # what a machine may not be able to tell
}  # fmt: skip


def test_nothing_can_be_emptied_unseen() -> None:
    data = sound_run()
    reported = {}
    for path, value in list(parts(data)):
        if value is None or repeats_another(path) or is_free(path):
            continue
        if "environment" in path or path[-1] in MAY_BE_NULL:
            continue
        with forged(data, path, None):
            reported[".".join(map(str, path))] = answers(data)
    assert [path for path, problems in reported.items() if not problems] == []
    assert [path for path, problems in reported.items() if "TRACEBACK" in problems[0]] == []


def reported_of(filesystem: dict[str, Any]) -> list[str]:
    """What verify says of a run file whose only rank, and proof, have this filesystem."""
    data = sound_run()
    trial = data["cases"][0]["trials"][0]
    forged_facts = {**FILESYSTEM, **filesystem}
    trial["ranks"][0]["filesystem"] = trial["proof"]["filesystem"]["test-host"] = forged_facts
    return complaints(data)


def chain(*links: tuple[str, str, str | None]) -> list[dict[str, Any]]:
    """Links from the top, each below the one before: name, kind, end."""
    return [
        {"name": name, "kind": kind, "number": f"8:{index}" if "/" not in name and index else None,
         "above": index - 1 if index else None, "end": end, "note": None}
        for index, (name, kind, end) in enumerate(links)
    ]  # fmt: skip


LOOP_IN_MEMORY = chain(
    ("ext4", "filesystem", None), ("loop0", "loop", None), ("/x/image", "file", None),
    ("tmpfs", "filesystem", "memory"),
)  # fmt: skip
IN_MEMORY = chain(("tmpfs", "filesystem", "memory"))


@pytest.mark.parametrize(
    ("filesystem", "reported"),
    [
        (
            {"chain": LOOP_IN_MEMORY},
            "records it is 'ext4 on loop0 on /x",
        ),
        (
            {"type": "tmpfs", "chain": IN_MEMORY, "is_tmpfs": True, "memory_at_end": "tmpfs"},
            "filesystem.counts_io is True; computed from the ranks' records it is False",
        ),
        ({"type": "nfs4"}, "filesystem.is_network is False; computed from"),
        ({"type": "overlay"}, "filesystem.is_overlay is False; computed from"),
        ({"options": "rw,dax"}, "filesystem.counts_io is True; computed from the"),
        ({"unseen": "nbd0: elsewhere"}, "filesystem.unseen is 'nbd0: elsewhere'; computed from"),
        ({"device_model": "QEMU"}, "filesystem.virtual is False; computed from the ranks"),
        ({"device": "sdb"}, "filesystem.device has sdb, which is not at the end of the chain"),
        ({"path": "/elsewhere"}, "filesystem.path is '/elsewhere'; it must be '/data'"),
        ({"host": "n9"}, "filesystem.host is 'n9'; it must be 'test-host'"),
        ({"speed": 1}, "filesystem.speed is unknown"),
        ({"chain": chain(("xfs", "filesystem", None), ("sda", "disk", "disk"))}, "chain does not"),
        (
            {"type": "tmpfs", "chain": chain(("tmpfs", "filesystem", "unseen"))},
            "chain[0].end is 'unseen'; of tmpfs it is 'memory'",
        ),
        (
            {"chain": chain(("ext4", "filesystem", None), ("zram0", "disk", "disk"))},
            "chain[1] ends in a disk; zram0, a disk, is none",
        ),
        (
            {"chain": chain(("ext4", "filesystem", None), ("loop0", "loop", None))},
            "chain[1].end is None, and nothing is below it",
        ),
    ],
)
def test_what_follows_of_a_filesystem_is_not_believed(
    filesystem: dict[str, Any], reported: str
) -> None:
    assert any(reported in problem for problem in reported_of(filesystem)), reported_of(filesystem)


def test_ranks_of_one_host_have_one_filesystem_with_whatever_room() -> None:
    def reported(**other: Any) -> list[str]:
        plan = sound_plan(np=2)
        second = rank_result(1, filesystem={**FILESYSTEM, **other})
        return verify_run(run_json(plan, [sound_record(plan, [rank_result(0), second])]))

    assert reported(total_bytes=1 << 39, available_bytes=7, available_inodes=9) == []
    assert any("differ in filesystem.options; they share" in t for t in reported(options="rw,sync"))


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400], ids=["inf", "-inf", "nan", "vast"]
)
def test_a_number_that_is_not_finite_is_no_number_of_a_run_file(value: float) -> None:
    data = sound_run()
    trial: Path = ("cases", 0, "trials", 0)
    for path in ((*trial, "clock", "coordinator_s"), (*trial, "ranks", 0, "start_s")):
        with forged(data, path, value):
            (problem,) = answers(data)
            assert f"cases[0].trials[0].{path[4]}" in problem
            assert problem.endswith("; every number of it must be finite")


def test_a_rank_can_not_be_left_out_unseen(real_run: dict[str, Any]) -> None:
    with forged(real_run, ("cases", 0, "trials", 0, "ranks", 1)):
        assert complaints(real_run)


def test_a_trial_before_others_can_not_be_left_out_unseen() -> None:
    plan = sound_plan()
    data = run_json(plan, [sound_record(plan, [rank_result()])] * 2)
    with forged(data, ("cases", 0, "trials", 0)):
        assert any("numbered 0, 1, 2" in problem for problem in complaints(data))


def test_the_last_trial_can_not_be_left_out_unseen() -> None:
    plan = sound_plan()
    data = run_json(plan, [sound_record(plan, [rank_result()])] * 3)
    assert verify_run(data) == []
    run = RunResult.from_json(data)
    (case,) = run.cases
    fewer = replace(run, cases=(replace(case, trials=case.trials[:2]),)).to_json()
    (problem,) = verify_run(fewer)
    assert "it ends with trial 2, which is sound; by its looks it ends after 3" in problem
    assert verify_run(fewer, ended=False) == []
    looked = replace(case, trials=case.trials[:2], looks=(2, 3))
    assert verify_run(replace(run, cases=(looked,)).to_json()) == []
    for cut in (
        TrialResult(index=2, error="it broke"),
        TrialResult(index=2, error="interrupted", interrupted=True),
    ):
        ended = replace(case, trials=(*case.trials[:2], cut))
        assert verify_run(replace(run, cases=(ended,)).to_json()) == []


def test_a_verdict_can_not_be_left_out_unseen(real_run: dict[str, Any]) -> None:
    with forged(real_run, ("cases", 0, "trials", 0, "verdicts", 0)):
        assert any("the verdicts are" in problem for problem in complaints(real_run))


def test_something_unknown_in_a_trial_is_seen(real_run: dict[str, Any]) -> None:
    with forged(real_run, ("cases", 0, "trials", 0, "read", "iops"), 1_000_000):
        name = real_run["cases"][0]["name"]
        assert complaints(real_run) == [f"{name}: trial 1: read.iops is unknown"]


def test_a_percentile_of_too_few_samples_can_not_be_filled_in(real_run: dict[str, Any]) -> None:
    absent = [path for path, value in parts(real_run) if value is None and "ms" in path]
    assert absent
    for path in absent:
        with forged(real_run, path, 0.001):
            assert complaints(real_run), path


def test_a_contradiction_names_what_is_written_and_what_is_right(
    real_run: dict[str, Any],
) -> None:
    with forged(real_run, ("cases", 0, "trials", 0, "read", "gib_per_s"), 99.5):
        reported = "trial 1: read.gib_per_s is 99.5; computed from the ranks' records it is"
        assert any(reported in problem for problem in complaints(real_run))


# -- what an ok trial must not have --------------------------------------------------------


def sound_run(plan: Plan | None = None, **changes: Any) -> dict[str, Any]:
    plan = plan or sound_plan()
    return run_json(plan, [sound_record(plan, [rank_result(0, **changes)])])


def test_a_sound_run_is_sound() -> None:
    assert verify_run(sound_run()) == []


@pytest.mark.parametrize(
    "changes", [{"read_failed": 1}, {"write_failed": 1}, {"corrupt": 1}, {"error": "disk full"}]
)
def test_a_trial_with_failed_operations_is_not_ok(changes: dict[str, Any]) -> None:
    assert any("it is ok, but" in problem for problem in verify_run(sound_run(**changes)))


def test_a_trial_that_could_not_clean_up_is_not_ok() -> None:
    assert any("clean" in problem for problem in verify_run(sound_run(cleanup_error="stuck")))


def test_a_trial_without_operations_is_not_ok() -> None:
    plan = sound_plan()
    nothing = rank_result(0, read_count=0, write_count=0, read_bytes=0, write_bytes=0)
    problems = verify_run(run_json(plan, [sound_record(plan, [nothing])]))
    assert any("completed no operation" in problem for problem in problems)


def test_a_trial_with_an_idle_rank_is_not_ok() -> None:
    idle = rank_result(1, host="n2", read_count=0, write_count=0, read_bytes=0, write_bytes=0)
    plan = sound_plan(np=2)
    problems = verify_run(run_json(plan, [sound_record(plan, [rank_result(0), idle])]))
    assert len(problems) == 1
    assert "it is ok, but rank 1 on host n2 completed no operation in the window" in problems[0]


def test_an_invalid_trial_is_ok_only_if_that_was_allowed() -> None:
    problems = verify_run(sound_run(device_read_bytes=0))
    assert any("['CACHED_READS'] invalidate it" in problem for problem in problems)
    allowed = sound_plan(origins={"allow_invalid": "command line"})
    assert verify_run(sound_run(allowed, device_read_bytes=0)) == []


def test_an_allowed_preload_allows_no_other_invalid_verdict() -> None:
    shim = Wrapper(library="/opt/shim.so", functions=("fsync",))
    wrapped: dict[str, Any] = {"surroundings": surroundings(wrappers=(shim,))}
    problems = verify_run(sound_run(**wrapped))
    assert any("['PRELOADED'] invalidate it" in problem for problem in problems)
    allowed = sound_plan(origins={"allow_preload": "ini"})
    assert verify_run(sound_run(allowed, **wrapped)) == []
    problems = verify_run(sound_run(allowed, device_read_bytes=0, **wrapped))
    assert any("['CACHED_READS'] invalidate it" in problem for problem in problems)


def test_an_open_loop_without_its_wake_ups_is_found() -> None:
    plan = sound_plan(request_rate=5.0, arrival="poisson")
    run = sound_run(plan)
    assert verify_run(run) == []
    run["cases"][0]["trials"][0]["scheduling_lag"] = None
    assert any(
        "scheduling_lag.count is 0; it must be between" in reported for reported in verify_run(run)
    )


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        (
            {"read_bytes": 10_000 * 4096},
            "rank 0 on host test-host: read_bytes is 40960000; it must",
        ),
        ({"hit_blocks": 6_000}, "hit_blocks is 6000; it must be at most prompt_blocks"),
        (
            {"completed": 201},
            "completed + request_censored is 201; it must be at most offered",
        ),
        ({"stop_s": 20.0, "drained_s": 20.0}, "window_s is 60.0; by the ranks' stop_s it must be"),
    ],
)
def test_records_that_can_not_be_are_found(changes: dict[str, Any], reported: str) -> None:
    assert [problem for problem in verify_run(sound_run(**changes)) if reported in problem]


@pytest.mark.parametrize(
    "changes",
    [
        {"users": -4}, {"duration_s": -9.0}, {"queue_depth": 0}, {"io": "banana"}, {"verify": "hm"},
        {"sync": "hm"}, {"generation_mode": "hm"}, {"cores": "hm"}, {"deadline_s": 0.0},
    ],
)  # fmt: skip
def test_a_plan_that_can_not_be_is_found(changes: dict[str, Any]) -> None:
    (name,) = changes
    problems = verify_run(sound_run(sound_plan(**changes)))
    assert [problem for problem in problems if f"plan.{name} is " in problem]


def test_a_run_without_cases_and_a_case_without_trials_are_found() -> None:
    data = sound_run()
    with forged(data, ("cases",), []):
        assert verify_run(data) == ["the run has no case; a run file has at least one"]
    data["cases"][0] |= {"trials": [], "summary": {}}
    name = data["cases"][0]["name"]
    assert verify_run(data) == [f"{name}: it has no trial; a case has at least one"]


def test_a_failed_trial_may_lack_its_data() -> None:
    data = sound_run()
    case = data["cases"][0]
    case["trials"] = [
        {
            "index": 0,
            "ok": False,
            "interrupted": False,
            "error": "rank 1 died",
            "verdicts": [],
            "sources": {},
            "interference": None,
        }
    ]
    case["summary"] = {}
    assert verify_run(data) == []
    case["trials"][0] |= {"ok": True, "error": None}
    assert any("has no data" in problem for problem in verify_run(data))


@pytest.mark.parametrize("data", [{}, {"schema": "x"}, {"schema": None, "cases": []}])
def test_what_is_no_run_file_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ResultError, match="the schema is"):
        verify_run(data)
