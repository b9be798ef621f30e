"""``python -m pytest_kvcache``: a run file is read without running anything."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.errors import OptionError
from pytest_kvcache.gates.baseline import load_baseline
from pytest_kvcache.results.run import RunResult
from tests.canned import case_of, run_of, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.site import Site

Path_ = tuple[Any, ...]  # of keys and indices into JSON


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A sound run file of two cases with two trials each."""
    path = tmp_path / "run.json"
    run = run_of(case_of(make_plan(np=2)), case_of(make_plan(np=1)))
    path.write_text(json.dumps(run.to_json()))
    return path


def places(data: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every key of every object, and the first entry of every list."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(data, list) and data:
        yield (*path, 0)
        yield from places(data[0], (*path, 0))


def changed(data: Any, path: Path_, change: Callable[[Any, Any], None]) -> Any:
    """A deep copy in which ``change(container, key)`` was done at ``path``."""
    result = copy.deepcopy(data)
    container = result
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return result


def remove(container: Any, key: Any) -> None:
    del container[key]


def put(value: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = value

    return change


def verify(path: Path, data: Any) -> int:
    path.write_text(json.dumps(data))
    return main(["verify", str(path)])


def test_a_run_file_is_sound(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["verify", str(run_file)]) == 0
    assert capsys.readouterr().out == (
        f"{run_file}: sound, in itself: no trial's record lies beside it\n"
    )


def test_a_run_is_shown_as_its_session_showed_it(site: Site) -> None:
    session = site.canned()
    shown = site.pytester.run(sys.executable, "-m", "pytest_kvcache", "show", site.run_file())
    assert shown.ret == 0
    assert shown.outlines[0] == "mixed-tiny-1b-np2"
    assert max(map(len, shown.outlines)) <= 80
    tables, *over_time = shown.stdout.str().split("\n\nmixed-tiny-1b-np2, GiB/s over time\n")
    assert tables.strip() in session.stdout.str()
    assert len(over_time) <= 1


def test_a_failed_trial_is_shown_with_its_cause(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    site.canned("--kv-metrics=read.p95_ms")
    capsys.readouterr()
    assert main(["show", str(site.run_file())]) == 0
    out = capsys.readouterr().out
    assert "trial 1 failed: the launcher ended with exit code 0" in out
    assert max(map(len, out.splitlines())) <= 80


# --- what is not sound ----------------------------------------------------------------------

TRIAL = ("cases", 0, "trials", 0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ((*TRIAL, "read", "gib_per_s"), 99.0, "read.gib_per_s is 99.0; computed from the ranks'"),
        ((*TRIAL, "read", "ms", "p95"), 0.001, "read.ms.p95 is 0.001"),
        ((*TRIAL, "read", "count"), 7, "read.count is 7"),
        ((*TRIAL, "requests", "completed"), 10**9, "requests.completed is 1000000000"),
        ((*TRIAL, "cache", "hit_ratio"), 1.0, "cache.hit_ratio is 1.0"),
        ((*TRIAL, "window_s"), 0.5, "read.gib_per_s is "),
        ((*TRIAL, "verdicts"), [], "the verdicts are []; they must be ['NOT_STORAGE'"),
        ((*TRIAL, "index"), 1, "the trials are not numbered 0, 1, 2"),
        (("cases", 0, "summary", "read.p95_ms", "median"), 0.1, "summary.read.p95_ms.median"),
        (("cases", 0, "name"), "another", "name is 'another'"),
        (("cases", 0, "np"), 8, "np is 8"),
        (("cases", 0, "plan_digest"), "0" * 16, "plan_digest"),
        (("schema",), "pytest-kvcache/run/2", "must be 'pytest-kvcache/run/1'"),
    ],
)
@pytest.mark.once
def test_a_figure_that_was_changed_by_hand_is_found(
    run_file: Path, capsys: pytest.CaptureFixture[str], path: Path_, value: Any, problem: str
) -> None:
    data = changed(json.loads(run_file.read_text()), path, put(value))
    capsys.readouterr()
    assert verify(run_file, data) == 1
    assert problem in capsys.readouterr().err


def test_a_trial_that_lost_a_rank_is_found(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = changed(json.loads(run_file.read_text()), (*TRIAL, "ranks", 0), remove)
    capsys.readouterr()
    assert verify(run_file, data) == 1
    assert "it has 1 ranks; the plan has 2" in capsys.readouterr().err


def test_a_failure_that_calls_itself_ok_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "rank-error")
    site.canned("--kv-metrics=read.p95_ms")
    data = json.loads(site.run_file().read_text())
    data["cases"][0]["trials"][0] |= {"ok": True, "error": None}
    capsys.readouterr()
    assert verify(site.run_file(), data) == 1
    assert "it is ok, but 3 operations failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ((*TRIAL, "ranks", 0, "read_count"), 7, "read"),
        ((*TRIAL, "ranks", 0, "write_count"), 7, "write"),
        ((*TRIAL, "ranks", 0, "cleanup_error"), "can't remove /x", "ok"),
        ((*TRIAL, "ranks", 0, "host"), "another", "another"),
        (("cases",), {}, "cases"),
    ],
)
@pytest.mark.once
def test_what_ranks_say_must_agree_with_the_whole(
    run_file: Path, capsys: pytest.CaptureFixture[str], path: Path_, value: Any, problem: str
) -> None:
    data = changed(json.loads(run_file.read_text()), path, put(value))
    capsys.readouterr()
    assert verify(run_file, data) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.once
def test_no_damage_to_a_run_file_ends_in_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = make_plan()
    data = json.loads(json.dumps(run_of(case_of(plan, trial_of(plan))).to_json()))
    changes = itertools.cycle([remove, put(None), put("x"), put([]), put({}), put(-1)])
    crashed = []
    # Every fifth place, so that with six changes each kind of place gets different ones.
    for path, change in zip(list(places(data))[::5], changes, strict=False):
        try:
            verify(tmp_path / "run.json", changed(data, path, change))
        except Exception as error:  # noqa: BLE001  each of them is the finding
            crashed.append((path, error))
    capsys.readouterr()
    assert crashed == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "\0", '{"schema": null}'])
@pytest.mark.parametrize("command", ["verify", "show"])
def test_what_is_no_run_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    assert main([command, str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(path) in captured.err


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "/no/run.json"]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["verify"], ["show"], ["dance", "x"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_a_reader_that_stops_early_is_no_error(run_file: Path) -> None:
    command = f"{sys.executable} -m pytest_kvcache show {run_file} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "chat-small-np2"
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["show", "verify"])
def test_whoever_reads_nothing_changes_no_answer(run_file: Path, command: str) -> None:
    ours = f"{sys.executable} -m pytest_kvcache {command} {run_file}"
    done = subprocess.run(
        ["sh", "-c", f"({ours}; echo $? >&2) | true"], capture_output=True, text=True, check=True
    )
    assert done.stderr == "0\n"


@pytest.mark.thorough
def test_of_several_files_each_is_judged(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{}")
    assert main(["verify", str(run_file), str(damaged), str(run_file)]) == 1
    printed = capsys.readouterr()
    assert f"{run_file}: sound" in printed.out
    assert f"{damaged}: " in printed.err
    assert main(["verify", str(run_file), str(run_file)]) == 0
    assert main(["show", str(run_file), str(run_file)]) == 0
    assert capsys.readouterr().out.count("95 % CI") == 4


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "█"), ("ascii", "@"), ("latin-1", "@")])
def test_a_run_is_shown_over_time_in_what_the_terminal_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, bar: str
) -> None:
    run_file = tmp_path / "run.json"
    run = run_of(case_of(make_plan(duration_s=3.0)))  # whole seconds
    run_file.write_text(json.dumps(run.to_json()))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
    assert main(["show", str(run_file)]) == 0
    shown = written.getvalue().decode(encoding)
    assert "chat-small-np1, GiB/s over time" in shown
    assert bar in shown


# --- the files beside a run file ------------------------------------------------------------


@pytest.fixture
def left_behind(site: Site) -> Path:
    """A run file with everything that its two trials left beside it."""
    site.canned("--kv-metrics=read.p95_ms", "--kv-trials=2")
    return site.run_file()


def test_a_single_trials_record_says_what_it_says(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.canned("--kv-metrics=read.p95_ms", "--kv-trials=1")
    capsys.readouterr()
    assert main(["verify", str(site.run_file())]) == 0
    assert capsys.readouterr().out.endswith(": sound, and as the record of 1 trial says\n")


def beside(run_file: Path, name: str) -> Path:
    return run_file.parent / "mixed-tiny-1b-np2" / "trial-2" / name


def test_a_run_file_is_held_against_what_its_trials_left(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(left_behind.read_text())
    names = {"trial.json", "controller.json", "events.jsonl", "mpirun.log"}
    for index, trial in enumerate(data["cases"][0]["trials"]):
        assert set(trial["sources"]) == {
            f"mixed-tiny-1b-np2/trial-{index + 1}/{name}" for name in names
        }
    capsys.readouterr()
    assert main(["verify", str(left_behind)]) == 0
    assert capsys.readouterr().out.endswith(": sound, and as the records of 2 trials say\n")


@pytest.mark.parametrize("name", ["trial.json", "controller.json", "events.jsonl", "mpirun.log"])
def test_a_file_that_was_changed_afterwards_is_named(
    left_behind: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = beside(left_behind, name)
    path.write_bytes(path.read_bytes() + b" ")
    assert main(["verify", str(left_behind)]) == 1
    reported = f"trial 2: mixed-tiny-1b-np2/trial-2/{name} is not the file that it was made of"
    assert reported in capsys.readouterr().err


def test_a_run_file_whose_facts_were_made_up_consistently_contradicts_its_records(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(left_behind.read_text())
    for rank in data["cases"][0]["trials"][1]["ranks"]:
        rank["pid"] += 1  # nothing is derived from it
    left_behind.write_text(json.dumps(data))
    assert main(["verify", str(left_behind)]) == 1
    assert "trial-2/trial.json: ranks[0].pid is" in capsys.readouterr().err


def reported_of(run_file: Path, data: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` says of a run file that was made these."""
    capsys.readouterr()
    assert verify(run_file, data) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("kept", [(), ("mpirun.log",), ("events.jsonl", "mpirun.log")])
def test_files_are_compared_whatever_the_run_file_says_it_was_made_of(
    left_behind: Path, kept: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(left_behind.read_text())
    trial = data["cases"][0]["trials"][1]
    for rank in trial["ranks"]:
        rank["pid"] += 1
    trial["sources"] = {
        path: digest for path, digest in trial["sources"].items() if path.endswith(kept or "-")
    }
    found = reported_of(left_behind, data, capsys)
    assert "trial-2/trial.json lies beside the run file, but its sources have no such" in found
    assert "trial-2/trial.json: ranks[0].pid is" in found


def test_files_of_a_case_without_any_sources_are_compared(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(left_behind.read_text())
    for trial in data["cases"][0]["trials"]:
        trial["sources"] = {}
    found = reported_of(left_behind, data, capsys)
    for number in (1, 2):
        assert f"trial {number}: mixed-tiny-1b-np2/trial-{number}/trial.json lies beside" in found


def without_the_last(data: Any) -> Any:
    """The case without its last trial, and what follows from the others."""
    run = RunResult.from_json(data)
    (case,) = run.cases
    return json.loads(json.dumps(
        replace(run, cases=(replace(case, trials=case.trials[:-1], looks=(1,)),)).to_json()
    ))  # fmt: skip


def test_a_trial_that_was_left_out_is_named(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_the_last(json.loads(left_behind.read_text()))
    found = reported_of(left_behind, data, capsys)
    assert "mixed-tiny-1b-np2/trial-2 lies beside the run file, which has no such trial" in found
    assert "looks are [1]; when it ran they were [2]" in found
    with pytest.raises(OptionError, match="trial-2 lies beside the run file"):
        load_baseline(left_behind)
    shutil.rmtree(left_behind.parent / "mixed-tiny-1b-np2" / "trial-2")
    assert "when it ran they were [2]" in reported_of(left_behind, data, capsys)


def test_what_the_controllers_clock_saw_can_not_be_emptied(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(left_behind.read_text())
    trial = data["cases"][0]["trials"][1]
    assert trial["clock"]["controller_most_s"] is None  # canned ranks tell no phases
    path = beside(left_behind, "controller.json")
    seen = {"controller_least_s": 0.9, "controller_most_s": 1.4}
    path.write_text(json.dumps(json.loads(path.read_text()) | seen))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    trial["sources"]["mixed-tiny-1b-np2/trial-2/controller.json"] = digest
    found = reported_of(left_behind, data, capsys)
    assert "trial-2/trial.json: clock.controller_most_s is None; computed from" in found
    assert "clock.controller_least_s is None" in found
    beside(left_behind, "controller.json").unlink()
    assert "trial-2/trial.json lies beside the run file without its" in reported_of(
        left_behind, data, capsys
    )


def test_cases_of_one_name_have_directories_of_their_own(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
        def test_short(kvcache): kvcache.run(duration=1)
        def test_long(kvcache): kvcache.run(duration=2)
    """
    site.canned_tests(source).assert_outcomes(passed=2)
    data = json.loads(site.run_file().read_text())
    capsys.readouterr()
    assert verify(site.run_file(), data) == 0
    assert "as the records of 2 trials say" in capsys.readouterr().out
    data["cases"][1]["trials"][0]["sources"] = {}
    found = reported_of(site.run_file(), data, capsys)
    assert "mixed-tiny-1b-np2-2/trial-1/trial.json lies beside" in found
    assert "can't be read" not in found


@pytest.mark.parametrize("fault", ["no-record", "exit-3"])
def test_a_trial_that_failed_agrees_with_what_it_left(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", fault)
    site.canned("--kv-metrics=read.p95_ms", "--kv-trials=2")
    assert main(["verify", str(site.run_file())]) == 0


def test_a_run_that_was_killed_is_shown_and_not_sound(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads(run_file.read_text())
    data["cases"] = data["cases"][:1]
    run = RunResult.from_json(data)
    killed = replace(run, cases=(replace(run.cases[0], looks=(3,)),)).to_json()
    found = reported_of(run_file, killed, capsys)
    assert "it ends with trial 2, which is sound; by its looks it ends after 3" in found
    assert main(["show", str(run_file)]) == 0


def test_a_run_file_alone_is_sound_in_itself(
    left_behind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 1):
        (left_behind.parent / "mixed-tiny-1b-np2" / f"trial-{index + 1}" / "trial.json").unlink()
    capsys.readouterr()
    assert main(["verify", str(left_behind)]) == 0
    assert capsys.readouterr().out.endswith("in itself: no trial's record lies beside it\n")
