"""What a user gets wrong ends with exit code 4, one sentence with the fix, and no launch.

Each kind of way by which it is found has a session of pytest; the sentences are looked at
without one (desk.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

import pytest_kvcache
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import explain_swallowed_path
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plugin import refuse_xdist
from tests.desk import datasize_refusal
from tests.site import PLUGINS, PYTEST, SUITE, refusal, runs_as_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.options.options import Origin
    from tests.desk import Desk
    from tests.site import Site

REPOSITORY = Path(pytest_kvcache.__file__).parent.parent
LINE = '{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}\n'
TYPED = [
    # what is unknown, with what is known
    ("--kv-scenario=nope", ["--kv-scenario is 'nope'", "known scenario", "mixed"]),
    ("--kv-model=nope", ["--kv-model is 'nope'", "known model", "others"]),
    ("--kv-backend=nope", ["--kv-backend is 'nope'", "known backend", "file"]),
    ("--kv-metrics=nope", ["--kv-metrics is 'nope'", "known metric", "others"]),
    ("--kv-slo=nope<5", ["--kv-slo is 'nope'", "known metric", "others"]),
    ("--kv-slo=read.p95_ms>5", ["--kv-slo is read.p95_ms>5", "'read.p95_ms<5'"]),
    ("--kv-slo=read.gib_per_s<5", ["--kv-slo is read.gib_per_s<5", "'read.gib_per_s>5'"]),
    ("--kv-plugin=nope", ["--kv-plugin is 'nope'", "must be importable"]),
    ("--kv-model=nope.toml", ["nope.toml"]),
    # counts
    ("--kv-np=0", ["--kv-np is 0; it must be at least 1"]),
    ("--kv-np=1,,2", ["--kv-np is '1,,2'; it must be counts divided by single commas"]),
    ("--kv-npernode=3", ["--kv-np", "--kv-npernode", "2", "3"]),
    ("--kv-num-users=0", ["--kv-num-users is 0; it must be at least 1"]),
    ("--kv-duration=0", ["--kv-duration is 0; it must be above 0"]),
    ("--kv-trials=0", ["--kv-trials is '0'", "3..20"]),
    # hosts and sizes
    ("--kv-hosts=n1:none", ["--kv-hosts", "'none'", "n1:4"]),
    ("--kv-hosts=n1:1", ["--kv-np", "2", "1"]),
    ("--kv-hosts=@nope", ["--kv-hosts is @nope", "No such file"]),
    (f"--kv-hosts={'n' * 64}", ["--kv-hosts", "n" * 64]),
    ("--kv-storage-capacity-gb=4GG", ["--kv-storage-capacity-gb is '4GG'", "GiB"]),
    ("--kv-storage-capacity-gb=1KiB", ["--kv-storage-capacity-gb", "no block"]),
    # what belongs together
    ("--kv-fail=read.p95_ms:5%", ["--kv-fail needs a baseline", "--kv-compare=FILE"]),
    ("--kv-trace-limit=5", ["--kv-trace-limit needs a trace", "--kv-trace=FILE"]),
    ("--kv-compare=nope.json", ["--kv-compare is nope.json", "No such file"]),
    ("--kv-results-dir=test_mine.py", ["--kv-results-dir is 'test_mine.py'", "no directory"]),
    ("--kv-python=/no/python", ["--kv-python is '/no/python'", "interpreter"]),
]


def assert_refused(site: Site, result: pytest.RunResult, *fragments: str) -> None:
    assert_said(refusal(result), *fragments)
    assert site.launches() == []
    assert not (site.path / "results").exists()


def assert_said(sentence: str, *fragments: str) -> None:
    assert [fragment for fragment in fragments if fragment not in sentence] == []
    assert not re.search(r"[.!] [A-Z]", sentence), f"more than one sentence: {sentence}"


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("--kv-num-users=0", ["--kv-num-users is 0; it must be at least 1"]),  # its text
        ("--kv-fail=read.p95_ms:5%", ["--kv-fail needs a baseline"]),  # what belongs together
        ("--kv-scenario=nope", ["--kv-scenario is 'nope'", "known scenario"]),  # no such name
        ("--kv-model=nope.toml", ["nope.toml"]),  # a file that can't be read
        ("--kv-storage-capacity-gb=1KiB", ["--kv-storage-capacity-gb", "no block"]),  # the plan
        ("--kv-mpi-bin=/no/mpirun", ["--kv-mpi-bin is /no/mpirun"]),  # the machine
        ("--kv-num-user=5", ["--kv-num-user"]),  # no option
    ],
)
def test_a_session_that_is_asked_for_what_can_not_be_ends_with_one_sentence_and_no_launch(
    site: Site, argument: str, fragments: list[str]
) -> None:
    assert_refused(site, site.canned(argument), *fragments)


@pytest.mark.parametrize(("argument", "fragments"), TYPED)
def test_a_bad_value_is_refused_in_one_sentence(
    desk: Desk, argument: str, fragments: list[str]
) -> None:
    (desk.path / "test_mine.py").touch()
    assert_said(desk.refusal(argument), *fragments)


def test_an_unknown_metric_of_a_gate_is_refused(desk: Desk) -> None:
    (desk.path / "base.json").write_text("{}")
    sentence = desk.refusal("--kv-compare=base.json", "--kv-fail=nope:5%")
    assert_said(sentence, "--kv-fail is 'nope'", "known metric", "others")


# --- hosts ----------------------------------------------------------------------------------


SWALLOWED = "give test paths before --kv-hosts, or write --kv-hosts=n1,n2"


def test_a_test_path_swallowed_by_the_hosts_is_explained(site: Site) -> None:
    (site.path / "tests").mkdir()
    sentence = refusal(site.call("--kv-np=2", "--kv-hosts", "n1", "n2", "tests"))
    assert_said(sentence, "'tests' is a path, not a host", SWALLOWED)


@pytest.mark.parametrize("path", ["tests/", "tests", "test_a.py::test_b"])
def test_a_test_path_among_hosts_is_explained(path: str) -> None:
    sentence = explain_swallowed_path(["n1", "n2", path], lambda name: name == "tests")
    assert sentence is not None
    assert_said(sentence, f"{path!r} is a path, not a host", SWALLOWED)


def test_a_host_may_be_called_like_a_directory(site: Site) -> None:
    (site.path / "n1").mkdir()
    result = site.canned("--kv-dry-run", "--kv-hosts", "n1")
    assert "ranks on n1:2" in " ".join(result.outlines)


def test_a_host_that_ssh_does_not_find_fails_its_cases_and_starts_no_launch(site: Site) -> None:
    result = site.canned("--kv-hosts=host.invalid")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = " ".join(" ".join(result.outlines).split())
    assert "host host.invalid: can't be reached over ssh" in text
    assert "'ssh host.invalid true'" in text
    assert "starting" not in text


# --- traces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["t.jsonl", "it is empty"]),
        (b"time,tokens\n1,2\n", ["t.jsonl, line 1", "it is of no format that is read"]),
        (b"\x00\x01\x02\xff", ["t.jsonl", "it is binary"]),
        (LINE.encode() * 2 + LINE.encode()[:40], ["t.jsonl, line 3", "cut off"]),
        (
            LINE.encode() + LINE.encode().replace(b"600", b'"x"'),
            ["t.jsonl, line 2", "input_length"],
        ),
        (LINE.encode() + b"\n" + LINE.encode(), ["t.jsonl, line 2", "blank"]),
    ],
)
def test_a_bad_trace_is_refused_with_file_and_line(
    desk: Desk, content: bytes, fragments: list[str]
) -> None:
    (desk.path / "t.jsonl").write_bytes(content)
    assert_said(desk.refusal("--kv-trace=t.jsonl", "--kv-np=1"), "--kv-trace", *fragments)


def test_a_trace_that_is_not_there_is_refused(desk: Desk) -> None:
    assert_said(desk.refusal("--kv-trace=nope.jsonl"), "nope.jsonl", "No such file")


def test_a_trace_that_is_a_directory_is_refused(desk: Desk) -> None:
    assert_said(desk.refusal("--kv-trace=cache"), "cache", "directory")


def test_a_trace_of_fewer_conversations_than_ranks_is_refused(site: Site) -> None:
    (site.path / "t.jsonl").write_text(LINE)
    assert_refused(site, site.canned("--kv-trace=t.jsonl"), "--kv-np is 2", "use --kv-np=1")


# --- directories ----------------------------------------------------------------------------


def stored(desk: Desk, directory: object, *args: str) -> str:
    return desk.refusal("--kv-backend=file", f"--kv-cache-dir={directory}", *args)


@pytest.mark.parametrize("directory", ["/etc", "/usr/local/cache", "/", "/var/lib/x", "/proc/1"])
def test_a_cache_directory_of_the_system_is_refused(desk: Desk, directory: str) -> None:
    assert_said(stored(desk, directory), "--kv-cache-dir", "system directory")


def test_a_link_into_a_system_directory_is_refused(desk: Desk) -> None:
    (desk.path / "link").symlink_to("/etc")
    assert_said(stored(desk, desk.path / "link"), "link (really /etc)", "system directory")


def test_a_cache_directory_that_is_not_there_is_refused(desk: Desk) -> None:
    assert_said(stored(desk, "nowhere"), "nowhere", "does not exist; create it first")


def test_a_cache_directory_that_is_a_file_is_refused(desk: Desk) -> None:
    (desk.path / "file").touch()
    assert_said(stored(desk, "file"), "/file; it must be a directory")


def test_more_storage_than_there_is_free_is_refused(desk: Desk) -> None:
    sentence = stored(desk, "cache", "--kv-storage-capacity-gb=4000000", "--kv-num-users=100000",
                    "--kv-model=llama2-7b")  # fmt: skip
    assert_said(sentence, "--kv-storage-capacity-gb", "cache", "free", "lower it")


def test_more_memory_than_there_is_is_refused(desk: Desk) -> None:
    sentence = desk.refusal("--kv-backend=memory", "--kv-queue-depth=1024", "--kv-np=1000",
                         "--kv-num-users=1")  # fmt: skip
    assert_said(sentence, "1,000 ranks need", "of memory", "lower --kv-np")


def without_override(site: Site, *args: str) -> pytest.RunResult:
    """The same session held to the modes of files, which root alone is not."""
    command = [sys.executable, "-m", "pytest", *PYTEST, *SUITE]
    if runs_as_root():
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root can write everywhere, and there is no setpriv to prevent it")
        command = [setpriv, "--bounding-set=-dac_override,-dac_read_search", *command]
    return site.pytester.run(*command, *site.canned_args(), *args)


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def test_a_cache_directory_that_is_not_writable_is_refused(site: Site) -> None:
    with mode(site.cache_dir, 0o555):
        result = without_override(site, "--kv-backend=file", f"--kv-cache-dir={site.cache_dir}")
    assert_refused(site, result, f"--kv-cache-dir is {site.cache_dir}; it must be writable by uid")


def test_a_results_directory_that_is_not_writable_is_refused(site: Site) -> None:
    with mode(site.cache_dir, 0o555):
        result = without_override(site, "--kv-results-dir=cache/results")
    assert_refused(site, result, "--kv-results-dir is 'cache/results'", "is not writable")


def test_a_results_directory_where_nothing_can_be_made_is_refused(desk: Desk) -> None:
    sentence = desk.refusal("--kv-results-dir=/proc/results")  # not even by root
    assert_said(sentence, "--kv-results-dir is '/proc/results'", "is not writable")


# --- MPI ------------------------------------------------------------------------------------


def program(desk: Desk, name: str, body: str) -> str:
    path = desk.path / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def with_mpirun(desk: Desk, says: str, *args: str) -> str:
    return desk.refusal(f"--kv-mpi-bin={program(desk, 'mpirun', f'echo {says!r}')}", *args)


@pytest.mark.parametrize("name", ["no-such-mpirun", "/no/such/mpirun"])
def test_a_launcher_that_is_not_there_is_refused_with_the_pip_command(
    desk: Desk, name: str
) -> None:
    sentence = desk.refusal(f"--kv-mpi-bin={name}")
    assert_said(sentence, f"--kv-mpi-bin is {name}", "pip install 'pytest-kvcache[mpi]'")


def test_no_mpirun_anywhere_is_refused_with_the_pip_command(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_dir = site.path / "environment" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (bin_dir.parent / "pyvenv.cfg").write_text(f"home = {home}\n")
    packages = Path(np.__file__).parent.parent
    paths = [str(PLUGINS), str(REPOSITORY), str(packages)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("PATH", str(bin_dir))
    result = site.pytester.run(
        bin_dir / "python", "-m", "pytest", *PYTEST, *SUITE,
        *site.canned_args(without={"--kv-mpi-bin"}),
    )  # fmt: skip
    assert_refused(site, result, "--kv-mpi-bin is mpirun", f"neither in {bin_dir} nor on PATH",
                   "pip install 'pytest-kvcache[mpi]'")  # fmt: skip


def test_an_interpreter_without_mpi4py_is_refused_with_the_pip_command(desk: Desk) -> None:
    python = program(
        desk, "python", "echo \"ModuleNotFoundError: No module named 'mpi4py'\" >&2\nexit 1"
    )
    sentence = desk.refusal(f"--kv-python={python}")
    assert_said(sentence, python, "No module named 'mpi4py'",
                   "pip install 'pytest-kvcache[mpi]'")  # fmt: skip


def test_a_launcher_and_a_library_of_two_families_are_refused(desk: Desk) -> None:
    sentence = with_mpirun(desk, "HYDRA build details:\n    Version:    5.0.2")
    assert_said(sentence, "hydra 5.0.2", "mpi4py loads 'Open MPI v5.0.11", "both must be")


def test_a_launcher_of_no_known_family_is_refused(desk: Desk) -> None:
    sentence = with_mpirun(desk, "I launch rockets")
    assert_said(sentence, "'I launch rockets'", "mpiexec.hydra", "Slurm's srun")


def test_launcher_parameters_that_contradict_the_plan_are_refused(desk: Desk) -> None:
    sentence = with_mpirun(desk, "mpirun (Open MPI) 5.0.11", "--kv-mpi-params=-n 7",
                         "--kv-allow-run-as-root")  # fmt: skip
    assert_said(sentence, "--kv-mpi-params has the launcher option 'n'", "leave it out")


def test_more_ranks_than_cores_are_refused_with_the_flag_that_allows_them(desk: Desk) -> None:
    cores = len(os.sched_getaffinity(0))
    sentence = desk.refusal(f"--kv-np={cores + 1}", without={"--kv-oversubscribe"})
    assert_said(sentence, f"{cores + 1} ranks on 127.0.0.1", f"{cores} cores",
                   "--kv-oversubscribe")  # fmt: skip


def test_the_coordinator_needs_no_core(desk: Desk) -> None:
    cores = len(os.sched_getaffinity(0))
    desk.accept("--kv-dry-run", f"--kv-np={cores}", without={"--kv-oversubscribe"})


def test_root_is_refused_with_the_flag_that_allows_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runs_as_root():
        pytest.skip("this is not root")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.delenv(name, raising=False)
    sentence = with_mpirun(desk, "mpirun (Open MPI) 5.0.11")
    assert_said(sentence, "this is root", "--kv-allow-run-as-root")


@pytest.mark.parametrize("args", [("-n", "2"), ("-nauto",)])
def test_xdist_together_with_the_benchmark_is_refused(site: Site, args: tuple[str, ...]) -> None:
    assert_refused(site, site.canned(*args), "--kv-np", "xdist's -n", "drop the -n")


def test_xdist_with_workers_named_one_by_one_is_refused_as_well(site: Site) -> None:
    assert_refused(site, site.canned("--dist=load", "--tx=popen"), "--kv-np", "xdist")


def test_a_gate_of_an_ini_together_with_xdist_is_refused_as_well(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_slo = read.p95_ms<1\n")
    site.pytester.makepyfile("def test_one(): pass")
    assert_refused(site, site.call("-n1"), "kv_slo", "xdist's -n", "drop the -n")


class Spread:
    """What pytest's configuration says of a session with workers."""

    def getoption(self, name: str, default: object = None) -> object:
        return {"numprocesses": 1, "dist": "load"}.get(name, default)


@pytest.mark.parametrize(
    ("origin", "gates", "named"),
    [
        ("command line", {"slo": ["read.p95_ms<1"]}, "--kv-slo"),
        ("command line", {"compare": "none.json"}, "--kv-compare"),
        ("ini", {"slo": ["read.p95_ms<1"]}, "kv_slo"),
        ("ini", {"compare": "none.json"}, "kv_compare"),
        ("ini", {"compare": "none.json", "fail": ["read.p95_ms:5%"]}, "kv_"),
        ("command line", {"np": "2"}, "--kv-np"),
    ],
)
def test_a_gate_together_with_xdist_is_refused(
    origin: Origin, gates: dict[str, str | list[str]], named: str
) -> None:
    options = build_options({name: (text, origin) for name, text in gates.items()})
    with pytest.raises(OptionError) as refused:
        refuse_xdist(cast("pytest.Config", Spread()), options)
    assert str(refused.value).startswith(named)
    assert_said(str(refused.value), "xdist's -n", "drop the -n")


def test_an_ini_that_sizes_the_benchmark_is_no_reason_to_refuse_xdist() -> None:
    options = build_options({"np": ("2", "ini"), "num_users": ("5", "ini")})
    refuse_xdist(cast("pytest.Config", Spread()), options)


# --- ini files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("num_users", "many", ["kv_num_users is 'many'", "whole number"]),
        ("deadline", "-5", ["kv_deadline", "-5"]),
        ("keep", "perhaps", ["kv_keep is 'perhaps'", "true, false"]),
        ("scenario", "nope", ["'nope'", "known scenario"]),
    ],
)
def test_a_bad_value_of_an_ini_is_refused_by_its_ini_name(
    desk: Desk, name: str, text: str, fragments: list[str]
) -> None:
    assert_said(desk.refusal(ini={name: text}), *fragments)


def test_a_bad_value_of_an_ini_file_is_refused_by_its_ini_name(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_hosts = n1:none\n")
    assert_refused(site, site.canned(), "kv_hosts", "'none'")


# --- sizes without a run --------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "--kv-hosts=n1", "--kv-np=2", "--kv-np=1", "--kv-npernode=1", "--kv-exec-type=mpi",
        "--kv-mpi-bin=mpirun", "--kv-mpi-params=-q", "--kv-oversubscribe",
        "--kv-allow-run-as-root",
    ],
)  # fmt: skip
def test_the_size_calculation_refuses_every_distributed_option(option: str) -> None:
    flag = option.partition("=")[0]
    sentence = datasize_refusal(option)
    assert sentence.startswith(f"{flag} is given together with --kv-datasize")
    assert sentence.endswith(f"drop {flag}")


def test_a_size_calculation_that_is_refused_ends_with_one_sentence(site: Site) -> None:
    sentence = refusal(site.call("--kv-datasize", "--kv-np=2"))
    assert_said(sentence, "--kv-np is given together with --kv-datasize", "drop --kv-np")


def test_a_damaged_baseline_is_refused(desk: Desk) -> None:
    (desk.path / "base.json").write_text(json.dumps({"schema": "pytest-kvcache/run/9"}))
    sentence = desk.refusal("--kv-compare=base.json", "--kv-fail=read.p95_ms:5%")
    assert_said(sentence, "--kv-compare is base.json", "record the baseline anew")
