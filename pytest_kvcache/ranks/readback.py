"""A look at what a run has stored, when nothing is measured any more. Rank-side.

Imports neither pytest nor MPI.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.engine.operations import object_key_of
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import Slot
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
        slots: Sequence[Slot],
        *,
        backend: Backend,
        payload: Payload,
        settings: TransferSettings,
        seed: int,
        tick: Callable[[], object],
    ) -> None:
        """Read a transfer each of some slots, chosen by the seed; the first fault ends it."""
        dice = random.Random(seed)
        buffer = payload.read_buffer()
        for slot in dice.sample(slots, min(len(slots), _TRANSFERS)):
            tick()
            offset = settings.transfer_bytes * dice.randrange(settings.transfers)
            length = min(settings.transfer_bytes, settings.stored_bytes - offset)
            several = settings.objects_per_block > 1
            part = dice.randrange(settings.objects_per_block) if several else None
            identity = slot.identity if part is None else slot.identity._replace(part=part)
            key, page = object_key_of(slot, part), offset // PAGE_BYTES
            view = buffer.cut(length).view
            payload.poison(buffer, length, thorough=True)
            try:
                backend.get_into(key, offset, view)
            except StorageError as error:
                self.error = f"what the run has stored can't be read back: {error}"
                return
            self.checked += 1
            problem = payload.verify(buffer, length, identity, page, thorough=True)
            if problem is not None:
                self.corrupt += 1
                self.error = (
                    f"object {key}, which the run has stored, reads back wrong at byte {offset}:"
                    f" {problem}"
                )
                return
