"""An engine on this machine with the image in it, once per session."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.containers.engine import Docker, NoEngineError, docker, image_file

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def image() -> Path:
    """The test image as a file; where there is no engine, the test is skipped."""
    try:
        return image_file()
    except NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine(image: Path) -> Iterator[Docker]:
    """Docker on this machine, with the test image."""
    with (
        tempfile.TemporaryDirectory(prefix="kvcache-engine-", dir="/var/tmp") as directory,
        docker(Path(directory)) as started,
    ):
        started.call("load", "--input", image)
        yield started
