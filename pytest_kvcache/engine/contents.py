"""The buffers of all slots: what a write stamps into them, what a read has to show.

Rank-side; imports neither pytest nor MPI.

Reads and writes have buffers of their own: what was read wrongly must not leak into a later
write. Content is fixed when an object is written, so a page that was not transferred shows
what its buffer held before, and that passes as the right one only if it *is* the same page
of the same writing. So each read buffer remembers what it may still hold, and is spoiled
before a read of just that (`_Memory`). Spoiling it before every read would cost more than
reading, from a megabyte on.

A thorough check compares bytes. All objects share a base pattern, so for it the piece is
spoiled in every sector, whatever the buffer held. Sampled: one piece of 64 KiB in 64, at a
random place among them; a shorter transfer is a piece.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.engine.payload import Arena

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.payload import ChunkBuffer, Payload

PIECE_BYTES = 64 * 1024
_PIECES_PER_CHECK = {"sample": 64, "full": 1}
_NOTHING = memoryview(b"")
_MOST_REMEMBERED = 16  # transfers whose remains one buffer may hold, each longer than the next


class _Memory:
    """What one read buffer may still hold: objects' keys and first pages, and how much of them.

    A transfer hides what is no longer than itself; of a longer one before it, the end is
    still there. Set when a read is staged, never cleared, whatever becomes of it.
    """

    __slots__ = ("key", "length", "longer", "page", "unknown")

    def __init__(self) -> None:
        self.key = ""
        self.page = -1
        self.length = 0
        self.longer: list[tuple[str, int, int]] = []
        self.unknown = False  # a read failed: it may hold anything

    def replace(self, key: str, page: int, length: int) -> int:
        """Remember a read instead; how many bytes may already hold what it asks for.

        All there are, -1, where nobody knows.
        """
        if self.unknown:
            self.unknown = False
            self.longer.clear()
            self.key, self.page, self.length = key, page, length
            return -1
        same = (self.page == page and self.key == key) or (
            bool(self.longer) and any(k == key and p == page for k, p, _n in self.longer)
        )
        if length < self.length:
            self.longer.append((self.key, self.page, self.length))
            if len(self.longer) > _MOST_REMEMBERED:
                self.unknown = True
        elif self.longer:
            self.longer = [one for one in self.longer if one[2] > length]
        self.key, self.page, self.length = key, page, length
        return length if same else 0


class Contents:
    """All slots' buffers: the first ``reads`` are for reading, then ``writes`` for writing."""

    def __init__(
        self, payload: Payload, settings: TransferSettings, reads: int, writes: int, seed: int = 0
    ) -> None:
        self.checked = 0
        self.corrupt = 0
        self._payload = payload
        self._blind = settings.blind
        self._verifies = settings.verify != "off"
        self._full = settings.verify == "full"
        self._every = _PIECES_PER_CHECK.get(settings.verify, 0)
        self._pieces = 0  # that were asked for
        self._thorough_at = 0  # the first one; then one in every so many
        self._random = random.Random(seed)
        arena = Arena((reads + writes + 1) * settings.transfer_bytes)
        model = payload.write_buffer(arena.take(settings.transfer_bytes))
        self._buffers: list[ChunkBuffer] = [
            payload.read_buffer(model, arena.take(settings.transfer_bytes)) for _ in range(reads)
        ]
        self._buffers += [
            payload.write_buffer(arena.take(settings.transfer_bytes)) for _ in range(writes)
        ]
        self._memories = [_Memory() for _ in range(reads)]
        self._chosen: list[list[int]] = [[] for _ in range(reads)]

    @property
    def views(self) -> Sequence[memoryview]:
        """The whole buffer of each slot."""
        return [buffer.view for buffer in self._buffers]

    def view(self, slot: int, length: int) -> memoryview:
        """The first bytes of a slot's buffer."""
        return self._buffers[slot].cut(length).view

    def to_write(self, slot: int, operation: Operation, offset: int, length: int) -> memoryview:
        """A part of an object, stamped."""
        buffer = self._buffers[slot]
        self._payload.stamp(
            buffer, length, operation.identity, offset // PAGE_BYTES, operation.stored_bytes
        )
        return buffer.cut(length).view

    def to_read(self, slot: int, operation: Operation, offset: int, length: int) -> memoryview:
        """Where a part of an object may be read into."""
        buffer = self._buffers[slot]
        if self._verifies:
            memory = self._memories[slot]
            stale = memory.replace(operation.object_key, offset // PAGE_BYTES, length)
            if stale:
                self._payload.poison(buffer, stale if stale > 0 else len(buffer.view))
            self._pieces += (length + PIECE_BYTES - 1) // PIECE_BYTES
            if self._pieces > self._thorough_at:
                self._choose(slot, length)
        return buffer.cut(length).view

    def _choose(self, slot: int, length: int) -> None:
        """Which pieces of this transfer are compared byte by byte: spoil them."""
        every, chosen = self._every, self._chosen[slot]
        if self._full:
            self._thorough_at = self._pieces
            chosen.append(-1)
            self._payload.poison(self._buffers[slot], length, thorough=True)
            return
        first = self._pieces - (length + PIECE_BYTES - 1) // PIECE_BYTES
        while self._thorough_at < self._pieces:
            begin = (self._thorough_at - first) * PIECE_BYTES
            chosen.append(begin)
            piece = min(PIECE_BYTES, length - begin)
            self._payload.poison(self._buffers[slot], piece, begin=begin, thorough=True)
            group = self._thorough_at // every + 1
            self._thorough_at = group * every + self._random.randrange(every)

    def fault(self, slot: int, operation: Operation, offset: int, length: int) -> str | None:
        """What is wrong with the data just read; None: nothing, or not looked at."""
        if not self._verifies:
            return None
        payload, buffer, page = self._payload, self._buffers[slot], offset // PAGE_BYTES
        identity, object_bytes = operation.identity, operation.stored_bytes
        if self._blind:  # make the buffer what is checked, as if the object had been read
            payload.mark(buffer, length, identity, page, object_bytes)
        self.checked += 1
        problem = payload.verify(buffer, length, identity, page, object_bytes)
        chosen = self._chosen[slot]
        if chosen:
            for begin in chosen:
                if problem is None:
                    whole = begin < 0
                    piece = length if whole else min(PIECE_BYTES, length - begin)
                    problem = payload.difference(
                        buffer, piece, identity, page, object_bytes, begin=max(0, begin)
                    )
            chosen.clear()
        if problem is None:
            return None
        self.corrupt += 1
        self._memories[slot].unknown = True
        if self._blind:
            return None
        return f"object {operation.object_key} read back wrong at byte {offset}: {problem}"

    def failed(self, slot: int) -> None:
        """A read into the slot did not end well."""
        if slot < len(self._memories):
            self._memories[slot].unknown = True
            self._chosen[slot].clear()
