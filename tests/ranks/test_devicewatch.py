from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.ranks.devicewatch import PROBE_BYTES, DeviceWatch, unsynced_bytes
from pytest_kvcache.system.blockstat import (
    BlockCounters,
    DeviceReport,
    SyncProbe,
    largest_request_bytes,
    machine_id,
    parse_stat,
    read_counters,
)
from pytest_kvcache.system.devicechain import DeviceChain, Link
from pytest_kvcache.system.filesystem import probe_filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STAT = " 16014 5778 1715010 8056 4204 19319 1016352 6305 0 5428 15904 4667 81 148336 1377 162 165\n"
NOTHING = BlockCounters(read_ops=0, read_bytes=0, write_ops=0, write_bytes=0, busy_s=0.0)


# --- counters -------------------------------------------------------------------------------


def test_sectors_of_a_device_are_of_512_bytes_and_times_in_ms() -> None:
    assert parse_stat(STAT) == BlockCounters(
        read_ops=16014,
        read_bytes=1715010 * 512,
        write_ops=4204,
        write_bytes=1016352 * 512,
        busy_s=5.428,
    )


@pytest.mark.parametrize("text", ["", "1 2 3\n", "a b c d e f g h i j k\n"])
def test_what_is_no_statistic_gives_no_counters(text: str) -> None:
    assert parse_stat(text) is None


@given(*[st.integers(0, 2**50)] * 4)
def test_what_was_moved_since_is_a_difference(a: int, b: int, c: int, d: int) -> None:
    early = BlockCounters(read_ops=a, read_bytes=b, write_ops=c, write_bytes=d, busy_s=1.0)
    late = BlockCounters(
        read_ops=a + 1, read_bytes=b + 512, write_ops=c + 2, write_bytes=d + 1024, busy_s=1.5
    )
    assert late.since(early) == BlockCounters(
        read_ops=1, read_bytes=512, write_ops=2, write_bytes=1024, busy_s=0.5
    )


def fake_device(tmp_path: Path, **queue: int) -> str:
    (tmp_path / "sda" / "queue").mkdir(parents=True)
    (tmp_path / "sda" / "stat").write_text(STAT)
    for name, value in queue.items():
        (tmp_path / "sda" / "queue" / name).write_text(f"{value}\n")
    return str(tmp_path)


def test_a_device_that_is_told_not_to_count_has_no_counters(tmp_path: Path) -> None:
    assert read_counters("sda", fake_device(tmp_path, iostats=1)) is not None
    (tmp_path / "sda/queue/iostats").write_text("0\n")
    assert read_counters("sda", str(tmp_path)) is None
    assert read_counters("sdb", str(tmp_path)) is None


def test_a_request_is_as_large_as_sectors_and_segments_allow(tmp_path: Path) -> None:
    root = fake_device(tmp_path, max_sectors_kb=1280, max_segments=254)
    assert largest_request_bytes("sda", root) == 254 * 4096
    (tmp_path / "sda/queue/max_segments").write_text("1024\n")
    assert largest_request_bytes("sda", root) == 1280 * 1024
    assert largest_request_bytes("sdb", root) is None


def test_namespaces_of_one_machine_have_one_identity() -> None:
    assert machine_id() == machine_id()


# --- the watch ------------------------------------------------------------------------------


def chain(*disks: str, end: str = "disk") -> DeviceChain:
    links = [Link(name="ext4", kind="filesystem")]
    links += [Link(name=name, kind="disk", above=0, end="disk") for name in disks]
    if end != "disk":
        links.append(Link(name="nbd0", kind="nbd", above=0, end="unseen", note="elsewhere"))
    return DeviceChain(tuple(links))


class Disks:
    """Counters that a test moves."""

    def __init__(self, *names: str) -> None:
        self.moved = dict.fromkeys(names, 0)
        self.busy_s = 0.0

    def read(self, name: str) -> BlockCounters | None:
        if name not in self.moved:
            return None
        return BlockCounters(
            read_ops=0, read_bytes=0, write_ops=0, write_bytes=self.moved[name],
            busy_s=self.busy_s,
        )  # fmt: skip


def test_a_watch_tells_the_moment_before_and_the_run_apart(tmp_path: Path) -> None:
    disks = Disks("sda", "sdb")
    watch = DeviceWatch(chain("sda", "sdb"), str(tmp_path), read=disks.read)
    watch.look(0.0, durable=False)
    disks.moved["sda"] += 1
    watch.begin()
    disks.moved["sdb"] += 512
    watch.end()
    disks.moved["sda"] += 4096
    watch.look_again(0.0, durable=True)
    reported = watch.report()
    assert [disk.name for disk in reported.disks] == ["sda", "sdb"]
    assert [disk.run.write_bytes for disk in reported.disks] == [0, 512]
    assert [disk.quiet.write_bytes for disk in reported.disks] == [0, 0]
    assert [disk.after.write_bytes for disk in reported.disks] == [0, 0]
    assert reported.run_s > 0
    assert reported.sync_probe is None
    assert DeviceReport.from_json(json.loads(json.dumps(reported.to_json()))) == reported


def test_idle_time_that_the_kernel_counts_as_busy_makes_a_disk_busy_all_the_time_and_no_longer(
    tmp_path: Path,
) -> None:
    disks = Disks("sda")
    watch = DeviceWatch(chain("sda"), str(tmp_path), read=disks.read)
    watch.look(0.0, durable=False)
    watch.begin()
    disks.busy_s += 0.5  # from before the run: two requests began it together
    watch.end()
    watch.look_again(0.0, durable=False)
    reported = watch.report()
    assert 0 < reported.run_s < 0.5
    assert [disk.run.busy_s for disk in reported.disks] == [reported.run_s]


@pytest.mark.parametrize(
    "watched", [chain("sda", "sdb"), chain("sda", end="unseen"), chain(), DeviceChain(())]
)
def test_where_not_all_that_matters_is_counted_nothing_is(
    tmp_path: Path, watched: DeviceChain
) -> None:
    watch = DeviceWatch(watched, str(tmp_path), read=Disks("sda").read)
    watch.look(0.0, durable=False)
    watch.begin()
    watch.end()
    watch.look_again(0.0, durable=False)
    assert watch.report().disks == ()


def test_what_our_own_journal_has_to_write_is_written_before_others_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = Disks("sda")

    def sync(_fd: int) -> None:
        disks.moved["sda"] += 4096

    monkeypatch.setattr("os.fsync", sync)
    watch = DeviceWatch(chain("sda"), str(tmp_path), read=disks.read)
    watch.look(0.0, durable=False)
    assert disks.moved["sda"] == 0
    watch.look(0.0, durable=True)
    watch.begin()
    watch.end()
    watch.look_again(0.0, durable=True)
    assert disks.moved["sda"] == 2 * 4096
    (disk,) = watch.report().disks
    assert disk.quiet.write_bytes == disk.after.write_bytes == 0


# --- the probe of a sync --------------------------------------------------------------------


def probed(directory: Path, disks: Disks, sync: Callable[[int], None]) -> SyncProbe | None:
    watch = DeviceWatch(chain("sda"), str(directory), read=disks.read)
    watch.probe_sync(sync)
    assert list(directory.iterdir()) == []
    return watch.report().sync_probe


def test_a_sync_is_seen_at_the_disk(tmp_path: Path) -> None:
    disks = Disks("sda")

    def sync(fd: int) -> None:
        os.fdatasync(fd)
        disks.moved["sda"] += PROBE_BYTES

    found = probed(tmp_path, disks, sync)
    assert found is not None
    assert (found.bytes, found.device_write_bytes) == (PROBE_BYTES, PROBE_BYTES)


def test_a_sync_that_does_nothing_leaves_the_disk_alone(tmp_path: Path) -> None:
    found = probed(tmp_path, Disks("sda"), lambda _fd: None)
    assert found is not None
    assert found.device_write_bytes == 0


def test_what_others_sync_of_the_probe_before_its_own_sync_counts_as_written(
    tmp_path: Path,
) -> None:
    disks = Disks("sda")

    def synced_by_others(name: str) -> BlockCounters | None:
        is_written = any(path.stat().st_size for path in tmp_path.iterdir())
        disks.moved[name] = PROBE_BYTES if is_written else 0
        return disks.read(name)

    watch = DeviceWatch(chain("sda"), str(tmp_path), read=synced_by_others)
    watch.probe_sync(lambda _fd: None)
    found = watch.report().sync_probe
    assert found is not None
    assert found.device_write_bytes == PROBE_BYTES


def test_without_counters_nothing_is_said_of_the_disk(tmp_path: Path) -> None:
    found = probed(tmp_path, Disks(), os.fdatasync)
    assert found is not None
    assert found.device_write_bytes is None


def test_a_full_filesystem_is_not_probed(tmp_path: Path) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    assert probed(tmp_path, Disks("sda"), full) is None


@pytest.fixture
def disk_file() -> Iterator[Path]:
    """A file where files are on a disk."""
    if not probe_filesystem("/var/tmp", "n1").chain.disks:
        pytest.skip("/var/tmp of this machine is on no disk")
    path = Path("/var/tmp", f"kvcache-test-sync-{os.getpid()}")
    yield path
    path.unlink()


def test_the_kernel_tells_what_a_sync_has_left_behind(disk_file: Path) -> None:
    with disk_file.open("wb", buffering=0) as file:
        file.write(os.urandom(1 << 20))
        before = unsynced_bytes(file.fileno(), 1 << 20)
        os.fdatasync(file.fileno())
        after = unsynced_bytes(file.fileno(), 1 << 20)
    if before is None:
        pytest.skip("this kernel has no cachestat(2)")
    assert before == 1 << 20
    assert after == 0
