from __future__ import annotations

import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ranks.inventory import Inventory

BUFFER = memoryview(bytes(4096))


class Store(MemoryBackend):
    """Refuses the puts and deletes of some keys; ``kept`` are the objects that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: set[str] = set()

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        if key == "bad":
            raise StorageError("no")
        self.kept.add(key)
        super().put_from(key, offset, buffer)

    def delete(self, key: str) -> None:
        super().delete(key)
        self.kept.remove(key)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def inventory(store: Store) -> Inventory:
    found = Inventory(store)
    found.open(
        BackendPlan(
            directory=None, object_bytes=4096, chunk_bytes=4096, io="buffered", sync="none",
            host="n1", namespace="kvcache-run/trial-1/rank-0",
        )
    )  # fmt: skip
    return found


def test_what_was_put_and_not_deleted_is_cleared(store: Store, inventory: Inventory) -> None:
    for number in range(5):
        inventory.put_from(f"{number}", 0, BUFFER)
    inventory.delete("3")
    assert store.kept == {"0", "1", "2", "4"}
    inventory.clear(2)
    assert store.kept == set()
    inventory.clear(2)


def test_an_object_whose_put_failed_may_or_may_not_be_there(inventory: Inventory) -> None:
    with pytest.raises(StorageError, match="no"):
        inventory.put_from("bad", 0, BUFFER)
    inventory.clear(1)


def test_an_object_that_can_not_be_deleted_is_reported(store: Store, inventory: Inventory) -> None:
    inventory.put_from("0", 0, BUFFER)
    store.delete("0")
    with pytest.raises(StorageError, match="can't delete"):
        inventory.clear(1)
