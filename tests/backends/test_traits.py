from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.backends.traits import BackendOption, BackendTraits
from pytest_kvcache.errors import OptionError
from pytest_kvcache.registry import BACKENDS
from tests.factories import OBJECTS

ENDPOINT = BackendOption(name="endpoint", meaning="where it is", required=True)
SECRET = BackendOption(name="secret_key", meaning="who we are", secret=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"unit": "block"}, "unit is 'block'; it must be one of range, object"),
        ({"bounded_by": "tape"}, "bounded_by is 'tape'; it must be one of disk, memory, nothing"),
        ({"alignment_bytes": 0}, "alignment_bytes is 0; it must be a power of two"),
        ({"alignment_bytes": 4095}, "alignment_bytes is 4095; it must be a power of two"),
        ({"smallest_part_bytes": 0}, "smallest_part_bytes is 0; it must be at least 1"),
        (
            {"smallest_part_bytes": 5 << 20, "largest_part_bytes": 1 << 20},
            "smallest_part_bytes is 5242880; it must be at least 1 and at most largest_part_bytes",
        ),
        ({"largest_part_bytes": 4095}, "largest_part_bytes is 4095; no multiple of 4096 lies"),
        (
            {"alignment_bytes": 8192, "smallest_part_bytes": 8193, "largest_part_bytes": 16383},
            "largest_part_bytes is 16383; no multiple of 8192 lies",
        ),
        ({"bounded_by": "disk"}, "bounded_by 'disk' without a directory"),
        ({"kernel_counts": True}, "kernel_counts without a directory"),
        ({"stores_data": False}, "is_storage without stores_data; a storage keeps data"),
        ({"options": (ENDPOINT, ENDPOINT)}, "each must be there once"),
    ],
)
def test_traits_that_contradict_themselves_are_refused(
    change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(OptionError) as error:
        replace(OBJECTS, **change)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["", "A", "a b", "a=b", "1a", "endpointÄ"])
def test_an_option_of_a_backend_has_a_name_that_can_be_typed(name: str) -> None:
    with pytest.raises(OptionError, match="a backend's option is called"):
        BackendOption(name=name, meaning="m")


@given(
    st.builds(
        replace,
        st.sampled_from([OBJECTS, *(factory.traits for factory in BACKENDS.values())]),
        options=st.sampled_from([(), (ENDPOINT,), (ENDPOINT, SECRET)]),
        never_waits=st.booleans(),
        alignment_bytes=st.sampled_from([1, 512, 4096, 65536]),
        smallest_part_bytes=st.integers(1, 5 << 20),
    )
)
def test_traits_survive_their_json(traits: BackendTraits) -> None:
    assert BackendTraits.from_json(json.loads(json.dumps(traits.to_json()))) == traits


def test_secrets_are_known_by_name() -> None:
    assert replace(OBJECTS, options=(ENDPOINT, SECRET)).secrets == {"secret_key"}
