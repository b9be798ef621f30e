from __future__ import annotations

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.errors import StorageError


def opened(object_bytes: int) -> MemoryBackend:
    backend = MemoryBackend()
    backend.open(
        BackendPlan(
            directory=None,
            object_bytes=object_bytes,
            chunk_bytes=min(object_bytes, 2**22),
            io="buffered",
            sync="none",
            host="n1",
            namespace="kvcache-run/trial-1/rank-0",
        )
    )
    return backend


def test_an_object_can_not_outgrow_the_plan() -> None:
    with pytest.raises(StorageError, match=r"n1: can't write bytes 8 to 12 .* has 10 bytes"):
        opened(10).put_from("a", 8, memoryview(b"1234"))


def test_what_was_not_put_yet_can_not_be_got() -> None:
    backend = opened(16)
    backend.put_from("a", 0, memoryview(b"12345678"))
    with pytest.raises(StorageError, match="offset 4: wanted 8 bytes, got 4"):
        backend.get_into("a", 4, memoryview(bytearray(8)))


def test_memory_of_a_deleted_object_serves_the_next() -> None:
    backend = opened(16)
    backend.put_from("a", 0, memoryview(bytes(16)))
    content = backend._objects["a"].content
    backend.delete("a")
    backend.put_from("b", 0, memoryview(b"12345678"))
    assert backend._objects["b"].content is content
    with pytest.raises(StorageError, match="wanted 16 bytes, got 8"):
        backend.get_into("b", 0, memoryview(bytearray(16)))


def test_threads_that_put_an_objects_first_chunks_at_once_get_one_object() -> None:
    backend = opened(16)  # both have just found none
    assert backend._allocate("a") is backend._allocate("a")


def test_a_machine_without_the_memory_is_reported() -> None:
    backend = opened(2**62)
    with pytest.raises(StorageError, match=r"n1: no memory for the 46.* lower --kv-storage"):
        backend.put_from("a", 0, memoryview(b"x"))
