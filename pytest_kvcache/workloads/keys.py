"""Keys of blocks. Pure."""

from __future__ import annotations

from hashlib import blake2b

KEY_BYTES = 16


def chain_key(parent: bytes, content: bytes) -> bytes:
    """The key of a block from its parent's key and its own content's identity.

    Prefix-chained, as vLLM's block hashes: equal keys mean equal whole prefixes.
    """
    return content_key(parent + content)


def content_key(content: bytes) -> bytes:
    """The key of a block that is the same whatever stands before it."""
    return blake2b(content, digest_size=KEY_BYTES).digest()
