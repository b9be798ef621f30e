from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.factories import FakeClock
from tests.rig import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stage(clock: FakeClock) -> Iterator[Stage]:
    held = Stage(clock)
    yield held
    held.release_all()
