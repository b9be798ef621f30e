"""The null backend: moves and keeps nothing, so that what is left is the harness.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.backends.protocol import BackendFacts

if TYPE_CHECKING:
    from pytest_kvcache.backends.protocol import BackendPlan


class NullBackend:
    """Accepts every operation and does nothing; the model is fio's ``engines/null.c``."""

    def open(self, plan: BackendPlan) -> BackendFacts:  # noqa: ARG002 - nothing to prepare
        """Answer that nothing is stored."""
        return BackendFacts(
            io_mode="none", io_note=None, stores_data=False, is_storage=False, in_directory=False
        )

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Do nothing."""

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Do nothing: the buffer keeps what it held."""

    def delete(self, key: str) -> None:
        """Do nothing: the backend does not know which objects there are."""

    def sync(self, key: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
