"""Files that stay open from an object's first chunk to its last.

Rank side: imports neither pytest nor MPI. Errors are plain OSErrors; file.py wraps them.
"""

from __future__ import annotations

import os
import threading

# Files kept open between an object's first and last chunk. Objects that nobody finished
# must not run into the limit of open files (commonly 1024).
MAX_IDLE_FILES = 64


class OpenFile:
    """A file descriptor, how many transfers use it, and the bytes its object still lacks."""

    __slots__ = ("fd", "left_bytes", "retired", "users")

    def __init__(self, fd: int, left_bytes: int) -> None:
        self.fd = fd
        self.users = 1
        self.left_bytes = left_bytes
        self.retired = False


class OpenFiles:
    """Files held open from an object's first chunk to its last.

    An open per chunk is a round trip per chunk on a network filesystem, and a buffered
    NFS file is flushed at every close; an engine opens a file once per object. Keeping
    it longer than the object's last chunk would spare the next reader its own open.
    """

    def __init__(self, flags: int, object_bytes: int, *, until_taken: bool = False) -> None:
        self._flags = flags
        self._object_bytes = object_bytes
        self._until_taken = until_taken
        self._lock = threading.Lock()
        self._files: dict[str, OpenFile] = {}

    def acquire(self, path: str) -> OpenFile:
        """Return the open file of ``path``, in use by one more transfer."""
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                file.users += 1
                return file
        fd = os.open(path, self._flags, 0o600)
        with self._lock:
            file = self._files.get(path)
            if file is None:
                surplus = self._pop_oldest_idle()
                file = self._files[path] = OpenFile(fd, self._object_bytes)
            else:
                file.users += 1
                surplus = fd
        if surplus is not None:
            os.close(surplus)
        return file

    def release(self, path: str, file: OpenFile, moved_bytes: int | None) -> None:
        """End a transfer; the object's last one, or a failed one (None), closes the file."""
        with self._lock:
            file.users -= 1
            file.left_bytes -= moved_bytes or 0
            complete = file.left_bytes <= 0 and not self._until_taken
            if complete or moved_bytes is None:
                self._retire(path, file)
            unused = file.retired and not file.users
        if unused:
            os.close(file.fd)

    def take(self, path: str) -> int | None:
        """Hand over the descriptor of ``path`` if it is open and idle."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                return None
            self._retire(path, file)
            return None if file.users else file.fd

    def close(self) -> None:
        """Close every idle file; one in use is closed by its last transfer."""
        for path in tuple(self._files):
            fd = self.take(path)
            if fd is not None:
                os.close(fd)

    def _retire(self, path: str, file: OpenFile) -> None:
        if not file.retired:
            file.retired = True
            del self._files[path]

    def _pop_oldest_idle(self) -> int | None:
        if len(self._files) < MAX_IDLE_FILES:
            return None
        for path, file in self._files.items():
            if not file.users:
                del self._files[path]
                return file.fd
        return None
