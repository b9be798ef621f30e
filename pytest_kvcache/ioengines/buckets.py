"""Buckets of objects: each written by one call, and read from by one call per object.

Rank side: imports neither pytest nor MPI. What is staged of one kind when it is submitted is a
batch, which a thread carries out: to be written, it is a bucket; to be read, those of one bucket
are read after one open, bucket by bucket. An object that is written takes as long as its bucket;
one that is read, its own call, the first one of a bucket with the open and the last one with the
close.
"""

from __future__ import annotations

import os
import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.protocol import READ, WRITE
from pytest_kvcache.ioengines.threads import ThreadsEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pytest_kvcache.backends.posix.enginebuckets import EngineBuckets
    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.ioengines.protocol import Completion
    from pytest_kvcache.ioengines.threads import Staged


class BucketEngine(ThreadsEngine):
    """Carries out so many batches of reads, and one of writes, at a time (an ``IoEngine``).

    ``buckets`` None: a backend without any, whose calls are made one after the other.
    """

    def __init__(
        self,
        backend: Backend,
        depth: int,
        buckets: EngineBuckets | None,
        readers: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(backend, depth, clock, threads=readers + 1)
        self._buckets = buckets

    def _hand_over(self, now: list[Staged]) -> None:
        """All of a kind to one thread."""
        for _kind, items in groupby(now, key=itemgetter(1)):
            self._todo.put(list(items))

    def _all_carried_out(self, number: int, items: list[Staged]) -> Iterable[Completion]:
        kind = items[0][1]
        if self._buckets is None or kind not in (READ, WRITE):
            return super()._all_carried_out(number, items)
        make = self._written if kind == WRITE else self._read
        return make(self._buckets, number, items)

    def _written(
        self, buckets: EngineBuckets, number: int, items: Sequence[Staged]
    ) -> list[Completion]:
        """What came of a bucket is what came of each of its objects."""
        error = None
        self._began_ns[number] = began = self._clock()
        try:
            buckets.put_bucket([item[2] for item in items], [item[4] for item in items])
        except StorageError as problem:
            error = problem
        ended = self._clock()
        self._began_ns[number] = 0
        return [(item[0], began, ended, error) for item in items]

    def _read(
        self, buckets: EngineBuckets, number: int, items: Sequence[Staged]
    ) -> Iterator[Completion]:
        runs: dict[str, list[Staged]] = {}
        for item in items:
            runs.setdefault(buckets.bucket_of(item[2]), []).append(item)
        for path, run in runs.items():
            yield from self._read_run(buckets, number, path, run)

    def _read_run(
        self, buckets: EngineBuckets, number: int, path: str, items: Sequence[Staged]
    ) -> Iterator[Completion]:
        """Objects of one bucket."""
        self._began_ns[number] = began = self._clock()
        fd, unopened = -1, None
        try:
            fd = buckets.open_bucket(path)
        except StorageError as problem:
            unopened = problem
        for left, (slot, _kind, key, offset, view) in zip(
            range(len(items) - 1, -1, -1), items, strict=True
        ):
            error = unopened
            if error is None:
                try:
                    buckets.read(fd, key, offset, view)
                except StorageError as problem:
                    error = problem
            if not left and fd >= 0:
                os.close(fd)
            ended = self._clock()
            self._began_ns[number] = ended if left else 0
            yield slot, began, ended, error
            began = ended
