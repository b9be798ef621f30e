"""The contract of backends as tests: a backend's author subclasses `BackendContract`.

::

    class TestMyBackend(BackendContract):
        def make_backend(self, tmp_path):
            return MyBackend()

A test helper, the only module outside the pytest side that imports pytest.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest

from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendPlan
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.cache.identity import Identity
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_kvcache.backends.protocol import Backend, BackendFacts, IoMode, Store, SyncMode

CHUNK_BYTES = 16 * PAGE_BYTES
CAPACITY_OBJECTS = 32  # more than the tests ever store at the same time
_THREADS = 8
_KEY, _OTHER_KEY = "0a1b.0", "0a1b.1"
_TAG, _OTHER_TAG = 0xA11CE, 0xB0B


class BackendContract:
    """What every backend must do; `make_backend` returns a new one that is not open.

    ``io``, ``sync``, ``store``, ``options`` and ``host`` go into the plan. The directory of the
    plan exists and is empty, or is None, as the backend's traits want it. Where they say that
    it stores no data, the tests that read back are skipped with that reason; where they say
    that objects move whole, those that move parts.
    """

    io: ClassVar[IoMode] = "direct"
    sync: ClassVar[SyncMode] = "none"
    store: ClassVar[Store | None] = None
    host: ClassVar[str] = "contract-host"
    options: ClassVar[Mapping[str, str]] = {}

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return the backend under test."""
        raise NotImplementedError

    @contextmanager
    def opened(self, tmp_path: Path, object_bytes: int) -> Iterator[tuple[Backend, BackendFacts]]:
        """Open the backend for objects of ``object_bytes``, and close it at the end."""
        backend = self.make_backend(tmp_path)
        traits = traits_of(backend)
        directory = tmp_path / "rank-0"
        if traits.directory:
            directory.mkdir()
        plan = BackendPlan(
            directory=str(directory) if traits.directory else None,
            object_bytes=object_bytes,
            chunk_bytes=object_bytes if traits.unit == "object" else CHUNK_BYTES,
            io=self.io,
            sync=self.sync,
            host=self.host,
            namespace=f"kvcache-contract-{secrets.token_hex(4)}/trial-1/rank-0",
            capacity_objects=CAPACITY_OBJECTS,
            store=self.store,
            options=self.options,
        )
        facts = backend.open(plan)
        try:
            yield backend, facts
        finally:
            backend.close()

    @contextmanager
    def storing(
        self, tmp_path: Path, object_bytes: int, *, by_parts: bool = False
    ) -> Iterator[_Objects]:
        """Open the backend; skip the test where it stores no data, or takes no parts."""
        with self.opened(tmp_path, object_bytes) as (backend, _):
            traits = traits_of(backend)
            if not traits.stores_data:
                pytest.skip("the backend says that it stores no data")
            whole = traits.unit == "object"
            if whole and by_parts:
                pytest.skip("the backend says that its objects move whole")
            chunk_bytes = object_bytes if whole else CHUNK_BYTES
            yield _Objects(backend, object_bytes, chunk_bytes, syncs=self.sync == "data")

    def test_traits_are_stated(self, tmp_path: Path) -> None:
        """Without them the backend can't be registered."""
        assert traits_of(self.make_backend(tmp_path))

    def test_facts_are_consistent(self, tmp_path: Path) -> None:
        """What a backend says of itself does not contradict itself."""
        with self.opened(tmp_path, PAGE_BYTES) as (backend, facts):
            assert facts.io_mode in ("direct", "buffered", "none")
            assert traits_of(backend).is_storage == (facts.io_mode != "none")
            fell_back = self.io == "direct" and facts.io_mode == "buffered"
            assert not fell_back or facts.io_note

    def test_every_operation_of_an_object_succeeds(self, tmp_path: Path) -> None:
        """Put, sync, get and delete raise nothing, whether or not data is stored."""
        with self.opened(tmp_path, PAGE_BYTES) as (backend, _):
            buffer = Payload(0, PAGE_BYTES).write_buffer()
            backend.put_from(_KEY, 0, buffer.view)
            backend.sync(_KEY)
            backend.get_into(_KEY, 0, buffer.view)
            backend.delete(_KEY)

    @pytest.mark.parametrize("pages", [1, 16, 16 * 5 + 3])
    def test_what_was_put_is_what_is_got(self, tmp_path: Path, pages: int) -> None:
        """One page, one chunk, and many chunks with a shorter one at the end."""
        with self.storing(tmp_path, pages * PAGE_BYTES) as objects:
            objects.put(_KEY, _TAG)
            objects.check(_KEY, _TAG)

    def test_objects_do_not_mix(self, tmp_path: Path) -> None:
        """Each key has its own content, also after the other one was deleted."""
        with self.storing(tmp_path, 3 * CHUNK_BYTES) as objects:
            objects.put(_KEY, _TAG)
            objects.put(_OTHER_KEY, _OTHER_TAG)
            objects.check(_KEY, _TAG)
            objects.backend.delete(_KEY)
            objects.check(_OTHER_KEY, _OTHER_TAG)

    def test_chunks_may_be_put_in_any_order(self, tmp_path: Path) -> None:
        """An object whose last chunk is put first reads back whole."""
        with self.storing(tmp_path, 5 * CHUNK_BYTES, by_parts=True) as objects:
            for offset in reversed(objects.offsets):
                objects.put_chunk(_KEY, _TAG, offset)
            objects.check(_KEY, _TAG)

    def test_a_chunk_can_be_read_in_parts(self, tmp_path: Path) -> None:
        """What is got need not be cut as it was put."""
        with self.storing(tmp_path, 2 * CHUNK_BYTES, by_parts=True) as objects:
            objects.put(_KEY, _TAG)
            for offset in range(0, objects.object_bytes, PAGE_BYTES):
                objects.check_chunk(_KEY, _TAG, offset, PAGE_BYTES)

    def test_threads_may_put_and_get_chunks_of_one_object(self, tmp_path: Path) -> None:
        """8 threads on one object, with new keys again and again."""
        with (
            self.storing(tmp_path, 12 * CHUNK_BYTES, by_parts=True) as objects,
            ThreadPoolExecutor(_THREADS) as threads,
        ):
            for number in range(10):
                key = f"{number:x}.ff"
                work = [
                    threads.submit(objects.put_chunk, key, number, offset)
                    for offset in objects.offsets
                ]
                for done in work:
                    done.result()
                work = [
                    threads.submit(objects.check_chunk, key, number, offset)
                    for offset in objects.offsets * 2
                ]
                for done in work:
                    done.result()
                objects.backend.delete(key)

    def test_threads_may_work_on_objects_of_their_own(self, tmp_path: Path) -> None:
        """8 threads, each through the life of its own objects."""
        with (
            self.storing(tmp_path, 2 * CHUNK_BYTES) as objects,
            ThreadPoolExecutor(_THREADS) as threads,
        ):
            for done in [threads.submit(objects.live, number) for number in range(100)]:
                done.result()

    def test_get_of_a_missing_object_raises(self, tmp_path: Path) -> None:
        """A read that finds nothing is no fast hit."""
        with self.storing(tmp_path, PAGE_BYTES) as objects:
            self._assert_absent(objects, _KEY)

    def test_a_deleted_object_is_gone(self, tmp_path: Path) -> None:
        """A deleted object can't be read, nor any part of it."""
        with self.storing(tmp_path, PAGE_BYTES) as objects:
            objects.put(_KEY, _TAG)
            objects.backend.delete(_KEY)
            self._assert_absent(objects, _KEY)

    def test_get_after_delete_raises(self, tmp_path: Path) -> None:
        """Also when the object was read before, and when only a part of it was put."""
        with self.storing(tmp_path, 2 * CHUNK_BYTES, by_parts=True) as objects:
            objects.put(_KEY, _TAG)
            objects.check_chunk(_KEY, _TAG, 0)
            objects.put_chunk(_OTHER_KEY, _OTHER_TAG, 0)
            for key in (_KEY, _OTHER_KEY):
                objects.backend.delete(key)
                self._assert_absent(objects, key)

    def test_delete_of_a_missing_object_raises(self, tmp_path: Path) -> None:
        """Space that was never taken can't be freed."""
        with self.storing(tmp_path, PAGE_BYTES) as objects:
            with pytest.raises(StorageError, match=self.host):
                objects.backend.delete(_KEY)
            objects.put(_KEY, _TAG)
            objects.backend.delete(_KEY)
            with pytest.raises(StorageError, match=self.host):
                objects.backend.delete(_KEY)

    def test_sync_of_a_missing_object_raises(self, tmp_path: Path) -> None:
        """A sync of an object that is not there raises, and creates nothing."""
        with self.storing(tmp_path, PAGE_BYTES) as objects:
            with pytest.raises(StorageError, match=self.host):
                objects.backend.sync(_KEY)
            self._assert_absent(objects, _KEY)

    @pytest.mark.parametrize("start", [1, 2])
    def test_get_past_the_end_raises(self, tmp_path: Path, start: int) -> None:
        """Half past the end, and wholly; the object stays as it is."""
        with self.storing(tmp_path, 2 * PAGE_BYTES, by_parts=True) as objects:
            objects.put(_KEY, _TAG)
            buffer = objects.payload.read_buffer()
            with pytest.raises(StorageError, match=rf"{self.host}.*{2 * PAGE_BYTES} bytes"):
                objects.backend.get_into(_KEY, start * PAGE_BYTES, buffer.view[: 2 * PAGE_BYTES])
            objects.check(_KEY, _TAG)

    def test_close_twice_is_once(self, tmp_path: Path) -> None:
        """Also with an object half put and half read, where objects move by parts."""
        with self.opened(tmp_path, 2 * PAGE_BYTES) as (backend, _):
            moved = 2 * PAGE_BYTES if traits_of(backend).unit == "object" else PAGE_BYTES
            page = Payload(0, moved).write_buffer()
            backend.put_from(_KEY, 0, page.view)
            backend.get_into(_KEY, 0, page.view)
            backend.close()
            backend.close()

    def _assert_absent(self, objects: _Objects, key: str) -> None:
        buffer = objects.payload.read_buffer()
        with pytest.raises(StorageError, match=self.host):
            objects.backend.get_into(key, 0, buffer.view[:PAGE_BYTES])


class _Objects:
    """Puts whole objects by chunks into a backend, and checks every byte of them."""

    def __init__(
        self, backend: Backend, object_bytes: int, chunk_bytes: int, *, syncs: bool
    ) -> None:
        self.backend = backend
        self.object_bytes = object_bytes
        self.offsets = tuple(range(0, object_bytes, chunk_bytes))
        self.payload = Payload(7, chunk_bytes, object_bytes)
        self._chunk_bytes = chunk_bytes
        self._syncs = syncs

    def put(self, key: str, tag: int) -> None:
        for offset in self.offsets:
            self.put_chunk(key, tag, offset)
        if self._syncs:
            self.backend.sync(key)

    def check(self, key: str, tag: int) -> None:
        for offset in self.offsets:
            self.check_chunk(key, tag, offset)

    def put_chunk(self, key: str, tag: int, offset: int) -> None:
        length = self._length(offset)
        buffer = self.payload.write_buffer()
        self.payload.stamp(buffer, length, _identity(tag), offset // PAGE_BYTES)
        self.backend.put_from(key, offset, buffer.view[:length])

    def check_chunk(self, key: str, tag: int, offset: int, length: int | None = None) -> None:
        wanted = length or self._length(offset)
        buffer = self.payload.read_buffer()
        self.payload.poison(buffer, wanted, thorough=True)
        self.backend.get_into(key, offset, buffer.view[:wanted])
        page = offset // PAGE_BYTES
        # A part of a chunk carries the base of its place in the chunk; its stamps do.
        thorough = offset % self._chunk_bytes == 0
        identity = _identity(tag)
        assert self.payload.verify(buffer, wanted, identity, page, thorough=thorough) is None

    def live(self, number: int) -> None:
        key = f"{number:x}"
        self.put(key, number)
        self.check(key, number)
        self.backend.delete(key)

    def _length(self, offset: int) -> int:
        return min(self._chunk_bytes, self.object_bytes - offset)


def traits_of(backend: Backend) -> BackendTraits:
    """What the backend's class states; fails the test if it states nothing."""
    traits = getattr(backend, "traits", None)
    assert isinstance(traits, BackendTraits), f"{type(backend).__name__} states no BackendTraits"
    return traits


def _identity(number: int) -> Identity:
    return Identity(number.to_bytes(16, "little"), 0)
