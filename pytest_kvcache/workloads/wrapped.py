"""A workload that changes another one. Rank-side; imports neither pytest nor MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.workloads.protocol import HoldsUsers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.workloads.protocol import Request, Workload


class WrappedWorkload:
    """A workload that is another one but for what a subclass overrides (a ``Workload``)."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    @property
    def users(self) -> int:
        """As many users as the wrapped workload has."""
        return self._workload.users

    @property
    def open_loop(self) -> bool:
        """Whether the wrapped workload has a schedule."""
        return self._workload.open_loop

    @property
    def holds_users(self) -> bool:
        """Whether users of the wrapped workload may have to wait for others."""
        return isinstance(self._workload, HoldsUsers) and self._workload.holds_users

    def population(self) -> Iterator[Request]:
        """The contexts that the wrapped workload starts with."""
        return self._workload.population()

    def next_request(self, user: int) -> Request | None:
        """The wrapped workload's next request."""
        return self._workload.next_request(user)
