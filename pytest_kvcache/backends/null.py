"""The null backend: moves and keeps nothing, so that what is left is the harness.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pytest_kvcache.backends.protocol import BackendFacts, is_absent_name
from pytest_kvcache.backends.traits import BackendTraits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.backends.protocol import BackendPlan


class NullBackend:
    """Accepts every operation and does nothing; the model is fio's ``engines/null.c``."""

    traits: ClassVar[BackendTraits] = BackendTraits(
        unit="range",
        directory=False,
        bounded_by="nothing",
        smallest_part_bytes=1,
        largest_part_bytes=None,
        alignment_bytes=1,
        kernel_counts=False,
        is_storage=False,
        stores_data=False,
        never_waits=True,
        makes_calls=True,
    )

    def open(self, plan: BackendPlan) -> BackendFacts:  # noqa: ARG002 - nothing to prepare
        """Answer that nothing is stored."""
        return BackendFacts(io_mode="none", io_note=None)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Do nothing."""

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Do nothing: the buffer keeps what it held."""

    def look_up(self, keys: Sequence[str]) -> Sequence[bool]:
        """Have all that can have been stored: what was is not known."""
        return [not is_absent_name(key) for key in keys]

    def delete(self, key: str) -> None:
        """Do nothing: the backend does not know which objects there are."""

    def sync(self, key: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
