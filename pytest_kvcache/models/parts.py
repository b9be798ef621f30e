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
    """The objects of a block: one of each group of layers, or of what the layout divides it into.

    ``layer``: of each layer; ``kv``: of a group's keys, and of its values, where it has both.
    Padded to whole ``unit_bytes``.
    """
    sizes = model.group_bytes(block_tokens, tensor_parallel)
    return tuple(
        BlockPart(
            group=group,
            block_tokens=block_tokens,
            object_bytes=object_bytes,
            stored_bytes=-(-object_bytes // unit_bytes) * unit_bytes,
        )
        for group, size in zip(model.layer_groups, sizes, strict=True)
        for object_bytes in _object_sizes(group, size, object_layout)
    )


def _object_sizes(group: LayerGroup, size: int, object_layout: str) -> list[int]:
    """What a group's bytes of a block are divided into."""
    if object_layout == "layer":
        return [size // group.layers] * group.layers
    key_bytes = group.key_bytes(size) if object_layout == "kv" else None
    return [size] if key_bytes is None else [key_bytes, size - key_bytes]


def read_bytes(parts: Sequence[BlockPart], hit_blocks: int) -> int:
    """Stored bytes that a request reads of so many leading hit blocks."""
    return sum(part.stored_bytes * part.read_blocks(hit_blocks) for part in parts)
