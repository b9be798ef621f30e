"""What one rank stores on: opened, watched, and given back with nothing left behind.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.cachedir import (
    claim_rank_dir,
    claim_shared_dir,
    remove_rank_dir,
    remove_run_dir,
    run_name,
)
from pytest_kvcache.backends.posix.freespace import FreeSpace
from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
from pytest_kvcache.backends.tiers import open_tier
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ranks.cleanup import CleanupHelper
from pytest_kvcache.ranks.inventory import Inventory
from pytest_kvcache.system.filesystem import WatchedDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.masking import Secrets
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.tiers import MemoryTier


class RankStorage:
    """One rank's backend, the memory of its tiers, and its directory.

    ``memories`` are those of the tiers before the storage, None of one that holds no bytes;
    ``sync`` is what is really done; ``directory_fault`` says that paths lead elsewhere by now.
    """

    def __init__(self, plan: Plan, rank: int, host: str, secrets: Secrets) -> None:
        self._plan = plan
        self._rank = rank
        self._host = host
        self._secrets = secrets
        self.sync = plan.sync
        self.directory: str | None = None
        self.directory_fault: str | None = None
        self.space: FreeSpace | None = None
        self._device: int | None = None
        self.memories: list[Backend | None] = []
        self._backend: Backend | None = None
        self._facts: BackendFacts | None = None
        self._watched_directory: WatchedDirectory | None = None
        self._cleanup_helper: CleanupHelper | None = None
        self._owns_directory = False

    @property
    def backend(self) -> Backend:
        """Where blocks go; after ``open``."""
        assert self._backend is not None
        return self._backend

    @property
    def facts(self) -> BackendFacts:
        """What the backend found when it was opened."""
        assert self._facts is not None
        return self._facts

    @property
    def is_durable(self) -> bool:
        """Whether what was stored is said to have left the page cache."""
        return self.sync == "data" or self.facts.io_mode == "direct"

    def is_on(self, device: int) -> bool:
        """Whether the rank's directory is on the filesystem of this number; false without one."""
        return self._device == device

    def open(self, factory: Callable[[], Backend]) -> None:
        """Open the storage and the memory of all tiers; StorageError where that fails."""
        self._backend, self._facts = self._opened(factory)
        self.memories += map(self._opened_tier, self._plan.tiers)

    def _opened(self, factory: Callable[[], Backend]) -> tuple[Backend, BackendFacts]:
        """Open the storage; a fallback from direct to buffered brings its default sync.

        Unsynced, what was just written would be read back from the page cache. The calls of an
        engine never sync.
        """
        backend, asked = self._made(factory), self._backend_plan()
        facts = backend.open(asked)
        fell_back = asked.io == "direct" and facts.io_mode == "buffered" and asked.calls is None
        if not (fell_back and asked.sync == "none" and self._plan.origins["sync"] == "default"):
            return backend, facts
        backend.close()
        backend = self._made(factory)
        self.sync = "data"
        buffered = backend.open(replace(asked, io="buffered", sync="data"))
        return backend, replace(buffered, io_note=facts.io_note)

    def _opened_tier(self, tier: MemoryTier) -> Backend | None:
        """The memory of a tier, all of it touched; None: it is only an index."""
        plan = self._plan
        return open_tier(
            tier.kind,
            capacity_bytes=tier.capacity_bytes,
            object_bytes=plan.object_stored_bytes,
            chunk_bytes=plan.chunk_bytes,
            host=self._host,
            local_index=plan.layout.local_index(self._rank),
        )

    def _made(self, factory: Callable[[], Backend]) -> Backend:
        """A backend that is not open; without a directory, what is in it is kept account of."""
        traits = self._plan.traits
        return Inventory(factory()) if traits.is_storage and not traits.directory else factory()

    def _backend_plan(self) -> BackendPlan:
        plan = self._plan
        directory = None
        if plan.needs_directory:
            directory = self._claimed()
            self._watched_directory = WatchedDirectory(directory, self._host)
            self.directory = directory
            self._device = os.stat(directory).st_dev  # noqa: PTH116
            if not plan.keep and not plan.layout.local_index(self._rank):
                self._cleanup_helper = CleanupHelper.start(plan.cache_dir, plan.run_id, os.environ)
            if not plan.layout.local_index(self._rank):  # one of a host is enough
                self.space = FreeSpace(plan.cache_dir)
        return BackendPlan(
            directory=directory,
            object_bytes=plan.object_stored_bytes,
            chunk_bytes=plan.chunk_bytes,
            io="direct" if plan.io == "direct" else "buffered",
            sync="data" if plan.sync == "data" else "none",
            host=self._host,
            namespace=f"{run_name(plan.run_id)}/trial-{plan.trial + 1}/rank-{self._rank}",
            capacity_objects=plan.capacity_objects,
            store=plan.store,
            calls=plan.calls,
            options={**plan.backend_options, **self._given_secrets()},
        )

    def _claimed(self) -> str:
        """A directory of its own, or that of all with whom the rank shares a store."""
        plan = self._plan
        if plan.shares:  # it goes with the run's, when all have closed
            group = plan.group_of(self._rank)
            return claim_shared_dir(plan.cache_dir, plan.run_id, group, plan.digest, self._host)
        self._owns_directory = True
        return claim_rank_dir(plan.cache_dir, plan.run_id, self._rank, self._host)

    def _given_secrets(self) -> dict[str, str]:
        """What the plan has a mask of; StorageError if a value did not come."""
        found = self._secrets.reveal()
        missing = self._plan.secret_options.difference(found)
        if missing:
            raise StorageError(
                f"{self._host}: the value of {', '.join(sorted(missing))} (--kv-backend-option) did"
                " not reach this rank, and the plan does not hold it"
            )
        return found

    def look_at_the_directory(self) -> None:
        """Find out whether paths still lead to the directory that this rank was given.

        Asked only when nothing is measured any more: a storage that hangs would stop the rank.
        """
        if self._watched_directory is not None:
            self.directory_fault = self.directory_fault or self._watched_directory.fault()

    def clean_up(self) -> str | None:
        """Close the backend and remove what the rank has stored, unless it is to be kept."""
        if self.space is not None:
            self.space.close()
        if self._watched_directory is not None:
            self._watched_directory.close()
        try:
            if self._backend is not None:
                if isinstance(self._backend, Inventory) and not self._plan.keep:
                    self._backend.clear(self._plan.queue_depth)
                self._backend.close()
            for memory in self.memories:
                if memory is not None:
                    memory.close()
            if self._owns_directory and not self._plan.keep:
                remove_rank_dir(self._plan.cache_dir, self._plan.run_id, self._rank, self._host)
                self._owns_directory = False
        except StorageError as error:
            return self._secrets.mask(str(error))
        return None

    def leave(self) -> None:
        """After all ranks have closed: the first one of a host removes the run's directory."""
        if self._cleanup_helper is not None:
            if self._rank == 0 or not self._plan.shares_between_hosts:  # one is enough for all
                remove_run_dir(self._plan.cache_dir, self._plan.run_id, self._host)
            self._cleanup_helper.stop()
            self._cleanup_helper = None
