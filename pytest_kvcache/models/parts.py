"""The objects that a block is stored as where they are not all alike.

Imports nothing of the package but its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.models.groups import LayerGroup
    from pytest_kvcache.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPart:
    """One object of each block of ``block_tokens`` tokens: what a group of layers keeps of it.

    ``object_bytes`` is its data, ``stored_bytes`` the same padded.
    """

    group: LayerGroup
    block_tokens: int
    object_bytes: int
    stored_bytes: int

    def read_blocks(self, hit_blocks: int) -> int:
        """Of so many leading hit blocks, how many last ones a request reads this object of."""
        return self.group.read_blocks(hit_blocks, self.block_tokens)


def block_parts(
    model: ModelSpec, object_layout: str, block_tokens: int, tensor_parallel: int, unit_bytes: int
) -> tuple[BlockPart, ...]:
    """The objects of a block: one of each group of layers, or (``layer``) of each layer.

    Padded to whole ``unit_bytes``.
    """
    parts: list[BlockPart] = []
    sizes = model.group_bytes(block_tokens, tensor_parallel)
    for group, size in zip(model.layer_groups, sizes, strict=True):
        count = group.layers if object_layout == "layer" else 1
        part = BlockPart(
            group=group,
            block_tokens=block_tokens,
            object_bytes=size // count,
            stored_bytes=-(-(size // count) // unit_bytes) * unit_bytes,
        )
        parts += [part] * count
    return tuple(parts)


def read_bytes(parts: Sequence[BlockPart], hit_blocks: int) -> int:
    """Stored bytes that a request reads of so many leading hit blocks."""
    return sum(part.stored_bytes * part.read_blocks(hit_blocks) for part in parts)
