"""Writes the tables of scenarios.md from the one of the package: ``python docs/scenarios.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.models import MODELS
from pytest_kvcache.units import format_bytes
from pytest_kvcache.workloads.protocol import WorkloadContext
from pytest_kvcache.workloads.scenarios import PROFILES, SYNTHETIC, TABLE, Profile, Range
from pytest_kvcache.workloads.synthetic import SyntheticFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.workloads.protocol import Request

PAGE = Path(__file__).with_name("scenarios.md")
MARK = "<!-- {}: written by scenarios.py; edit pytest_kvcache/workloads/scenarios.py instead -->"
END = "<!-- end of {} -->"
MODEL = "llama3.1-8b"
# What the statistics are of; another seed or more users change the third digit.
BLOCK_TOKENS = 256
USERS = 20
TURNS = 200


def span(limits: Range) -> str:
    """A range of draws."""
    return f"{limits.low:,g} to {limits.high:,g}"


def row(name: str, profile: Profile) -> str:
    """One scenario of one kind of user."""
    size = profile.context_tokens * MODELS[MODEL].bytes_per_token
    cells = (
        f"`{name}`",
        f"{profile.system_tokens:,} ({profile.system_prompts} of them)",
        span(profile.opening_tokens),
        span(profile.message_tokens),
        span(profile.output_tokens),
        f"{profile.context_tokens:,}",
        f"{span(profile.think_s)} s",
        format_bytes(size),
        f"{SYNTHETIC['mixed'].get(name, 0):.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def profiles() -> Iterator[str]:
    """All kinds of users."""
    yield (
        "| scenario | system prompt | first message | each further one | answer | longest context"
        f" | thinks for | one user, {MODEL} | of the users of `mixed` |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from (row(name, profile) for name, profile in PROFILES.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What the requests of a scenario come to with a cache that never evicts; blocks per request.

    ``reuse_ratio`` is the share of the prompts' blocks that are found, ``read_blocks`` are those
    and the chunks' blocks that are found; ``turns`` are of dialogues that have ended.
    """

    prompt_tokens: float
    turns: float
    reuse_ratio: float
    read_blocks: float
    beside_blocks: float
    written_blocks: float
    think_s: float


def statistics(context: WorkloadContext, turns: int) -> Statistics:
    """So many requests of every user after the population, against a set of all stored keys."""
    workload = SyntheticFamily().build(context)
    stored = {key for request in workload.population() for key in request.keys}
    asked: list[Request] = []
    found: list[tuple[int, int, int]] = []
    begun = ended = 0
    before = dict.fromkeys(range(context.users), 0)
    since = dict(before)
    for user in (user for _ in range(turns) for user in range(context.users)):
        request = workload.next_request(user)
        assert request is not None
        hits = next(
            (
                at
                for at, key in enumerate(request.keys[: request.prompt_blocks])
                if key not in stored
            ),
            request.prompt_blocks,
        )
        beside = sum(key in stored for key in request.beside)
        new = {*request.keys, *request.beside} - stored
        stored |= new
        asked.append(request)
        found.append((hits, beside, len(new)))
        if request.prompt_tokens <= before[user] and since[user]:
            begun, ended, since[user] = begun + since[user], ended + 1, 1
        elif request.prompt_tokens <= before[user] or since[user]:
            since[user] += 1  # the first dialogue was seen from its middle on
        before[user] = request.prompt_tokens + request.output_tokens
    hits, beside, new = (sum(part) for part in zip(*found, strict=True))
    return Statistics(
        prompt_tokens=sum(request.prompt_tokens for request in asked) / len(asked),
        turns=begun / ended if ended else float("nan"),
        reuse_ratio=hits / sum(request.prompt_blocks for request in asked),
        read_blocks=(hits + beside) / len(asked),
        beside_blocks=beside / len(asked),
        written_blocks=new / len(asked),
        think_s=sum(request.think_s for request in asked) / len(asked),
    )


def context_of(scenario: str, **options: bool) -> WorkloadContext:
    """What the statistics of the page are of."""
    return WorkloadContext(
        users=USERS, block_tokens=BLOCK_TOKENS, context_scale=1.0, seed=42, trial=0, rank=0,
        trace=None, trace_speedup=0.0, trace_cycles=1,
        dialogues=TABLE.dialogues(scenario, **options),
    )  # fmt: skip


def measured() -> Iterator[str]:
    """What each scenario's requests come to."""
    yield (
        "| scenario | prompt, tokens | turns of a dialogue | reuse | read by a request | of that"
        " chunks | written by it | thinks for |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    block = BLOCK_TOKENS * MODELS[MODEL].bytes_per_token
    for name in SYNTHETIC:
        found = statistics(context_of(name), TURNS)
        cells = (
            f"`{name}`",
            f"{found.prompt_tokens:,.0f}",
            f"{found.turns:.1f}",
            f"{found.reuse_ratio:.3f}",
            format_bytes(round(found.read_blocks * block)),
            format_bytes(round(found.beside_blocks * block)),
            format_bytes(round(found.written_blocks * block)),
            f"{found.think_s:.2f} s",
        )
        yield "| " + " | ".join(cells) + " |"


def page(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("profiles", profiles), ("statistics", measured)):
        mark, end = MARK.format(name), END.format(name)
        head, found, rest = text.partition(mark)
        _old, ended, tail = rest.partition(end)
        if not (found and ended):
            raise SystemExit(f"{PAGE} must have the lines {mark!r} and {end!r} around its table")
        text = f"{head}{mark}\n\n" + "\n".join(table()) + f"\n\n{end}{tail}"
    return text


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
