"""Writes the table of models.md from the one of the package: ``python docs/models.py``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.models import MODELS, STATE
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.models import ModelSpec

PAGE = Path(__file__).with_name("models.md")
MARK = "<!-- written by models.py; edit pytest_kvcache/models/shipped.py instead -->"
END = "<!-- end of what models.py writes -->"
BLOCK_TOKENS = 256


def kept(model: ModelSpec) -> str:
    """What its layers keep: so many of each kind, and how much."""
    return ", ".join(
        f"{group.layers} {group.kind}"
        + (f" {group.window_tokens:,}" if group.window_tokens else "")
        + (f" {format_bytes(group.held_state_bytes)}" if group.kind == STATE else "")
        for group in model.layer_groups
    )


def row(model: ModelSpec) -> str:
    """One model."""
    sizes = model.group_bytes(BLOCK_TOKENS, 1)
    cells = (
        f"`{model.name}`",
        kept(model),
        model.dtype,
        f"{model.bytes_per_token:,}",
        f"{model.bytes_per_late_token:,}",
        " + ".join(map(format_bytes, sizes)),
        model.source + (f"; {model.note}" if model.note else ""),
    )
    return "| " + " | ".join(cells) + " |"


def table() -> Iterator[str]:
    """All models that have a name."""
    yield (
        "| `--kv-model` | layers | KV in | bytes of a token | of one beyond the windows"
        f" | objects of a block of {BLOCK_TOKENS} tokens | source of the figures |"
    )
    yield "|---|---|---|---|---|---|---|"
    yield from map(row, MODELS.values())


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
