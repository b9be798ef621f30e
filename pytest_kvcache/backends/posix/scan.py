"""A walk through a store's directories, as whoever has lost the index of it must make it.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from pytest_kvcache.backends.protocol import ObjectFileNames


class Scan:
    """Reads every directory, and of every file name and size (readdir(3), then a stat(2) each).

    ``found`` are the sizes in bytes by the objects' keys, which the names hold; ``strange`` is the
    path of the first file that is named by no key, or by one that another file has already.
    ``times_ns`` takes how long each stat took; ``listing_ns`` is the time of opening, reading and
    closing the ``directories``. ``call_began_ns`` is when the call under way began, 0: none is.
    """

    def __init__(
        self,
        files: ObjectFileNames,
        times_ns: array[int],
        host: str,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.found: dict[str, int] = {}
        self.strange: str | None = None
        self.directories = 0
        self.listing_ns = 0
        self.call_began_ns = 0
        self._files = files
        self._times_ns = times_ns
        self._host = host
        self._clock = clock

    @property
    def root(self) -> str:
        """Below which everything is read."""
        return self._files.root

    def run(self, stop_asked: Callable[[], bool]) -> None:
        """Walk until all is read, or stopping is asked for. StorageError where the system fails."""
        waiting = [self._files.root]
        while waiting and not stop_asked():
            directory = waiting.pop()
            try:
                self._walk(directory, waiting, stop_asked)
            except OSError as error:
                raise StorageError(
                    f"{self._host}: can't scan {error.filename or directory}:"
                    f" {error.strerror or error}"
                ) from error

    def _walk(self, directory: str, waiting: list[str], stop_asked: Callable[[], bool]) -> None:
        clock = self._clock
        began_ns = self.call_began_ns = clock()
        self.directories += 1
        with os.scandir(directory) as entries:
            for entry in entries:
                self.listing_ns += clock() - began_ns
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    self._note(entry)
                if stop_asked():
                    return
                began_ns = self.call_began_ns = clock()
        self.listing_ns += clock() - began_ns
        self.call_began_ns = 0

    def _note(self, entry: os.DirEntry[str]) -> None:
        path = entry.path
        began_ns = self.call_began_ns = self._clock()
        # Not entry.stat(), which keeps the GIL: a storage that hangs would silence the rank.
        size_bytes = os.stat(path, follow_symlinks=False).st_size  # noqa: PTH116
        self._times_ns.append(self._clock() - began_ns)
        suffix = self._files.suffix
        key = entry.name.removesuffix(suffix)
        if not entry.name.endswith(suffix) or key in self.found:
            self.strange = self.strange or path
            return
        self.found[key] = size_bytes
