from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pytest_kvcache.measure import iospool
from pytest_kvcache.measure.iospool import RECORD, RECORD_TYPE, Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "test-host"


def records(count: int, first: int = 0) -> bytes:
    return b"".join(
        RECORD.pack(0, 1, 2, 3, first + at, b"k" * 16, 5, 4096, 100 + at, 200 + at, 300 + at)
        for at in range(count)
    )


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(HOST, str(tmp_path))
    yield made
    made.close()


def held(spool: Spool, origin_ns: int = 0) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.frombuffer(b"".join(spool.chunks(origin_ns)), RECORD_TYPE)


def test_a_record_is_the_same_to_struct_and_to_numpy() -> None:
    packed = RECORD.pack(10, 3, -1, 7, 1 << 40, b"0123456789abcdef", 9, 4096, -5, 6, 7)
    (found,) = np.frombuffer(packed, RECORD_TYPE).tolist()
    assert found == (10, 3, -1, 7, 1 << 40, b"0123456789abcdef", 9, 4096, -5, 6, 7)


def test_what_is_written_comes_back_with_times_since_the_origin(spool: Spool) -> None:
    spool.write(records(3))
    spool.write(records(2, first=3))
    spool.finish()
    found = held(spool, 150)
    assert found["request"].tolist() == [0, 1, 2, 3, 4]
    assert found["submitted_ns"].tolist() == [-50, -49, -48, -50, -49]
    assert found["done_ns"].tolist() == [150, 151, 152, 150, 151]
    assert (spool.operations, spool.spooled_bytes, spool.fault) == (5, 5 * RECORD.size, None)


def test_it_has_no_name_that_could_be_left_behind(tmp_path: Path, spool: Spool) -> None:
    spool.write(records(1))
    spool.finish()
    assert list(tmp_path.iterdir()) == []
    assert spool.device == os.stat(tmp_path).st_dev  # noqa: PTH116


def test_a_full_disk_is_a_fault_with_a_fix(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Spool, _left: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Spool, "_write_all", full)
    spool.write(records(1))
    spool.finish()
    assert spool.fault is not None
    assert f"{HOST}: the I/O trace can't be written (No space left on device)" in spool.fault
    assert f"{tmp_path} after 1 operations" in spool.fault
    assert "TMPDIR" in spool.fault


def test_a_disk_that_can_not_keep_up_is_a_fault_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, writes = threading.Event(), threading.Event()

    def slow(_self: Spool, _left: memoryview) -> None:
        writes.set()
        assert may_write.wait(60)

    monkeypatch.setattr(Spool, "_write_all", slow)
    monkeypatch.setattr(iospool, "_BUFFERS", 2)
    spool = Spool(HOST, str(tmp_path))
    spool.write(records(1))
    assert writes.wait(60)
    for _ in range(2):
        spool.write(records(1))
    faults = [spool.fault]
    spool.write(records(1))
    faults.append(spool.fault)
    assert faults[0] is None
    assert "can't be written as fast as operations end" in str(faults[1])
    may_write.set()
    spool.finish()
    spool.close()
