from __future__ import annotations

import inspect
from typing import Any

import pytest

from pytest_kvcache.backends.protocol import Backend, BackendPlan
from pytest_kvcache.errors import OptionError

GOOD: dict[str, Any] = {
    "directory": None,
    "object_bytes": 8192,
    "chunk_bytes": 4096,
    "io": "direct",
    "sync": "none",
    "host": "n1",
    "namespace": "kvcache-run/trial-1/rank-0",
}


def test_the_protocol_has_six_methods() -> None:
    names = {name for name, _ in inspect.getmembers(Backend, inspect.isfunction)}
    assert {name for name in names if not name.startswith("_")} == {
        "open", "put_from", "get_into", "delete", "sync", "close",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object_bytes": 0}, "object_bytes is 0; it must be at least 1"),
        ({"object_bytes": 5000}, "object_bytes is 5000; .* multiple of 4096"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0; it must be at least 1"),
        ({"chunk_bytes": 6000}, "chunk_bytes is 6000; .* multiple of 4096"),
        ({"io": "mmap"}, "io is 'mmap'; it must be direct or buffered"),
        ({"store": "cloud"}, "store is 'cloud'; it must be file or slab"),
        ({"store": "slab"}, "capacity_objects is None; slabs are made for a number of objects"),
        ({"capacity_objects": 0}, "capacity_objects is 0; it must be at least 1"),
        ({"sync": "all"}, "sync is 'all'; it must be none or data"),
    ],
)
def test_a_plan_that_breaks_a_rule_does_not_exist(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BackendPlan(**(GOOD | change))


def test_buffered_io_takes_any_size() -> None:
    plan = BackendPlan(**(GOOD | {"io": "buffered", "object_bytes": 5001, "chunk_bytes": 77}))
    assert plan.object_bytes == 5001
