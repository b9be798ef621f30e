"""Models by name and by file, and what a context costs in each.

Imports nothing of the package but ``errors``.
"""

from __future__ import annotations

from pytest_kvcache.dtypes import DTYPE_BYTES, KV_DTYPES
from pytest_kvcache.models.groups import CHUNKED, FULL, SLIDING, STATE, LayerGroup
from pytest_kvcache.models.hfconfig import is_config, load_config
from pytest_kvcache.models.parts import BlockPart, block_parts, read_bytes
from pytest_kvcache.models.shipped import MODELS
from pytest_kvcache.models.spec import ModelSpec
from pytest_kvcache.models.tomlfile import load_models

__all__ = [
    "CHUNKED", "DTYPE_BYTES", "FULL", "KV_DTYPES", "MODELS", "SLIDING", "STATE", "BlockPart",
    "LayerGroup", "ModelSpec", "block_parts", "is_config", "load_config", "load_models",
    "read_bytes",
]  # fmt: skip
