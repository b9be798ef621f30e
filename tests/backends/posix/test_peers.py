"""Engines' own libraries beside our profiles of them, under strace: tox -e peers."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.enginecalls import SEEN
from tests.systemcalls import calls_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.peers


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where one of them is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: tox -e peers"
    )


# The C++ client that LMCache's fs_native adapter hands everything to, with its four workers.
FS_NATIVE = """
import importlib.util, os, select, sys, torch

(home,) = importlib.util.find_spec("lmcache").submodule_search_locations
(name,) = [each for each in os.listdir(home) if each.startswith("lmcache_fs.")]
spec = importlib.util.spec_from_file_location("lmcache_fs", f"{home}/{name}")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
client = native.LMCacheFSClient(sys.argv[1], 4, "", False, 0)
key, data = "model@0x0@0@00ff00ff00ff00ff", memoryview(bytearray(65536))

def ended():
    while not (done := client.drain_completions()):
        select.select([client.event_fd()], [], [], 5)
    assert done[0][1], done

for mark, begin in (
    ("store", lambda: client.submit_batch_set([key], [data])),
    ("lookup", lambda: client.submit_batch_exists([key])),
    ("load", lambda: client.submit_batch_get([key], [data])),
    ("delete", lambda: client.submit_batch_delete([key])),
):
    os.access(f"/mark/{mark}", 0)
    begin()
    ended()
os.access("/mark/end", 0)
client.close()
"""


@needs("lmcache", "torch")
def test_lmcaches_native_files_are_what_its_profile_does(tmp_path: Path) -> None:
    assert_seen("lmcache-fs-native", calls_of(FS_NATIVE, tmp_path))


SHFS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor

from aibrix_kvcache.l2.connectors.shfs import SHFSConnector

class Region:
    length = 65536

    def tobytes(self):
        return bytes(self.length)

    def fill(self, data):
        assert len(data) == self.length

connector = SHFSConnector(sys.argv[1], ThreadPoolExecutor(1))
key, region = bytes(16), Region()
assert connector.open().is_ok()
assert connector._put(key, region).is_ok()  # makes the directories
assert connector._delete(key).is_ok()
for mark, call in (
    ("store", lambda: connector._put(key, region)),
    ("lookup", lambda: connector._exists(key)),
    ("load", lambda: connector._get(key, region)),
    ("delete", lambda: connector._delete(key)),
):
    os.access(f"/mark/{mark}", 0)
    assert call().is_ok()
os.access("/mark/end", 0)
"""


@needs("aibrix_kvcache", "torch")
def test_aibrix_files_are_what_their_profile_does(tmp_path: Path) -> None:
    assert_seen("aibrix-shfs", calls_of(SHFS, tmp_path))


HICACHE = """
import os, sys, torch

from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

config = HiCacheStorageConfig(
    tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
    is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=False, model_name="m",
)
storage, page = HiCacheFile(config, sys.argv[1]), torch.zeros(65536, dtype=torch.uint8)
for mark, call in (
    ("store", lambda: storage.set("key", page)),
    ("lookup", lambda: storage.exists("key")),
    ("load", lambda: storage.get("key", page) is not None),
):
    os.access(f"/mark/{mark}", 0)
    assert call()
os.access("/mark/end", 0)
"""
# What numpy's tofile does beside writing; the profile makes three of them.
IDLE = {"fstat", "ioctl", "lseek", "dup", "fcntl"}


@needs("sglang", "torch")
def test_sglangs_files_are_what_their_profile_does_but_for_idle_calls(tmp_path: Path) -> None:
    made = calls_of(HICACHE, tmp_path)
    lookup, store, load, _delete = SEEN["sglang-file"]
    assert (made["lookup"], made["load"]) == (lookup, load)
    done = [call for call in made["store"].split() if call not in IDLE]
    assert done.count("close") == 2  # of the file, and of its double
    done.remove("close")
    assert done == [call for call in store.split() if call not in IDLE]


NIXL = """
import os, sys, torch, types

pools = types.ModuleType("sglang.srt.mem_cache.pool_host")  # which needs most of the engine
pools.HostKVCache = object
sys.modules[pools.__name__] = pools
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.storage.nixl.hicache_nixl import HiCacheNixl

size, pages, latent = 65536, int(sys.argv[2]), bool(int(sys.argv[3]))
each = 1 if latent else 2

class Pool:
    layout, page_size = "page_first", 1

    def __init__(self):
        self.memory = torch.zeros((each * pages + 1) * size, dtype=torch.uint8)
        begin = -self.memory.data_ptr() % 4096
        self.kv_buffer = self.memory[begin : begin + each * pages * size]

    def is_stride_page_aligned(self, alignment):
        return True

    def get_page_buffer_meta(self, indices):
        count, base = each * len(indices), self.kv_buffer.data_ptr()
        return [base + number * size for number in range(count)], [size] * count

config = HiCacheStorageConfig(
    tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
    is_mla_model=latent, enable_storage_metrics=False, is_page_first_layout=True, model_name="m",
    extra_config={"plugin": {"posix": {"active": True}}, "l3_cleaner_enabled": False},
)
storage, keys = HiCacheNixl(config, sys.argv[1]), [f"page{number}" for number in range(pages)]
storage.register_mem_pool_host(Pool())
indices = torch.arange(pages)
for mark, call in (
    ("store", lambda: all(storage.batch_set_v1(keys, indices))),
    ("lookup", lambda: storage.batch_exists(keys) == pages),
    ("load", lambda: all(storage.batch_get_v1(keys, indices))),
):
    os.access(f"/mark/{mark}", 0)
    assert call()
os.access("/mark/end", 0)
"""


@needs("sglang", "torch", "nixl")
def test_sglangs_batches_through_nixl_are_what_their_profile_does(tmp_path: Path) -> None:
    latent = calls_of(NIXL, tmp_path / "latent", "1", "1")  # keys and values in one file
    made = [latent[name] for name in ("lookup", "store", "load")]
    assert made == list(SEEN["sglang-nixl"][:3])
    made_of_40 = calls_of(NIXL, tmp_path / "40", "40", "0")
    assert made_of_40["lookup"] == " ".join(["stat"] * 80)
    for name, operation in (("store", "pwrite"), ("load", "pread")):
        begun = [f"io_submit:64*{operation}", f"io_submit:16*{operation}"]
        assert made_of_40[name].split() == ["open"] * 80 + begun + ["close"] * 80


def assert_seen(engine: str, made: dict[str, str]) -> None:
    names = ("lookup", "store", "load", "delete")
    assert [made[name] for name in names] == list(SEEN[engine])
