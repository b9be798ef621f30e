from __future__ import annotations

import pytest

from pytest_kvcache.report.tables import describe_plan
from pytest_kvcache.traces.recorded import reading_notes
from tests.factories import make_plan, make_trace_plan


@pytest.mark.parametrize("speedup", [0.0, 1.0])
def test_a_replay_of_lengths_only_is_said_to_have_no_reuse(speedup: float) -> None:
    lengths = make_trace_plan(
        ids="none", left_out=1_234, tokens_by="4 characters each", speedup=speedup
    )
    said = describe_plan(make_plan(trace=lengths))
    assert "; lengths only: no prompt shares a block with another, so there is no reuse; " in said
    assert "; tokens counted by 4 characters each; 1,234 of the file's requests left out; " in said


def test_blocks_that_were_derived_are_said_to_be() -> None:
    assert reading_notes("cached", 0, "") == ["blocks derived from the lengths of cached prefixes"]


@pytest.mark.parametrize("ids", ["prefix", "content"])
def test_of_ids_nothing_more_is_said(ids: str) -> None:
    assert reading_notes(ids, 0, "") == []
