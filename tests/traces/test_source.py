from __future__ import annotations

import gzip
import importlib
import importlib.util
import io
import lzma
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces import source
from pytest_kvcache.traces.source import Source, opened

if TYPE_CHECKING:
    from pathlib import Path

LINES = b'{"a": 1}\n' * 5_000


def content(path: Path) -> bytes:
    with opened(str(path)) as found:
        return b"".join(found.lines())


def zstd_frame(data: bytes) -> bytes:
    """A frame of raw blocks, written by hand (RFC 8878, 3.1.1): no library is needed for it."""
    blocks = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    packed = b"\x28\xb5\x2f\xfd\x00\x58"  # no content size, a window of 2 MiB
    for number, block in enumerate(blocks):
        is_last = number == len(blocks) - 1
        packed += (len(block) << 3 | is_last).to_bytes(3, "little") + block
    return packed


def needs_zstd() -> None:
    found = any(map(_is_there, ("compression.zstd", "zstandard")))
    if not found:
        pytest.skip("neither compression.zstd (Python 3.14) nor zstandard is here")


def _is_there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_file_is_read_whatever_packs_it(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(pack(LINES))
    assert content(path) == LINES


@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_of_zstd_frames_is_read(tmp_path: Path, frames: int) -> None:
    needs_zstd()
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    path = tmp_path / "any.name"
    path.write_bytes(skipped + zstd_frame(LINES) * frames)
    assert content(path) == LINES * frames


@pytest.mark.parametrize("cut", [1, 1_000, 20_000])
def test_a_file_that_ends_within_a_zstd_frame_is_refused(tmp_path: Path, cut: int) -> None:
    needs_zstd()
    path = tmp_path / "cut"
    path.write_bytes(zstd_frame(LINES)[:-cut])
    with pytest.raises(TraceError, match=r"it can't be read .*zstd frame"):
        content(path)


def test_a_damaged_zstd_frame_is_refused(tmp_path: Path) -> None:
    needs_zstd()
    path = tmp_path / "damaged"
    path.write_bytes(zstd_frame(LINES)[:6] + b"\xff" * 1_000)
    with pytest.raises(TraceError, match="it can't be read"):
        content(path)


def test_without_a_library_for_zstd_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    path = tmp_path / "t.zst"
    path.write_bytes(zstd_frame(LINES))
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        TraceError, match=r"packed by zstd, .* pip install 'pytest-kvcache\[zstd\]'"
    ):
        content(path)


@pytest.mark.parametrize("head_bytes", [1, 7, 9, 10, 1 << 20])
@pytest.mark.parametrize("text", [b"", b"one", b"one\n", b"a longer one\ntwo\n\nthree", b"[1,\n2]"])
def test_every_byte_is_read_once_wherever_the_head_ends(
    monkeypatch: pytest.MonkeyPatch, head_bytes: int, text: bytes
) -> None:
    monkeypatch.setattr(source, "_HEAD_BYTES", head_bytes)
    lines = list(Source("t", io.BytesIO(text)).lines())
    assert lines == text.splitlines(keepends=True)
    assert b"".join(Source("t", io.BytesIO(text)).chunks()) == text


def test_a_character_at_the_end_of_the_head_may_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_HEAD_BYTES", 4)
    assert list(Source("t", io.BytesIO("[xyß]".encode())).lines()) == ["[xyß]".encode()]
