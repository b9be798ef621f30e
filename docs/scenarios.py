"""Writes the table of scenarios.md from the one of the package: ``python docs/scenarios.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.models import MODELS
from pytest_kvcache.units import format_bytes
from pytest_kvcache.workloads.scenarios import PROFILES, SYNTHETIC, Profile, Range

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_name("scenarios.md")
MARK = "<!-- written by scenarios.py; edit pytest_kvcache/workloads/scenarios.py instead -->"
END = "<!-- end of what scenarios.py writes -->"
MODEL = "llama3.1-8b"


def span(limits: Range) -> str:
    """A range of draws."""
    return f"{limits.low:,g} to {limits.high:,g}"


def turns(profile: Profile) -> float:
    """Of a dialogue, with mean lengths, until the next turn would outgrow the context."""
    first = profile.system_tokens + mean(profile.opening_tokens) + mean(profile.output_tokens)
    further = mean(profile.message_tokens) + mean(profile.output_tokens)
    return 1 + max(0.0, profile.context_tokens - first) // further


def mean(limits: Range) -> float:
    """Of a uniform draw."""
    return (limits.low + limits.high) / 2


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
        f"{turns(profile):.0f}",
        f"{span(profile.think_s)} s",
        format_bytes(size),
        f"{SYNTHETIC['mixed'][name]:.0%}",
    )
    return "| " + " | ".join(cells) + " |"


def table() -> Iterator[str]:
    """All kinds of users."""
    yield (
        "| scenario | system prompt | first message | each further one | answer | longest context"
        f" | turns | thinks for | one user, {MODEL} | of the users of `mixed` |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from (row(name, profile) for name, profile in PROFILES.items())


def page(text: str) -> str:
    """The page with its table written anew."""
    head, found, rest = text.partition(MARK)
    _old, ended, tail = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"{PAGE} must have the lines {MARK!r} and {END!r} around its table")
    return f"{head}{MARK}\n\n" + "\n".join(table()) + f"\n\n{END}{tail}"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
