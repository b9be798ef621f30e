"""Which engine is taken, and why: every way in which the kernel may refuse one, for real."""

from __future__ import annotations

import errno
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.choose import EngineChoice, Situation, choose_engine, open_queue
from pytest_kvcache.ioengines.probe import ProbePlan, ProbeResult, _Tries
from pytest_kvcache.system.kernelqueues import (
    IO_URING_SETUP,
    aio_numbers,
    ordered_memory,
    refusal,
    system_call,
)
from tests.storage import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64 * 1024
# A child that lets the kernel refuse system calls (number, errno)... and then asks for engines.
SECCOMP = """
import ctypes, sys
from pytest_kvcache.system.kernelqueues import refusal
denied = [tuple(map(int, text.split(":"))) for text in sys.argv[1:]]
code = [(0x20, 0, 0, 0)]  # load the number
for number, error in denied:
    code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]  # equal: SECCOMP_RET_ERRNO
code += [(0x06, 0, 0, 0x7FFF0000)]  # SECCOMP_RET_ALLOW
class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8),
                ("k", ctypes.c_uint32)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]
filters = (Filter * len(code))(*code)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Program(len(code), filters)), 0, 0) == 0, ctypes.get_errno()
for engine in ("io_uring", "libaio"):
    print(refusal(engine, 16))
"""


def test_both_engines_can_be_had_here() -> None:
    assert refusal("libaio", 16) is None
    assert not ordered_memory() or refusal("io_uring", 16) is None


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_a_seccomp_filter_is_a_reason_with_what_would_help(error: int) -> None:
    denied = [f"{IO_URING_SETUP}:{error}", f"{aio_numbers()[0]}:{error}"]
    done = subprocess.run(
        [sys.executable, "-c", SECCOMP, *denied], capture_output=True, text=True, check=False
    )
    if "AssertionError" in done.stderr:
        pytest.skip("no seccomp filter can be installed here")
    uring, libaio = done.stdout.splitlines()
    text = "Operation not permitted" if error == errno.EPERM else "Function not implemented"
    assert uring.startswith(f"io_uring_setup: {text}; ")
    assert "seccomp profile must allow io_uring_setup" in uring
    assert libaio.startswith(f"io_setup: {text}; ")
    assert "io_setup" in libaio


def test_a_disabled_io_uring_is_a_reason_with_what_would_help() -> None:
    knob = Path("/proc/sys/kernel/io_uring_disabled")
    if not knob.exists():
        pytest.skip("this kernel has no kernel.io_uring_disabled")
    before = knob.read_text(encoding="ascii")
    try:
        knob.write_text("2", encoding="ascii")
    except OSError as problem:
        pytest.skip(f"kernel.io_uring_disabled can't be changed here: {problem.strerror}")
    try:
        reported = refusal("io_uring", 16)
    finally:
        knob.write_text(before, encoding="ascii")
    assert reported is not None
    assert "kernel.io_uring_disabled must be 0" in reported


def test_exhausted_contexts_are_a_reason_with_what_would_help() -> None:
    most = int(Path("/proc/sys/fs/aio-max-nr").read_text(encoding="ascii"))
    reported = refusal("libaio", most + 1)  # as when others have all of them
    assert reported is not None
    assert reported.startswith("io_setup: Resource temporarily unavailable; raise the sysctl fs.")


def test_a_ring_goes_on_without_pinned_buffers_where_memory_can_not_be_locked() -> None:
    """Root may lock what it likes, so it is an injected ENOMEM for root, and a real one else."""
    from tests.ringkit import buffers  # noqa: PLC0415

    def call(number: int, *args: int) -> int:
        if number == 427 and args[1] == 0:
            return -errno.ENOMEM
        return system_call(number, *args)

    queue = open_queue("io_uring", 4, 4, call)
    try:
        queue.register(buffers(4, CHUNK))
        assert "did not take 262144 bytes of buffers in advance (Cannot allocate" in queue.notes[-1]
    finally:
        queue.close()
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK)


@contextmanager
def situation(directory: Path, io: str = "direct", store: str = "slab") -> Iterator[Situation]:
    directory.mkdir()
    backend = StoreBackend()
    facts = backend.open(
        make_plan(
            directory, object_bytes=CHUNK, chunk_bytes=CHUNK, capacity_objects=64,
            store=store, io=io,
        )
    )  # fmt: skip
    assert facts.io_mode in ("direct", "buffered")
    try:
        yield Situation(
            host="n1", files=backend.in_files, directory=str(directory), depth=16,
            transfer_bytes=CHUNK,
        )  # fmt: skip
    finally:
        backend.close()
        left = [path for path in directory.iterdir() if path.name.startswith("engine-probe")]
        assert not left


def denying(*numbers: int) -> Any:
    def call(number: int, *args: int) -> int:
        return -errno.EPERM if number in numbers else system_call(number, *args)

    return call


def test_auto_takes_io_uring_where_it_works(tmp_path: Path) -> None:
    with situation(tmp_path / "rank") as here:
        choice = choose_engine("auto", here)
    assert (choice.name, choice.asynchronous) == ("io_uring", True)
    assert re.search(r"\b\d+ of 16 writes", choice.reason)  # how many is a matter of time


def test_auto_passes_a_refused_io_uring_over_and_says_so(tmp_path: Path) -> None:
    with situation(tmp_path / "rank") as here:
        choice = choose_engine("auto", here, call=denying(IO_URING_SETUP))
        if here.files is None or here.files.buffered:
            pytest.skip("direct I/O is refused here")
    assert choice.name == "libaio"
    assert choice.reason.startswith("io_uring is passed over: io_uring_setup: Operation not perm")


@pytest.mark.parametrize(("quiet_after", "asynchronous"), [(0, True), (2, True), (3, False)])
def test_a_probe_that_lost_its_core_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_after: int, *, asynchronous: bool
) -> None:
    rounds = [[0] * 8] * quiet_after + [[2] * 8] * (3 - quiet_after)
    answers = chain([15], *rounds)
    monkeypatch.setattr(_Tries, "_batch", lambda *_args: (next(answers), None, 0, 0))
    plan = ProbePlan.of(
        directory=str(tmp_path), direct=False, one_file=True, depth=16, transfer_bytes=CHUNK
    )
    queue: Any = None
    assert _Tries(queue, plan, [], []).result(kernel.READ).asynchronous == asynchronous


def test_auto_takes_threads_where_both_are_refused(tmp_path: Path) -> None:
    with situation(tmp_path / "rank") as here:
        choice = choose_engine("auto", here, call=denying(IO_URING_SETUP, aio_numbers()[0]))
    assert choice.name == "threads"
    assert "io_uring is passed over" in choice.reason
    assert "libaio is passed over" in choice.reason


@pytest.mark.parametrize(("io", "store"), [("buffered", "slab"), ("direct", "file")])
def test_what_libaio_carries_out_at_once_is_found_by_the_probe(
    tmp_path: Path, io: str, store: str
) -> None:
    """Buffered transfers, and those that make a file longer."""
    with situation(tmp_path / "rank", io, store) as here:
        choice = choose_engine("auto", here, call=denying(IO_URING_SETUP))
        named = choose_engine("libaio", here)
    assert choice.name == "threads"
    assert "it is not asynchronous in" in choice.reason
    assert (named.name, named.asynchronous) == ("libaio", False)


def test_a_filesystem_in_memory_is_no_proof_for_libaio() -> None:
    directory = Path(tempfile.mkdtemp(prefix="kvcache-test-", dir="/dev/shm"))
    try:
        with situation(directory / "rank") as here:
            assert choose_engine("auto", here, call=denying(IO_URING_SETUP)).name == "threads"
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("name", "number"), [("io_uring", IO_URING_SETUP), ("libaio", aio_numbers()[0])]
)
def test_an_engine_that_is_asked_for_and_refused_is_an_error(
    tmp_path: Path, name: str, number: int
) -> None:
    with (
        situation(tmp_path / "rank") as here,
        pytest.raises(StorageError, match=f"n1: --kv-io-engine is {name}, which can't be had ther"),
    ):
        choose_engine(name, here, call=denying(number))


@pytest.mark.parametrize(
    ("depth", "never_waits", "wanted"),
    [(1, False, "inline"), (16, True, "inline"), (16, False, "threads")],
)
def test_a_backend_that_moves_its_bytes_itself_gets_plain_calls_or_threads(
    *, depth: int, never_waits: bool, wanted: str
) -> None:
    here = Situation(
        host="n1", files=None, directory=None, depth=depth, transfer_bytes=CHUNK,
        never_waits=never_waits,
    )  # fmt: skip
    assert choose_engine("auto", here).name == wanted
    threads = EngineChoice(name="threads", reason="asked for by --kv-io-engine=threads")
    assert choose_engine("threads", here) == threads
    with pytest.raises(StorageError, match="does not keep its objects in files"):
        choose_engine("io_uring", here)


@pytest.mark.parametrize(
    ("under_way", "pairs", "proven"),
    [(16, None, True), (15, 8, True), (15, 4, False), (1, 0, False), (0, 0, False)],
)
def test_a_batch_that_was_half_done_is_no_proof_without_pairs(
    *, under_way: int, pairs: int | None, proven: bool
) -> None:
    result = ProbeResult(
        kind="reads", transfers=16, transfer_bytes=CHUNK, under_way=under_way, device=None,
        pairs=pairs, submit_ns=1, all_ns=2,
    )  # fmt: skip
    assert result.asynchronous == proven


def test_io_uring_is_not_taken_where_the_order_of_memory_is_not_proven() -> None:
    assert ordered_memory("x86_64")
    assert not ordered_memory("aarch64")
