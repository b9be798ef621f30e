"""Data that a backend spoils on purpose: what is found always, and what by sampling."""

from __future__ import annotations

import itertools
import re
import threading
from collections import defaultdict
from collections.abc import Callable

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.cache.identity import Identity
from pytest_kvcache.engine.payload import make_payload
from tests.factories import HOST, PAGE, Script, ask, name_of
from tests.rig import Rig

SECTOR = 512
CHUNK = 64 * PAGE
EVERY = 64

# Of a read: backend, object key, offset, what the buffer held before, the buffer as read.
Damage = Callable[["Tampering", str, int, bytes, memoryview], None]


class Tampering(MemoryBackend):
    """Reads of block ``a`` come out damaged, from the second one on."""

    def __init__(self, damage: Damage, data: str, object_bytes: int, chunk_bytes: int) -> None:
        super().__init__()
        self._damage = damage
        self._put: dict[str, dict[int, bytes]] = defaultdict(dict)
        self._got: dict[tuple[str, int], int] = defaultdict(int)
        self.foreign = make_payload(data, 2, chunk_bytes, object_bytes)
        self.last_offset = (object_bytes - 1) // chunk_bytes * chunk_bytes
        self.damaged = 0
        self._counting = threading.Lock()
        plan = BackendPlan(
            directory=None, object_bytes=object_bytes, chunk_bytes=chunk_bytes,
            io="direct", sync="none", host=HOST,
            namespace="kvcache-run/trial-1/rank-0",
        )  # fmt: skip
        self.open(plan)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._put[key][offset] = bytes(buffer)
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        before = bytes(buffer)
        super().get_into(key, offset, buffer)
        self._got[key, offset] += 1
        if name_of(key).startswith("a") and self._got[key, offset] > 1:
            right = bytes(buffer)
            self._damage(self, key, offset, before, buffer)
            with self._counting:
                self.damaged += right != bytes(buffer)

    def older(self, key: str, offset: int) -> bytes:
        """What the first version of the same block held."""
        first = next(name for name in self._put if name_of(name) == name_of(key))
        assert first != key
        return self._put[first][offset]

    def other(self, offset: int) -> bytes:
        """What another block held."""
        return next(parts[offset] for name, parts in self._put.items() if name_of(name) == "b")


def flip(at: int) -> Damage:
    """A bit of one byte of the last transfer."""

    def damage(
        backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview
    ) -> None:
        del key, before
        if offset == backend.last_offset:
            buffer[at] ^= 4

    return damage


def torn(tail_bytes: int, what: str) -> Damage:
    """The end of the last transfer is something else."""

    def damage(
        backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview
    ) -> None:
        if offset == backend.last_offset:
            older = backend.older(key, offset)
            tail = {"zeros": bytes(tail_bytes), "older": older, "unread": before}[what]
            buffer[-tail_bytes:] = tail[-tail_bytes:]

    return damage


def stale(backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview) -> None:
    """All transfers are of an older version."""
    del before
    buffer[:] = backend.older(key, offset)


def swapped(backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview) -> None:
    """All transfers are of another key."""
    del key, before
    buffer[:] = backend.other(offset)


def other_layer(
    backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview
) -> None:
    """All transfers are of the next layer of the same block."""
    del before
    block, _, layer = key.rpartition(".")
    buffer[:] = backend._put[f"{block}.{(int(layer) + 1) % 3}"][offset]


def foreign(backend: Tampering, key: str, offset: int, before: bytes, buffer: memoryview) -> None:
    """All transfers are of the object that another rank, trial or run has under the name."""
    del before
    block, _, version = key.partition(".")
    made = backend.foreign.write_buffer()
    identity = Identity(bytes.fromhex(block), int(version))
    backend.foreign.stamp(made, len(buffer), identity, offset // PAGE)
    buffer[:] = made.view[: len(buffer)]


def played(
    damage: Damage, *, verify: str, data: str, pages: int, depth: int = 1, layers: int = 1
) -> tuple[Rig, Tampering]:
    """Block ``a`` is stored, evicted, stored again, and read until a read fails."""
    object_bytes, chunk_bytes = pages * PAGE, min(CHUNK, pages * PAGE)
    backend = Tampering(damage, data, object_bytes, chunk_bytes)
    script = Script([[ask(0, "a"), ask(0, "b"), *([ask(0, "a")] * 4 * EVERY)]])
    rig = Rig(
        script, backend, capacity_blocks=1, queue_depth=depth,
        payload=make_payload(data, 1, chunk_bytes, object_bytes), verify=verify,
        object_bytes=object_bytes, stored_bytes=object_bytes, transfer_bytes=chunk_bytes,
        objects_per_block=layers,
    )  # fmt: skip
    rig.run()
    return rig, backend


PAGES = pytest.mark.parametrize("pages", [2, 5, 64, 3 * 64], ids=lambda pages: f"{pages}pages")
DATA = pytest.mark.parametrize("data", ["normal", "strict"])

# Found in the first read that has it, with any verification but none.
ALWAYS: dict[str, tuple[Damage, str]] = {
    "flipped bit of a stamp": (flip(-PAGE), "has the stamp of"),
    "torn page, zeros": (torn(PAGE, "zeros"), "has no stamp: it is zero"),
    "torn page, older": (torn(PAGE, "older"), "it is stale"),
    "page not read": (torn(PAGE, "unread"), "was not read"),
    "stale object": (stale, "it is stale, an older version of the key"),
    "swapped object": (swapped, "has the stamp of"),
    "object of another rank": (foreign, "has the stamp of"),
}
# Found there with strict data; with normal data as what is in `SAMPLED`.
ALWAYS_IF_STRICT: dict[str, tuple[Damage, str]] = {
    "torn sector, zeros": (torn(SECTOR, "zeros"), "has no stamp: it is zero"),
    "sector not read": (torn(SECTOR, "unread"), "was not read"),
}
# Found if the transfer is one of those that are checked whole.
SAMPLED: dict[str, tuple[Damage, str]] = {
    "flipped bit": (flip(-SECTOR + 100), "differs in 1 bytes"),
    "flipped last bit": (flip(-1), "differs in 1 bytes"),
}
EVERYTHING = {**ALWAYS, **ALWAYS_IF_STRICT, **SAMPLED}


def assert_counted(rig: Rig, backend: Tampering, good_reads: int) -> str:
    """One read failed, its wrong transfers were counted, and nothing else; its message."""
    counters, pool = rig.loop.counters, rig.loop
    assert pool.corrupt >= 1
    assert (counters.read_failed, counters.write_failed) == (1, 0)
    assert rig.histogram("read").count == good_reads
    assert pool.checked == (good_reads + 1) * rig.settings.transfers
    name = next(reversed(backend._put))
    assert pool.first_error is not None
    assert pool.first_error.startswith(f"object {name} read back wrong at byte ")
    return pool.first_error


@pytest.mark.thorough
@DATA
@PAGES
@pytest.mark.parametrize("fault", EVERYTHING)
def test_full_verification_finds_every_corruption_at_once(
    fault: str, pages: int, data: str
) -> None:
    damage, message = EVERYTHING[fault]
    rig, backend = played(damage, verify="full", data=data, pages=pages)
    if data == "normal" and fault == "sector not read":
        message = "differs in 8 bytes"  # the poison; the rest is what it should be
    elif data == "normal" and fault == "torn sector, zeros":
        message = "differs in "
    assert message in assert_counted(rig, backend, good_reads=1)
    whole_object = fault in ("stale object", "swapped object", "object of another rank")
    transfers = rig.settings.transfers
    assert rig.loop.corrupt == backend.damaged == (transfers if whole_object else 1)


@PAGES
@pytest.mark.parametrize(
    ("fault", "data"),
    [
        *itertools.product(ALWAYS, ["normal", "strict"]),
        *itertools.product(ALWAYS_IF_STRICT, ["strict"]),
    ],
)
def test_sampled_verification_finds_these_at_once(fault: str, pages: int, data: str) -> None:
    damage, message = EVERYTHING[fault]
    rig, backend = played(damage, verify="sample", data=data, pages=pages)
    found = assert_counted(rig, backend, good_reads=1)
    # What the buffer held before is either spoiled or that of other pages.
    assert message in found or (message == "was not read" and "has the stamp of" in found)


@PAGES
@pytest.mark.parametrize(
    ("fault", "data"),
    [
        *itertools.product(SAMPLED, ["normal", "strict"]),
        *itertools.product(ALWAYS_IF_STRICT, ["normal"]),
    ],
)
def test_sampled_verification_finds_these_in_some_transfers(
    fault: str, pages: int, data: str
) -> None:
    damage, _message = EVERYTHING[fault]
    rig, backend = played(damage, verify="sample", data=data, pages=pages)
    good_reads = rig.histogram("read").count
    assert 1 < good_reads < 2 * EVERY
    assert_counted(rig, backend, good_reads)


@pytest.mark.parametrize("fault", ALWAYS)
def test_wrong_transfers_are_counted_one_by_one_with_several_in_flight(fault: str) -> None:
    damage, _message = ALWAYS[fault]
    rig, backend = played(damage, verify="sample", data="normal", pages=6 * 64, depth=4)
    assert_counted(rig, backend, good_reads=1)
    assert rig.loop.corrupt == backend.damaged


@DATA
@pytest.mark.parametrize("verify", ["sample", "full"])
def test_a_layer_that_came_instead_of_another_one_of_its_block_is_found_at_once(
    verify: str, data: str
) -> None:
    rig, backend = played(other_layer, verify=verify, data=data, pages=2, layers=3)
    assert rig.loop.first_error is not None
    name = next(reversed(backend._put)).rpartition(".")[0]
    pattern = (
        rf"object {re.escape(name)}\.[012] read back wrong at byte 0: .*another part of the block"
    )
    assert re.match(pattern, rig.loop.first_error)
    assert rig.loop.corrupt == backend.damaged >= 1
    assert rig.histogram("read").count == 3


def test_older_content_below_the_stamp_of_a_normal_page_is_the_right_content() -> None:
    rig, backend = played(torn(SECTOR, "older"), verify="full", data="normal", pages=5)
    assert (backend.damaged, rig.loop.corrupt) == (0, 0)
    assert rig.loop.first_error is None


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_older_content_of_a_strict_sector_is_found_at_once(verify: str) -> None:
    rig, backend = played(torn(SECTOR, "older"), verify=verify, data="strict", pages=5)
    assert "sector 7 of page 4" in assert_counted(rig, backend, good_reads=1)


@pytest.mark.thorough
@DATA
@pytest.mark.parametrize("verify", ["sample", "full"])
def test_a_sound_object_passes_every_check(verify: str, data: str) -> None:
    def none(*_: object) -> None:
        """Leave it as it is."""

    rig, backend = played(none, verify=verify, data=data, pages=3 * 64, depth=4)
    assert (backend.damaged, rig.loop.corrupt) == (0, 0)
    assert rig.loop.first_error is None
    assert rig.loop.checked == 3 * (4 * EVERY - 1)
