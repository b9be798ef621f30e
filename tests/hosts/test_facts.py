from __future__ import annotations

import json
import os
import resource
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.posix.fileio import direct_refusal
from pytest_kvcache.errors import OptionError, PreflightError
from pytest_kvcache.hosts.facts import (
    HostFacts,
    HostQuestion,
    collect,
    machine_identity,
    put_mark,
    remove_mark,
    see_marks,
    takes_direct,
)
from pytest_kvcache.version import VERSION
from tests.factories import host_facts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _asks_no_real_mpi(fake_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", fake_python)


def look(directory: Path | None = None, *programs: str) -> HostFacts:
    return collect(
        HostQuestion(cache_dir=None if directory is None else str(directory), programs=programs)
    )


# --- what is found --------------------------------------------------------------------------


def test_this_machine_is_described() -> None:
    facts = look()
    assert (facts.hostname, facts.version) == (socket.gethostname(), VERSION)
    assert facts.cores == len(os.sched_getaffinity(0))
    assert facts.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts.mpi_library.startswith("Open MPI v5.0.11")
    assert (facts.filesystem, facts.direct, facts.problems) == (None, None, ())


def test_gpus_are_looked_for_only_where_ranks_want_any() -> None:
    """The interpreter of these tests knows of none, and says something else."""
    assert look().gpus is None
    found = collect(HostQuestion(cache_dir=None, programs=(), gpus=True)).gpus
    assert found is not None
    assert list(found) == ["torch", "cupy"]


def test_the_filesystem_of_the_directory_is_described(tmp_path: Path) -> None:
    facts = look(tmp_path)
    assert facts.problems == ()
    assert facts.filesystem is not None
    assert facts.filesystem["host"] == socket.gethostname()
    assert facts.filesystem["available_bytes"] > 0
    assert facts.direct in (True, False)
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_missing_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    facts = look(tmp_path / "absent", "/no/prted", "/bin/sh")
    library, program, directory = facts.problems
    assert library.startswith("/no/python could not be asked for its MPI library")
    assert program == ("/no/prted is missing; install the launcher at the same path on every host")
    assert directory.endswith("absent, which does not exist; create it first")
    assert (facts.mpi_library, facts.filesystem, facts.direct) == ("", None, None)


def test_what_is_being_looked_at_is_reported_before(tmp_path: Path) -> None:
    stages: list[str] = []
    collect(HostQuestion(cache_dir=str(tmp_path), programs=()), stages.append)
    assert stages == ["loading MPI", f"looking at {tmp_path}"]


def test_without_a_limit_of_open_files_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        resource, "getrlimit", lambda _what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert look().open_files is None


def test_hosts_that_share_a_kernel_are_told_apart_by_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = machine_identity()
    assert machine_identity() == first
    monkeypatch.setattr(socket, "gethostname", lambda: "n2")
    assert machine_identity() != first
    assert machine_identity().partition("/")[0] == first.partition("/")[0]


def test_a_directory_that_takes_no_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"where no file can be made \(No such file"):
        takes_direct(str(tmp_path / "absent"))


def test_a_filesystem_that_refuses_the_transfer_only_is_reported_and_the_probe_is_removed(
    tmp_path: Path,
) -> None:
    def refuse(_fd: int, _buffers: Any, _offset: int) -> int:
        raise OSError(22, "Invalid argument")

    assert not takes_direct(str(tmp_path), partial(direct_refusal, writer=refuse))
    assert list(tmp_path.iterdir()) == []


# --- JSON -----------------------------------------------------------------------------------

TEXT = st.text(max_size=20)
NUMBER = st.integers(0, 1 << 53)
FACTS = st.builds(
    HostFacts,
    hostname=TEXT,
    machine=TEXT,
    version=TEXT,
    python=TEXT,
    mpi_library=TEXT,
    cores=NUMBER,
    cpu_quota_cores=st.none() | st.floats(min_value=0.01, max_value=512),
    memory_bytes=st.none() | NUMBER,
    memory_limit_bytes=st.none() | NUMBER,
    open_files=st.none() | NUMBER,
    filesystem=st.none() | st.dictionaries(TEXT, TEXT | NUMBER | st.none() | st.booleans()),
    direct=st.none() | st.booleans(),
    gpus=st.none() | st.dictionaries(TEXT, TEXT | NUMBER),
    wall_clock_s=st.floats(allow_nan=False, allow_infinity=False),
    problems=st.lists(TEXT).map(tuple),
)


@pytest.mark.thorough
@settings(deadline=None)
@given(FACTS)
def test_facts_are_the_same_after_a_journey(facts: HostFacts) -> None:
    assert HostFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@settings(deadline=None)
@given(
    st.builds(
        HostQuestion,
        cache_dir=st.none() | TEXT,
        programs=st.lists(TEXT).map(tuple),
        gpus=st.booleans(),
    )
)
def test_a_question_is_the_same_after_a_journey(question: HostQuestion) -> None:
    assert HostQuestion.from_json(json.loads(json.dumps(question.to_json()))) == question


def test_facts_with_other_fields_are_refused_with_their_names() -> None:
    data = host_facts().to_json()
    del data["cores"]
    with pytest.raises(PreflightError, match="other fields than ours: cores, sockets"):
        HostFacts.from_json({**data, "sockets": 8})


# --- marks ----------------------------------------------------------------------------------


def test_a_mark_is_seen_where_it_was_put_until_it_is_removed(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    path = put_mark(str(here), "token")
    name = os.path.basename(path)  # noqa: PTH119
    assert see_marks(str(here), [name, "another"]) == [name]
    assert see_marks(str(there), [name, "another"]) == []
    remove_mark(path)
    remove_mark(path)
    assert see_marks(str(here), [name]) == []


def test_marks_of_two_hosts_in_one_directory_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_mark(str(tmp_path), "token")
    monkeypatch.setattr(socket, "gethostname", lambda: "n2")
    put_mark(str(tmp_path), "token")
    assert len(list(tmp_path.iterdir())) == 2
