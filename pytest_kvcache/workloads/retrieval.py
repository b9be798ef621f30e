"""Documents of a user, and the chunks of them that its requests retrieve.

Rank-side; imports neither pytest nor MPI. A chunk's keys say what it is, not what stands before
it: document, chunk and position are hashed, nothing is chained, so that whoever retrieves the
chunk finds it, behind whatever prompt. Only whole blocks of a chunk are stored.
"""

from __future__ import annotations

import math
import random
from hashlib import blake2b
from typing import TYPE_CHECKING

from pytest_kvcache.workloads.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.workloads.protocol import WorkloadContext
    from pytest_kvcache.workloads.scenarios import Retrieval


def chunk_tokens(retrieval: Retrieval, context: WorkloadContext) -> int:
    """The tokens of a whole chunk at this scale: of one block at least."""
    return max(context.block_tokens, math.floor(retrieval.chunk_tokens * context.context_scale))


def longest_blocks(retrieval: Retrieval, context: WorkloadContext) -> int:
    """Blocks of one user's documents, if all were as long as they may be."""
    longest = _scaled(retrieval.document_tokens.high, context)
    return retrieval.documents * sum(_blocks_of_chunks(longest, retrieval, context))


def _scaled(tokens: float, context: WorkloadContext) -> int:
    return max(1, math.floor(tokens * context.context_scale))


def _blocks_of_chunks(tokens: int, retrieval: Retrieval, context: WorkloadContext) -> list[int]:
    """Whole blocks of each chunk of a document; a last chunk with none is not there."""
    whole, block = chunk_tokens(retrieval, context), context.block_tokens
    blocks = [whole // block] * (tokens // whole)
    last = tokens % whole // block
    return [*blocks, last] if last else blocks


class Documents:
    """One user's documents, and which chunks it retrieves when; ``identity`` is the user's.

    Draws from a generator of its own: with or without retrieval a user says the same.
    """

    __slots__ = ("_blocks", "_identity", "_keys", "_ratio", "_rng", "_top_k")

    def __init__(
        self, retrieval: Retrieval, ratio: float, context: WorkloadContext, identity: str
    ) -> None:
        self._identity = f"{identity}/documents"
        seed = blake2b(self._identity.encode(), digest_size=8).digest()
        self._rng = random.Random(int.from_bytes(seed, "big"))
        self._ratio = ratio
        self._top_k = retrieval.top_k
        self._keys: dict[tuple[int, int], tuple[bytes, ...]] = {}
        limits = retrieval.document_tokens
        low, high = _scaled(limits.low, context), _scaled(limits.high, context)
        # random() is the one method whose sequence Python promises to keep.
        lengths = [
            low + int(self._rng.random() * (high - low + 1)) for _ in range(retrieval.documents)
        ]
        self._blocks = [_blocks_of_chunks(length, retrieval, context) for length in lengths]

    def all_blocks(self) -> Iterator[tuple[bytes, ...]]:
        """The keys of each document."""
        for document, chunks in enumerate(self._blocks):
            yield tuple(k for chunk in range(len(chunks)) for k in self._chunk(document, chunk))

    def retrieved(self) -> tuple[bytes, ...]:
        """The keys of the chunks that a request retrieves; none if it does not."""
        if self._rng.random() >= self._ratio:
            return ()
        document = int(self._rng.random() * len(self._blocks))
        left = list(range(len(self._blocks[document])))
        found: list[bytes] = []
        for _ in range(min(self._top_k, len(left))):
            found += self._chunk(document, left.pop(self._by_zipf(left)))
        return tuple(found)

    def _by_zipf(self, left: list[int]) -> int:
        """The place in ``left`` of one that is drawn with the weight 1/(i+1)."""
        weights = [1 / (position + 1) for position in left]
        at = self._rng.random() * sum(weights)
        for place, weight in enumerate(weights):
            at -= weight
            if at < 0:
                return place
        return len(left) - 1  # what rounding has left

    def _chunk(self, document: int, chunk: int) -> tuple[bytes, ...]:
        keys = self._keys.get((document, chunk))
        if keys is None:
            name = f"{self._identity}/{document}/{chunk}/"
            keys = self._keys[document, chunk] = tuple(
                content_key(f"{name}{position}".encode())
                for position in range(self._blocks[document][chunk])
            )
        return keys
