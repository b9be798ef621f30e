"""Engines' own libraries beside our profiles of them, under strace: tox -e peers."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.enginecalls import SEEN
from tests.systemcalls import calls_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        importlib.util.find_spec("lmcache") is None or importlib.util.find_spec("torch") is None,
        reason="LMCache and torch are not installed: tox -e peers",
    ),
]

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


def test_lmcaches_native_files_are_what_its_profile_does(tmp_path: Path) -> None:
    lookup, store, load, delete = SEEN["lmcache-fs-native"]
    made = calls_of(FS_NATIVE, tmp_path)
    assert [made[name] for name in ("lookup", "store", "load", "delete")] == [
        lookup, store, load, delete,
    ]  # fmt: skip
