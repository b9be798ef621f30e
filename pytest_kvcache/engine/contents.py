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
    from pytest_kvcache.engine.payload import ChunkBuffer, Cut, Payload

PIECE_BYTES = 64 * 1024
_PIECES_PER_CHECK = {"sample": 64, "full": 1}
_NOTHING = memoryview(b"")
_MOST_REMEMBERED = 16  # transfers whose remains one buffer may hold, each longer than the next


class _Memory:
    """What one read buffer may still hold: objects' tags and first pages, and how much of them.

    By tags, for copies of an object in several tiers are the same data under other keys.
    A transfer hides what is no longer than itself; of a longer one before it, the end is
    still there. Set when a read is staged, never cleared, whatever becomes of it.
    """

    __slots__ = ("length", "longer", "page", "tag", "unknown")

    def __init__(self) -> None:
        self.tag = -1
        self.page = -1
        self.length = 0
        self.longer: list[tuple[int, int, int]] = []
        self.unknown = False  # a read failed: it may hold anything

    def replace(self, tag: int, page: int, length: int) -> int:
        """Remember a read instead; how many bytes may already hold what it asks for.

        All there are, -1, where nobody knows.
        """
        if self.unknown:
            self.unknown = False
            self.longer.clear()
            self.tag, self.page, self.length = tag, page, length
            return -1
        same = (self.page == page and self.tag == tag) or (
            bool(self.longer) and any(t == tag and p == page for t, p, _n in self.longer)
        )
        if length < self.length:
            self.longer.append((self.tag, self.page, self.length))
            if len(self.longer) > _MOST_REMEMBERED:
                self.unknown = True
        elif self.longer:
            self.longer = [one for one in self.longer if one[2] > length]
        self.tag, self.page, self.length = tag, page, length
        return length if same else 0


class Contents:
    """All slots' buffers: the first ``reads`` are for reading, then ``writes`` for writing.

    Of what was ``checked``, ``corrupt`` transfers were wrong, and ``others_objects`` objects had a
    head that names another rank of those that share the store.
    """

    def __init__(
        self, payload: Payload, settings: TransferSettings, reads: int, writes: int, seed: int = 0
    ) -> None:
        self.checked = 0
        self.corrupt = 0
        self.others_objects = 0
        self._payload = payload
        self._discards = settings.discards_findings
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
        self._cuts = [buffer.cut(settings.transfer_bytes) for buffer in self._buffers[:reads]]
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
        cut = self._cuts[slot]
        if cut.length != length:
            cut = self._cuts[slot] = self._buffers[slot].cut(length)
        if self._verifies:
            memory, tag, page = self._memories[slot], operation.tag, offset // PAGE_BYTES
            if memory.length != length or memory.tag == tag or memory.unknown or memory.longer:
                self._spoil(slot, memory.replace(tag, page, length))
            else:  # as mostly: another object of the same length
                memory.tag, memory.page = tag, page
            self._pieces += (length + PIECE_BYTES - 1) // PIECE_BYTES
            if self._pieces > self._thorough_at:
                self._choose(slot, length)
        return cut.view

    def _spoil(self, slot: int, stale_bytes: int) -> None:
        """So many leading bytes of a buffer; -1: all."""
        if stale_bytes:
            buffer = self._buffers[slot]
            self._payload.poison(buffer, stale_bytes if stale_bytes > 0 else len(buffer.view))

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
        self.checked += 1
        cut, page = self._cuts[slot], offset // PAGE_BYTES
        if self._discards:  # make the buffer what is checked, as if the object had been read
            self._payload.mark(cut, operation.tag, page)
        if self._payload.holds(cut, operation.tag, page) and not self._chosen[slot]:
            if page or not self._payload.is_shared:
                return None
            problem = self._note_origin(cut, operation)
        else:
            problem = self._problem(slot, operation, page, length)
            if problem is None and not page and self._payload.is_shared:
                problem = self._note_origin(cut, operation)
        if problem is None:
            return None
        self.corrupt += 1
        self._memories[slot].unknown = True
        if self._discards:
            return None
        return f"object {operation.object_key} read back wrong at byte {offset}: {problem}"

    def _note_origin(self, cut: Cut, operation: Operation) -> str | None:
        """Count an object that another rank wrote; say so if its head does not tell."""
        origin = self._payload.origin_of(cut)
        if origin is None:
            return (
                f"page 0 of object {operation.identity} has a damaged head: its checksum is not"
                " that of what it says"
            )
        operation.is_others = origin != operation.identity.origin
        self.others_objects += operation.is_others
        return None

    def _problem(self, slot: int, operation: Operation, page: int, length: int) -> str | None:
        """Look again, at every byte of the chosen pieces too, and say what is wrong."""
        payload, buffer, chosen = self._payload, self._buffers[slot], self._chosen[slot]
        identity, object_bytes = operation.identity, operation.stored_bytes
        problem = payload.verify(buffer, length, identity, page, object_bytes)
        if chosen:
            for begin in chosen:
                if problem is None:
                    whole = begin < 0
                    piece = length if whole else min(PIECE_BYTES, length - begin)
                    problem = payload.difference(
                        buffer, piece, identity, page, object_bytes, begin=max(0, begin)
                    )
            chosen.clear()
        return problem

    def failed(self, slot: int) -> None:
        """A read into the slot did not end well."""
        if slot < len(self._memories):
            self._memories[slot].unknown = True
            self._chosen[slot].clear()
