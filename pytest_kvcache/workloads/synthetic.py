"""Synthetic multi-turn conversations with shared system prompts.

Rank-side; imports neither pytest nor MPI. Every user draws from a generator of its own,
derived from (seed, trial, rank, user), so that the request stream depends on the options
alone and never on the speed of the storage.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from pytest_kvcache.workloads.protocol import Need, Request, Workload, WorkloadContext
from pytest_kvcache.workloads.scenarios import PROFILES, Profile, Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY_BYTES = 16


def chain_key(parent: bytes, content: bytes) -> bytes:
    """The key of a block from its parent's key and its own content's identity.

    Prefix-chained, as vLLM's block hashes: equal keys mean equal whole prefixes.
    """
    return blake2b(parent + content, digest_size=KEY_BYTES).digest()


def user_quota(weights: Mapping[str, float], users: int) -> tuple[str, ...]:
    """The profile of each user: shares by largest remainder, interleaved.

    The same for every rank and trial, so that the load is a property of the options.
    """
    total = sum(weights.values())
    credit = dict.fromkeys(weights, 0.0)
    chosen = []
    for _ in range(users):
        for name, weight in weights.items():
            credit[name] += weight / total
        best = max(credit, key=lambda name: credit[name])
        credit[best] -= 1.0
        chosen.append(best)
    return tuple(chosen)


def scaled(profile: Profile, scale: float) -> Profile:
    """The profile with every token count multiplied by ``scale``, at least 1."""

    def tokens(count: float) -> int:
        return max(1, math.floor(count * scale))

    def span(limits: Range) -> Range:
        return Range(low=tokens(limits.low), high=tokens(limits.high))

    opening, output = span(profile.opening_tokens), span(profile.output_tokens)
    system = tokens(profile.system_tokens)
    first_turn = math.ceil(system + opening.high + output.high)
    return Profile(
        system_prompts=profile.system_prompts,
        system_tokens=system,
        opening_tokens=opening,
        message_tokens=span(profile.message_tokens),
        output_tokens=output,
        context_tokens=max(tokens(profile.context_tokens), first_turn),
        think_s=profile.think_s,
    )


class _User:
    """One user's dialogue: grows turn by turn, starts anew when the context is full."""

    __slots__ = (
        "_conversation",
        "_keys",
        "_name",
        "_rng",
        "_spec",
        "_tokens",
        "_user",
        "profile",
    )

    def __init__(self, spec: WorkloadContext, user: int, name: str, profile: Profile) -> None:
        identity = f"{spec.seed}/{spec.trial}/{spec.rank}/{user}".encode()
        self._rng = random.Random(int.from_bytes(blake2b(identity, digest_size=8).digest(), "big"))
        self._spec = spec
        self._user = user
        self._name = name
        self.profile = profile
        self._conversation = -1
        self._tokens = 0
        self._keys: list[bytes] = []

    def _draw(self, limits: Range) -> int:
        # random() is the one method whose sequence Python promises to keep.
        return int(limits.low + int(self._rng.random() * (limits.high - limits.low + 1)))

    def _extend(self, tokens: int) -> None:
        """Chain the keys of all full blocks of a context of ``tokens`` tokens."""
        keys, spec = self._keys, self._spec
        own = f"{spec.seed}/{spec.trial}/{spec.rank}/{self._user}/{self._conversation}/".encode()
        parent = keys[-1] if keys else b""
        for position in range(len(keys), tokens // spec.block_tokens):
            parent = chain_key(parent, own + position.to_bytes(4, "big"))
            keys.append(parent)
        self._tokens = tokens

    def _open_conversation(self) -> int:
        """Start a new dialogue; returns the tokens of its first prompt."""
        self._conversation += 1
        profile = self.profile
        variant = int(self._rng.random() * profile.system_prompts)
        content = f"{self._spec.seed}/{self._name}/{variant}/".encode()
        self._keys = []
        parent = b""
        for position in range(profile.system_tokens // self._spec.block_tokens):
            parent = chain_key(parent, content + position.to_bytes(4, "big"))
            self._keys.append(parent)
        return profile.system_tokens + self._draw(profile.opening_tokens)

    def next_turn(self) -> Request:
        profile = self.profile
        message = self._draw(profile.message_tokens)
        output = self._draw(profile.output_tokens)
        limits = profile.think_s
        think_s = limits.low + self._rng.random() * (limits.high - limits.low)
        prompt = self._tokens + message
        if self._conversation < 0 or prompt + output > profile.context_tokens:
            prompt = self._open_conversation()
        self._extend(prompt + output)
        return Request(
            user=self._user,
            keys=tuple(self._keys),
            prompt_blocks=prompt // self._spec.block_tokens,
            prompt_tokens=prompt,
            output_tokens=output,
            think_s=think_s,
        )

    def midway(self) -> Request:
        """A context somewhere in the middle of a dialogue, as users have at any moment."""
        target = self._rng.random() * self.profile.context_tokens
        turn = self.next_turn()
        while self._tokens < target:
            room = self.profile.context_tokens - self._tokens
            if room < self.profile.message_tokens.high + self.profile.output_tokens.high:
                break
            turn = self.next_turn()
        return turn._replace(think_s=0.0)


class SyntheticWorkload:
    """Users of the given profiles in a closed loop (implements ``Workload``)."""

    open_loop = False

    def __init__(self, weights: Mapping[str, float], spec: WorkloadContext) -> None:
        profiles = {name: scaled(PROFILES[name], spec.context_scale) for name in weights}
        self._users = [
            _User(spec, user, name, profiles[name])
            for user, name in enumerate(user_quota(weights, spec.users))
        ]

    @property
    def users(self) -> int:
        """How many users take turns."""
        return len(self._users)

    def population(self) -> Iterator[Request]:
        """Every user's context, somewhere in the middle of its dialogue."""
        for user in self._users:
            yield user.midway()

    def next_request(self, user: int) -> Request | None:
        """The next turn of ``user``; never ends."""
        return self._users[user].next_turn()


@dataclass(frozen=True, slots=True)
class SyntheticFamily:
    """A scenario made of profiles and their weights (implements ``WorkloadFamily``)."""

    weights: Mapping[str, float]
    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        """System prompts once, every user's own context at its longest."""
        blocks = 0
        for profile, count in self.users_of(context).values():
            shared = profile.system_tokens // context.block_tokens
            longest = profile.context_tokens // context.block_tokens
            blocks += min(count, profile.system_prompts) * shared + count * (longest - shared)
        return Need(working_set_blocks=blocks)

    def users_of(self, context: WorkloadContext) -> dict[str, tuple[Profile, int]]:
        """How the users behave, and how many of a rank behave so, by the profile's name."""
        quota = user_quota(self.weights, context.users)
        return {
            name: (scaled(PROFILES[name], context.context_scale), quota.count(name))
            for name in self.weights
            if name in quota
        }

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's users."""
        return SyntheticWorkload(self.weights, context)
