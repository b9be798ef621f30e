from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts.lock import HostLock, lock_directories

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534

HOLDER = """
import sys
from pathlib import Path
from pytest_kvcache.hosts.lock import HostLock
HostLock("n1", run_id="run-of-another", directories=[Path(sys.argv[1])]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def lock(directory: Path, hostname: str = "n1") -> HostLock:
    return HostLock(hostname, run_id="run-1", directories=[directory])


def test_second_holder_fails_and_names_the_first(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        with pytest.raises(PreflightError) as error:
            lock(tmp_path).acquire()
        since = json.loads(lock(tmp_path).path.read_text())["since"]

    assert str(error.value) == (
        f"a benchmark runs on n1 already (pid {process.pid}, run run-of-another, since"
        f" {since}); two at a time disturb each other, so wait for its end (--kv-wait=10m does)"
        " or stop it"
    )


def test_failed_second_holder_leaves_the_lock_to_the_first(tmp_path: Path) -> None:
    second = lock(tmp_path)
    with holding_process(tmp_path):
        with pytest.raises(PreflightError):
            second.acquire()
        second.release()
        with pytest.raises(PreflightError):
            second.acquire()


def test_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        process.kill()
        process.wait()

        with lock(tmp_path) as taken:
            assert json.loads(taken.path.read_text())["pid"] == os.getpid()


def test_holder_that_has_not_written_yet_is_unknown(tmp_path: Path) -> None:
    with lock(tmp_path) as first:
        for content in ("", "{half", "[1]"):
            first.path.write_text(content)
            with pytest.raises(PreflightError, match="pid unknown, run unknown, since unknown"):
                lock(tmp_path).acquire()


def test_the_holder_can_be_asked_for_without_taking_the_lock(tmp_path: Path) -> None:
    with holding_process(tmp_path) as process:
        holder = lock(tmp_path).holder()
        assert (holder["pid"], holder["run_id"]) == (process.pid, "run-of-another")
        with pytest.raises(PreflightError):
            lock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{half", "[1]", "\0\0"])
def test_a_holder_that_says_nothing_sensible_is_nobody(tmp_path: Path, content: str) -> None:
    lock(tmp_path).path.write_text(content)
    assert lock(tmp_path).holder() == {}


@pytest.mark.parametrize("kind", ["absent", "symlink", "directory", "fifo"])
def test_what_is_no_lock_has_no_holder(tmp_path: Path, kind: str) -> None:
    path = lock(tmp_path).path
    if kind == "symlink":
        (tmp_path / "other").write_text('{"pid": 1}')
        path.symlink_to(tmp_path / "other")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    assert lock(tmp_path).holder() == {}


def test_lock_can_be_taken_again_after_its_release(tmp_path: Path) -> None:
    once = lock(tmp_path)
    for _ in range(2):
        with once:
            pass

    assert list(tmp_path.iterdir()) == []


def test_hosts_that_share_a_directory_have_locks_of_their_own(tmp_path: Path) -> None:
    with lock(tmp_path, "n1"), lock(tmp_path, "n2"):
        assert len(list(tmp_path.iterdir())) == 2


def test_object_that_holds_the_lock_can_not_take_it_twice(tmp_path: Path) -> None:
    with lock(tmp_path) as held, pytest.raises(RuntimeError, match="held by this very object"):
        held.acquire()


def test_released_lock_is_never_shared_with_one_who_waited_at_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lock(tmp_path), lock(tmp_path)
    first.acquire()
    flock = fcntl.flock

    def flock_after_release(fd: int, operation: int) -> None:
        """The first holder goes between the second's open and its lock."""
        first.release()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_release)
    second.acquire()
    monkeypatch.undo()

    with pytest.raises(PreflightError):
        lock(tmp_path).acquire()
    second.release()


def test_every_user_may_open_the_file(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        with lock(tmp_path) as held:
            assert stat.S_IMODE(held.path.stat().st_mode) == 0o666
    finally:
        os.umask(mask)


def test_lock_is_not_inherited_by_ranks(tmp_path: Path) -> None:
    with lock(tmp_path):
        links = subprocess.run(
            ["/bin/ls", "-l", "/proc/self/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )

    assert ".lock" not in links.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_takes_over_what_a_killed_run_left() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o1777)
        with holding_process(directory):
            pass
        os.seteuid(NOBODY)
        try:
            with lock(directory) as taken:
                assert taken.path.stat().st_uid == 0
            lock(directory).acquire()
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_anything_but_a_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path, target = lock(tmp_path).path, tmp_path / "precious"
    target.write_text("content")
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)

    with pytest.raises(PreflightError, match=r"can't be used .* so remove it or mend its mode"):
        lock(tmp_path).acquire()

    assert target.read_text() == "content"
    assert path.lstat()


def locks(*directories: Path) -> HostLock:
    return HostLock("n1", run_id="run-1", directories=directories)


def test_where_no_file_can_be_made_another_directory_has_the_lock(tmp_path: Path) -> None:
    with locks(tmp_path / "absent", tmp_path) as held:
        assert held.path.parent == tmp_path
        with pytest.raises(PreflightError, match="a benchmark runs on n1 already"):
            locks(tmp_path).acquire()


def test_no_directory_at_all_is_an_error_that_names_them_and_the_variable(tmp_path: Path) -> None:
    with pytest.raises(PreflightError) as error:
        locks(tmp_path / "a", tmp_path / "b").acquire()

    assert str(error.value) == (
        f"the lock of this host can't be made in {tmp_path}/a (No such file or directory),"
        f" {tmp_path}/b (No such file or directory); set KVCACHE_LOCK_DIR to a directory that"
        " every benchmark of this host may write to"
    )


def test_the_lock_of_one_who_can_not_write_to_the_first_directory_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    with locks(first, second):
        first.mkdir()  # for us it can be written to
        with pytest.raises(PreflightError, match=f"already .pid {os.getpid()}, run run-1"):
            locks(first, second).acquire()
        assert list(first.iterdir()) == []

    with locks(first, second) as taken:
        assert taken.path.parent == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_whom_the_first_directory_is_closed_to_has_the_lock_elsewhere() -> None:
    with tempfile.TemporaryDirectory() as name:
        closed, open_to_all = Path(name, "closed"), Path(name, "open")
        Path(name).chmod(0o755)
        closed.mkdir(mode=0o755)
        open_to_all.mkdir()
        open_to_all.chmod(0o1777)
        os.seteuid(NOBODY)
        try:
            held = locks(closed, open_to_all)
            held.acquire()
            assert held.path.parent == open_to_all
            held.release()
        finally:
            os.seteuid(0)
        with holding_process(closed):
            os.seteuid(NOBODY)
            try:
                with pytest.raises(PreflightError, match="run run-of-another"):
                    locks(closed, open_to_all).acquire()
            finally:
                os.seteuid(0)


@pytest.mark.parametrize("hostname", ["", "../n1"])
def test_hostname_that_is_no_part_of_a_file_name_is_refused(hostname: str) -> None:
    with pytest.raises(ValueError, match="must be usable in a file name"):
        HostLock(hostname, run_id="run-1")


def test_lock_lies_in_shared_memory_unless_told_otherwise(tmp_path: Path) -> None:
    first = next(path for path in ("/dev/shm", "/run/lock", "/tmp") if Path(path).is_dir())

    assert lock_directories({})[0] == Path(first)
    assert lock_directories({"KVCACHE_LOCK_DIR": str(tmp_path)}) == (tmp_path,)
    assert lock_directories({"KVCACHE_LOCK_DIR": ""}) == lock_directories({})


def test_the_environment_says_where_locks_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_LOCK_DIR", str(tmp_path))

    assert HostLock("n1", run_id="run-1").path == tmp_path / "pytest-kvcache.n1.lock"


CONTENDER = """
import sys
from pathlib import Path
from pytest_kvcache.errors import PreflightError
from pytest_kvcache.hosts.lock import HostLock
directory, inside = Path(sys.argv[1]), Path(sys.argv[1], "inside")
for _ in range(300):
    try:
        with HostLock("n1", run_id="run", directories=[directory]):
            inside.touch(exist_ok=False)
            inside.unlink()
            print("in")
    except PreflightError:
        pass
"""


def test_contenders_are_never_inside_together(tmp_path: Path) -> None:
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [contender.communicate()[0] for contender in contenders]

    assert [contender.returncode for contender in contenders] == [0, 0, 0, 0]
    assert "in" in "".join(outputs)
