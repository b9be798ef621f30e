"""A scenario whose requests read chunks beside their prefix, and read again what they store.

``--kv-plugin kvcache_test_chunks --kv-scenario chunks``: user u's turn t asks for the blocks u/0
to u/t, and beside them for two chunks of sixteen that all users of a rank share; what is stored
is read twice again.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.workloads.protocol import Need, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.workloads.protocol import WorkloadContext, WorkloadFamily

TURNS, CHUNKS, REREADS = 12, 16, 2


def _key(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


class Chunks:
    open_loop = False

    def __init__(self, context: WorkloadContext) -> None:
        self.users = context.users
        self._context = context
        self._turns: Counter[int] = Counter()

    def population(self) -> Iterator[Request]:
        """Half of the chunks: a document that was read in before."""
        chunks = tuple(_key(f"chunk {number}") for number in range(CHUNKS // 2))
        yield Request(0, (), 0, 0, 0, beside=chunks, stores_beside=True)

    def next_request(self, user: int) -> Request | None:
        turn = self._turns[user]
        self._turns[user] += 1
        if turn == TURNS:
            return None
        tokens = (turn + 1) * self._context.block_tokens
        chunks = [(7 * user + 3 * turn + step) % CHUNKS for step in (0, 5)]
        return Request(
            user=user,
            keys=tuple(_key(f"{user}/{block}") for block in range(turn + 1)),
            prompt_blocks=turn + 1,
            prompt_tokens=tokens,
            output_tokens=0,
            beside=tuple(_key(f"chunk {number}") for number in chunks),
            stores_beside=True,
            rereads=REREADS,
        )


class ChunksFamily:
    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        return Need(working_set_blocks=context.users * TURNS + CHUNKS)

    def build(self, context: WorkloadContext) -> Chunks:
        return Chunks(context)


@pytest_kvcache.hookimpl
def kvcache_workloads() -> Mapping[str, WorkloadFamily]:
    """Register it."""
    return {"chunks": ChunksFamily()}
