from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.system.kernelfile import kernel_number, kernel_text

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("content", "text", "number"),
    [
        (b"8:1\n", "8:1", None), (b" 512 \n", "512", 512), (b"-1\n", "-1", -1), (b"\n", None, None),
        (b"max\n", "max", None), (b"Model \xff\n", "Model �", None), (b"--1", "--1", None),
    ],
)  # fmt: skip
def test_a_file_of_the_kernel_is_text_or_a_number(
    tmp_path: Path, content: bytes, text: str | None, number: int | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert (kernel_text(path), kernel_number(str(path))) == (text, number)


def test_a_file_that_this_kernel_lacks_says_nothing(tmp_path: Path) -> None:
    assert kernel_text(tmp_path / "none") is None
    assert kernel_number(tmp_path) is None  # a directory is no file either
