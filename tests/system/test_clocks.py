"""Several clocks and one span of time."""

from __future__ import annotations

import json
import time

from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.system.clocks import ClockRecord, SpanWatch, TwoClocks, raw_clock_ns
from tests.factories import FakeClock, S, clock_record


def test_the_kernel_s_raw_clock_goes_with_the_monotonic_one() -> None:
    began = TwoClocks.read()
    time.sleep(0.05)
    span_s, raw_span_s = TwoClocks.read().since_s(began)
    assert span_s >= 0.05
    if raw_clock_ns() is not None:
        assert raw_span_s is not None
        assert abs(raw_span_s - span_s) < 0.005


def test_a_scaled_clock_is_told_by_the_other_one() -> None:
    measuring, raw = FakeClock(), FakeClock()
    began = TwoClocks.read(measuring, raw)
    measuring.advance(S)
    raw.advance(2 * S)
    assert TwoClocks.read(measuring, raw).since_s(began) == (1.0, 2.0)


def test_an_unknown_raw_clock_has_no_span() -> None:
    began = TwoClocks.read(FakeClock(), lambda: None)
    assert TwoClocks.read(FakeClock(), lambda: None).since_s(began) == (0.0, None)


def test_a_record_survives_json() -> None:
    record = clock_record(drift_s=-0.5, drift_rank=3)
    assert ClockRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_what_the_controller_did_not_see_stays_unknown() -> None:
    record = clock_record(controller_least_s=None, controller_most_s=None)
    watch = SpanWatch(FakeClock())
    watch.receive("window")
    assert watch.fill(record) == record


@given(
    looks_ns=st.lists(st.integers(1, S), min_size=4, max_size=30),
    begin=st.floats(0, 1), length=st.floats(0, 1),
)  # fmt: skip
def test_the_true_span_lies_between_what_the_controller_saw(
    looks_ns: list[int], begin: float, length: float
) -> None:
    clock = FakeClock(0)
    total_ns = sum(looks_ns)
    began_ns = 1 + int(begin * total_ns / 2)
    ended_ns = began_ns + int(length * (total_ns - began_ns) / 2)
    watch, due = SpanWatch(clock), [(began_ns, "window"), (ended_ns, "clean-up")]
    for step_ns in looks_ns:
        clock.advance(step_ns)
        watch.look()
        while due and due[0][0] <= clock.now_ns:
            watch.receive(due.pop(0)[1])
    assert not due
    seen = watch.fill(clock_record())
    assert seen.controller_least_s is not None
    assert seen.controller_most_s is not None
    true_s = (ended_ns - began_ns) / 1e9
    assert seen.controller_least_s - 1e-9 <= true_s <= seen.controller_most_s + 1e-9
