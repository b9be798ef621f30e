"""A look at what a run has stored, when nothing is measured any more. Rank-side.

Imports neither pytest nor MPI.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.engine.operations import object_key_of, was_raced
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.protocol import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.engine.operations import TransferSettings
    from pytest_kvcache.engine.payload import Payload

_TRANSFERS = 16  # of a rank; that many chunks of 4 MiB are 64 MiB


class ReadBack:
    """Transfers ``checked`` byte by byte, those ``corrupt``, and the first ``error``."""

    def __init__(self) -> None:
        self.checked = 0
        self.corrupt = 0
        self.error: str | None = None

    def examine(
        self,
        entries: Sequence[BlockEntry],
        *,
        backend: Backend,
        payload: Payload,
        settings: TransferSettings,
        seed: int,
        tick: Callable[[], object],
        lose: Callable[[BlockEntry], None],
    ) -> None:
        """Read a transfer each of some entries, chosen by the seed; the first fault ends it.

        ``lose`` is told of those that are gone where others may have deleted them.
        """
        dice = random.Random(seed)
        buffer = payload.read_buffer()
        for entry in dice.sample(entries, min(len(entries), _TRANSFERS)):
            tick()
            several = settings.objects_per_block > 1
            part = dice.randrange(settings.objects_per_block) if several else None
            stored_bytes = settings.stored_bytes_of(entry, part)
            transfers = -(-stored_bytes // settings.transfer_bytes)
            offset = settings.transfer_bytes * dice.randrange(transfers)
            length = min(settings.transfer_bytes, stored_bytes - offset)
            identity = entry.identity if part is None else entry.identity._replace(part=part)
            key, page = object_key_of(entry, part), offset // PAGE_BYTES
            view = buffer.cut(length).view
            payload.poison(buffer, length, thorough=True)
            try:
                backend.get_into(key, offset, view)
            except StorageError as error:
                if settings.shared and was_raced(READ, error):
                    lose(entry)
                    continue
                self.error = f"what the run has stored can't be read back: {error}"
                return
            self.checked += 1
            problem = payload.verify(buffer, length, identity, page, stored_bytes, thorough=True)
            if problem is not None:
                self.corrupt += 1
                self.error = (
                    f"object {key}, which the run has stored, reads back wrong at byte {offset}:"
                    f" {problem}"
                )
                return
