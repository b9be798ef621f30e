"""What --kv-phase=restart takes of the options, and what belongs to it alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.calls import BucketCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import Options, Origin, build_options

if TYPE_CHECKING:
    from collections.abc import Mapping


def typed(**texts: str) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


def test_without_metrics_it_has_those_that_few_objects_have() -> None:
    assert typed(phase="restart").metrics == ("run.s", "restart.objects_per_s")
    assert typed(phase="restart", metrics="restart.p99_ms").metrics == ("restart.p99_ms",)


@pytest.mark.parametrize("name", PROFILES)
def test_an_engine_finds_its_objects_again_as_it_does_or_is_refused(name: str) -> None:
    profile = PROFILES[name]
    if profile.lookup != "memory":
        assert typed(phase="restart", engine=name).restart_by == "lookups"
        assert typed(phase="restart", engine=name, restart_by="scan").restart_by == "scan"
        return
    with pytest.raises(OptionError, match=f"--kv-engine is {name}, ") as refused:
        typed(phase="restart", engine=name)
    if isinstance(profile.calls, BucketCalls):
        assert "packs objects into buckets" in str(refused.value)
    elif isinstance(profile.calls, SlotCalls):
        assert "slots of one file" in str(refused.value)
        assert ("read from the header" in str(refused.value)) == bool(profile.calls.header)
    else:
        assert "whose index is in memory and lost" in str(refused.value)
        assert typed(phase="restart", engine=name, restart_by="scan").restart_by == "scan"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"duration": "5"}, "--kv-duration is 5, and --kv-phase=restart makes no requests"),
        ({"ramp": "5"}, "--kv-ramp is 5, and"),
        ({"requests": "5"}, "--kv-requests is 5, and"),
        ({"request_rate": "5"}, "--kv-request-rate is 5, and"),
        ({"load_steps": "5,6"}, "--kv-load-steps is 5,6, and"),
        ({"generation_mode": "fast"}, "--kv-generation-mode is fast, and"),
        ({"performance_profile": "latency"}, "--kv-performance-profile is latency, and"),
        ({"prefill_rate": "5"}, "--kv-prefill-rate is 5, and"),
        ({"cost": "5"}, "--kv-cost is 5, and"),
        ({"power": "5"}, "--kv-power is 5, and"),
        ({"lookup": "all"}, "--kv-restart-by=lookups asks for every key"),
        ({"verify": "full"}, "--kv-verify is full, and"),
        ({"io_trace": "x"}, "--kv-io-trace is x, and"),
        ({"disable_multi_turn": "true"}, "--kv-disable-multi-turn is given, and"),
        ({"trace": "x"}, "those of a trace are all that it has"),
        ({"enable_autoscaling": "true", "slo": "run.s<5"}, "--kv-enable-autoscaling searches"),
        ({"gpu_mem_gb": "1"}, "--kv-gpu-mem-gb puts a memory tier in front"),
        ({"cpu_mem_gb": "1"}, "--kv-cpu-mem-gb puts a memory tier in front"),
        ({"store": "slab"}, "what a slab holds is known in memory alone"),
        ({"enable_rag": "true"}, "--kv-phase=restart makes no reads"),
        ({"metrics": "read.p95_ms"}, "name a metric that this run has (run.s)"),
        ({"slo": "requests.per_s>5"}, "--kv-phase=restart makes no requests"),
    ],
)
def test_what_a_restart_would_ignore_is_refused(texts: Mapping[str, str], said: str) -> None:
    given: dict[str, tuple[str | list[str], Origin]] = {
        name: ([text] if name == "slo" else text, "command line") for name, text in texts.items()
    }
    with pytest.raises(OptionError, match=re.escape(said)):
        build_options({**given, "phase": ("restart", "command line")})


@pytest.mark.parametrize("name", ["duration", "requests", "verify"])
def test_what_an_ini_has_for_other_runs_is_left_to_them(name: str) -> None:
    text = "full" if name == "verify" else "5"
    options = build_options({"phase": ("restart", "command line"), name: (text, "ini")})
    assert options.phase == "restart"
    with pytest.raises(OptionError, match=f"--kv-{name} is {text}, and --kv-phase=restart"):
        build_options({"phase": ("restart", "ini"), name: (text, "ini")})


@pytest.mark.parametrize(("name", "text"), [("restart_by", "lookups"), ("drop_caches", "true")])
def test_what_is_of_a_restart_alone_is_refused_elsewhere(name: str, text: str) -> None:
    flag = "--kv-" + name.replace("_", "-")
    with pytest.raises(OptionError, match=f"{flag} is .*, which belongs to a restart"):
        typed(**{name: text})
    assert build_options({name: (text, "ini")}).phase == "both"
    with pytest.raises(OptionError, match="only --kv-phase=restart finds again"):
        typed(metrics="restart.p99_ms")
