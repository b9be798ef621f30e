"""The named sets of workload parameters, as data. Pure; imports nothing of the package.

Context, generation and think times of chat, coding and document follow the user types
of the MLPerf Storage v3.0 KV Cache benchmark (chatbot, coding, document); the agent
follows public coding-agent sessions: a long shared tool prefix, then many short turns,
which reuse over 90 % of their prompt. All token counts are multiplied by
``--kv-context-scale``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

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
    """How one kind of user behaves; all but ``think_s`` in tokens.

    Users of a profile share ``system_prompts`` different system prompts. A
    conversation opens with ``opening_tokens``, goes on with ``message_tokens`` per
    turn, and ends before its context would outgrow ``context_tokens``.
    """

    system_prompts: int
    system_tokens: int
    opening_tokens: Range
    message_tokens: Range
    output_tokens: Range
    context_tokens: int
    think_s: Range

    def __post_init__(self) -> None:
        longest = self.system_tokens + self.opening_tokens.high + self.output_tokens.high
        if longest > self.context_tokens:
            raise ValueError(
                f"the first turn may take {longest} tokens; context_tokens is"
                f" {self.context_tokens} and must hold it"
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
    }
)

# Shares of the users of each scenario; mixed is the one table of weights.
SYNTHETIC: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        **{name: MappingProxyType({name: 1.0}) for name in PROFILES},
        "mixed": MappingProxyType({"chat": 0.4, "coding": 0.25, "document": 0.15, "agent": 0.2}),
    }
)

TRACE = "trace"

# Named in the documents, not here yet: refused by name.
LATER: frozenset[str] = frozenset({"rag", "mlperf-1", "mlperf-2", "mlperf-3"})
