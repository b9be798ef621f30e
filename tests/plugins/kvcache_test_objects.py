"""An object store of which the package knows nothing: ``--kv-plugin kvcache_test_objects``.

Whole objects, no directory, a secret to be let in. Its server is a directory (``endpoint``)
with a file per object; it keeps to the letter what the harness promises, and writes down what
its process was started with, so that a test can look for the secret there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache import StorageError
from pytest_kvcache.backends.protocol import BackendFacts
from pytest_kvcache.backends.traits import BackendOption, BackendTraits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.protocol import BackendFactory, BackendPlan

KEY_FILE = "key"
SEEN = "seen-by-rank"


class ToyStore:
    traits = BackendTraits(
        unit="object",
        directory=False,
        bounded_by="nothing",
        smallest_part_bytes=1,
        largest_part_bytes=8 << 20,
        alignment_bytes=1,
        kernel_counts=False,
        is_storage=True,
        options=(
            BackendOption(name="endpoint", meaning="directory of the server", required=True),
            BackendOption(name="secret_key", meaning="what lets you in", secret=True),
        ),
    )

    def open(self, plan: BackendPlan) -> BackendFacts:
        self._host, self._object_bytes = plan.host, plan.object_bytes
        if plan.directory is not None or plan.chunk_bytes != plan.object_bytes:
            raise StorageError(f"{plan.host}: an object store was given {plan}")
        server = Path(plan.options["endpoint"])
        given = plan.options.get("secret_key")
        if given != (server / KEY_FILE).read_text(encoding="utf-8"):
            raise StorageError(f"{plan.host}: the server does not know the key {given!r}")
        started = (Path("/proc/self/environ").read_bytes(), Path("/proc/self/cmdline").read_bytes())
        (server / f"{SEEN}-{os.getpid()}").write_bytes(b"\0".join(started))
        self._place = server / plan.namespace
        self._place.mkdir(parents=True)
        return BackendFacts(io_mode="direct", io_note=f"the key is {given}")

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._check_whole(offset, buffer)
        try:
            with (self._place / key).open("xb") as file:  # written once, never overwritten
                file.write(buffer)
        except OSError as error:
            raise StorageError(f"{self._host}: can't put {key}: {error}") from error

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._check_whole(offset, buffer)
        try:
            buffer[:] = (self._place / key).read_bytes()
        except OSError as error:
            raise StorageError(f"{self._host}: can't get {key}: {error}") from error

    def delete(self, key: str) -> None:
        try:
            (self._place / key).unlink()
        except OSError as error:
            raise StorageError(f"{self._host}: can't delete {key}: {error}") from error

    def sync(self, key: str) -> None:
        if not (self._place / key).exists():
            raise StorageError(f"{self._host}: can't sync {key}: it was never stored")

    def close(self) -> None:
        pass

    def _check_whole(self, offset: int, buffer: memoryview) -> None:
        if offset or len(buffer) != self._object_bytes:
            raise StorageError(f"{self._host}: {len(buffer)} bytes at {offset} are no whole object")


@pytest_kvcache.hookimpl
def kvcache_backends() -> Mapping[str, BackendFactory]:
    return {"toy": ToyStore}
