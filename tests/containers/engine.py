"""A container engine that the tests start, and the image that they run in it.

Not a test module. The engine is docker's daemon with a directory of its own, no bridge and
no firewall rules, on this machine or inside the namespaces of a test host. The image is
built from this machine's own files and wheels (rootfs.py, the Containerfile), once per
content; every engine loads it from a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.containers.rootfs import write_rootfs
from tests.site import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKOUT = Path(__file__).parents[2]
IMAGE = "pytest-kvcache-test"
PYTHON = "/opt/kvcache/bin/python"
_BASE = "pytest-kvcache-test-base"
_DAEMON = (
    "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
    "--ip-masq=false",
)  # fmt: skip
_BUILD_S = 300.0


class NoEngineError(Exception):
    """Why no engine can be started here, or no image be built; the reason of a skip."""


@dataclass(frozen=True)
class Docker:
    """A running daemon."""

    socket: Path
    enter: tuple[str, ...] = ()
    """What runs a command in the daemon's host; nothing for this machine."""

    @property
    def address(self) -> str:
        """The value of ``DOCKER_HOST``."""
        return f"unix://{self.socket}"

    def call(self, *args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the client; what it printed tells why it failed."""
        words = [*self.enter, "docker", "--host", self.address, *map(str, args)]
        environ = {**os.environ, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"docker {args[0]} failed: {done.stdout}\n{done.stderr}")
        return done

    def containers(self) -> list[str]:
        """The names of all, running or not."""
        return self.call("ps", "--all", "--format", "{{.Names}}").stdout.split()


def check_engine() -> None:
    """Raise ``NoEngineError`` unless a daemon can be started here."""
    if os.geteuid() != 0:
        raise NoEngineError("only root can start a container engine")
    for program in ("dockerd", "docker", "ldd"):
        if shutil.which(program) is None:
            raise NoEngineError(f"{program} is not installed")


@contextmanager
def docker(directory: Path, enter: Sequence[str] = ()) -> Iterator[Docker]:
    """Start a daemon that keeps everything in ``directory``, which must lie on a disk."""
    check_engine()
    engine = Docker(socket=directory / "sock", enter=tuple(enter))
    log = directory / "log"
    words = [
        *enter, *_DAEMON, "--data-root", directory / "data", "--exec-root", directory / "exec",
        "--pidfile", directory / "pid", "--host", engine.address,
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, words)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: process.poll() is not None or _answers(engine), limit_s=30)
        if process.poll() is not None:
            raise NoEngineError(f"dockerd does not start: {log.read_text()[-500:]}")
        yield engine
    finally:
        _stop(engine, process)


def _answers(engine: Docker) -> bool:
    return engine.call("version", check=False).returncode == 0


def _stop(engine: Docker, process: subprocess.Popen[bytes]) -> None:
    """Remove all containers, so that no shim is left, and end the daemon."""
    if process.poll() is None:
        if names := engine.containers():
            engine.call("rm", "--force", *names, check=False)
        # What enters a host may not pass signals on, so the daemon itself is told.
        pid = (engine.socket.parent / "pid").read_text().strip()
        subprocess.run([*engine.enter, "kill", pid], check=False)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _unmount_below(engine.socket.parent)


def _unmount_below(directory: Path) -> None:
    """The daemon leaves the network namespace mounted that its containers shared."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in reversed(mounted):
        if path.startswith(f"{directory}/"):
            subprocess.run(["umount", path], check=False)


def image_file() -> Path:
    """The image as a file that ``docker load`` reads; built if its content is a new one.

    Raises ``NoEngineError`` where it can't be built.
    """
    check_engine()
    store = Path("/var/tmp", f"pytest-kvcache-images-{os.getuid()}")
    store.mkdir(mode=0o700, exist_ok=True)
    if store.stat().st_uid != os.getuid():
        raise NoEngineError(f"{store} belongs to another user")
    file = store / f"{_content_key()}.tar"
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be building it
        if not file.exists():
            for old in store.glob("*.*"):
                old.unlink()
            with tempfile.TemporaryDirectory(prefix="kvcache-image-", dir="/var/tmp") as scratch:
                _build(Path(scratch), file)
    return file


def _content_key() -> str:
    digest = hashlib.sha256(sys.version.encode())
    sources = [*sorted((CHECKOUT / "pytest_kvcache").rglob("*.py"))]
    for path in [*sources, *map(CHECKOUT.joinpath, ("Containerfile", "pyproject.toml"))]:
        digest.update(path.read_bytes())
    digest.update(Path(__file__).with_name("rootfs.py").read_bytes())
    return digest.hexdigest()[:16]


def _build(scratch: Path, file: Path) -> None:
    """As the Containerfile says, with a base and wheels that no registry is asked for."""
    wheels = scratch / "wheels"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels)]
    done = subprocess.run(
        [*pip, f"{CHECKOUT}[mpi]"],
        capture_output=True, text=True, check=False, timeout=_BUILD_S,
    )  # fmt: skip
    if done.returncode:
        raise NoEngineError(f"pip has no wheels for the image: {done.stderr.strip()[-300:]}")
    write_rootfs(scratch / "base.tar")
    (scratch / "engine").mkdir()
    with docker(scratch / "engine") as engine:
        engine.call("import", scratch / "base.tar", _BASE)
        engine.call(
            "build", "--network", "none", "--build-arg", f"BASE={_BASE}",
            "--build-arg", "PIP_NO_INDEX=1", "--file", CHECKOUT / "Containerfile",
            "--tag", IMAGE, wheels,
        )  # fmt: skip
        part = file.with_suffix(".part")
        engine.call("save", "--output", part, IMAGE)
        part.rename(file)
