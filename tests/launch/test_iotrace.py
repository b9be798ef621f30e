from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.launch.iotrace import IoTraceFile, IoTraceFiles
from pytest_kvcache.measure.iospool import RECORD, spool_name
from pytest_kvcache.measure.recorder import DELETE, DEMOTE, READ, WRITE
from pytest_kvcache.traces.read import read_trace
from tests.factories import make_plan, options

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.plan.plan import Plan

KEY = bytes(range(16))
MS = 1_000_000


def record(kind: int, after: int, started_ms: int, **values: int) -> bytes:
    began = started_ms * MS
    return RECORD.pack(
        kind, after, values.get("part", 0), 7, 3, KEY, 5, 4096, began - 1, began, began + 1
    )


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """What the coordinator has kept of a trial: two ranks, a window from 10 to 110 ms."""
    directory = tmp_path / "trial-1"
    directory.mkdir()
    (directory / spool_name(0)).write_bytes(
        record(WRITE, 1, -40) + record(READ, 0, 2) + record(READ, 0, 10) + record(DELETE, 1, 50)
    )
    (directory / spool_name(1)).write_bytes(
        record(WRITE, 2, 60) + record(READ, 3, 70) + record(DEMOTE, 1, 110)
    )
    return directory


@pytest.fixture
def plan() -> Plan:
    return make_plan(np=2, ramp_s=0.01, duration_s=0.1, io_trace=True)


def lines_of(path: Path) -> list[list[str]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line.split(",") for line in text.decode().splitlines()]


def written(path: Path, plan: Plan, trial: Path) -> None:
    file = IoTraceFile(path, plan)
    file.add(plan, trial)
    file.finish()


@pytest.mark.parametrize("name", ["io.csv", "io.csv.gz"])
def test_a_line_says_in_which_phase_an_operation_began_and_what_it_waited_for(
    tmp_path: Path, plan: Plan, trial: Path, name: str
) -> None:
    written(tmp_path / name, plan, trial)
    first, header, *lines, last = lines_of(tmp_path / name)
    assert first[0].startswith("# pytest-kvcache I/O trace 1: {")
    assert [line[:4] + line[8:9] for line in lines] == [
        ["1", "0", "population", "write", "turn"],
        ["1", "0", "ramp", "read", "user"],
        ["1", "0", "window", "read", "user"],
        ["1", "0", "window", "delete", "answer"],
        ["1", "1", "window", "write", "deletes"],
        ["1", "1", "window", "read", "writes"],
        ["1", "1", "drain", "demote", "answer"],
    ]
    assert dict(zip(header, lines[1], strict=True)) == {
        "trial": "1", "rank": "0", "phase": "ramp", "operation": "read",
        "key": "000102030405060708090a0b0c0d0e0f.5", "bytes": "4096", "request": "3",
        "user": "7", "waits_for": "user", "submitted_ns": "1999999", "started_ns": "2000000",
        "completed_ns": "2000001",
    }  # fmt: skip
    assert last == ["# end: 7 operations"]


def test_an_object_of_a_layer_has_its_part_in_its_key(tmp_path: Path, trial: Path) -> None:
    plan = make_plan(np=2, object_layout="layer", io_trace=True)
    several = make_plan(
        np=2, object_layout="layer", io_trace=True, model=plan.model.__class__(
            name="two", layers=2, kv_heads=1, head_dim=1, dtype="int8"
        ),
    )  # fmt: skip
    written(tmp_path / "io.csv", several, trial)
    assert lines_of(tmp_path / "io.csv")[2][4] == f"{KEY.hex()}.5.0"


def test_requests_of_an_open_loop_wait_for_the_clock(tmp_path: Path, trial: Path) -> None:
    plan = make_plan(np=2, request_rate=5.0, arrival="poisson", io_trace=True)
    written(tmp_path / "io.csv", plan, trial)
    assert {line[8] for line in lines_of(tmp_path / "io.csv")[2:-1] if line[3] == "read"} == {
        "clock", "writes",
    }  # fmt: skip


def test_a_trace_that_was_written_can_be_read(tmp_path: Path, plan: Plan, trial: Path) -> None:
    (trial / spool_name(1)).write_bytes(record(WRITE, 2, 60) + record(READ, 3, 70))
    written(tmp_path / "io.csv.gz", plan, trial)
    trace = read_trace(tmp_path / "io.csv.gz", block_tokens=None)
    assert len(trace) == 5


def test_all_trials_are_in_one_file_which_has_its_name_when_it_is_whole(
    tmp_path: Path, plan: Plan, trial: Path
) -> None:
    path = tmp_path / "io.csv"
    file = IoTraceFile(path, plan)
    file.add(plan, trial)
    assert not path.exists()
    file.add(plan.for_trial(1), trial)
    assert not path.exists()
    file.finish()
    assert {line[0] for line in lines_of(path)[2:-1]} == {"1", "2"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["io.csv", "trial-1"]


def test_without_a_trial_there_is_no_file(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "io.csv"
    path.write_text("of a run before")
    IoTraceFile(path, plan).finish()
    assert path.read_text() == "of a run before"


def test_what_can_not_be_written_leaves_nothing_and_says_so(
    tmp_path: Path, plan: Plan, trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "io.csv"
    file = IoTraceFile(path, plan)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResultError, match=r"io\.csv, which can't be written \(No space"):
            file.add(plan, trial)
    assert [p.name for p in tmp_path.iterdir()] == ["trial-1"]
    file.finish()  # the case goes on to its end: still nothing
    assert [p.name for p in tmp_path.iterdir()] == ["trial-1"]


# --- before the launch --------------------------------------------------------------------


def test_a_file_that_can_be_written_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "io.csv"
    assert IoTraceFiles().claim(options(io_trace=str(path)), make_plan()) == path
    assert list(tmp_path.iterdir()) == []
    assert IoTraceFiles().claim(options(), make_plan()) is None


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    asked = options(io_trace=str(tmp_path / "no" / "io.csv"))
    with pytest.raises(OptionError, match=r"no can't be written to \(No such file"):
        IoTraceFiles().claim(asked, make_plan())


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="which is no file"):
        IoTraceFiles().claim(options(io_trace=str(tmp_path)), make_plan())


def test_the_trace_that_is_replayed_is_not_overwritten(tmp_path: Path) -> None:
    path = str(tmp_path / "io.csv")
    with pytest.raises(OptionError, match="what --kv-trace replays"):
        IoTraceFiles().claim(options(io_trace=path, trace=path), make_plan())


def test_a_file_is_of_one_case(tmp_path: Path) -> None:
    files, asked = IoTraceFiles(), options(io_trace=str(tmp_path / "io.csv"))
    files.claim(asked, make_plan())
    files.claim(asked, make_plan(trial=1))
    with pytest.raises(OptionError, match="a file holds one case, so ask for chat-small-np2"):
        files.claim(asked, make_plan(np=2))
