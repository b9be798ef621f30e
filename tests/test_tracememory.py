"""What reading a trace costs in memory: an id a few bytes, whatever the file's size."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_PEAK = """
import resource, sys
from pytest_kvcache.traces.read import read_trace
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_trace(sys.argv[1], block_tokens=None, unit=None)
before = peak()
trace = read_trace(sys.argv[2], block_tokens=None, unit=None)
print(len(trace.block_ids), peak() - before)
"""


def written(path: Path, requests: int) -> Path:
    """Sessions of 100 requests that grow from 500 to 2,000 blocks."""
    with path.open("w") as file:
        for _ in range(requests // 100):
            calls = [
                {"t": 9.5 * number, "in": 64 * ids, "out": 9, "hash_ids": list(range(1, ids + 1))}
                for number, ids in enumerate(range(500, 2_000, 15))
            ]
            head = {"id": "x", "block_size": 64, "hash_id_scope": "local"}
            file.write(json.dumps(head | {"requests": calls}) + "\n")
    return path


@pytest.mark.thorough
def test_a_block_costs_four_bytes_and_little_more_while_it_is_read(tmp_path: Path) -> None:
    """What the small file took already is not counted again: it does not grow with the file."""
    small, large = written(tmp_path / "small", 400), written(tmp_path / "large", 6_000)
    command = [sys.executable, "-c", _PEAK, str(small), str(large)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    blocks, grown_kib = map(int, told)
    assert blocks == 6_000 * 1_242 + 3_000
    assert grown_kib * 1024 / blocks < 8
