"""Real ranks on storage that is not what it seems: each is named, or is not called proven."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.system import kernelqueues
from pytest_kvcache.system.filesystem import probe_filesystem
from tests.filesystems import loop_over, make_ext4, mounted_on
from tests.site import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.lengthy]

IMAGE_BYTES = 512 << 20
SMALL = (
    "--kv-backend=file", "--kv-allow-invalid", "--kv-allow-preload", "--kv-np=1",
    "--kv-duration=2", "--kv-storage-capacity-gb=0.1", "--kv-metrics=requests.per_s",
)  # fmt: skip
# What a C program may put in between, in the ranks and everywhere else.
NO_SYNC = "int fsync(int fd){return 0;} int fdatasync(int fd){return 0;}"
NO_WRITE = """
#define _GNU_SOURCE
#include <sys/uio.h>
static ssize_t all(const struct iovec *v, int n) {
    ssize_t sum = 0; for (int i = 0; i < n; i++) sum += v[i].iov_len; return sum; }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
    ssize_t size = all(v, n);
    return size == LEFT_ALONE ? pwrite(fd, v[0].iov_base, size, at) : size; }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) { return pwritev(fd, v, n, at); }
ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int f) {
    return pwritev(fd, v, n, at); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off_t at, int f) {
    return pwritev(fd, v, n, at); }
""".replace("LEFT_ALONE", "4096").replace("#include", "#include <unistd.h>\n#include", 1)


def library(directory: Path, source: str) -> str:
    """A library that can be preloaded."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to make a library with")
    code, made = directory / "shim.c", directory / "shim.so"
    code.write_text(source, encoding="ascii")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(made), str(code)], check=True)
    return str(made)


@pytest.fixture
def disk_dir() -> Iterator[Path]:
    """A directory where files are on a disk that counts."""
    if not probe_filesystem("/var/tmp", "n1").chain.disks:
        pytest.skip("/var/tmp of this machine is on no disk")
    path = Path("/var/tmp", f"kvcache-test-proof-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


@contextmanager
def image_disk(site: Site, image: Path, *options: str, mkfs: tuple[str, ...] = ()) -> Iterator[str]:
    """The cache directory on a loop device of an image; the device."""
    make_ext4(image, IMAGE_BYTES, *mkfs)
    with loop_over(image, *options) as device, mounted_on(site.cache_dir, device):
        yield device


def trial_of(site: Site, *args: str) -> dict[str, Any]:
    """The only trial of a session that passes, invalid or not, and whose file is sound."""
    result = site.real(*SMALL, *args)
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert main(["verify", str(site.run_file())]) == 0
    (trial,) = site.case()["trials"]
    found: dict[str, Any] = trial
    return found


def codes(trial: dict[str, Any]) -> set[str]:
    return {verdict["code"] for verdict in trial["verdicts"]}


def test_a_disk_image_in_memory_is_memory(real_site: Site) -> None:
    memory = real_site.path / "memory"
    with (
        mounted_on(memory, "-t", "tmpfs", "kvcache-test"),
        image_disk(real_site, memory / "image"),
    ):
        trial = trial_of(real_site)
        (facts,) = trial["proof"]["filesystem"].values()
        assert [link["kind"] for link in facts["chain"]] == [
            "filesystem", "loop", "file", "filesystem",
        ]  # fmt: skip
        assert "TMPFS" in codes(trial)
        assert not codes(trial) & {"VIRTUAL_DISK", "BUSY_DEVICE"}
        assert trial["proof"]["verdict"] == trial["proof"]["writes"]["verdict"] == "TMPFS"
        refused = real_site.real("--kv-backend=file", "--kv-np=1")
        assert refused.ret == pytest.ExitCode.USAGE_ERROR
        assert f"on {memory}/image on tmpfs" in " ".join(output(refused).split())


def test_a_loop_device_that_caches_is_found_by_the_disk_below_it(
    real_site: Site, disk_dir: Path
) -> None:
    with image_disk(real_site, disk_dir / "image", "--direct-io=off"):
        trial = trial_of(real_site)
    assert trial["proof"]["reads"]["process_share"] > 0.9
    if trial["proof"]["devices"][0]["moved"]["read_bytes"] > trial["read"]["bytes"] / 2:
        pytest.skip("others read so much of this disk that nothing can be told")
    assert "CACHED_READS" in codes(trial)


def test_direct_io_through_a_loop_device_is_proven_at_the_disk(
    real_site: Site, disk_dir: Path
) -> None:
    with image_disk(real_site, disk_dir / "image", "--direct-io=on") as device:
        if Path(f"/sys/block/{Path(device).name}/loop/dio").read_text().strip() != "1":
            pytest.skip("this filesystem's files can't be a loop device with direct I/O")
        trial = trial_of(real_site)
    proof = trial["proof"]
    assert proof["io_mode"] == "direct"
    if "others used" in f"{proof['reads']['why']} {proof['writes']['why']}":
        pytest.skip("others used this disk so much that nothing can be told")
    assert proof["reads"]["verdict"] == proof["writes"]["verdict"] == proof["verdict"] == "PROVEN"
    assert 0 < proof["distinct_read_bytes"] <= proof["requested_read_bytes"]
    assert trial["integrity"]["read_back"] > 0


def test_direct_io_that_goes_through_the_page_cache_is_called_buffered(
    real_site: Site, disk_dir: Path
) -> None:
    make_ext4(disk_dir / "image", IMAGE_BYTES)
    with (
        loop_over(disk_dir / "image", "--direct-io=on") as device,
        mounted_on(real_site.cache_dir, "-o", "data=journal", device),
    ):
        trial = trial_of(real_site, "--kv-phase=prefill")
    assert (trial["proof"]["io_mode"], trial["proof"]["sync"]) == ("buffered", "data")
    assert "goes through the page cache" in trial["ranks"][0]["io_note"]


def test_a_sync_that_does_nothing_is_found_before_the_window(
    real_site: Site, disk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", library(real_site.path, NO_SYNC))
    trial = trial_of(
        real_site, "--kv-phase=prefill", "--kv-sync=data", f"--kv-cache-dir={disk_dir}"
    )
    assert "CACHED_WRITES" in codes(trial)
    (text,) = [v["text"] for v in trial["verdicts"] if v["code"] == "CACHED_WRITES"]
    assert "a sync on" in text
    assert trial["proof"]["writes"]["verdict"] == "CACHED_WRITES"


def test_a_sync_that_works_is_no_fault(real_site: Site, disk_dir: Path) -> None:
    trial = trial_of(real_site, "--kv-sync=data", f"--kv-cache-dir={disk_dir}")
    (probe,) = trial["proof"]["sync_probes"].values()
    assert probe["device_write_bytes"] >= probe["bytes"]
    assert "CACHED_WRITES" not in codes(trial)


@pytest.mark.parametrize("store", ["file", "slab"])
def test_writes_that_never_arrive_fail_where_nothing_is_read(
    real_site: Site, disk_dir: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("LD_PRELOAD", library(real_site.path, NO_WRITE))
    assert_lost(real_site, f"--kv-store={store}", f"--kv-cache-dir={disk_dir}", "threads")


def test_writes_that_the_kernel_never_makes_fail_where_nothing_is_read(
    real_site: Site, disk_dir: Path
) -> None:
    if (problem := kernelqueues.refusal("io_uring", 16)) is not None:
        pytest.skip(problem)
    # Where a file is new, reading it instead would come back short.
    plugin = "--kv-plugin=kvcache_test_lostwrites"
    assert_lost(real_site, plugin, "--kv-store=slab", f"--kv-cache-dir={disk_dir}", "io_uring")


def assert_lost(site: Site, *args: str) -> None:
    """A session of writes alone, with this I/O engine at last, finds that none has arrived."""
    *options, engine = args
    result = site.real(*SMALL, "--kv-phase=prefill", f"--kv-io-engine={engine}", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (trial,) = site.case()["trials"]
    assert [rank["io_engine"] for rank in trial["ranks"]] == [engine]
    assert "which the run has stored, reads back wrong" in trial["error"] or (
        "what the run has stored can't be read back" in trial["error"]
    )


def test_buffered_writes_without_a_sync_are_not_proven(real_site: Site, disk_dir: Path) -> None:
    options = ("--kv-phase=prefill", "--kv-io=buffered", "--kv-sync=none")
    trial = trial_of(real_site, *options, f"--kv-cache-dir={disk_dir}")
    assert trial["proof"]["writes"]["verdict"] == trial["proof"]["verdict"] == "UNPROVEN"
    assert "UNPROVEN" in codes(trial)


NEIGHBOUR = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 20)
print("reading", flush=True)
while True:
    for offset in range(0, os.fstat(fd).st_size, 1 << 20):
        os.preadv(fd, [page], offset)
"""


@contextmanager
def neighbour(directory: Path) -> Iterator[None]:
    """Somebody reads another file of that disk, past the page cache."""
    other = directory / "other"
    other.write_bytes(os.urandom(64 << 20))
    os.sync()
    command = [sys.executable, "-c", NEIGHBOUR, str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            if reader.stdout.readline() != "reading\n":
                pytest.skip("this filesystem takes no direct I/O")
            yield
        finally:
            reader.kill()


def test_a_neighbour_on_the_disk_is_reported_with_numbers(real_site: Site, disk_dir: Path) -> None:
    with neighbour(disk_dir):
        trial = trial_of(real_site, f"--kv-cache-dir={disk_dir}", "--kv-num-users=1")
    (group,) = trial["proof"]["devices"]
    assert group["foreign"]["read_bytes"] > 0
    assert group["foreign"]["quiet_bytes_per_s"] > 0
    assert "BUSY_DEVICE" in codes(trial)


def test_what_a_neighbour_reads_proves_nothing_of_a_loop_device_that_caches(
    real_site: Site, disk_dir: Path
) -> None:
    with image_disk(real_site, disk_dir / "image", "--direct-io=off"), neighbour(disk_dir):
        trial = trial_of(real_site, "--kv-num-users=1")
    reads = trial["proof"]["reads"]
    assert reads["process_share"] > 0.9
    assert reads["verdict"] in {"UNPROVEN", "CACHED_READS"}
    assert "BUSY_DEVICE" in codes(trial)
