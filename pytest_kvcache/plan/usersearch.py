"""Which numbers of users to try, to find the largest load that keeps its objectives. Pure.

Doubling until a load breaks them, then bisection between the largest that kept them and the
smallest that did not. Every load is a launch of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

MAX_STEPS: Final = 11
"""Launches of a search, without those that repeat its answer."""
DOUBLINGS: Final = 5
RESOLUTION: Final = 32
"""A search ends when what it has not tried is less than that part of its answer."""
_DOWN: Final = 4  # as long as no load has kept the objectives


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSearch:
    """How far a search for users per rank is, of 1 to ``most``.

    ``kept`` is the largest number that kept the objectives, 0: none has yet; ``broken`` the
    smallest above it that did not, or that could not be judged, None: none. ``unjudged`` is the
    largest that could not be judged before any was kept, 0: none: as few users do too little to
    tell, it is gone on from, and no answer.
    """

    most: int
    kept: int = 0
    broken: int | None = None
    unjudged: int = 0
    steps: int = 0

    def next_users(self) -> int | None:
        """The number to try next; None: the search is over."""
        low = max(self.kept, self.unjudged)
        if self.steps >= MAX_STEPS or low == self.most:
            return None
        if self.broken is None:
            first = -(-self.most // 2**DOUBLINGS)
            return min(2 * low or first, self.most)
        untried = self.broken - low - 1
        if untried <= 0 or (low and untried < low / RESOLUTION):
            return None
        if not low:
            return max(1, self.broken // _DOWN)
        return low + (untried + 1) // 2

    def noted(self, users: int, *, keeps: bool | None) -> UserSearch:
        """The search with one more load tried; ``keeps`` None: it could not be judged.

        ValueError for another load than was asked for.
        """
        if users != self.next_users():
            raise ValueError(f"{users} users were tried; the search asks for {self.next_users()}")
        step = replace(self, steps=self.steps + 1)
        if keeps is None and not self.kept and self.broken is None:
            return replace(step, unjudged=users)
        return replace(step, kept=users) if keeps else replace(step, broken=users)
