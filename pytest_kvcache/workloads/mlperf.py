"""The I/O of the MLPerf Storage v3.0 KV cache benchmark: its users, its objects, its re-reads.

Rank-side; imports neither pytest nor MPI. What the reference does to the storage is
reproduced, how it offers that is not (docs/mlperf.md): its users submit whether or not they were
answered, these wait for their answers. Each request stores its context as one object, after it
has read what is there of the earlier turns of its conversation, and reads its own object again
for every 32 tokens that it generates. Contexts of a conversation do not grow out of each other.

The users of a rank are those of the reference with the seed ``seed + rank``, draw by draw; their
requests come from generators of their own, one per (seed, trial, rank, user).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.workloads.keys import chain_key
from pytest_kvcache.workloads.protocol import Need, Request, Workload, WorkloadContext
from pytest_kvcache.workloads.scenarios import Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class UserType:
    """What a user's longest context, longest answer (tokens) and think time are drawn from."""

    context_tokens: Range
    output_tokens: Range
    think_s: Range


USER_TYPES: Mapping[str, UserType] = MappingProxyType(
    {
        "chatbot": UserType(
            context_tokens=Range(low=512, high=4_096),
            output_tokens=Range(low=50, high=200),
            think_s=Range(low=0.1, high=0.5),
        ),
        "coding": UserType(
            context_tokens=Range(low=4_096, high=25_000),
            output_tokens=Range(low=100, high=500),
            think_s=Range(low=0.2, high=1.0),
        ),
        "document": UserType(
            context_tokens=Range(low=4_096, high=16_384),
            output_tokens=Range(low=200, high=800),
            think_s=Range(low=0.3, high=1.5),
        ),
    }
)
"""Of equal probability."""

# Upper ends of the uniform draw that decides a user's class of service.
SERVICE_CLASSES = (("interactive", 0.15), ("responsive", 0.50), ("batch", 1.0))

LONGEST_CONTEXT_TOKENS = int(max(each.context_tokens.high for each in USER_TYPES.values()))
WRITE_ONLY_TOKENS = 10_000  # a context as long as this is stored and not read by its own request
TOKENS_PER_READ = 32  # of the answer, for each of which the request's own object is read again
MOST_TURNS = 50
_END_SHARE = 0.2  # of the requests before which the conversation ends
_PROMPT_SHARE = 0.2  # of the requests that look a system prompt up
_PROMPT_TOKENS = (5, 9, 6)  # of the system prompts, a word each; nobody ever stores them
_LEAST_PART = 4  # a request draws its context and answer from a quarter of the user's up
_THINK_LOW, _THINK_SPAN = 0.8, 0.4  # it thinks 0.8 to 1.2 times as long as the user usually does


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedOption:
    """One of the benchmark's workloads for closed submissions (Rules.md 6.3.1, v3.0).

    ``users`` and memory are per rank. ``most_stores`` is the reference's
    max-concurrent-allocs: how many objects wait to be stored before users wait.
    """

    number: int
    title: str
    model: str
    users: int
    cpu_mem_gb: int
    most_stores: int
    duration_s: int = 300
    gpu_mem_gb: int = 0
    generation_mode: str = "none"

    @property
    def name(self) -> str:
        """The scenario's."""
        return f"mlperf-{self.number}"


CLOSED_OPTIONS: tuple[ClosedOption, ...] = (
    ClosedOption(
        number=1, title="Max Storage Stress", model="llama3.1-8b", users=200, cpu_mem_gb=0,
        most_stores=16,
    ),
    ClosedOption(
        number=2, title="Storage Throughput", model="llama3.1-8b", users=100, cpu_mem_gb=4,
        most_stores=16,
    ),
    ClosedOption(
        number=3, title="Large Model", model="llama3.1-70b-instruct", users=70, cpu_mem_gb=0,
        most_stores=4,
    ),
)  # fmt: skip
CLOSED_SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class MlperfUser:
    """One user: its longest context and answer in tokens, and how long it usually thinks."""

    kind: str
    service_class: str
    context_tokens: int
    output_tokens: int
    think_s: float


def draw_users(seed: int, count: int) -> tuple[MlperfUser, ...]:
    """The reference's users with this seed: the same draws, of the same generator, in its order.

    Of seed 42 and 200 users that is what published logs of the reference say of theirs.
    """
    generator = random.Random(seed)
    users = []
    for _ in range(count):
        kind = tuple(USER_TYPES)[_below(generator, len(USER_TYPES))]
        drawn = generator.random()
        limits = USER_TYPES[kind]
        users.append(
            MlperfUser(
                kind=kind,
                service_class=next(name for name, end in SERVICE_CLASSES if drawn < end),
                context_tokens=_between(generator, limits.context_tokens),
                output_tokens=_between(generator, limits.output_tokens),
                think_s=limits.think_s.low
                + (limits.think_s.high - limits.think_s.low) * generator.random(),
            )
        )
    return tuple(users)


def _below(generator: random.Random, count: int) -> int:
    """Draw from 0 to ``count`` - 1 as Python's own choice and randint do."""
    bits = count.bit_length()
    while (drawn := generator.getrandbits(bits)) >= count:
        pass
    return drawn


def _between(generator: random.Random, limits: Range) -> int:
    return int(limits.low) + _below(generator, int(limits.high - limits.low) + 1)


def object_tokens(context_tokens: int, context_scale: float) -> int:
    """What a context takes on the storage, in tokens: only this is scaled, not who reads it."""
    return max(1, int(context_tokens * context_scale))


def own_reads(context_tokens: int, output_tokens: int) -> int:
    """How often a request reads the object that it has just stored."""
    if context_tokens >= WRITE_ONLY_TOKENS:
        return 0
    return 1 + max(1, -(-output_tokens // TOKENS_PER_READ))


class _Conversations:
    """One user's requests, a conversation after the other."""

    __slots__ = ("_conversation", "_number", "_rng", "_sizes", "_spec", "_token_bytes", "_turns",
                 "_user")  # fmt: skip

    def __init__(self, spec: WorkloadContext, number: int, user: MlperfUser) -> None:
        identity = f"{spec.seed}/{spec.trial}/{spec.rank}/{number}".encode()
        self._rng = random.Random(int.from_bytes(blake2b(identity, digest_size=8).digest(), "big"))
        self._spec = spec
        self._token_bytes = token_bytes_of(spec)
        self._number = number
        self._user = user
        self._conversation = 0
        self._turns: list[bytes] = []
        self._sizes: list[int] = []

    def _drawn(self, longest: int) -> int:
        # random() is the one method whose sequence Python promises to keep.
        least = max(1, longest // _LEAST_PART)
        return least + int(self._rng.random() * (longest - least + 1))

    def next_turn(self) -> Request:
        """The user's next request."""
        user, spec, draw = self._user, self._spec, self._rng.random
        think_s = user.think_s * (_THINK_LOW + _THINK_SPAN * draw())
        ends = draw() < _END_SHARE or len(self._turns) >= MOST_TURNS
        if ends and self._turns:
            self._conversation += 1
            self._turns, self._sizes = [], []
        context, output = self._drawn(user.context_tokens), self._drawn(user.output_tokens)
        looks_up, variant = draw() < _PROMPT_SHARE, int(draw() * len(_PROMPT_TOKENS))
        beside, beside_sizes = tuple(self._turns), tuple(self._sizes)
        if looks_up:
            prompt = chain_key(b"", f"{spec.seed}/prompt/{variant}".encode())
            beside = (prompt, *beside)
            beside_sizes = (_PROMPT_TOKENS[variant] * self._token_bytes, *beside_sizes)
        own = f"{spec.seed}/{spec.trial}/{spec.rank}/{self._number}/{self._conversation}/"
        key = chain_key(b"", own.encode() + len(self._turns).to_bytes(4, "big"))
        size = object_tokens(context, spec.context_scale) * self._token_bytes
        self._turns.append(key)
        self._sizes.append(size)
        return Request(
            user=self._number,
            keys=(key,),
            prompt_blocks=1,
            prompt_tokens=object_tokens(context, spec.context_scale),
            output_tokens=output,
            think_s=think_s,
            sizes=(size,),
            beside=beside,
            beside_sizes=beside_sizes,
            rereads=own_reads(context, output),
            service_class=user.service_class,
        )


class MlperfWorkload:
    """The users of one rank in a closed loop (implements ``Workload``)."""

    open_loop = False

    def __init__(self, spec: WorkloadContext) -> None:
        self._users = [
            _Conversations(spec, number, user)
            for number, user in enumerate(draw_users(spec.seed + spec.rank, spec.users))
        ]

    @property
    def users(self) -> int:
        """How many users take turns."""
        return len(self._users)

    def population(self) -> Iterator[Request]:
        """Nothing: the reference starts with an empty cache."""
        return iter(())

    def next_request(self, user: int) -> Request | None:
        """The next request of ``user``; never ends."""
        return self._users[user].next_turn()


@dataclass(frozen=True, slots=True, kw_only=True)
class MlperfFamily:
    """The scenario of one closed option (implements ``WholeObjectFamily``)."""

    option: ClosedOption
    needs_trace = False

    @property
    def values(self) -> Mapping[str, str | None]:
        """What the scenario brings itself, by the option's name, as it would be typed."""
        option = self.option
        tiers = {}
        if option.gpu_mem_gb or option.cpu_mem_gb:
            tiers = {"tier_policy": "demote", "cpu_tier": "memory"}
        return MappingProxyType(
            {
                "model": option.model,
                "kv_dtype": "auto",
                "tensor_parallel": "1",
                "reread_factor": "0",
                "request_rate": None,
                "load_steps": None,
                "requests": None,
                "num_users": str(option.users),
                "duration": str(option.duration_s),
                "ramp": "0",
                "gpu_mem_gb": str(option.gpu_mem_gb),
                "cpu_mem_gb": str(option.cpu_mem_gb),
                "generation_mode": option.generation_mode,
                "seed": str(CLOSED_SEED),
                "context_scale": "1",
                "layout": "block",
                "store": "file",
                "phase": "both",
                **tiers,
            }
        )

    @property
    def most_stores(self) -> int:
        """Objects of a rank that wait to be stored before its users wait."""
        return self.option.most_stores

    def block_tokens(self, context_scale: float) -> int:
        """The longest object that any user may store."""
        return object_tokens(LONGEST_CONTEXT_TOKENS, context_scale)

    def need(self, context: WorkloadContext) -> Need:
        """Every user's conversation with all its turns, each as long as the user's longest.

        A cache that holds so much misses no turn that can be asked for, however fast the storage
        is; what conversations hold that are over comes on top, and goes first.
        """
        users = draw_users(context.seed + context.rank, context.users)
        tokens = sum(object_tokens(u.context_tokens, context.context_scale) for u in users)
        return Need(
            working_set_blocks=-(-MOST_TURNS * tokens // context.block_tokens), is_populated=False
        )

    def build(self, context: WorkloadContext) -> Workload:
        """One rank's stream of requests."""
        return MlperfWorkload(context)


def token_bytes_of(context: WorkloadContext) -> int:
    """Bytes of a token on one rank; ValueError where the context does not say."""
    if context.token_bytes is None:
        raise ValueError("token_bytes is None; the objects of mlperf scenarios are sized by it")
    return context.token_bytes


FAMILIES: Mapping[str, MlperfFamily] = MappingProxyType(
    {option.name: MlperfFamily(option=option) for option in CLOSED_OPTIONS}
)
