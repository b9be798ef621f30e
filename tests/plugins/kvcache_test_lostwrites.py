"""Has the kernel read where it was to write: no write arrives, and all seem to have.

Given to ranks by ``--kv-plugin``; for io_uring alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.ioengines import kernel, uring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.models import ModelSpec

vars(uring)["_WRITE_FIXED"] = vars(uring)["_READ_FIXED"]
vars(uring)["_CODES"][kernel.WRITE] = vars(uring)["_CODES"][kernel.READ]


@pytest_kvcache.hookimpl
def kvcache_models() -> Mapping[str, ModelSpec]:
    """No model: a plugin has a hook."""
    return {}
