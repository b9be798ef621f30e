"""Engines' own libraries beside our profiles of them, under strace: tox -e peers."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.enginecalls import SEEN
from tests.site import PATIENCE_S, free_ports, wait_for
from tests.systemcalls import calls_of, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
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


# A bucket is four objects, or one that is as large. What is stored as soon as a bucket is there
# is ahead of the next heartbeat, so that none finds half of it.
BUCKETS = """
import os, sys, time

root, port, patience_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
size, most = 65536, 4 * 65536
for name in ("MC_STORE_CLIENT_{}_PORT", "MC_{}_PRC_PORT", "MC_{}_RPC_PORT"):
    os.environ[name.format("MIN")], os.environ[name.format("MAX")] = "20000", "30000"
for name, value in (
    ("HEARTBEAT_INTERVAL_SECONDS", 3),
    ("LOCAL_BUFFER_SIZE_BYTES", 16 << 20),  # where loads are staged
    ("BUCKET_SIZE_LIMIT_BYTES", most),
    ("BUCKET_MAX_TOTAL_SIZE", 7 * most // 2),  # three buckets are below nine tenths of it
):
    os.environ[f"MOONCAKE_OFFLOAD_{name}"] = str(value)
os.mkdir(root)
from mooncake.store import MooncakeDistributedStore

store = MooncakeDistributedStore()
assert not store.setup({
    "local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "protocol": "tcp",
    "global_segment_size": str(64 << 20), "local_buffer_size": str(16 << 20),
    "master_server_addr": f"127.0.0.1:{port}", "rdma_devices": "",
    "enable_ssd_offload": "true", "ssd_offload_path": root,
})

def until(condition):
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)

def on_disk(key):
    return any(replica.is_local_disk_replica() for replica in store.get_replica_desc(key))

def put(values):
    assert not store.put_batch(list(values), list(values.values()))
    until(lambda: all(on_disk(key) for key in values))

def load(*keys):
    assert store.get_batch(list(keys)) == [objects[key] for key in keys]

def find(key):
    assert store.is_exist(key) == 1

def remove(key):
    assert not store.remove(key, True)

def leave_memory(keys):
    left = set(keys)
    def cleared():
        left.difference_update(store.batch_replica_clear(sorted(left), store.get_hostname()))
        return not left
    until(cleared)

first = {f"first{number}": bytes([number]) * size for number in range(4)}
second = {f"second{number}": bytes([4 + number]) * size for number in range(4)}
objects = {**first, **second}
for mark, call in (
    ("oldest", lambda: put({"oldest": bytes(most)})),
    ("store", lambda: put(first)),
    ("second", lambda: put(second)),
    ("in memory", lambda: load(*first)),
    ("leave memory", lambda: leave_memory(objects)),
    ("lookup", lambda: find("first0")),
    ("load", lambda: load("first0")),
    ("batch", lambda: load(*first)),
    ("batch of two", lambda: load("first0", "second0", "first1", "second1")),
    ("remove", lambda: remove("first0")),
    ("delete", lambda: put({"newest": bytes(most)})),
):
    os.access(f"/mark/{mark}", 0)
    call()
os.access("/mark/end", 0)
store.close()
"""


@needs("mooncake")
def test_mooncakes_buckets_are_what_its_profile_does(tmp_path: Path) -> None:
    root = tmp_path / "buckets"
    with mooncakes_master(tmp_path / "master.log") as port:
        made = calls_of(BUCKETS, root, str(port), str(PATIENCE_S))
    _lookup, store, load, delete = SEEN["mooncake-bucket"]
    for mark in ("in memory", "leave memory", "lookup", "remove"):
        assert not made[mark]
    assert (made["store"], made["load"], made["delete"]) == (store, load, f"{delete} {store}")
    assert made["batch"] == "open pread pread pread pread close"
    assert made["batch of two"] == "open pread pread close open pread pread close"
    log = "\n".join(whole(root.with_suffix(".strace").read_text(errors="replace").splitlines()))
    parts = re.findall(r"pwritev\(.*], (\d+), 0\) +=", log)
    assert parts == ["2", "8", "8", "2"]  # the key and the bytes of each object
    oldest, *_others = re.findall(rf'"{root}/(\d+)\.bucket", O_WRONLY', log)
    assert re.findall(rf'unlink\("{root}/(.*)"', log) == [f"{oldest}.meta", f"{oldest}.bucket"]


@contextmanager
def mooncakes_master(log: Path) -> Iterator[int]:
    """The port of the process that knows where objects are, which a client needs."""
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        pytest.skip("Mooncake's wheel needs libibverbs.so.1, which is not installed")
    spec = importlib.util.find_spec("mooncake")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    port, metrics_port = free_ports(2)
    command = [
        f"{spec.submodule_search_locations[0]}/mooncake_master", "-rpc_address=127.0.0.1",
        f"-rpc_port={port}", f"-metrics_port={metrics_port}", "-enable_offload",
        "-default_kv_lease_ttl=100ms",
    ]  # fmt: skip
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as master,
    ):
        try:
            wait_for(lambda: master.poll() is not None or listens(port))
            assert master.poll() is None, log.read_text(errors="replace")
            yield port
        finally:
            master.kill()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return not client.connect_ex(("127.0.0.1", port))


def assert_seen(engine: str, made: dict[str, str]) -> None:
    names = ("lookup", "store", "load", "delete")
    assert [made[name] for name in names] == list(SEEN[engine])
