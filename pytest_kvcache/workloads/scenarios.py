"""The one table of distributions of the synthetic scenarios, as data. Pure.

Context, generation and think times of chat, coding and document follow the user types
of the MLPerf Storage v3.0 KV Cache benchmark (chatbot, coding, document), and so do retrieval
(10 documents, chunks of 512 tokens, 5 of them by Zipf, in a tenth of the requests where it is
added) and the classes of service with their objectives; the agent
follows public coding-agent sessions: a long shared tool prefix, then many short turns,
which reuse over 90 % of their prompt. All token counts are multiplied by
``--kv-context-scale``. ``--kv-workload`` changes what is here (workloadfile.py).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Uniform draws from ``low`` to ``high``, both ends included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a range runs from {self.low} to {self.high}; it must ascend from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How one kind of user behaves; all but ``think_s`` and ``retrieval_ratio`` in tokens.

    Users of a profile share ``system_prompts`` different system prompts. A
    conversation opens with ``opening_tokens``, goes on with ``message_tokens`` per
    turn, and ends before its context would outgrow ``context_tokens``. A request retrieves
    chunks of a document with the probability ``retrieval_ratio``.
    """

    system_prompts: int
    system_tokens: int
    opening_tokens: Range
    message_tokens: Range
    output_tokens: Range
    context_tokens: int
    think_s: Range
    retrieval_ratio: float = 0.0

    def __post_init__(self) -> None:
        longest = self.longest_opening_tokens
        if longest > self.context_tokens:
            raise ValueError(
                f"the first turn may take {longest:g} tokens; context_tokens is"
                f" {self.context_tokens} and must hold it"
            )

    @property
    def longest_opening_tokens(self) -> float:
        """The longest first turn, with its answer."""
        return self.system_tokens + self.opening_tokens.high + self.output_tokens.high

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of ``asdict``."""
        spans = {name: Range(**part) for name, part in data.items() if isinstance(part, dict)}
        return cls(**{**{name: data[name] for name in cls.__dataclass_fields__}, **data, **spans})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """What retrieval-augmented users retrieve from: documents of their own, in chunks.

    A request that retrieves takes one of the user's ``documents`` and of it ``top_k`` different
    chunks, the one at position i with a weight of 1/(i+1) (Zipf). A chunk is of at least a block.
    With ``--kv-enable-rag`` users that never retrieve do so with the probability ``added_ratio``.
    """

    documents: int
    document_tokens: Range
    chunk_tokens: int
    top_k: int
    added_ratio: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Retrieval:
        """The inverse of ``asdict``."""
        return cls(**{**data, "document_tokens": Range(**data["document_tokens"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceClass:
    """What some of the users expect: of so many percent of their requests, a time each.

    ``share`` of the users are of this class. The times are those of a request that reads nothing;
    what it reads makes them longer (``Service``).
    """

    share: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    p9999_ms: float

    def __post_init__(self) -> None:
        times = (self.p95_ms, self.p99_ms, self.p999_ms, self.p9999_ms)
        if list(times) != sorted(times):
            raise ValueError(f"the objectives are {times} ms; from p95_ms to p9999_ms they ascend")


LIMITS: Final = ("p95_ms", "p99_ms", "p999_ms", "p9999_ms")
"""The objectives of a class, from the first on, by which a request is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The objectives of requests, which know what they read.

    A request of a class is to be answered, simulated generation apart, within the class's time
    and that in which ``load_gib_per_s`` move the bytes that it reads. A class keeps its
    objectives if at least ``compliance_ratio`` of its requests are within the first time.
    Requests of workloads without classes are of the class ``unclassed``.
    """

    classes: Mapping[str, ServiceClass]
    load_gib_per_s: float
    compliance_ratio: float
    unclassed: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same value back."""
        classes = {name: asdict(each) for name, each in self.classes.items()}
        own = ("load_gib_per_s", "compliance_ratio", "unclassed")
        return {"classes": classes, **{name: getattr(self, name) for name in own}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Service:
        """The inverse of ``to_json``."""
        classes = {name: ServiceClass(**each) for name, each in data["classes"].items()}
        return cls(**{**data, "classes": classes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """Who the users of one synthetic scenario are, and how they talk: every effective value.

    ``weights`` are the shares of the ``profiles``, ``class_shares`` those of the classes of
    service; ``retrieval`` is None where nobody retrieves. ``file`` is where values of the
    user's own came from, ``digest`` of all values but that.
    """

    file: str | None
    weights: Mapping[str, float]
    profiles: Mapping[str, Profile]
    retrieval: Retrieval | None
    class_shares: Mapping[str, float]
    multi_turn: bool = True
    prefix_caching: bool = True

    @property
    def digest(self) -> str:
        """Of all values: equal in two runs whose users behave the same way."""
        values = {name: value for name, value in self._values().items() if name != "file"}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _values(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "weights": dict(self.weights),
            "profiles": {name: asdict(each) for name, each in self.profiles.items()},
            "retrieval": None if self.retrieval is None else asdict(self.retrieval),
            "class_shares": dict(self.class_shares),
            "multi_turn": self.multi_turn,
            "prefix_caching": self.prefix_caching,
        }

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same value back."""
        return {"digest": self.digest, **self._values()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dialogues:
        """The inverse of ``to_json``; OptionError if the digest is that of other values."""
        values = {name: value for name, value in data.items() if name != "digest"}
        values |= {name: data[name] for name in ("multi_turn", "prefix_caching")}  # never left out
        retrieval = data["retrieval"]
        parts: dict[str, Any] = {
            "profiles": {n: Profile.from_json(part) for n, part in data["profiles"].items()},
            "retrieval": None if retrieval is None else Retrieval.from_json(retrieval),
        }
        found = cls(**{**values, **parts})
        if found.digest != data["digest"]:
            raise OptionError(
                f"the digest of the dialogues is {data['digest']!r}; that of their values is"
                f" {found.digest!r}"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadTable:
    """All profiles, the scenarios made of them, retrieval and service.

    ``file`` is the one that changed what ships, None: none did; ``given`` its tables with their
    keys, or with the names of theirs.
    """

    profiles: Mapping[str, Profile]
    scenarios: Mapping[str, Mapping[str, float]]
    retrieval: Retrieval
    service: Service
    file: str | None = None
    given: tuple[tuple[str, str], ...] = ()

    def dialogues(
        self,
        scenario: str,
        *,
        multi_turn: bool = True,
        prefix_caching: bool = True,
        enable_rag: bool = False,
        documents: int | None = None,
    ) -> Dialogues:
        """What a scenario comes to with these options; ``documents`` None: the table's."""
        weights = {name: share for name, share in self.scenarios[scenario].items() if share}
        profiles = {name: self.profiles[name] for name in weights}
        retrieval = self.retrieval
        if enable_rag:
            profiles = {
                name: replace(each, retrieval_ratio=each.retrieval_ratio or retrieval.added_ratio)
                for name, each in profiles.items()
            }
        retrieves = any(each.retrieval_ratio for each in profiles.values())
        own = retrieval if documents is None else replace(retrieval, documents=documents)
        return Dialogues(
            file=self.file,
            weights=weights,
            profiles=profiles,
            retrieval=own if retrieves else None,
            class_shares={name: each.share for name, each in self.service.classes.items()},
            multi_turn=multi_turn,
            prefix_caching=prefix_caching,
        )


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "chat": Profile(
            system_prompts=4,
            system_tokens=512,
            opening_tokens=Range(low=64, high=512),
            message_tokens=Range(low=32, high=256),
            output_tokens=Range(low=50, high=200),
            context_tokens=4_096,
            think_s=Range(low=0.1, high=0.5),
        ),
        "coding": Profile(
            system_prompts=2,
            system_tokens=2_048,
            opening_tokens=Range(low=1_024, high=8_192),
            message_tokens=Range(low=128, high=1_024),
            output_tokens=Range(low=100, high=500),
            context_tokens=25_000,
            think_s=Range(low=0.2, high=1.0),
        ),
        "document": Profile(
            system_prompts=2,
            system_tokens=512,
            opening_tokens=Range(low=4_096, high=12_288),
            message_tokens=Range(low=32, high=128),
            output_tokens=Range(low=200, high=800),
            context_tokens=16_384,
            think_s=Range(low=0.3, high=1.5),
        ),
        "agent": Profile(
            system_prompts=1,
            system_tokens=8_192,
            opening_tokens=Range(low=256, high=1_024),
            message_tokens=Range(low=64, high=512),
            output_tokens=Range(low=50, high=200),
            context_tokens=32_768,
            think_s=Range(low=0.1, high=0.5),
        ),
        # Asks as chat does, and each question retrieves.
        "rag": Profile(
            system_prompts=4,
            system_tokens=512,
            opening_tokens=Range(low=64, high=512),
            message_tokens=Range(low=32, high=256),
            output_tokens=Range(low=50, high=200),
            context_tokens=4_096,
            think_s=Range(low=0.3, high=1.5),
            retrieval_ratio=1.0,
        ),
    }
)

# Shares of the users of each scenario; mixed is the one table of weights. Nobody of it is of rag,
# whose documents alone are twenty times a user's context.
SYNTHETIC: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        **{name: MappingProxyType({name: 1.0}) for name in PROFILES},
        "mixed": MappingProxyType({"chat": 0.4, "coding": 0.25, "document": 0.15, "agent": 0.2}),
    }
)

TABLE: Final = WorkloadTable(
    profiles=PROFILES,
    scenarios=SYNTHETIC,
    retrieval=Retrieval(
        documents=10,
        document_tokens=Range(low=4_000, high=12_000),
        chunk_tokens=512,
        top_k=5,
        added_ratio=0.1,
    ),
    service=Service(
        classes=MappingProxyType(
            {
                "interactive": ServiceClass(
                    share=0.15, p95_ms=50, p99_ms=100, p999_ms=150, p9999_ms=200
                ),
                "responsive": ServiceClass(
                    share=0.35, p95_ms=100, p99_ms=200, p999_ms=350, p9999_ms=500
                ),
                "batch": ServiceClass(
                    share=0.5, p95_ms=1_000, p99_ms=5_000, p999_ms=7_500, p9999_ms=10_000
                ),
            }
        ),
        # A load must not take longer than the computing that it saves. An 8B model takes 16 GFLOP
        # a token; half of an A100's 312 TFLOP/s (bfloat16, dense) are 9,750 tokens/s, which is
        # 1.19 GiB/s of the 131,072 bytes that llama3.1-8b has a token.
        load_gib_per_s=1.0,
        compliance_ratio=0.95,
        unclassed="responsive",
    ),
)
"""What ships; the one place where a number of a synthetic scenario stands."""

TRACE = "trace"
