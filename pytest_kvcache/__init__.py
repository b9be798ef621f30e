"""pytest-kvcache: benchmark storage for LLM KV caches from pytest.

Re-exports the names that a plugin author imports; imports neither pytest nor MPI.
"""

from __future__ import annotations

from pytest_kvcache.errors import KVCacheError, StorageError
from pytest_kvcache.hookspecs import hookimpl

__all__ = ["KVCacheError", "StorageError", "hookimpl"]
