from __future__ import annotations

from pytest_kvcache.ioengines.protocol import READ, WRITE
from pytest_kvcache.measure.recorder import Recorder, Window
from pytest_kvcache.ranks.calibration import _operations_by_part, fastest_per_s


def test_a_busy_moment_does_not_decide_what_an_engine_can_do() -> None:
    assert fastest_per_s([1000, 4000, 500], 0.2, 0.6) == 20_000


def test_a_few_operations_are_not_told_apart() -> None:
    assert fastest_per_s([0, 1, 0], 0.2, 0.5) == 2


def test_an_engine_that_was_stopped_at_once_has_no_rate() -> None:
    assert fastest_per_s([0, 0, 0], 0.2, 0.0) is None
    assert fastest_per_s([0, 0, 0], 0.2, 0.6) is None


def test_operations_are_counted_whatever_their_sizes() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, 600_000_000))
    for done_ms, kind, size in ((50, READ, 1), (150, WRITE, 1 << 30), (450, READ, 4096)):
        recorder.log.add(kind, 0, 0, done_ms * 1_000_000, size, 1)
    recorder.finish()
    assert _operations_by_part(recorder) == [2, 0, 1]
