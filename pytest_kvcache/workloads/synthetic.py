"""Synthetic conversations: turn by turn, with shared system prompts and retrieved chunks.

Rank-side; imports neither pytest nor MPI. Every user draws from a generator of its own,
derived from (seed, trial, rank, user), so that the request stream depends on the options
alone and never on the speed of the storage.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.workloads.keys import chain_key
from pytest_kvcache.workloads.protocol import Need, Request, Workload, WorkloadContext
from pytest_kvcache.workloads.retrieval import Documents, longest_blocks
from pytest_kvcache.workloads.scenarios import Profile, Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.workloads.scenarios import Dialogues


def user_quota(weights: Mapping[str, float], users: int) -> tuple[str, ...]:
    """The profile, or the class, of each user: shares by largest remainder, interleaved.

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


def service_classes(
    shares: Mapping[str, float], users: int, identity: str
) -> tuple[str | None, ...]:
    """The class of each user: exact shares, in an order that has nothing to do with profiles."""
    if not shares:
        return (None,) * users
    dice = random.Random(int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "big"))
    # random() is the one method whose sequence Python promises to keep.
    return tuple(sorted(user_quota(shares, users), key=lambda _name: dice.random()))


def scaled(profile: Profile, scale: float, *, multi_turn: bool = True) -> Profile:
    """The profile with every token count multiplied by ``scale``, at least 1.

    Conversations of one turn are at most as long as the longest first one.
    """

    def tokens(count: float) -> int:
        return max(1, math.floor(count * scale))

    def span(limits: Range) -> Range:
        return Range(low=tokens(limits.low), high=tokens(limits.high))

    opening, output = span(profile.opening_tokens), span(profile.output_tokens)
    system = tokens(profile.system_tokens)
    first_turn = math.ceil(system + opening.high + output.high)
    return replace(
        profile,
        system_tokens=system,
        opening_tokens=opening,
        message_tokens=span(profile.message_tokens),
        output_tokens=output,
        context_tokens=max(tokens(profile.context_tokens), first_turn)
        if multi_turn
        else first_turn,
    )


class _User:
    """One user's dialogue: grows turn by turn, starts anew when the context is full."""

    __slots__ = (
        "_class",
        "_conversation",
        "_dialogues",
        "_documents",
        "_keys",
        "_name",
        "_requests",
        "_rng",
        "_spec",
        "_tokens",
        "_user",
        "profile",
    )

    def __init__(
        self,
        *,
        spec: WorkloadContext,
        dialogues: Dialogues,
        user: int,
        name: str,
        profile: Profile,
        service_class: str | None,
    ) -> None:
        identity = f"{spec.seed}/{spec.trial}/{spec.rank}/{user}".encode()
        self._rng = random.Random(int.from_bytes(blake2b(identity, digest_size=8).digest(), "big"))
        self._spec = spec
        self._dialogues = dialogues
        self._user = user
        self._name = name
        self._class = service_class
        self.profile = profile
        self._documents: Documents | None = None
        if dialogues.retrieval is not None and profile.retrieval_ratio:
            self._documents = Documents(
                dialogues.retrieval, profile.retrieval_ratio, spec, identity.decode()
            )
        self._conversation = -1
        self._requests = 0
        self._tokens = 0
        self._keys: list[bytes] = []

    def _draw(self, limits: Range) -> int:
        # random() is the one method whose sequence Python promises to keep.
        return int(limits.low + int(self._rng.random() * (limits.high - limits.low + 1)))

    def _extend(self, tokens: int) -> None:
        """Chain the keys of all full blocks of a context of ``tokens`` tokens."""
        keys, spec = self._keys, self._spec
        own = f"{spec.seed}/{spec.trial}/{spec.rank}/{self._user}/{self._conversation}/"
        if not self._dialogues.prefix_caching:  # what was stored for one is found by no other
            keys = self._keys = []
            own += f"{self._requests}/"
        parent = keys[-1] if keys else b""
        content = own.encode()
        for position in range(len(keys), tokens // spec.block_tokens):
            parent = chain_key(parent, content + position.to_bytes(4, "big"))
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
        is_over = prompt + output > profile.context_tokens or not self._dialogues.multi_turn
        if self._conversation < 0 or is_over:
            prompt = self._open_conversation()
        self._extend(prompt + output)
        self._requests += 1
        beside = () if self._documents is None else self._documents.retrieved()
        return Request(
            user=self._user,
            keys=tuple(self._keys),
            prompt_blocks=prompt // self._spec.block_tokens,
            prompt_tokens=prompt,
            output_tokens=output,
            think_s=think_s,
            beside=beside,
            stores_beside=bool(beside),
            service_class=self._class,
        )

    def ingested(self) -> Iterator[Request]:
        """The user's documents, one by one: requests without a prompt, which only store."""
        for keys in () if self._documents is None else self._documents.all_blocks():
            if keys:
                yield Request(
                    user=self._user, keys=keys, prompt_blocks=0, prompt_tokens=0, output_tokens=0
                )

    def midway(self) -> Request:
        """A context somewhere in the middle of a dialogue, as users have at any moment."""
        target = self._rng.random() * self.profile.context_tokens
        turn = self.next_turn()
        while self._tokens < target and self._dialogues.multi_turn:
            room = self.profile.context_tokens - self._tokens
            if room < self.profile.message_tokens.high + self.profile.output_tokens.high:
                break
            turn = self.next_turn()
        return turn._replace(think_s=0.0, beside=(), stores_beside=False)


class SyntheticWorkload:
    """Users of the given profiles in a closed loop (implements ``Workload``)."""

    open_loop = False

    def __init__(self, spec: WorkloadContext) -> None:
        dialogues = _dialogues_of(spec)
        profiles = _profiles(dialogues, spec)
        classes = service_classes(
            dialogues.class_shares, spec.users, f"{spec.seed}/{spec.trial}/{spec.rank}/classes"
        )
        self._users = [
            _User(
                spec=spec,
                dialogues=dialogues,
                user=user,
                name=name,
                profile=profiles[name],
                service_class=classes[user],
            )
            for user, name in enumerate(user_quota(dialogues.weights, spec.users))
        ]

    @property
    def users(self) -> int:
        """How many users take turns."""
        return len(self._users)

    def population(self) -> Iterator[Request]:
        """Every user's documents, and its context, somewhere in the middle of its dialogue."""
        for user in self._users:
            yield from user.ingested()
            yield user.midway()

    def next_request(self, user: int) -> Request | None:
        """The next turn of ``user``; never ends."""
        return self._users[user].next_turn()


class SyntheticFamily:
    """The scenarios of the table of distributions (implements ``WorkloadFamily``)."""

    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        """System prompts once, every user's own context and documents at their longest."""
        dialogues, blocks = _dialogues_of(context), 0
        for profile, count in self.users_of(context).values():
            shared = profile.system_tokens // context.block_tokens
            if not dialogues.prefix_caching:
                shared = 0
            longest = profile.context_tokens // context.block_tokens
            blocks += min(count, profile.system_prompts) * shared + count * (longest - shared)
            if dialogues.retrieval is not None and profile.retrieval_ratio:
                blocks += count * longest_blocks(dialogues.retrieval, context)
        return Need(working_set_blocks=blocks)

    def users_of(self, context: WorkloadContext) -> dict[str, tuple[Profile, int]]:
        """How the users behave, and how many of a rank behave so, by the profile's name."""
        dialogues = _dialogues_of(context)
        quota = user_quota(dialogues.weights, context.users)
        return {
            name: (profile, quota.count(name))
            for name, profile in _profiles(dialogues, context).items()
            if name in quota
        }

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's users."""
        return SyntheticWorkload(context)


def _dialogues_of(context: WorkloadContext) -> Dialogues:
    if context.dialogues is None:
        raise OptionError("the plan of a synthetic scenario has no dialogues; plan it anew")
    return context.dialogues


def _profiles(dialogues: Dialogues, context: WorkloadContext) -> dict[str, Profile]:
    """The profiles as long as they are with this plan."""
    return {
        name: scaled(profile, context.context_scale, multi_turn=dialogues.multi_turn)
        for name, profile in dialogues.profiles.items()
    }


def reuses_prefixes(context: WorkloadContext) -> bool:
    """Whether any request finds blocks of a prompt that another one has stored.

    A shared prompt of a block at least, or a dialogue that goes on after a block was stored.
    """
    dialogues = _dialogues_of(context)
    if not dialogues.prefix_caching:
        return False
    for profile, _count in SyntheticFamily().users_of(context).values():
        if profile.system_tokens >= context.block_tokens:
            return True
        shortest = profile.system_tokens + profile.opening_tokens.low + profile.output_tokens.low
        further = profile.message_tokens.low + profile.output_tokens.low
        goes_on = dialogues.multi_turn and shortest + further <= profile.context_tokens
        if goes_on and profile.context_tokens - further >= context.block_tokens:
            return True
    return False
