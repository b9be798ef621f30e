"""Small filesystems that tests mount, fill, freeze and break. Not a test module.

Only root can; elsewhere, and where a tool or a device is missing, the test is skipped
and says why. What is mounted here is unmounted, thawed and detached whatever happens.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.site import runs_as_root, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
_STEP_BYTES = 64 << 10


@contextmanager
def small_filesystem(directory: Path, options: str) -> Iterator[None]:
    """A tmpfs; the test is skipped where it can't be mounted."""
    _need()
    _try("mount", "-t", "tmpfs", "-o", options, "kvcache-test", str(directory))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@dataclass(frozen=True)
class LoopDisk:
    """An ext4 filesystem in a file, mounted on ``directory`` through the loop ``device``."""

    directory: Path
    image: Path
    device: str

    def lose_all_but(self, size_bytes: int) -> None:
        """The device ends there from now on: what lies beyond is an input/output error."""
        os.truncate(self.image, size_bytes)
        _try("losetup", "-c", self.device)

    def unmount_lazily(self) -> None:
        """The path leads to the directory below at once; open files stay."""
        subprocess.run(["umount", "-l", str(self.directory)], check=True)

    @contextmanager
    def frozen(self, at_most_s: float) -> Iterator[None]:
        """What writes waits in the kernel, deaf to signals; a process of its own thaws too."""
        script = 'sleep "$1"; exec fsfreeze -u "$2"'
        watchdog = subprocess.Popen(
            ["sh", "-c", script, "thaw", str(at_most_s), str(self.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _try("fsfreeze", "-f", str(self.directory))
            yield
        finally:
            self.thaw()
            with suppress(ProcessLookupError):
                os.killpg(watchdog.pid, signal.SIGKILL)
            watchdog.wait()

    def thaw(self) -> None:
        """Thaw it if it is frozen."""
        subprocess.run(
            ["fsfreeze", "-u", str(self.directory)], check=False, stderr=subprocess.DEVNULL
        )


@contextmanager
def loop_disk(directory: Path, size_bytes: int) -> Iterator[LoopDisk]:
    """A new ext4 on ``directory``, without a journal, so that it outlives its device."""
    _need("mkfs.ext4", "losetup", "fsfreeze")
    with tempfile.TemporaryDirectory(prefix="kvcache-test-disk-", dir="/var/tmp") as parent:
        image = Path(parent, "image")
        image.touch()
        os.truncate(image, size_bytes)
        _try("mkfs.ext4", "-q", "-F", "-m0", "-O", "^has_journal", "-b", "4096", str(image))
        device = _try("losetup", "-f", "--show", str(image)).strip()
        disk = LoopDisk(directory, image, device)
        try:
            _try("mount", device, str(directory))
            (directory / "lost+found").rmdir()
            yield disk
        finally:
            disk.thaw()
            if directory.is_mount():
                subprocess.run(["umount", "-l", str(directory)], check=True)
            wait_for(lambda: _is_detached(device))


def _is_detached(device: str) -> bool:
    """Detach it, which succeeds once the last of its files is closed."""
    subprocess.run(["losetup", "-d", device], check=False, stderr=subprocess.DEVNULL)
    listed = subprocess.run(["losetup", "-n", "-O", "NAME"], check=True, capture_output=True)
    return device not in listed.stdout.decode().split()


def in_own_mounts(script: str, code: str) -> list[str]:
    """A command: in a mount namespace of its own the shell's script, then Python code.

    Its mounts are gone when it ends; loop devices are not, see `loop_over`.
    """
    _need("unshare")
    shell = f'set -e\nmount --make-rprivate /\n{script}\nexec {sys.executable} -c "$0"'
    return ["unshare", "-m", "sh", "-c", shell, code]


def run(command: list[str]) -> str:
    """Its output; the test is skipped where the machine has not what the script needs."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"this machine can't: {done.stderr.strip()[-300:]}")
    assert not done.returncode, done.stderr
    return done.stdout


@contextmanager
def loop_over(image: Path, *options: str) -> Iterator[str]:
    """A loop device of a file, or of a block device; its name."""
    _need("losetup")
    device = _try("losetup", *options, "-f", "--show", str(image)).strip()
    try:
        yield device
    finally:
        wait_for(lambda: _is_detached(device))


@contextmanager
def mounted_on(directory: Path, *arguments: str) -> Iterator[None]:
    """Something mounted; the test is skipped where it can't be."""
    _need("mount")
    directory.mkdir(exist_ok=True)
    _try("mount", *arguments, str(directory))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def make_ext4(image: Path, size_bytes: int, *options: str) -> None:
    """A file, or a device that is there, with an ext4 in it."""
    _need("mkfs.ext4")
    if not image.is_block_device():
        image.touch()
        os.truncate(image, size_bytes)
    _try("mkfs.ext4", "-q", "-F", *options, str(image))


def fill(directory: Path, *, until: Callable[[], bool]) -> None:
    """Take all space of a filesystem, and what becomes free of it."""
    deadline_s = time.monotonic() + 30.0
    with (directory / "ballast").open("wb", buffering=0) as file:
        while not until() and time.monotonic() < deadline_s:
            try:
                file.write(bytes(_STEP_BYTES))
            except OSError:
                time.sleep(0.02)


def _need(*programs: str) -> None:
    if not runs_as_root():
        pytest.skip("only root can mount a small filesystem")
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)}: install e2fsprogs and util-linux")


def _try(*command: str) -> str:
    """Its output; the test is skipped where the machine can't."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        pytest.skip(f"this machine can't {command[0]}: {why or error}")
