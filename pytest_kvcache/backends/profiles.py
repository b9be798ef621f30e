"""The one table of engine profiles: what each does to the storage, by version and source.

Pure. A new engine is a new row. What is said here was seen under strace in the engine's released
wheel where ``seen`` is true, else read in its source; docs/engines.md has a page for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from pytest_kvcache.backends.calls import BucketCalls, FileCalls, SlotCalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.calls import Calls, Lookup

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What one engine does to its storage.

    ``readers`` and ``writers`` are how many objects are read and written at the same time;
    ``shares_workers``: each of them does the other's work when it has none. Of one request
    ``request_depth`` objects are under way (None: all), which are its leading ones, or, if it
    ``tiles``, the first of as many equal parts of it. A block is one object, or by ``layout`` one
    of its keys and one of its values. ``lookup_threads`` ask for what is stored.
    ``evicts`` says who makes room. ``misses`` is what it does that the profile does not.
    """

    name: str
    version: str
    seen: bool
    block_tokens: int
    io: Literal["direct", "buffered"]
    layout: Literal["block", "kv"] = "block"
    calls: Calls
    readers: int
    writers: int
    shares_workers: bool = False
    request_depth: int | None = 1
    tiles: bool = False
    lookup: Lookup = "memory"
    lookup_threads: int = 1
    evicts: str
    misses: str

    @property
    def depth(self) -> int:
        """The most objects that are under way."""
        return self.readers + self.writers


_TIER = "its own host memory in front (see --kv-cpu-mem-gb)"

_ROWS = (
    EngineProfile(
        name="vllm-fs",
        version="vLLM 0.32.0, TieringOffloadingSpec, tier fs",
        seen=True,
        block_tokens=16,
        io="direct",
        calls=FileCalls(
            publish="rename", exclusive=True, levels=(3, 2), directories="stat", suffix=".bin",
            lookup_call="access", before_store=("access",),
        ),
        readers=16, writers=16, shares_workers=True, lookup="all",
        evicts="nobody: it grows until something from outside deletes",
        misses=f"dropped stores of its optional back-pressure; a rejected short read; {_TIER}",
    ),
    EngineProfile(
        name="vllm-disk",
        version="vLLM 0.32.0, SimpleCPUOffloadConnector, kv_offload_backend disk",
        seen=True,
        block_tokens=16,
        io="direct",
        calls=SlotCalls(vectors=32),
        readers=1, writers=1,
        evicts="LRU, by an index in memory",
        misses=f"double buffering against the GPU; {_TIER}",
    ),
    EngineProfile(
        name="sglang-file",
        version="SGLang 0.5.23, HiCache, backend file, --page-size 64",
        seen=True,
        block_tokens=64,
        io="buffered",
        calls=FileCalls(
            publish="rename", suffix=".bin", before_store=("stat",),
            store_opened=("fstat", "isatty", "lseek"), load_opened=("fstat",),
        ),
        readers=1, writers=1, lookup="first-miss",
        evicts="nobody, unless a limit is set; then LRU",
        misses="a second copy of what was read; idle calls of numpy's tofile beyond three;"
        f" {_TIER}",
    ),
    EngineProfile(
        name="sglang-nixl",
        version="SGLang 0.5.23, HiCache, backend nixl with nixl 1.5.1 POSIX, --page-size 64",
        seen=True,
        block_tokens=64,
        io="direct",
        layout="kv",
        calls=FileCalls(levels=(2,), truncates=False, batch_submits=64),
        readers=256, writers=256, request_depth=None, lookup="all",
        evicts="a cleaner, every 30 seconds: at 80 % of the disk the oldest files, down to 70 %",
        misses=f"that cleaner; {_TIER}",
    ),
    EngineProfile(
        name="lmcache-fs",
        version="LMCache 0.5.6, L2 adapter fs",
        seen=True,
        block_tokens=256,
        io="buffered",
        calls=FileCalls(
            publish="rename", shares_temporary=True, suffix=".data", before_store=("stat",),
            store_opened=("fstat", "isatty", "lseek"),
            load_opened=("fstat", "isatty", "lseek"), before_delete=("stat",),
        ),
        readers=8, writers=8, lookup="all",
        evicts="nobody, unless an eviction policy is set; then LRU",
        misses=f"stores by more threads than eight (its executor has up to 32); {_TIER}",
    ),
    EngineProfile(
        name="lmcache-fs-native",
        version="LMCache 0.5.6, L2 adapter fs_native",
        seen=True,
        block_tokens=256,
        io="buffered",
        calls=FileCalls(
            publish="rename", shares_temporary=True, suffix=".data", before_store=("stat",),
        ),
        readers=2, writers=2, shares_workers=True, request_depth=4, tiles=True, lookup="all",
        evicts="nobody, unless an eviction policy is set; then LRU",
        misses=f"lookups by the same four workers: one thread of their own makes them; {_TIER}",
    ),
    EngineProfile(
        name="lmcache-local-disk",
        version="LMCache 0.5.6, in-process local_disk",
        seen=True,
        block_tokens=256,
        io="buffered",
        calls=FileCalls(suffix=".pt"),
        readers=4, writers=4, request_depth=None,
        evicts="LRU, by an index in memory: the store unlinks",
        misses=f"priorities of its queue (prefetch, delete, put); {_TIER}",
    ),
    EngineProfile(
        name="mooncake-bucket",
        version="Mooncake store 0.3.13.post1, bucket_storage_backend, which is its default",
        seen=True,
        block_tokens=16,
        io="buffered",
        calls=BucketCalls(objects=500, size_bytes=256 * _MIB, readers=16),
        readers=500, writers=500, request_depth=None,
        evicts="whole buckets, the oldest first",
        misses="lookups by RPC; a reader per core (16 here); a heartbeat of ten seconds between"
        " writes, after which what is left over for no full bucket is never written; an eviction"
        " down to 80 % of the disk's part where 90 % of it are full; its own host memory in front,"
        " but for what waits",
    ),
    EngineProfile(
        name="mooncake-offset",
        version="Mooncake store 0.3.13.post1, offset_allocator_storage_backend",
        seen=True,
        block_tokens=16,
        io="buffered",
        calls=SlotCalls(allocates=True, header=(24, 64)),
        readers=1, writers=1, request_depth=1,
        evicts="by a policy of its master, in memory",
        misses="lookups by RPC; a heartbeat of ten seconds between writes; four KiB beside each"
        f" object, of which the header is written; {_TIER}",
    ),
    EngineProfile(
        name="aibrix-shfs",
        version="aibrix-kvcache 0.8.0, connector SHFS",
        seen=True,
        block_tokens=16,
        io="buffered",
        calls=FileCalls(
            publish="rename", shares_temporary=True, levels=(2, 2), directories="mkdir",
            store_opened=("fstat", "isatty", "lseek"), after_store=("stat", "stat"),
            before_load=("stat", "stat"),
            load_opened=("fstat", "isatty", "lseek", "lseek", "fstat"), reads_on=True,
            before_delete=("stat",),
        ),
        readers=4, writers=4, shares_workers=True, lookup="all", lookup_threads=8,
        evicts="nobody",
        misses="its deadline of 20 ms per token, after which it recomputes; the choice of what is"
        f" stored (HOT); {_TIER}",
    ),
    EngineProfile(
        name="llmd-fs",
        version="llm-d fs backend, git 2b4f8ca, 0cf6497, 04ef2db",
        seen=False,
        block_tokens=256,
        io="buffered",
        calls=FileCalls(
            publish="rename", levels=(3, 2), directories="stat", suffix=".bin",
            truncates=False, before_store=("open",), write_bytes=4 * _MIB,
            load_opened=("lseek", "lseek", "lseek"),
        ),
        readers=8, writers=8, shares_workers=True, request_depth=None, lookup="all",
        evicts="something from outside, by the access times that it sets",
        misses="64 threads per GPU, at most one per core (16 here: see --kv-queue-depth); utimensat"
        f" of what it finds; its cache of lookups; {_TIER}",
    ),
    EngineProfile(
        name="kvbm-disk",
        version="Dynamo KVBM 1.6.1, disk tier",
        seen=False,
        block_tokens=16,
        io="direct",
        calls=SlotCalls(allocates=True, unlinked=True),
        readers=8, writers=8, shares_workers=True, request_depth=None,
        evicts="LRU, by an index in memory",
        misses="its own number of transfers in flight, which its source does not tell (16 here: see"
        f" --kv-queue-depth); the filter that stores little; {_TIER}",
    ),
)  # fmt: skip

PROFILES: Final[Mapping[str, EngineProfile]] = MappingProxyType({row.name: row for row in _ROWS})
"""Name of a profile → it."""
