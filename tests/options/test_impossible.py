"""Metrics that a scenario can't have: skipped with the reason, refused where nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.options import (
    Options,
    build_options,
    impossible_metrics,
    why_impossible,
)

RATIO = "cache.hit_ratio"
WHY = "mlperf-1 stores each context as an object of its own, and hits no prefix"


def typed(**texts: str | list[str]) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


def test_a_hit_ratio_of_whole_objects_is_skipped_with_the_reason() -> None:
    assert why_impossible(RATIO, "both", "mlperf-1") == WHY
    assert why_impossible("worth.gpus_saved", "both", "mlperf-1") == WHY
    assert why_impossible("worth.dwpd", "both", "mlperf-1") is None
    assert why_impossible(RATIO, "both", "chat") is None
    found = impossible_metrics(typed(scenario="mlperf-1,chat", metrics=f"{RATIO},read.p95_ms"))
    assert found == [f"{RATIO} is skipped: {WHY}"]


def test_nothing_but_what_is_never_there_is_refused_before_a_launch() -> None:
    with pytest.raises(OptionError, match=r"--kv-metrics is cache\.hit_ratio, but mlperf-1 stores"):
        typed(scenario="mlperf-1", metrics=RATIO)
    with pytest.raises(OptionError, match=r"--kv-slo judges cache\.hit_ratio, but mlperf-1 stores"):
        typed(scenario="mlperf-1", slo=[f"{RATIO}>0.5"])
    assert typed(scenario="mlperf-1,chat", metrics=RATIO).metrics == (RATIO,)


@pytest.mark.parametrize(
    ("metric", "brings"),
    [
        ("worth.gpus_saved", "--kv-prefill-rate=TOKENS_PER_S"),
        ("worth.cost_per_mtok", "--kv-cost=PER_HOUR"),
        ("worth.joules_per_mtok", "--kv-power=WATTS"),
        ("requests.goodput_per_s", "--kv-performance-profile=latency"),
    ],
)
def test_a_metric_of_something_that_nobody_gave_is_refused_with_the_option(
    metric: str, brings: str
) -> None:
    limit = f"{metric}{'>' if METRICS[metric].better == 'higher' else '<'}1"
    asked: tuple[dict[str, Any], ...] = ({"metrics": metric}, {"slo": [limit]})
    for texts in asked:
        with pytest.raises(OptionError) as refused:
            typed(**texts)
        assert f"names {metric}, which needs " in str(refused.value)
        assert f"; add {brings}, or leave it out" in str(refused.value)


@pytest.mark.parametrize("name", ["prefill_rate", "cost", "power"])
@pytest.mark.parametrize("text", ["0", "-1", "fast"])
def test_a_rate_of_nothing_is_refused(name: str, text: str) -> None:
    with pytest.raises(OptionError, match="--kv-" + name.replace("_", "-")):
        build_options({name: (text, "command line")})
