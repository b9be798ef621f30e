from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.measure.live import LiveFigures, Recent
from pytest_kvcache.measure.series import coarse_index
from tests.factories import S

if TYPE_CHECKING:
    from collections.abc import Sequence

GIB = 1 << 30


def ns(values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def report(
    t_ns: int, reads_ns: Sequence[int] = (), writes: int = 0, size: int = GIB
) -> dict[str, Any]:
    """What a rank tells that has completed these."""
    recent = Recent()
    recent.add("read", coarse_index(ns(reads_ns)), ns([size] * len(reads_ns)))
    recent.add("write", coarse_index(ns([5_000] * writes)), ns([size] * writes))
    recent.publish(t_ns)
    return recent.take(t_ns)


def live_of(ranks: int, begin_ns: int = 0) -> LiveFigures:
    """All ranks have told once."""
    live = LiveFigures(ranks)
    for rank in range(ranks):
        live.receive(rank, report(begin_ns))
    return live


def test_a_report_is_small_whatever_has_happened() -> None:
    busy = report(2**62, list(range(100, 10**6, 7)), 10**5)
    assert len(pickle.dumps(busy)) < 2_000


def test_a_report_counts_from_the_one_before() -> None:
    recent = Recent()
    recent.add("read", coarse_index(ns([1_000])), ns([7]))
    assert recent.take(1)["read_bytes"] == 0  # not published
    recent.publish(1)
    assert recent.take(1)["read_bytes"] == 7
    recent.publish(2)
    assert recent.take(2) == report(2)


def test_rates_are_per_second_of_the_ranks_own_clock() -> None:
    live = live_of(2)
    live.receive(0, report(2 * S, [1_000] * 4, writes=2))
    live.receive(1, report(S // 2, [1_000]))
    assert live.take() == {
        "operations_per_s": 5.0,
        "read_gib_per_s": 4.0,
        "write_gib_per_s": 1.0,
        "read_p99_ms": None,
    }


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9))
def test_one_report_more_or_less_between_two_lines_changes_no_rate(received: list[int]) -> None:
    live, at_ns = live_of(1), 0
    for reports in received:
        for _ in range(reports):
            at_ns += S // 2
            live.receive(0, report(at_ns, [1_000] * 50, size=GIB // 100))
        figures = live.take()
        assert figures is not None
        assert figures["operations_per_s"] == pytest.approx(100)
        assert figures["read_gib_per_s"] == pytest.approx(1, rel=1e-6)


def test_figures_that_lack_a_rank_are_none_and_are_made_up_for() -> None:
    live = live_of(2)
    live.receive(0, report(S, [1_000] * 100))
    assert live.take() is None
    live.receive(0, report(2 * S, [1_000] * 300))
    live.receive(1, report(2 * S, [1_000] * 2))
    figures = live.take()
    assert figures is not None
    assert figures["operations_per_s"] == 201
    assert live.take() is None


def test_a_phase_begins_without_figures() -> None:
    live = LiveFigures(1)
    assert live.take() is None
    live.receive(0, report(S, [1_000] * 100))
    assert live.take() is None
    live.receive(0, report(2 * S, [1_000]))
    live.restart()
    assert live.take() is None
    live.receive(0, report(3 * S, [1_000] * 100))
    live.receive(0, report(4 * S, [1_000]))
    figures = live.take()
    assert figures is not None
    assert figures["operations_per_s"] == 1


def test_a_second_without_operations_is_zero_without_a_percentile() -> None:
    live = live_of(1)
    live.receive(0, report(S))
    assert live.take() == {
        "operations_per_s": 0.0,
        "read_gib_per_s": 0.0,
        "write_gib_per_s": 0.0,
        "read_p99_ms": None,
    }


def test_the_p99_is_of_the_reads_of_all_ranks() -> None:
    live = live_of(2)
    live.receive(0, report(S, [1_000_000] * 98))
    live.receive(1, report(S, [50_000_000] * 2, writes=1_000))
    figures = live.take()
    assert figures is not None
    assert figures["read_p99_ms"] == pytest.approx(50, rel=1 / 16)
