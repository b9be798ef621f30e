"""A trace file's content, whatever packs it: told by its first bytes, streamed, read once.

Rank-side; imports the standard library and the errors. ``.zst`` is read by Python 3.14's
compression.zstd, else by the package zstandard, else refused with what to install.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import itertools
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import TraceError

try:
    import lzma
except ImportError:  # a Python that was built without liblzma reads everything but .xz
    lzma = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

READ_ERRORS = (OSError, EOFError, zlib.error, *((lzma.LZMAError,) if lzma else ()))

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 1 << 20  # as much as it takes to tell what a file is; more where a line is longer
_MAGIC_BYTES = 6
_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_SKIPPED = (b"\x2a\x4d\x18",)  # bytes 1 to 3 of a zstd frame that carries no content
_BINARY = "it is binary; name a text file, plain or packed by gzip, xz or zstd"


class Source:
    """An open trace file: its first bytes to tell the format by, then all of it, once."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self.path = path
        self._stream = stream
        head = stream.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
        if head and b"\n" not in head and not head.startswith(b"["):
            head += stream.readline()
        self.head = head
        _check_text(head, path)

    def lines(self) -> Iterator[bytes]:
        """Every line with its end."""
        cut = self.head.rfind(b"\n") + 1
        begun = self.head[cut:]
        whole = io.BytesIO(self.head[:cut])
        return itertools.chain(whole, self._ended(begun), self._stream)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a megabyte at a time."""
        yield self.head
        while chunk := self._stream.read(_BUFFER_BYTES):
            yield chunk

    def _ended(self, begun: bytes) -> Iterable[bytes]:
        if begun:
            yield begun + self._stream.readline()


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """Open a trace file, unpacked; what can't be read is a TraceError that says why."""
    try:
        with Path(path).open("rb") as raw, _unpacked(raw, path) as stream:
            yield Source(path, stream)
    except READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        problem = f"it can't be read ({reason}); name a readable, complete trace file"
        raise TraceError(path, 0, problem) from error


def _check_text(head: bytes, path: str) -> None:
    try:
        codecs.utf_8_decode(head[:_HEAD_BYTES], "strict", False)  # a cut-off end is fine
    except UnicodeDecodeError as error:
        first = head.split(b"\n", 1)[0]
        if b"\0" in head or error.start < len(first):
            raise TraceError(path, 0, _BINARY) from error
    if b"\0" in head:
        raise TraceError(path, 0, _BINARY)


def _unpacked(raw: io.BufferedReader, path: str) -> BinaryIO:
    """The file's plain content; told by its first bytes."""
    magic = raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    if magic.startswith(_GZIP):
        return io.BufferedReader(gzip.open(raw), _BUFFER_BYTES)
    if magic.startswith(_ZSTD) or (magic[1:4] in _SKIPPED and magic[:1] in b"PQRSTUVWXYZ[\\]^_"):
        return io.BufferedReader(_Unpacking(raw, path), _BUFFER_BYTES)
    if magic != _XZ:
        return raw
    if lzma is None:
        raise TraceError(path, 0, "it is packed by xz, which this Python can't read; unpack it")
    return io.BufferedReader(lzma.open(raw), _BUFFER_BYTES)


class _Unpacking(io.RawIOBase):
    """What zstd frames unpack to. A file that ends within a frame raises EOFError.

    The readers of both libraries differ in that: zstandard's ends without a word.
    """

    def __init__(self, raw: io.BufferedReader, path: str) -> None:
        super().__init__()
        self._raw = raw
        self._new, self._error = _zstd(path)
        self._frame: Any = None
        self._left = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or as much of it as there is."""
        while not self._left:
            packed = self._rest() or self._raw.read(_BUFFER_BYTES)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new()
            try:
                self._left = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from error
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _rest(self) -> bytes:
        """What follows a frame that has ended."""
        if self._frame is None or not self._frame.eof:
            return b""
        rest: bytes = self._frame.unused_data
        self._frame = None
        return rest


def _zstd(path: str) -> tuple[Any, Any]:
    """What makes a decompressor of one frame, and the error it raises."""
    try:
        library: Any = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:
        return library.ZstdDecompressor, library.ZstdError
    try:
        library = importlib.import_module("zstandard")
    except ImportError as error:
        raise TraceError(
            path,
            0,
            "it is packed by zstd, which this Python can't read; pip install"
            " 'pytest-kvcache[zstd]', or unpack it with zstd -d",
        ) from error
    return lambda: library.ZstdDecompressor().decompressobj(), library.ZstdError
