"""What surrounded the run: the harness, and what else the machine did. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def whether_the_harness_was_fast(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """What the ranks could have done without the storage."""
    harness = data["harness"]
    if harness["client_bound"]:
        yield Verdict.of(
            "CLIENT_BOUND",
            f"a rank could make only {harness['headroom']:.1f} times as many operations"
            " without the storage; this measures the harness as well, use more ranks (--kv-np) or"
            " larger blocks (--kv-block-tokens)",
        )
