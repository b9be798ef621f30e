"""Element types of a stored KV cache, and what ``--kv-kv-dtype`` makes of a name."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "bfloat16": 2, "float16": 2, "float32": 4, "float8": 1, "fp8": 1, "fp8_e4m3": 1,
        "fp8_e5m2": 1, "int8": 1,
    }
)  # fmt: skip
"""Bytes of an element; an engine's scales of 8-bit types are not counted."""

AUTO = "auto"
KV_DTYPES = (AUTO, "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2", "int8")
"""What ``--kv-kv-dtype`` takes; ``auto`` is the model's own."""
