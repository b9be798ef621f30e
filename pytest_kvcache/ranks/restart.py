"""A restart of one rank: what was stored is found again, by the names of its files.

Rank-side; imports neither pytest nor MPI. Threads make the calls, which may take as long as the
storage pleases; whoever calls ``run`` only ticks meanwhile.
"""

from __future__ import annotations

import threading
import time
from array import array
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.backends.posix.scan import Scan
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from pytest_kvcache.backends.protocol import NamesObjects

_TICK_S = 0.1
_NAMED = 3  # of objects that are missing


class Asking:
    """Asks for its share of the keys, by a call each. ``found`` are those that are there."""

    def __init__(
        self,
        backend: NamesObjects,
        keys: Sequence[str],
        times_ns: array[int],
        clock: Callable[[], int],
    ) -> None:
        self.found: set[str] = set()
        self.call_began_ns = 0
        self._backend = backend
        self._keys = keys
        self._times_ns = times_ns
        self._clock = clock

    def run(self, stop_asked: Callable[[], bool]) -> None:
        """Ask until all are asked for, or stopping is; StorageError where it can't be told."""
        clock, look_up = self._clock, self._backend.look_up
        for key in self._keys:
            if stop_asked():
                return
            began_ns = self.call_began_ns = clock()
            (there,) = look_up((key,))
            self._times_ns.append(clock() - began_ns)
            if there:
                self.found.add(key)
        self.call_began_ns = 0


class Restart:
    """Makes an index over the ``stored`` objects (key → bytes) usable again; ``run`` it once.

    By a scan in one thread, else by lookups in so many ``threads``. ``error`` is what failed
    first, or, once it was ``compare``d, how the index that came of it differs from what was stored.
    """

    def __init__(
        self,
        backend: NamesObjects,
        stored: Mapping[str, int],
        *,
        threads: int | None,
        host: str,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.error: str | None = None
        self.began_ns = self.done_ns = 0
        self._stored = stored
        self._clock = clock
        self._host = host
        self._stop = False
        self._times_ns: list[array[int]] = [array("q") for _ in range(threads or 1)]
        self._scan: Scan | None = None
        self._asking: list[Asking] = []
        if threads is None:
            self._scan = Scan(backend.object_files(), self._times_ns[0], host, clock)
        else:
            keys = list(stored)
            self._asking = [
                Asking(backend, keys[at::threads], times_ns, clock)
                for at, times_ns in enumerate(self._times_ns)
            ]

    def run(self, start_ns: int, tick: Callable[[], bool]) -> None:
        """From ``start_ns`` on this host's clock until the index is usable, or ``tick`` is true."""
        while (early_ns := start_ns - self._clock()) > 0:
            time.sleep(early_ns / 1e9)
        self.began_ns = self._clock()
        workers: list[Scan | Asking] = [*self._asking] if self._scan is None else [self._scan]
        failures: list[BaseException] = []
        threads = [
            threading.Thread(
                target=self._work, args=(each, failures), name="kvcache-restart", daemon=True
            )
            for each in workers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_TICK_S)
                self._stop = tick() or self._stop
        for failure in failures:
            if not isinstance(failure, StorageError):
                raise failure
            self.error = self.error or str(failure)

    def compare(self) -> None:
        """Look for what differs; of many objects that takes seconds, so not while anyone waits."""
        if self.error is None and not self._stop:
            self.error = self._difference()

    @property
    def calls(self) -> int:
        """How many objects were looked at, by a stat or a lookup each."""
        return sum(map(len, self._times_ns))

    @property
    def times_ns(self) -> NDArray[np.int64]:
        """How long each of these calls took."""
        return np.concatenate([np.frombuffer(times_ns, np.int64) for times_ns in self._times_ns])

    @property
    def longest_wait_ns(self) -> int:
        """For how long the oldest call under way has been waited for; 0: none is."""
        workers: list[Scan | Asking] = [*self._asking] if self._scan is None else [self._scan]
        begun = [began_ns for each in workers if (began_ns := each.call_began_ns)]
        return max(0, self._clock() - min(begun)) if begun else 0

    def counted(self) -> dict[str, Any]:
        """Its counters, by their names in the table."""
        scan = self._scan
        return {
            "restart_count": self.calls,
            "restart_objects": sum(key in self._stored for key in self._found),
            "restart_directories": None if scan is None else scan.directories,
            "restart_listing_s": None if scan is None else scan.listing_ns / 1e9,
        }

    @property
    def _found(self) -> set[str]:
        if self._scan is not None:
            return set(self._scan.found)
        return {key for each in self._asking for key in each.found}

    def _work(self, worker: Scan | Asking, failures: list[BaseException]) -> None:
        try:
            worker.run(lambda: self._stop)
        except BaseException as error:  # noqa: BLE001  raised again by whoever waits
            failures.append(error)
            self._stop = True
        worker.call_began_ns = 0
        self.done_ns = max(self.done_ns, self._clock())

    def _difference(self) -> str | None:
        """What the index lacks, or has that nobody stored; None: it is what was stored."""
        missing = sorted(self._stored.keys() - self._found)
        if missing:
            named = ", ".join(missing[:_NAMED])
            return (
                f"after the restart {len(missing):,} of {len(self._stored):,} objects that were"
                f" stored are not found again (object {named}{'…' * (len(missing) > _NAMED)}); look"
                " for what else deletes in the cache directory, or for a filesystem that forgets"
            )
        if self._scan is None:
            return None
        foreign = sorted(self._scan.found.keys() - self._stored.keys())
        strange = self._scan.strange
        if foreign and strange is None:
            strange = f"{foreign[0]} below {self._scan.root}"
        if strange is not None:
            return (
                f"the restart finds {strange}, which is no object that was stored; look for what"
                " else writes in the cache directory"
            )
        for key, size_bytes in self._scan.found.items():
            if size_bytes != self._stored[key]:
                return (
                    f"after the restart object {key} has {size_bytes:,} bytes, and"
                    f" {self._stored[key]:,} were stored; look for what else writes in the cache"
                    " directory, or for a filesystem that forgets"
                )
        return None
