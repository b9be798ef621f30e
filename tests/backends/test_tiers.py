from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.arenas import FreePages, HostArena, TorchArena
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.backends.tiers import TierBackend, open_tier
from pytest_kvcache.errors import StorageError
from pytest_kvcache.testing import CAPACITY_OBJECTS, BackendContract
from tests.storage import make_plan, page_buffer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

MIB = 1 << 20
CONTRACT_BYTES = CAPACITY_OBJECTS * MIB


def opened(pages: int, object_pages: int = 8, **made: Any) -> TierBackend:
    backend = TierBackend(pages * PAGE_BYTES, **made)
    backend.open(make_plan(None, object_bytes=object_pages * PAGE_BYTES, io="buffered"))
    return backend


def tier(kind: Any, **changes: Any) -> Any:
    values: dict[str, Any] = {"capacity_bytes": MIB, "local_index": 0}
    sizes = {"object_bytes": PAGE_BYTES, "chunk_bytes": PAGE_BYTES}
    return open_tier(kind, host="n1", **values | sizes | changes)


class TestHostMemory(BackendContract):
    def make_backend(self, tmp_path: Path) -> TierBackend:
        del tmp_path
        return TierBackend(CONTRACT_BYTES)


class TestTorchOnItsProcessor(BackendContract):
    """The device that every torch has, in the place of a GPU."""

    def make_backend(self, tmp_path: Path) -> TierBackend:
        del tmp_path
        pytest.importorskip("torch", reason="torch is not installed")
        return TierBackend(CONTRACT_BYTES, partial(TorchArena, device="cpu"), kind="torch")


# -- room ----------------------------------------------------------------------------------


def test_a_tier_holds_what_its_capacity_has_and_no_page_more() -> None:
    backend = opened(pages=4)
    for key in "abcd":
        backend.put_from(key, 0, page_buffer(PAGE_BYTES))
    with pytest.raises(StorageError, match=r"n1: no room for 4096 bytes of object e .* and 0 free"):
        backend.put_from("e", 0, page_buffer(PAGE_BYTES))
    backend.delete("c")
    backend.put_from("e", 0, page_buffer(PAGE_BYTES))


def test_a_capacity_that_is_no_whole_pages_is_not_exceeded() -> None:
    backend = TierBackend(2 * PAGE_BYTES - 1)
    backend.open(make_plan(None, object_bytes=PAGE_BYTES, io="buffered"))
    backend.put_from("a", 0, page_buffer(PAGE_BYTES))
    with pytest.raises(StorageError, match="no room"):
        backend.put_from("b", 0, page_buffer(PAGE_BYTES))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), max_size=60))
def test_objects_of_many_sizes_fit_as_long_as_their_pages_do(puts: list[tuple[int, int]]) -> None:
    """Whatever holes others have left; and each keeps its content."""
    backend, held = opened(pages=20, object_pages=7), dict[str, bytes]()
    for number, (name, pages) in enumerate(puts):
        key, content = f"{name:x}", bytes([number % 256]) * pages * PAGE_BYTES
        if held.pop(key, None) is not None:
            backend.delete(key)
        fits = sum(map(len, held.values())) + len(content) <= 20 * PAGE_BYTES
        if not fits:
            with pytest.raises(StorageError, match="no room"):
                backend.put_from(key, 0, memoryview(content))
            continue
        backend.put_from(key, 0, memoryview(content))
        held[key] = content
        for key_there, expected in held.items():
            got = bytearray(len(expected))
            backend.get_into(key_there, 0, memoryview(got))
            assert got == expected


@given(st.lists(st.one_of(st.integers(1, 6), st.just(0)), max_size=50), st.randoms())
def test_free_pages_are_all_that_were_not_taken_and_neighbours_are_one_run(
    demands: list[int], chance: Any
) -> None:
    pages, taken = FreePages(16), list[list[tuple[int, int]]]()
    for demand in demands:
        if demand == 0 and taken:
            pages.give_back(taken.pop(chance.randrange(len(taken))))
        elif demand:
            runs = pages.take(demand)
            assert (runs is None) == (demand > 16 - count(taken))
            taken += [runs] if runs else []
        owned = [page for runs in taken for first, n in runs for page in range(first, first + n)]
        assert len(set(owned)) == len(owned) == 16 - pages.free
    for runs in taken:
        pages.give_back(runs)
    assert pages.take(16) == [(0, 16)]


def count(taken: list[list[tuple[int, int]]]) -> int:
    return sum(n for runs in taken for _first, n in runs)


@given(st.integers(0, 5 * PAGE_BYTES - 1), st.integers(1, 5 * PAGE_BYTES))
def test_any_range_can_be_read_of_what_was_put_by_parts(offset: int, size: int) -> None:
    backend = opened(pages=5, object_pages=5)
    content = np.random.default_rng(1).bytes(5 * PAGE_BYTES)
    for first, pages in ((3, 2), (0, 1), (1, 2)):
        part = content[first * PAGE_BYTES : (first + pages) * PAGE_BYTES]
        backend.put_from("a", first * PAGE_BYTES, memoryview(part))
    got = bytearray(size)
    if offset + size > len(content):
        with pytest.raises(StorageError, match=f"wanted {size} bytes, got"):
            backend.get_into("a", offset, memoryview(got))
    else:
        backend.get_into("a", offset, memoryview(got))
        assert bytes(got) == content[offset : offset + size]


def test_all_memory_is_touched_before_a_tier_is_used() -> None:
    assert HostArena(3 * PAGE_BYTES)._memory[::PAGE_BYTES].tolist() == [1, 1, 1]


def test_a_put_that_fails_leaves_its_room_to_others() -> None:
    class Broken(HostArena):
        def put(self, begin: int, source: NDArray[np.uint8]) -> None:
            raise RuntimeError(f"CUDA error at {begin} of {source.size}\nmore of it")

    backend = opened(pages=1, make_arena=Broken)
    for _ in range(2):
        with pytest.raises(
            StorageError, match=r"write object a of a tier: CUDA error at 0 of 4096$"
        ):
            backend.put_from("a", 0, page_buffer(PAGE_BYTES))
    assert backend._pages.free == 1


# -- opening -------------------------------------------------------------------------------


def test_an_index_holds_nothing() -> None:
    assert tier("index") is None


@pytest.mark.parametrize("kind", ["memory", "simulated"])
def test_host_memory_is_open_when_it_is_returned(kind: str) -> None:
    backend = tier(kind)
    backend.put_from("a", 0, page_buffer(PAGE_BYTES, b"y"))
    got = page_buffer(PAGE_BYTES)
    backend.get_into("a", 0, got)
    assert bytes(got) == b"y" * PAGE_BYTES


def test_memory_that_is_not_there_is_refused_with_what_helps() -> None:
    with pytest.raises(StorageError, match=r"n1: the 4 EiB.* cpu tier can't be had .*=index"):
        tier("memory", capacity_bytes=2**62)


# -- devices -------------------------------------------------------------------------------


class FakeTensor:
    """A tensor as far as an arena uses it; it notes each copy and each wait."""

    def __init__(self, log: list[str], content: NDArray[np.uint8], device: str) -> None:
        self.log, self.content, self.device = log, content, device
        self.is_cuda = device.startswith("cuda")

    def __getitem__(self, part: slice) -> FakeTensor:
        return FakeTensor(self.log, self.content[part], self.device)

    def copy_(self, other: FakeTensor) -> None:
        self.content[:] = other.content
        self.log.append(f"{other.device} to {self.device}")


def fake_torch(log: list[str], devices: int, error: Exception | None = None) -> Any:
    def zeros(size: int, *, dtype: type[np.uint8], device: str) -> FakeTensor:
        if error is not None:
            raise error
        return FakeTensor(log, np.zeros(size, np.dtype(dtype)), device)

    stream = SimpleNamespace(synchronize=lambda: log.append("waited"))
    return SimpleNamespace(
        uint8=np.uint8,
        zeros=zeros,
        from_numpy=lambda array: FakeTensor(log, array, "host"),
        cuda=SimpleNamespace(device_count=lambda: devices, current_stream=lambda _device: stream),
    )


class FakeArray:
    """An array of CuPy as far as an arena uses it."""

    def __init__(self, log: list[str], content: NDArray[np.uint8], device: int) -> None:
        self.log, self.content, self.device = log, content, device

    def __getitem__(self, part: slice) -> FakeArray:
        return FakeArray(self.log, self.content[part], self.device)

    def set(self, source: NDArray[np.uint8]) -> None:
        self.content[:] = source
        self.log.append(f"host to cuda:{self.device}")

    def get(self, *, out: NDArray[np.uint8]) -> None:
        out[:] = self.content
        self.log.append(f"cuda:{self.device} to host")


def fake_cupy(log: list[str], devices: int, error: Exception | None = None) -> Any:
    using: list[int] = []

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            using.append(self.number)

        def __exit__(self, *_: object) -> None:
            using.pop()

    def zeros(size: int, *, dtype: type[np.uint8]) -> FakeArray:
        if error is not None:
            raise error
        return FakeArray(log, np.zeros(size, np.dtype(dtype)), using[-1])

    stream = SimpleNamespace(synchronize=lambda: log.append("waited"))
    return SimpleNamespace(
        uint8=np.uint8,
        zeros=zeros,
        cuda=SimpleNamespace(
            Device=Device,
            get_current_stream=lambda: stream,
            runtime=SimpleNamespace(getDeviceCount=lambda: devices),
        ),
    )


FAKES = pytest.mark.parametrize(("kind", "fake"), [("torch", fake_torch), ("cupy", fake_cupy)])


@FAKES
def test_a_copy_to_or_from_a_device_is_over_when_the_call_returns(
    kind: str, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setitem(sys.modules, kind, fake(log, devices=2))
    backend = tier(kind, local_index=3)  # the second rank on the second device
    assert log == ["waited"]
    backend.put_from("a", 0, page_buffer(PAGE_BYTES, b"z"))
    got = page_buffer(PAGE_BYTES)
    backend.get_into("a", 0, got)
    assert bytes(got) == b"z" * PAGE_BYTES
    assert log[1:] == ["host to cuda:1", "waited", "cuda:1 to host", "waited"]


@FAKES
def test_a_library_without_a_device_is_no_gpu_tier(
    kind: str, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, fake([], devices=0))
    with pytest.raises(StorageError, match=r"n1: no gpu tier by .*, which finds no device"):
        tier(kind)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(StorageError, match=f"n1: no gpu tier by .*: .*{kind}"):
        tier(kind)


@FAKES
def test_a_device_whose_memory_does_not_suffice_is_reported_in_a_sentence(
    kind: str, fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 1 MiB\nand much more")
    monkeypatch.setitem(sys.modules, kind, fake([], devices=1, error=error))
    with pytest.raises(
        StorageError,
        match=r"n1: the 1 MiB of a rank's gpu tier can't be had \(CUDA out of memory\. Tried to"
        r" allocate 1 MiB\); lower --kv-gpu-mem-gb, or run fewer ranks on each host$",
    ):
        tier(kind)
