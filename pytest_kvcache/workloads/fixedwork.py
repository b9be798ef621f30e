"""A fixed amount of work: so many requests of a closed workload, always in the same order.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.wrapped import WrappedWorkload

if TYPE_CHECKING:
    from pytest_kvcache.workloads.protocol import Request, Workload


class FixedWork(WrappedWorkload):
    """Users take their turns in rotation, whoever of them is free, without thinking.

    So the order in which requests come, and with it what the cache decides, depends on the
    workload alone: a cache lets nobody pass a request that has to wait for a block. Raises
    OptionError for a workload with arrivals of its own, or whose users wait for each other.
    """

    def __init__(self, closed: Workload, requests: int) -> None:
        if closed.open_loop:
            raise OptionError(
                "--kv-requests is given, and the scenario has arrivals of its own; leave it out"
            )
        super().__init__(closed)
        if self.holds_users:
            raise OptionError(
                "--kv-requests is given, and users of the scenario wait for each other, so that it"
                " has an order of its own; leave it out"
            )
        self._left = requests
        self._rotation = deque(range(closed.users))

    def next_request(self, user: int) -> Request | None:
        """The next turn of the user whose turn it is, whoever asks; None after the last one."""
        del user
        while self._left and self._rotation:
            request = self._workload.next_request(self._rotation[0])
            if request is not None:
                self._rotation.rotate(-1)
                self._left -= 1
                return request._replace(think_s=0.0)
            self._rotation.popleft()
        return None
