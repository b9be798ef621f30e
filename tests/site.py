"""A directory in which tests call pytest: with canned ranks, or with real ones.

Not a test module. Canned ranks (plugins/kvcache_test_launcher.py) need no MPI and give
the same figures everywhere; such a session runs inside this process. Real ranks need
mpirun and a process of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.hosts.lock import DIRECTORY_VARIABLE, lock_directories
from pytest_kvcache.results.run import RunResult

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

PLUGINS = Path(__file__).parent / "plugins"
SUITE = ("--pyargs", "pytest_kvcache.suite")
PATIENCE_S = 240.0  # how long a test waits for what must come; never how long it takes
QUEUE_S = 300.0  # and for another session's test to give the machine back
REFUSED = re.compile(r"ERROR: (?!usage: )|[^ ]*: error: (argument --[a-z-]*: )?")

# pytest itself: no cache directory, and nothing of the machine's other plugins.
PYTEST = (
    *("-p", "no:cacheprovider"),
    *("-p", "no:hypothesispytest"),  # it would import hypothesis anew in every session
)
CANNED = (
    "--kv-plugin=kvcache_test_launcher",
    "--kv-mpi-bin=canned",
    "--kv-np=2",
    "--kv-oversubscribe",
    "--kv-backend=null",
    "--kv-model=tiny-1b",
    "--kv-duration=1",
    "--kv-ramp=0",
    "--kv-trials=1",
)
# Real ranks: small, but each default metric has its samples in a window of a second.
SMALL = (
    "--kv-plugin=kvcache_test_backends",
    "--kv-np=2",
    "--kv-oversubscribe",
    "--kv-allow-run-as-root",
    "--kv-backend=memory",
    "--kv-scenario=chat",
    "--kv-model=tiny-1b",
    "--kv-block-tokens=4",
    "--kv-context-scale=0.02",
    "--kv-num-users=10",
    "--kv-duration=1",
    "--kv-ramp=0",
    "--kv-trials=1",
    "--kv-metrics=read.p95_ms,read.gib_per_s",
)


class Site:
    """A working directory, and ways to call pytest in it.

    ``python`` is an interpreter that answers the question for its MPI library and
    nothing else; the canned launcher does not start it.
    """

    def __init__(self, pytester: pytest.Pytester, python: str) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.python = python
        self.cache_dir = self.path / "cache"
        self.cache_dir.mkdir()

    def call(self, *args: object) -> pytest.RunResult:
        """pytest inside this process, without more."""
        return self.pytester.runpytest_inprocess(*PYTEST, *map(str, args))

    def canned(self, *args: object, without: Collection[str] = ()) -> pytest.RunResult:
        """The shipped suite with canned ranks; one trial unless told otherwise."""
        return self.call(*SUITE, *self.canned_args(without), *args)

    def canned_apart(self, *args: object) -> pytest.RunResult:
        """The same in a process of its own, to which this one's warning filters mean nothing."""
        return self.pytester.runpytest_subprocess(
            *PYTEST, *SUITE, *self.canned_args(), *map(str, args), timeout=PATIENCE_S
        )

    def canned_args(self, without: Collection[str] = ()) -> list[str]:
        """Options of a small load and canned ranks, without some of them."""
        options = [*CANNED, f"--kv-python={self.python}"]
        return [option for option in options if option.partition("=")[0] not in without]

    def canned_tests(self, source: str, *args: object) -> pytest.RunResult:
        """A user's own tests with canned ranks."""
        self.pytester.makepyfile(test_mine=source)
        return self.call("test_mine.py", *self.canned_args(), *args)

    def real_args(self, *args: object) -> tuple[str, ...]:
        """The shipped suite with real ranks, small; later options win."""
        return (*PYTEST, *SUITE, *SMALL, f"--kv-cache-dir={self.cache_dir}", *map(str, args))

    def real(self, *args: object) -> pytest.RunResult:
        """The shipped suite with real ranks in a process of its own."""
        return self.pytester.runpytest_subprocess(*self.real_args(*args), timeout=PATIENCE_S)

    @contextmanager
    def started(
        self, *args: object, stdout: int = subprocess.PIPE
    ) -> Iterator[subprocess.Popen[str]]:
        """pytest in the background, in a process group of its own; killed at the end."""
        command = [sys.executable, "-m", "pytest", *map(str, args)]
        process = subprocess.Popen(
            command,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout == subprocess.PIPE else stdout,
            text=True,
            start_new_session=True,
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
        finally:
            assert process.poll() is not None

    def run_files(self) -> list[Path]:
        """Every run file that was written here."""
        return sorted(self.path.glob("results/*/run.json"))

    def run_file(self) -> Path:
        """The only one."""
        (path,) = self.run_files()
        return path

    def run(self) -> dict[str, Any]:
        """Its content."""
        data: dict[str, Any] = json.loads(self.run_file().read_text(encoding="utf-8"))
        return data

    def case(self) -> dict[str, Any]:
        """The only case of the only run file."""
        (case,) = self.run()["cases"]
        found: dict[str, Any] = case
        return found

    def launches(self) -> list[Path]:
        """The directory of every launch that was begun."""
        return sorted(path.parent for path in self.path.glob("results/*/*/trial-*/plan.json"))

    def events(self) -> list[dict[str, Any]]:
        """What the coordinators have told so far; only whole lines."""
        lines = [
            line
            for path in sorted(self.path.glob("results/*/*/trial-*/events.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        ]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_window(self, process: subprocess.Popen[str]) -> list[int]:
        """Wait until ranks measure; return the pids of ranks and coordinator."""
        wait_for(lambda: process.poll() is not None or self._is_measuring())
        assert self._is_measuring(), process.communicate()[0]
        ranks = next(event for event in self.events() if event["event"] == "ranks")
        return [ranks["coordinator_pid"], *(rank["pid"] for rank in ranks["ranks"])]

    def _is_measuring(self) -> bool:
        return any(
            event["event"] == "phase" and event["phase"] == "window" for event in self.events()
        )


@contextmanager
def machine_to_oneself(among: str = "ranks", *, own_locks: bool = True) -> Iterator[None]:
    """Wait for the tests of that kind in other sessions, at most so long: they'd all be slow.

    Benchmarks that others run on this machine are no concern of ours, nor are our locks of
    theirs: they lie in a directory of the tests, which what is started here inherits.
    """
    name = f"pytest-kvcache-tests.{among}.{os.uname().nodename}.{os.getuid()}"
    path = Path(tempfile.gettempdir(), f"{name}.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until_s = time.monotonic() + QUEUE_S
        while not _has_taken(fd) and time.monotonic() < until_s:
            time.sleep(0.02)
        with pytest.MonkeyPatch.context() as patch:
            if own_locks:
                locks = path.with_suffix(".locks")
                locks.mkdir(exist_ok=True)
                patch.setenv(DIRECTORY_VARIABLE, str(locks))
            yield
    finally:
        os.close(fd)


def _has_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(host: str) -> bool:
    """Whether a benchmark runs on the host; the file alone says nothing."""
    return any(
        _is_held(directory / f"pytest-kvcache.{host}.lock")
        for directory in lock_directories(os.environ)
    )


def _is_held(path: Path) -> bool:
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def storage_directory(name: str) -> Iterator[Path]:
    """A new directory on a disk: /tmp may be memory, /var/tmp is not by convention."""
    with tempfile.TemporaryDirectory(prefix="kvcache-test-", dir="/var/tmp") as parent:
        path = Path(parent, name)
        path.mkdir()
        yield path


def wait_for(condition: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
    """Poll until it holds; fail the test if it never does."""
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, each another one."""
    with ExitStack() as sockets:
        found = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def output(result: pytest.RunResult) -> str:
    """All that was printed."""
    return f"{result.stdout.str()}\n{result.stderr.str()}"


def refusal(result: pytest.RunResult) -> str:
    """The one sentence of a run that was refused with exit code 4 and launched nothing."""
    text = output(result)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text[-2000:]
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    (line,) = (line for line in text.splitlines() if REFUSED.match(line))
    sentence = REFUSED.sub("", line)
    assert not re.search(r"[.!] [A-Z]", sentence), f"more than one sentence: {sentence}"
    return sentence


def runs_as_root() -> bool:
    """Whether the tests may do what only root may."""
    return os.geteuid() == 0


def as_run(data: Mapping[str, Any]) -> RunResult:
    """A run file's content as the value it was written from."""
    return RunResult.from_json(data)
